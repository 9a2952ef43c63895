"""restoration: the one-step formula, colour fixes, adapters that load anywhere, OSEDiff."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from nanosd_lib.data import degradations, splits
from nanosd_lib.learning import fit
from nanosd_lib.networks import arch, pipeline, surgery, vae
from nanosd_lib.quality import extractors, metrics, uncertainty
from nanosd_lib.restoration import (
    adapters,
    colour,
    judging,
    lesson,
    one_step,
    osediff,
    s3diff,
    scratch,
)
from nanosd_lib.restoration.pairs import Pairs


@pytest.fixture(scope="module")
def pipe():
    return pipeline.load_teacher("data/sd-mini")


@pytest.fixture(scope="module")
def n2(pipe):
    return surgery.student(str(arch.NANOSD["N2"]), pipe.unet)


# ---------------------------------------------------------------------------------------- one step
def test_the_gain_is_the_published_schedules(pipe):
    """sqrt((1 - abar) / abar) of SD's schedule at the timesteps that published systems use."""
    g = one_step.gain(one_step.alphas(pipe))
    for t, want in {999: 14.6, 399: 1.16, 273: 0.757, 200: 0.572}.items():
        assert float(g[t]) == pytest.approx(want, rel=0.005)
    assert (g.diff() > 0).all()


def test_the_matched_timestep_has_that_gain(pipe):
    abar = one_step.alphas(pipe)
    for t in (20, 199, 800):
        assert one_step.matched(abar, float(one_step.gain(abar)[t])) == t


class Oracle(torch.nn.Module):
    """A U-Net that knows the clean latent."""

    def __init__(self, clean, abar, t):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))
        self.clean, self.abar, self.t, self.text = clean, abar, t, None

    def forward(self, x, t, encoder_hidden_states):
        assert t == self.t
        self.text = encoder_hidden_states
        eps = (x - self.abar**0.5 * self.clean) / (1 - self.abar) ** 0.5
        return SimpleNamespace(sample=eps)


@pytest.mark.parametrize("t", [199, 999])
def test_whoever_predicts_the_damage_gets_the_clean_latent(pipe, t):
    x = splits.pictures("heldout", 2, 0, 0)[0]
    damaged, a = degradations.pairs(x, "mild", 0), float(one_step.alphas(pipe)[t])
    with torch.no_grad():
        clean = vae.encoded(pipe.vae, x)[0]
        one = one_step.of(pipe, Oracle(clean, a, t), pipe.vae, t)
        torch.testing.assert_close(one.latent(damaged), clean, atol=2e-3, rtol=1e-3)
    assert torch.equal(one.unet.text[0], pipeline.embed(pipe, [""])[0])  # never a caption


def test_at_the_matched_timestep_the_damaged_latent_stands_for_clean_and_noise(pipe):
    """Where the U-Net sees no noise, nothing is changed."""
    x = splits.pictures("heldout", 1, 0, 0)[0]

    class Nothing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t, encoder_hidden_states):
            return SimpleNamespace(sample=torch.zeros_like(x))

    with torch.no_grad():
        z = vae.encoded(pipe.vae, x)[0]
        torch.testing.assert_close(one_step.of(pipe, Nothing(), pipe.vae, 199).latent(x), z)


def test_the_distance_is_of_each_picture():
    a = torch.zeros(2, 4, 3, 3)
    b = torch.stack([torch.full((4, 3, 3), 0.5), torch.full((4, 3, 3), 2.0)])
    assert one_step.distance(a, b).tolist() == [0.5, 2.0]


# ------------------------------------------------------------------------------------------ colour
X = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_wavelet_fix_takes_back_a_tint_and_keeps_detail():
    tinted = X + torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(colour.wavelet(tinted, X), X, atol=1e-5, rtol=0)
    flat = X.mean((2, 3), keepdim=True).expand_as(X)
    assert (colour.wavelet(X, flat) - X).abs().mean() < 0.1  # the damaged one brings no detail


