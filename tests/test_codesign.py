"""codesign: what is compared with what, and how times are put together."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nanosd_lib.data import splits
from nanosd_lib.hardware import tile
from nanosd_lib.learning import align
from nanosd_lib.networks import arch, counting, pipeline, vae
from nanosd_lib.quality import autoencoders, codesign, metrics
from nanosd_lib.recipes import slimming
from nanosd_lib.views import vae_figures


@pytest.fixture(scope="module")
def pipe(sd_mini):
    return sd_mini


@pytest.fixture(scope="module")
def student(pipe):
    torch.manual_seed(0)
    return vae.slim(pipe.vae).eval().requires_grad_(False)


def test_correlations_are_those_of_numpy_in_each_channel():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 2, 4, 4, generator=g)
    found = autoencoders.correlations(a, b)
    for c in range(2):
        want = np.corrcoef(a[:, c].flatten(), b[:, c].flatten())[0, 1]
        assert float(found[c]) == pytest.approx(want, abs=1e-6)
    assert autoencoders.correlations(a, 3 * a + 1).tolist() == pytest.approx([1, 1])


def test_the_teacher_beside_itself_and_a_student_beside_the_teacher(pipe, student):
    own = autoencoders.compare(pipe, None, 4, "mini-attributes", 0)
    assert own["table"].part.eq("both").all() and own["table"].latent_corr.isna().all()
    assert set(own["table"].pictures) == {"held-out scenes", "held-out photographs"}
    found = autoencoders.compare(pipe, student, 4, "mini-attributes", 0)
    table = found["table"].set_index(["pictures", "part"])
    for kind in ("held-out scenes", "held-out photographs"):
        x, both = found["examples"][kind], found["examples"][f"{kind}, both"]
        psnr = metrics.psnr(x, both).mean()
        assert table.psnr[kind, "both"] == pytest.approx(float(psnr), rel=1e-5)
        assert table.latent_corr[kind, "both"] == table.latent_corr[kind, "encoder"]
        assert np.isnan(table.latent_corr[kind, "decoder"])
    with torch.no_grad():  # the swap is what it says
        z = pipe.vae.encode(x).latent_dist.mean
        mixed = student.decode(z).sample.clamp(-1, 1)
    torch.testing.assert_close(found["examples"][f"{kind}, decoder"], mixed, atol=1e-5, rtol=0)


def test_what_a_correlation_does_not_see(pipe, student):
    """An encoder off by a scale and an offset: the correlation is the same, less is explained."""
    plain = autoencoders.compare(pipe, student, 2, "mini-attributes", 0)["channels"]
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.encoder[-1].weight[:4] *= 3
        other.encoder[-1].bias[:4] += 20
    moved = autoencoders.compare(pipe, other, 2, "mini-attributes", 0)["channels"]
    np.testing.assert_allclose(moved["corr"], plain["corr"], atol=1e-3)
    assert (moved.explained < plain.explained - 1).all() and (plain.explained <= 1).all()


def test_a_strip_begins_and_ends_at_its_pictures(pipe):
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    strip = autoencoders.strip(pipe.vae, x, 5)
    ends = autoencoders.pictures(pipe.vae, autoencoders.latents(pipe.vae, x)[0])
    torch.testing.assert_close(strip[[0, -1]], ends, atol=1e-5, rtol=0)


def test_one_step_denoising_of_nearly_no_noise_is_a_reconstruction(pipe):
    table = autoencoders.compare(pipe, None, 8, "mini-attributes", 0)["table"].set_index("pictures")
    near, far = (codesign.denoised(pipe, 8, t, 0).mean() for t in (1, 600))
    assert near == pytest.approx(table.psnr["held-out scenes"], abs=1.0) and far < near - 3


def test_times_of_the_four_configurations():
    parts = [("text encoder", "teacher", 1.0)]
    parts += [("VAE encoder", "teacher", 10.0), ("VAE encoder", "slim", 2.0)]
    parts += [("VAE decoder", "teacher", 20.0), ("VAE decoder", "slim", 3.0)]
    parts += [("U-Net", "teacher", 30.0), ("U-Net", "slim", 4.0)]
    parts = pd.DataFrame(parts, columns=["component", "model", "ms_median"])
    table = tile.pipeline_time(parts, "g")
    assert list(table) == ["geometry", "configuration", "component", "ms_median"]
    whole = tile.whole(table).set_index("configuration")
    ms = {"teacher": 61, "slim U-Net": 35, "slim VAE": 36, "both slim": 10}
    assert whole.ms.to_dict() == ms
    assert whole.ratio.to_dict() == {k: v / 61 for k, v in ms.items()}
    assert whole.vae_share["slim U-Net"] == pytest.approx(30 / 35)
    assert whole.vae_share["both slim"] == pytest.approx(0.5)


def test_ratios_to_the_teacher(pipe, student):
    counted = tile.vae_costs(pipe.vae, 64)
    how = dict(vaes={"teacher": pipe.vae, "slim": student, "tiny": vae.tiny(pipe.vae)})
    timed = tile.profile_tile(pipe, str(arch.NANOSD["N2"]), **how, batch=1, repeats=1, warmup=0)
    table = tile.against_teacher(tile.with_latency(counted, timed["table"]))
    assert len(table) == 6 and table[table.model == "teacher"].faster.eq(1).all()
    slim = table[table.model == "slim"].set_index("part")
    assert (slim.fewer_macs > 5).all()
    assert slim.params["encoder"] == counting.parameters(student.encoder)
    assert table.faster_low.isna().all()  # one round has no interval
    ends = timed["table"].drop(columns=tile.FASTER).assign(ms_low=1.0, ms_median=2.0, ms_high=4.0)
    wide = tile.against_teacher(tile.with_latency(counted, ends))
    wide = wide[wide.model != "teacher"]
    assert {tuple(row) for row in wide[tile.FASTER].to_numpy()} == {(1.0, 0.25, 4.0)}


def test_ratios_of_rounds_are_paired(monkeypatch, pipe, student):
    """A machine twice as slow in some rounds is so for both: their ratio keeps its width."""
    vaes = {"teacher": pipe.vae, "slim": student}

    def rounds(calls, repeats, warmup):
        slow, drift = np.where(np.arange(20) % 2, 2.0, 1.0), 1 + np.arange(20) / 100
        return pd.DataFrame({k: slow * (8 if "teacher" in k else 2 * drift) for k in calls})

    monkeypatch.setattr(tile.timing, "rounds", rounds)
    how = dict(batch=1, repeats=20, warmup=0)
    made = tile.profile_tile(pipe, str(arch.NANOSD["N2"]), vaes, **how)["table"]
    slim = made[made.model == "slim"].set_index("component").loc["VAE decoder"]
    assert slim.ms_high / slim.ms_low > 1.8 and slim.faster_high / slim.faster_low < 1.2
    assert slim.faster_low < slim.faster < slim.faster_high


def test_the_judge_costs_what_its_backbone_costs():
    """VGG-16's convolutions take 15.35 G multiply-adds at 224 pixels (Simonyan & Zisserman)."""
    assert autoencoders.judge_gmac("lpips-vgg", 224) == pytest.approx(2 * 15.35, rel=0.01)
    assert (
        0
        < autoencoders.judge_gmac("mini-attributes", 64)
        < autoencoders.judge_gmac("lpips-vgg", 64)
    )


