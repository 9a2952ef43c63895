"""vae: the student stands wherever AutoencoderKL stands, and each term teaches what it says."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from diffusers import AutoencoderKL, AutoModel, StableDiffusionPipeline

from nanosd_lib import paper
from nanosd_lib.hardware import tile
from nanosd_lib.learning import fit, vae_student
from nanosd_lib.networks import arch, counting, pipeline, sd15, surgery, vae
from nanosd_lib.quality import extractors

TINY = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=32,
    scaling_factor=0.7,
)
WEIGHTS = {"latent": 1.0, "kl": 1e-3, "reconstruction": 1.0, "perceptual": 0.1}


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return AutoencoderKL(**TINY).eval().requires_grad_(False)


@pytest.fixture
def student(teacher):
    torch.manual_seed(1)
    return vae.slim(teacher).eval()


def pictures(n: int, side: int = 32, seed: int = 0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -------------------------------------------------------------------------------------- the network


def test_parameters_at_sd15s_width_are_the_printed_ones():
    with torch.device("meta"):
        net = vae.slim(AutoencoderKL(**sd15.VAE))
    assert set(net.config.block_out_channels) == {64}
    printed = paper.restoration().query("task == 'vae' and metric == 'params_m'")
    assert set(printed.model) == {"encoder", "decoder"}
    for part, millions in zip(printed.model, printed.value, strict=True):
        ours = counting.parameters(getattr(net, part)) / 1e6
        assert ours == pytest.approx(millions, rel=0.1) and int(ours * 10) / 10 == millions


def test_it_costs_a_fraction_of_the_teacher():
    for config, side in ((sd15.VAE, 512), (sd15.VAE | {"sample_size": 256}, 256)):
        with torch.device("meta"):
            table = tile.vae_costs(AutoencoderKL(**config), side)
        gmac = table.set_index(["model", "part"]).gmac
        assert gmac["teacher", "encoder"] > 5 * gmac["slim", "encoder"]
        assert gmac["teacher", "decoder"] > 5 * gmac["slim", "decoder"]


def test_the_parts_are_the_whole_autoencoder(teacher):
    params = tile.vae_costs(teacher, 32).groupby("model").params.sum().to_dict()
    nets = {"teacher": teacher} | {k: make(teacher) for k, make in vae.KINDS.items()}
    assert params == {k: counting.parameters(net) for k, net in nets.items()}


def test_a_block_is_conv_norm_act_conv_around_an_identity():
    block = vae.Block(8, 2)
    x = pictures(2)[:, :1].expand(-1, 8, -1, -1)
    torch.testing.assert_close(block(x), x)  # at the start
    torch.nn.init.normal_(block.second.weight)
    want = x + block.second(torch.nn.functional.silu(block.norm(block.first(x))))
    torch.testing.assert_close(block(x), want)


def test_it_encodes_and_decodes_like_autoencoderkl(teacher, student):
    x = pictures(3)
    ours, theirs = student.encode(x).latent_dist, teacher.encode(x).latent_dist
    assert isinstance(student, AutoencoderKL) and type(ours) is type(theirs)
    assert ours.mean.shape == ours.std.shape == theirs.mean.shape == (3, 4, 16, 16)
    assert student.decode(ours.mean).sample.shape == x.shape
    assert student(x).sample.shape == x.shape
    assert student.config.scaling_factor == teacher.config.scaling_factor


@pytest.mark.parametrize("size", [(113, 64), (64, 113), (9, 15), (33, 30), (35, 39), (4, 7)])
def test_latents_of_odd_sizes_are_the_teachers(teacher, student, size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, theirs = (net.encode(x).latent_dist.mean for net in (student, teacher))
    assert ours.shape == theirs.shape == (1, 4, size[0] // 2, size[1] // 2)
    assert student.decode(ours).sample.shape == teacher.decode(theirs).sample.shape


def test_even_sizes_are_halved_as_by_a_plain_convolution():
    halve, x = vae.Halving(8), torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
    plain.load_state_dict(halve.state_dict())
    assert torch.equal(halve(x), plain(x))
    assert torch.equal(halve(torch.nn.functional.pad(x, (0, 1, 0, 1))), plain(x))  # cut again


def test_slicing_and_tiling(student):
    sizes = []
    student.encoder.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape)))
    for p in student.parameters():  # blocks that are not identities any more
        torch.nn.init.normal_(p, std=0.1)
    x = pictures(2, 64)
    z, y = student.encode(x).latent_dist.mean, student(x).sample
    student.enable_slicing()
    torch.testing.assert_close(student.encode(x).latent_dist.mean, z)
    assert sizes[-2:] == [(1, 3, 64, 64)] * 2
    student.enable_tiling()
    assert student.tile_sample_min_size == 32 and student.tile_latent_min_size == 16
    tiled = student.encode(x).latent_dist.mean
    assert tiled.shape == z.shape and not torch.equal(tiled, z)
    assert sizes[-1][-1] <= 32
    whole = student.decode(z).sample
    assert whole.shape == y.shape and not torch.equal(whole, y)
    student.disable_slicing()
    student.disable_tiling()
    torch.testing.assert_close(student(x).sample, y)


def test_save_and_load(student, tmp_path):
    student.save_pretrained(tmp_path)
    again = vae.SlimVAE.from_pretrained(tmp_path)
    x = pictures(1)
    for key in ("block_out_channels", "encoder_blocks", "decoder_blocks"):
        assert tuple(again.config[key]) == tuple(student.config[key])
    assert again.config.scaling_factor == student.config.scaling_factor
    torch.testing.assert_close(again(x).sample, student(x).sample, rtol=0, atol=0)


@pytest.mark.parametrize("how", [{}, {"low_cpu_mem_usage": False}], ids=["meta", "whole"])
@pytest.mark.parametrize("loader", [AutoencoderKL, AutoModel])
def test_other_loaders_say_which_class_loads_a_slim_vae(student, tmp_path, loader, how):
    student.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"nanosd_lib\.networks\.vae\.SlimVAE") as err:
        loader.from_pretrained(tmp_path, **how)
    assert "\n" not in str(err.value)
    with pytest.raises(ValueError, match="load it with nanosd_lib.networks.vae.SlimVAE"):
        AutoencoderKL.from_config(student.config)  # the configuration alone says it


def test_a_saved_slim_vae_comes_back_without_a_warning(student, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    student.save_pretrained(tmp_path)
    vae.SlimVAE.from_pretrained(tmp_path)
    assert caplog.text == ""
    config = json.loads((tmp_path / "config.json").read_text())
    older = {k: v for k, v in config.items() if not k.endswith("block_types")}
    (tmp_path / "config.json").write_text(json.dumps(older | {"_class_name": "SlimVAE"}))
    again = vae.SlimVAE.from_pretrained(tmp_path)
    assert torch.equal(again(pictures(1)).sample, student(pictures(1)).sample)


def test_in_a_pipeline(tmp_path):
    torch.manual_seed(0)
    pipe = pipeline.load_teacher("data/sd-mini")
    slim, n6 = vae.slim(pipe.vae).eval(), surgery.student(arch.NANOSD["N6"], pipe.unet).eval()
    whole = pipeline.with_parts(pipe, vae=slim, unet=n6)
    whole.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    alone = AutoModel.from_pretrained(str(tmp_path), subfolder="vae")
    assert type(alone) is type(again.vae) is vae.SlimVAE and isinstance(
        again.unet, surgery.NanoUNet
    )
    how = dict(num_inference_steps=1, output_type="np")
    made = [
        p("a", generator=torch.Generator().manual_seed(0), **how).images for p in (whole, again)
    ]
    assert made[0].shape[1:3] == (pipe.vae_scale_factor * pipe.unet.config.sample_size,) * 2
    assert abs(made[0] - made[1]).max() < 1e-5


def test_what_it_refuses(teacher):
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        vae.slim(teacher).enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="one width is wanted"):
        vae.SlimVAE(block_out_channels=(64, 64, 64, 32))
    with pytest.raises(ValueError, match="3 resolutions are wanted"):
        vae.SlimVAE(block_out_channels=(64, 64, 64))
    three = {k: (*v, v[-1]) for k, v in TINY.items() if isinstance(v, tuple)}
    with pytest.raises(ValueError, match=r"3 resolutions has no layout: use one of \[4, 2\]"):
        vae.slim(AutoencoderKL(**TINY | three))


def test_the_tiny_layout_speaks_scaled_latents(teacher):
    net = vae.tiny(teacher).eval()
    x = pictures(2)
    mean, std = vae.encoded(net, x)
    assert mean.shape == (2, 4, 16, 16) and std is None and net.config.scaling_factor == 1
    assert vae.decoded(net, mean).shape == x.shape


# --------------------------------------------------------------------------------- the four terms


def test_kl_is_torchs_own():
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 4, 3, 3, generator=g), torch.rand(2, 4, 3, 3, generator=g) + 0.1
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean / 0.7, std / 0.7), normal(0.0, 1.0))
    torch.testing.assert_close(vae_student.standard_kl(mean, std, 0.7), want.mean((1, 2, 3)))


def test_the_teacher_matches_itself(teacher):
    x = pictures(4)
    mean, std = vae.encoded(teacher, x)
    judge = extractors.lpips_over("mini-attributes")
    found = vae_student.terms(teacher, x, mean, std, fit.rng(0, 0), judge)
    assert set(found) == set(vae_student.TERMS) == set(WEIGHTS)
    assert float(found["latent"]) < 1e-10
    latent = teacher.encode(x).latent_dist  # whose own divergence is summed over the latent
    kl = latent.kl().mean() / latent.mean[0].numel()
    torch.testing.assert_close(found["kl"], kl, rtol=1e-4, atol=1e-6)
    assert float(found["reconstruction"]) > 0 and float(found["perceptual"]) > 0


@pytest.mark.parametrize("term", vae_student.TERMS)
def test_who_is_taught_by_a_term(teacher, student, term):
    """Latent matching and KL reach the encoder alone; the pictures reach both halves."""
    x = pictures(4)
    judge = extractors.lpips_over("mini-attributes")
    student.train()
    vae_student.terms(student, x, *vae.encoded(teacher, x), fit.rng(0, 0), judge)[term].backward()
    reached = {
        part: any(p.grad is not None and p.grad.abs().max() > 0 for p in half.parameters())
        for part, half in (("encoder", student.encoder), ("decoder", student.decoder))
    }
    assert reached == {"encoder": True, "decoder": term in ("reconstruction", "perceptual")}
    assert all(p.grad is None for p in teacher.parameters())


def distilled(teacher, tmp_path, steps, kind="slim", **changes):
    taught = {"pixels": ((pictures(16) + 1) * 127.5).byte()}
    taught["pixels"][:] = taught["pixels"][:, :, :1, :1]  # plain colours: soon learned
    with torch.no_grad():
        x = taught["pixels"].float() / 127.5 - 1
        taught["mean"], taught["std"] = vae.encoded(teacher, x)
    taught["std"] *= 0.05  # an untrained teacher's is too wide for a picture to pass through
    how = dict(batch=4, lr=5e-3, weights=WEIGHTS | changes, judge="mini-attributes", seed=0)
    how |= dict(teacher=teacher, taught=taught, size=32, scratch=tmp_path)
    return vae_student.distil(kind, steps, **how)


@pytest.mark.parametrize("kind", vae.KINDS)
def test_it_learns(teacher, tmp_path, kind):
    found = distilled(teacher, tmp_path, 200, kind)
    record = found["training"]["record"]
    assert record[-1]["latent"] < 0.75 * record[0]["latent"]
    assert record[-1]["perceptual"] < record[0]["perceptual"]
    net = vae.load(kind, teacher, found["weights"])
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_a_term_left_out_changes_the_weights_and_stays_in_the_record(teacher, tmp_path):
    whole = distilled(teacher, tmp_path / "a", 4)
    without = distilled(teacher, tmp_path / "b", 4, latent=0.0)
    assert without["training"]["record"][-1]["latent"] > 0
    key = "encoder.0.weight"
    assert not torch.equal(whole["weights"][key], without["weights"][key])


def test_it_resumes_where_it_was_stopped(teacher, tmp_path, monkeypatch):
    whole = distilled(teacher, tmp_path / "a", 16)
    asked, counted = vae_student.terms, []

    def stop(*args):
        counted.append(1)
        if len(counted) == 10:
            raise KeyboardInterrupt
        return asked(*args)

    monkeypatch.setattr(vae_student, "terms", stop)
    with pytest.raises(KeyboardInterrupt):
        distilled(teacher, tmp_path / "b", 16)
    monkeypatch.setattr(vae_student, "terms", asked)
    again = distilled(teacher, tmp_path / "b", 16)
    for k, v in whole["weights"].items():
        torch.testing.assert_close(again["weights"][k], v, rtol=0, atol=0)