def test_the_wavelet_fix_is_local():
    """A tile with its margin gives what the whole picture gives."""
    other, margin = X.flip(0), 2**3 - 1
    whole = colour.wavelet(X, other, 3)[..., 40:60, 40:60]
    cut = (..., slice(40 - margin, 60 + margin), slice(40 - margin, 60 + margin))
    inner = colour.wavelet(X[cut], other[cut], 3)[..., margin:-margin, margin:-margin]
    torch.testing.assert_close(inner, whole, atol=1e-5, rtol=0)
    less = (..., slice(40 - 2, 60 + 2), slice(40 - 2, 60 + 2))
    short = colour.wavelet(X[less], other[less], 3)[..., 2:-2, 2:-2]
    assert not torch.allclose(short, whole, atol=1e-3)


def test_adain_gives_the_damaged_mean_and_deviation():
    y = colour.adain(0.2 * X + 0.4, X)
    torch.testing.assert_close(y, X, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------- adapters
def filled(net, part, name="a", seed=0):
    """The network with an adapter of random weights."""
    adapters.add(net, part, 4, name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in adapters.trained(net).values():
            p.normal_(std=0.1)
    return net


def drawn(net, pipe):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 32, 32, generator=g), pipeline.embed(pipe, ["a red cube"])
    with torch.no_grad():
        return net(x, 100, encoder_hidden_states=text).sample


@pytest.fixture
def file(pipe, n2, tmp_path):
    """An adapter of N2 and of the VAE's encoder, and what the two networks give with it."""
    net, auto = filled(copy.deepcopy(n2), "unet"), filled(copy.deepcopy(pipe.vae), "vae")
    path = tmp_path / "osediff-N2.safetensors"
    save_file(adapters.weights("a", unet=net, vae=auto), path)
    with torch.no_grad():
        z = vae.encoded(auto, X[:1, :, :64, :64])[0]
    return path, drawn(net, pipe), z


def test_a_new_adapter_changes_nothing_and_only_it_learns(pipe, n2):
    net = copy.deepcopy(n2)
    names = adapters.add(net, "unet", 4, "a")
    assert torch.equal(drawn(net, pipe), drawn(n2, pipe))
    learning = adapters.trained(net)
    assert learning and all(".lora_" in k for k in learning)
    assert "conv_in" in names and not any("time_emb" in k for k in names)
    auto = copy.deepcopy(pipe.vae)
    assert not any(k.startswith("decoder") for k in adapters.add(auto, "vae", 4, "a"))


def test_ranks_are_a_quarter_of_the_width_and_conv_ins_is_full(pipe):
    each, net = adapters.ranks(pipe.unet, "unet", 64), dict(pipe.unet.named_modules())
    for name, r in each.items():
        weight = net[name].weight
        if name == "conv_in":
            assert r == min(len(weight), weight[0].numel())
        else:
            assert r == max(1, min(64, min(weight.shape[:2]) // 4))


def test_a_full_rank_expresses_any_conv_in(pipe, n2):
    """What the published systems train fully: some matrices B A are any change of the weight."""
    net = copy.deepcopy(n2)
    adapters.add(net, "unet", 4, "a")
    layer = net.conv_in
    wanted = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(wanted.flatten(1), full_matrices=False)
    with torch.no_grad():
        layer.lora_B["a"].weight.copy_((u * s)[..., None, None])
        layer.lora_A["a"].weight.copy_(v.view(-1, *layer.weight.shape[1:]))
    torch.testing.assert_close(layer.get_delta_weight("a"), wanted, atol=1e-4, rtol=1e-4)


def test_a_file_loads_here_and_in_diffusers(pipe, n2, file):
    path, want, z = file
    net, auto = copy.deepcopy(n2), copy.deepcopy(pipe.vae)
    counted = adapters.load(path, "b", unet=net, vae=auto)
    parts = {"unet": n2, "vae": pipe.vae}
    assert counted == {part: len(adapters.layers(x, part)) for part, x in parts.items()}
    torch.testing.assert_close(drawn(net, pipe), want)
    with torch.no_grad():
        torch.testing.assert_close(vae.encoded(auto, X[:1, :, :64, :64])[0], z)
    plain = copy.deepcopy(n2)
    plain.load_lora_adapter(path, prefix="unet")
    torch.testing.assert_close(drawn(plain, pipe), want)


def test_adapters_are_swapped_and_the_base_comes_back_bit_for_bit(pipe, n2, file):
    path, want, _ = file
    net, auto, base = copy.deepcopy(n2), copy.deepcopy(pipe.vae), drawn(n2, pipe)
    adapters.load(path, "b", unet=net, vae=auto)
    other = {k: -v for k, v in load_file(path).items()}
    adapters.load(other, "c", unet=net, vae=auto)
    assert net.active_adapters() == ["c"]
    net.set_adapter("b")
    torch.testing.assert_close(drawn(net, pipe), want)
    for name in ("b", "c"):
        adapters.unload(name, unet=net, vae=auto)
    assert torch.equal(drawn(net, pipe), base)
    assert torch.equal(net.state_dict()["conv_in.base_layer.weight"], n2.conv_in.weight)


def test_what_does_not_fit_is_refused_by_name_and_nothing_is_loaded(pipe, n2, file, caplog):
    path, _, _ = file
    teacher, auto = copy.deepcopy(pipe.unet), copy.deepcopy(pipe.vae)
    with pytest.raises(ValueError, match=r"osediff-N2.safetensors: unet\..* does not fit"):
        adapters.load(path, "b", unet=teacher, vae=auto)
    assert not getattr(teacher, "peft_config", {}) and not getattr(auto, "peft_config", {})
    with pytest.raises(ValueError, match="it has 17 layers for the vae: give vae="):
        adapters.load(path, "b", unet=n2)
    bare = {k.removeprefix("unet."): v for k, v in load_file(path).items()}
    with pytest.raises(ValueError, match="holds no layer of a U-Net"):
        adapters.load(bare, "b", unet=n2, vae=auto)
    with caplog.at_level(logging.WARNING):  # where diffusers goes on without a word that one reads
        copy.deepcopy(n2).load_lora_adapter(bare, prefix="unet")
    net = copy.deepcopy(n2)
    adapters.load(path, "b", unet=net, vae=auto)
    with pytest.raises(ValueError, match="has an adapter 'b' already"):
        adapters.load(path, "b", unet=net, vae=auto)


def test_a_slim_vae_takes_an_adapter_too(pipe):
    base = vae.slim(pipe.vae)
    auto, again = filled(copy.deepcopy(base), "vae"), copy.deepcopy(base)
    net = filled(copy.deepcopy(pipe.unet), "unet")
    state = adapters.weights("a", unet=net, vae=auto)
    adapters.load(state, "b", unet=copy.deepcopy(pipe.unet), vae=again)
    x = X[:1, :, :64, :64]
    with torch.no_grad():
        a, b, c = (vae.encoded(v, x)[0] for v in (auto, again, base))
    torch.testing.assert_close(a, b)
    assert not torch.allclose(a, c, atol=1e-3)


def test_another_part_is_refused(pipe):
    with pytest.raises(ValueError, match="part 'text': use one of unet, vae"):
        adapters.add(pipe.text_encoder, "text", 4, "a")


# ----------------------------------------------------------------------------------------- OSEDiff
def pairs(pipe, scenes=6, crops=6):
    x, text = splits.pictures("train", scenes, crops, 0)
    return Pairs(((x + 1) * 127.5).round().byte(), pipeline.embed(pipe, text), "mild")


def train(pipe, unet, tmp_path, steps=3, weights=osediff.WEIGHTS, **how):
    numbers = {"batch": 2, "lr": 1e-3, "seed": 0, "t": 224, "rank": 4, "guidance": 3.0}
    return osediff.train(
        pipe, unet, pipe.vae, pairs(pipe), tmp_path, steps=steps, weights=weights,
        loss="mini-attributes", **numbers, **how,
    )  # fmt: skip


def test_distillation_pulls_towards_the_teacher(pipe):
    """Its gradient is (x0 of the regulariser - x0 of the teacher) over the teacher's distance: none
    where both agree; descent along it brings z nearer to what the teacher sees.
    """
    z = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    text, empty = pipeline.embed(pipe, ["a red cube"] * 2), pipeline.embed(pipe, [""])
    abar, g = one_step.alphas(pipe), lambda: torch.Generator().manual_seed(3)

    def one(regulariser, guidance):
        loss = osediff.vsd(z, text, empty, abar, pipe.unet, regulariser, guidance, g()).sum()
        return torch.autograd.grad(loss, z)[0] * z[0].numel()

    assert one(pipe.unet, 1.0).abs().max() < 1e-4

    class Other(torch.nn.Module):  # sees a little more noise everywhere
        def forward(self, x, t, encoder_hidden_states):
            s = pipe.unet(x, t, encoder_hidden_states=encoder_hidden_states).sample
            return SimpleNamespace(sample=s + 0.1)

    t = torch.randint(*osediff.BETWEEN, (2,), generator=g())
    noise_gain = one_step.gain(abar)[t].float().view(-1, 1, 1, 1)
    grad = one(Other(), 1.0)  # x0 of the regulariser lies 0.1 gain lower
    assert (grad < 0).all()
    ratio = (grad / noise_gain).flatten(1)
    assert (ratio.std(1) / ratio.mean(1).abs()).max() < 1e-3  # one number for a picture


def test_training_moves_the_adapters_alone_and_is_resumed(pipe, n2, tmp_path):
    before = {k: v.clone() for k, v in n2.state_dict().items()}
    made = train(pipe, n2, tmp_path / "a")
    assert all(torch.equal(v, n2.state_dict()[k]) for k, v in before.items())
    first = made["training"]["record"][0]["first"]
    assert set(first) == {"loss", "l2", "lpips", "vsd", "regulariser"}
    assert all(len(v) == 3 for v in first.values())
    again = train(pipe, n2, tmp_path / "a")  # from its last checkpoint
    for k, v in made["weights"].items():
        assert torch.equal(v, again["weights"][k])
    start = train(pipe, n2, tmp_path / "b", until=2)["training"]["record"][0]["first"]
    assert start["loss"] == first["loss"][:2]
    without = train(pipe, n2, tmp_path / "c", weights=osediff.WEIGHTS | {"vsd": 0.0}, until=1)
    assert set(without["training"]["record"][0]["first"]) == {"loss", "l2", "lpips"}


def test_a_trained_system_restores_better_than_the_bare_one(pipe, tmp_path):
    """Ten steps of L2 and the perceptual loss, on pictures that it has seen: the loss can fall."""
    some = pairs(pipe, 4, 0)
    weights = osediff.WEIGHTS | {"vsd": 0.0}
    clean = some.pixels.float() / 127.5 - 1
    damaged = degradations.pairs(clean, "mild", 1)
    made = osediff.train(
        pipe, pipe.unet, pipe.vae, some, tmp_path, steps=24, batch=4, lr=2e-3, seed=0, t=224,
        rank=4, weights=weights, guidance=3.0, loss="mini-attributes",
    )  # fmt: skip
    bare, taught = (
        osediff.restorer(pipe, pipe.unet, pipe.vae, 224, w)(damaged)
        for w in (None, made["weights"])
    )
    error = [float((y - clean).pow(2).mean()) for y in (bare, taught)]
    assert error[1] < 0.95 * error[0]


def test_the_regulariser_teaches_itself_alone(pipe):
    z = torch.randn(2, 4, 32, 32, requires_grad=True)
    net = filled(copy.deepcopy(pipe.unet), "unet")
    text, abar = pipeline.embed(pipe, ["", ""]), one_step.alphas(pipe)
    loss = osediff.regularised(z, text, abar, net, torch.Generator().manual_seed(0))
    loss.backward()
    assert z.grad is None and all(p.grad is not None for p in adapters.trained(net).values())


def test_learning_holds_each_parameter_once(pipe):
    net = filled(copy.deepcopy(pipe.vae), "vae")
    learning = lesson.Learning(vae=net)
    assert len(learning) == len(adapters.trained(net))
    assert {p.data_ptr() for p in learning.values()} == {
        p.data_ptr() for p in adapters.trained(net).values()
    }
    assert fit.Schedule(1, 1e-3).rate(0) > 0


# ----------------------------------------------------------------------------------------- judging
def test_luma_is_bt601s():
    corners = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    y = judging.luma(corners[:, :, None, None])[:, 0, 0, 0]
    want = torch.tensor([235, 16, 65.481 + 16, 128.553 + 16, 24.966 + 16]) / 127.5 - 1
    torch.testing.assert_close(y, want)


def test_a_frechet_distance_of_sets_resamples_the_sets():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 2, generator=g).double(), torch.randn(60, 2, generator=g).double() + 1
    alone = uncertainty.frechet(a, b)
    off = torch.arange(3).repeat_interleave(20)[:, None]
    apart = uncertainty.frechet(a, b + off, each=[20] * 3)
    assert alone.low < alone.value < alone.high and apart.low < apart.value < apart.high
    assert (apart.high - apart.low) / apart.value > (alone.high - alone.low) / alone.value


def test_judging_restored_pictures(pipe):
    sampled = pipeline.Sampling(steps=1, guidance=1.0)
    how = {"n": 6, "family": "mild", "judge": "mini-clip", "how": sampled, "said": "bicubic"}
    plain = judging.judged(pipe, None, ["none"], **how)
    table = plain["table"].set_index("data")
    assert table.n.to_dict() == {"held-out scenes": 6, "held-out photographs": 6}
    top = judging.ceiling(pipe, pipe.vae, 6, "mini-clip", sampled)
    through = top["table"].set_index("data")
    for kind in table.index:
        assert through.psnr_y[kind] > table.psnr_y[kind] and through.lpips[kind] < table.lpips[kind]
        assert through.frechet[kind] < table.frechet[kind]
    x = plain["pictures"]
    again = metrics.psnr(*(judging.luma(x[f"held-out scenes, {k}"]) for k in ("clean", "none")))
    torch.testing.assert_close(again, plain["sets"]["held-out scenes, none, psnr_y"].float())


def test_restorations_whose_rows_are_known_are_made_again_for_the_first_alone(pipe):
    """The same table from eight pictures of a kind; refused where a measure or a feature moved."""
    how = {"n": 24, "family": "mild", "judge": "mini-clip", "said": "half"}
    how |= {"how": pipeline.Sampling(steps=1, guidance=1.0)}
    asked: list[int] = []

    def half(x):
        asked.append(len(x))
        return x / 2

    whole = judging.judged(pipe, half, ["none", "wavelet"], **how)
    n = sum(asked)
    known = {k: v.half() for k, v in whole["features"].items()}
    again = judging.judged(pipe, half, ["none", "wavelet"], **how, known=known)
    assert sum(asked) - n == 8 + 6 < n  # scenes, and one crop of each photograph
    pd.testing.assert_frame_equal(again["table"], whole["table"], rtol=0.01)
    for name, x in whole["pictures"].items():
        torch.testing.assert_close(again["pictures"][name], x)
    for column in (0, 2, 10, -1):  # PSNR, LPIPS, a feature; a feature of the second fix
        other = {k: v.clone() for k, v in known.items()}
        other["half: held-out photographs"][0, column] += 1
        with pytest.raises(ValueError, match="half: held-out photographs: pictures drawn again"):
            judging.judged(pipe, half, ["none", "wavelet"], **how, known=other)
    with pytest.raises(ValueError, match="numbers a picture are shipped"):
        judging.judged(pipe, half, ["none"], **how, known=known)


def test_the_judges_lpips_sees_blur_and_noise():
    x = splits.pictures("heldout", 6, 0, 0)[0]
    soft = colour.low(x, 1)
    softer, noisy = colour.low(x, 3), (x + 0.2 * torch.randn_like(x)).clamp(-1, 1)
    d = [float(extractors.perceptual(x, y, "mini-clip").mean()) for y in (x, soft, softer, noisy)]
    assert d[0] < 1e-6 < d[1] < d[2] and d[3] > d[1]


# ------------------------------------------------------------------------------------------ S3Diff
@pytest.fixture(scope="module")
def three(pipe, n2):
    return s3diff.system(pipe, n2, pipe.vae, 224, 4)


def damaged(n=2):
    return degradations.pairs(splits.pictures("heldout", n, 0, 0)[0], "mild", 0)


def test_blocks_are_the_networks_own_stages(pipe, n2):
    """Six stages in a student, its ends, and the encoder's parts; the teacher has three more."""
    mine = {b for b in s3diff.blocks_of(n2, pipe.vae) if b.startswith("unet.")}
    stages = {f"unet.{way}_blocks.{i}" for way in ("down", "up") for i in range(3)}
    assert mine == stages | {"unet.conv_in", "unet.conv_out"}
    whole = {b for b in s3diff.blocks_of(pipe.unet, pipe.vae) if b.startswith("unet.")}
    assert whole - mine == {"unet.down_blocks.3", "unet.mid_block", "unet.up_blocks.3"}
    assert s3diff.block_of("encoder.down_blocks.0.resnets.0.conv1") == "encoder.down_blocks.0"
    assert s3diff.block_of("encoder.3.body.0") == "encoder"  # of the slim VAE


def test_before_it_has_learned_the_damage_changes_nothing(pipe, n2, three):
    x = damaged()
    plain = one_step.of(pipe, n2, pipe.vae, 224)
    with torch.no_grad():
        torch.testing.assert_close(three.latent(x), plain.latent(x))


def test_scores_turn_each_layers_lora(pipe, n2):
    one = s3diff.system(pipe, n2, pipe.vae, 224, 4)
    with torch.no_grad():
        for net in (one.unet, one.vae):
            for p in adapters.trained(net).values():
                p.normal_(std=0.05)
        x = damaged(1)
        alone = one.step(x, one.text)  # outside of `guided`: plain LoRA
        torch.testing.assert_close(one.latent(x), alone)  # the identity, so far
        one.modulation.out.weight.normal_(std=0.5)
        with one.guided(torch.tensor([[0.1, 0.9]])):
            noisy = one.step(x, one.text)
        with one.guided(torch.tensor([[0.9, 0.1]])):
            soft = one.step(x, one.text)
        assert not torch.allclose(noisy, soft, atol=1e-3)
        torch.testing.assert_close(one.step(x, one.text), alone)  # and nothing stays


def test_one_pair_of_scores_serves_a_whole_picture(three):
    x = damaged(3)
    assert not torch.equal(three.scored(x)[0], three.scored(x)[1])
    three.look(x)
    try:
        assert three.scored(x).unique(dim=0).shape[0] == 1
    finally:
        three.given = None


def test_the_negative_prompt_costs_a_second_pass(pipe, n2):
    one, count = s3diff.system(pipe, n2, pipe.vae, 224, 4), []
    one.unet.register_forward_hook(lambda m, a, k, o: count.append(len(a[0])), with_kwargs=True)
    x, negative = damaged(2), pipeline.embed(pipe, [s3diff.NEGATIVE])
    with torch.no_grad():
        plain, away = one.step(x, one.text), one.step(x, one.text, negative)
        other = one.step(x, negative)
    assert count == [2, 4, 2]
    torch.testing.assert_close(away, other + s3diff.GUIDANCE * (plain - other), atol=1e-4, rtol=0)


def test_the_generators_loss_leaves_the_discriminator_alone():
    heads = s3diff.Heads([2])
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    frozen = {k: p.detach() for k, p in heads.named_parameters()}
    s3diff.adversarial(torch.func.functional_call(heads, frozen, ([x],)), True).backward()
    assert x.grad is not None and all(p.grad is None for p in heads.parameters())
    sure = [torch.full((1, 1, 2, 2), 9.0)]
    assert s3diff.adversarial(sure, True) < 0.01 < s3diff.adversarial(sure, False)


def test_the_estimator_learns_how_a_picture_was_damaged():
    x, text = splits.pictures("train", 40, 40, 0)
    some = Pairs(((x + 1) * 127.5).round().byte(), torch.zeros(80, 1, 1), "mild")
    torch.manual_seed(0)
    net = s3diff.Estimator()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    losses = []
    for k in range(60):
        b = some.draw(16, 0, fit.rng(0, k))
        loss = (net(b.damaged) - b.scores).pow(2).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-8:]) / 8 < 0.75 * sum(losses[:4]) / 4