def test_a_batch_is_where_the_network_is():
    z, text, g = torch.zeros(2, 4, 2, 2), torch.zeros(2, 3, 5), torch.Generator().manual_seed(0)
    schedule = SimpleNamespace(
        config=SimpleNamespace(num_train_timesteps=10), alphas_cumprod=torch.linspace(1, 0, 10)
    )
    read = splits.Latents(z, text, text[:1], own=z)
    batch = splits.noisy(read, schedule, 2, g, device=torch.device("meta"))
    assert {v.device.type for v in batch.values()} == {"meta"} and "own" in batch
    with pytest.raises(ValueError, match="own has 1 latents, z 2"):
        splits.Latents(z, text, text[:1], own=z[:1])


def training_rng():
    return torch.Generator().manual_seed(1)


def test_both_read_the_same_noise():
    g = torch.Generator().manual_seed(0)
    z, own = torch.randn(2, 6, 4, 8, 8, generator=g)
    text = torch.zeros(6, 2, 3)
    scheduler = pipeline.load_teacher("data/sd-mini").scheduler
    both = splits.Latents(z, text, text[:1], own)
    b = splits.noisy(both, scheduler, 4, torch.Generator().manual_seed(1))
    plain = splits.Latents(z, text, text[:1])
    alone = splits.noisy(plain, scheduler, 4, torch.Generator().manual_seed(1))
    assert "own" not in alone and torch.equal(alone["x"], b["x"])
    same = splits.noisy(splits.Latents(z, text, text[:1], z), scheduler, 4, training_rng())
    assert torch.equal(same["own"], same["x"])
    assert not torch.allclose(b["own"], b["x"])


class Echo(torch.nn.Module):
    """A U-Net that returns its input times a number that can be learned."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, gain: float):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x, t, encoder_hidden_states):
        return SimpleNamespace(sample=self.gain * x)


def test_alignment_reads_the_students_own_latents(tmp_path):
    """With equal latents it is what it was; a student that reads others learns something else."""
    x = torch.randn(4, 4, 8, 8, generator=training_rng())
    batch = {"x": x, "t": torch.zeros(4), "text": torch.zeros(4, 1, 1)}
    made = {}
    for name, own in (("none", {}), ("same", {"own": x}), ("negative", {"own": -x})):
        net = Echo(2.0)
        align.align(
            nn.ModuleDict({"net": net}),
            Echo(3.0),
            lambda g, b=batch | own: b,
            4,
            1e-2,
            tmp_path / name,
        )
        made[name] = net.gain.item()
    assert made["negative"] < 2 < made["none"] == made["same"]


def test_seeds_of_two_runs_never_meet(monkeypatch):
    runs = [
        SimpleNamespace(seed=s, profile=SimpleNamespace(vae=SimpleNamespace(seeds=3)))
        for s in (0, 1)
    ]
    a, b = (set(slimming.seeds(r)) for r in runs)
    assert len(a) == len(b) == 3 and not a & b


def test_the_detail_is_the_busiest_part_of_the_original():
    x = torch.zeros(2, 3, 32, 32)
    x[0, :, 20:28:2, 4:12] = 1  # stripes; the other picture is empty but for one corner
    x[1, :, :4, 28:] = 1
    corners = vae_figures.busiest(x, box=8)
    (y, left), (top, right) = corners
    assert 18 <= y <= 21 and 2 <= left <= 5 and top == 0 and right == 24
    shown = vae_figures.detail(x, corners, box=8)
    assert shown.shape == x.shape
    assert torch.equal(shown[1, :, ::4, ::4], x[1, :, :8, 24:])
    rows = vae_figures.judged(x, {"slim": x})
    assert rows["slim, error"].max() == -1 and torch.equal(
        rows["slim, detail"], rows["original, detail"]
    )