def test_s3diff_is_trained_kept_and_loaded(pipe, n2, tmp_path):
    numbers = dict(steps=3, batch=2, lr=1e-3, seed=0, t=224, rank=4, loss="mini-attributes")
    numbers |= {"weights": s3diff.WEIGHTS, "guidance": s3diff.GUIDANCE}
    parts = pipe, n2, pipe.vae, pairs(pipe)
    made = s3diff.train(*parts, tmp_path / "a", **numbers)
    first = made["training"]["record"][0]["first"]
    assert set(first) == {"loss", "l2", "lpips", "gan", "discriminator", "estimator"}
    again = s3diff.train(*parts, tmp_path / "b", until=2, **numbers)
    assert again["training"]["record"][0]["first"]["loss"] == first["loss"][:2]
    one = s3diff.restorer(pipe, n2, pipe.vae, 224, made["weights"])
    x = damaged(2)
    y = one(x)
    assert y.shape == x.shape and y.abs().max() <= 1
    bare = one_step.of(pipe, n2, pipe.vae, 224)(x)
    assert not torch.allclose(y, bare, atol=1e-3)
    part = {k: v for k, v in made["weights"].items() if not k.startswith("s3diff.")}
    net = copy.deepcopy(n2)
    net.load_lora_adapter(part, prefix="unet")  # its LoRA is a file for diffusers, too
    table = judging.estimated(4, "mild", 0, pipe, one)["table"]
    assert set(table.score) == {"blur", "noise"} and (table.error > 0).all()


# ------------------------------------------------------------------------------------ from scratch
def test_a_network_from_nothing_shares_no_weight_with_the_backbone(pipe, n2, tmp_path):
    numbers = dict(steps=2, batch=2, lr=1e-3, seed=0, t=224, rank=4, loss="mini-attributes")
    numbers |= {"weights": scratch.WEIGHTS, "guidance": 1.0}
    made = scratch.train(pipe, n2, pipe.vae, pairs(pipe), tmp_path, **numbers)
    own = {k.removeprefix("scratch."): v for k, v in made["weights"].items() if "scratch." in k}
    theirs = n2.state_dict()
    assert own.keys() == theirs.keys()
    matrices = [k for k, v in own.items() if v.ndim > 1]
    assert not any(torch.allclose(own[k].float(), theirs[k], atol=1e-3) for k in matrices)
    one = scratch.restorer(pipe, n2, pipe.vae, 224, made["weights"])
    assert torch.equal(one.unet.conv_in.weight.half(), own["conv_in.weight"])
    assert "restoration" in one.vae.peft_config and one(damaged()).shape == (2, 3, 64, 64)
