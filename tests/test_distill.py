"""distill: the teacher's own stages have no error, and thirty lessons in one pass are thirty."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn

from nanosd_lib.data import splits
from nanosd_lib.learning import align, fit, fwkd, pruning
from nanosd_lib.learning.sd_mini import SCHEDULER, UNET
from nanosd_lib.networks import arch, pipeline, surgery
from nanosd_lib.networks.arch import BASE, NANOSD, STAGES
from nanosd_lib.quality import tafid

NARROW = UNET | dict(
    sample_size=8,
    block_out_channels=(8, 16, 32, 32),
    cross_attention_dim=16,
    norm_num_groups=4,
    attention_head_dim=2,
)


def state(net: nn.Module) -> dict:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def a_batch(config: dict, n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    size, d = config["sample_size"], config["cross_attention_dim"]
    return {
        "x": torch.randn(n, 4, size, size, generator=g),
        "t": torch.randint(1000, (n,), generator=g),
        "text": torch.randn(n, 5, d, generator=g),
    }


def draw(g: torch.Generator) -> dict[str, torch.Tensor]:
    return a_batch(NARROW, 2, int(torch.randint(10**6, (1,), generator=g)))


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return UNet2DConditionModel(**NARROW).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def seen(teacher):
    return fwkd.look(teacher, a_batch(UNET))


# ------------------------------------------------------------------------------------------ looking


def test_hooks_go_back_whatever_happens(narrow):
    assert hooks(narrow) == 0
    with pytest.raises(RuntimeError, match="inside"), fwkd.captured(narrow):
        assert hooks(narrow) == 7  # six stages and D4
        raise RuntimeError("inside")
    assert hooks(narrow) == 0
    fwkd.look(narrow, a_batch(NARROW))
    assert hooks(narrow) == 0


def test_looking_changes_nothing(narrow):
    b, before = a_batch(NARROW), state(narrow)
    with torch.no_grad():
        plain = narrow(b["x"], b["t"], b["text"]).sample
        with fwkd.captured(narrow):
            watched = narrow(b["x"], b["t"], b["text"]).sample
    assert torch.equal(plain, watched) and same(before, narrow.state_dict())


def test_what_a_stage_reads_is_what_the_one_before_wrote(seen):
    entry = {s: seen[s].inputs["hidden_states"] for s in STAGES}
    assert torch.equal(entry["E2"], seen["E1"].outputs[-1])
    assert torch.equal(entry["D3"], seen["D4"].outputs[0])
    assert torch.equal(entry["D1"], seen["D2"].outputs[0])
    for e, d in (("E3", "D3"), ("E2", "D2"), ("E1", "D1")):
        skips = (entry[e], *seen[e].outputs[:2])  # entry, first, last
        read = seen[d].inputs["res_hidden_states_tuple"]
        assert len(read) == 3 and all(map(torch.equal, read, skips))


# ------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("e3_target", ["D4", "E3"])
@pytest.mark.parametrize("code, n", [("RARA", 2), ("RR", 2), ("RA", 1), ("R", 1)])
def test_what_e3_is_taught(seen, e3_target, code, n):
    want = fwkd.targets(seen, "E3", code, e3_target)
    assert [tuple(t.shape) for t in want] == [(4, 96, 8, 8)] * n
    last = seen["D3"].inputs["hidden_states"] if e3_target == "D4" else seen["E3"].outputs[1]
    assert torch.equal(want[-1], last)
    assert n == 1 or torch.equal(want[0], seen["E3"].outputs[0])


@pytest.mark.parametrize("stage, code", list(arch.alternatives()), ids=lambda v: v)
def test_every_surrogate_meets_its_targets(seen, teacher, stage, code):
    want = fwkd.targets(seen, stage, code)
    net = surgery.surrogate(stage, code, teacher)
    with torch.no_grad():
        got = fwkd.outputs(net, seen[stage].inputs)
    assert [g.shape for g in got] == [w.shape for w in want]
    one_r = code.count("R") == 1
    full = {"E1": 3, "E2": 3, "E3": 2}.get(stage, 1)
    assert len(want) == (full - one_r if stage[0] == "E" else 1)


@pytest.mark.parametrize("stage", STAGES)
def test_the_original_code_has_no_error(seen, teacher, stage):
    net = surgery.surrogate(stage, BASE[stage], teacher)
    with torch.no_grad():
        got = fwkd.outputs(net, seen[stage].inputs)
    want = fwkd.targets(seen, stage, BASE[stage], e3_target="E3")
    assert max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True)) <= 1e-5
    assert float(fwkd.relative_error(got, want)) <= 1e-10


def test_relative_error_of_a_copy_and_of_the_mean():
    g = torch.Generator().manual_seed(0)
    t = tuple(3 * torch.randn(4, 8, 16, 16, generator=g) + 5 for _ in range(2))
    assert fwkd.relative_error(t, t) == 0
    mean = tuple(x.mean().expand_as(x) for x in t)
    assert float(fwkd.relative_error(mean, t)) == pytest.approx(1, abs=1e-3)
    assert float(fwkd.relative_error((mean[0], t[1]), t)) == pytest.approx(0.5, abs=1e-3)
    scaled = tuple(100 * x for x in t)
    assert float(fwkd.relative_error(tuple(100 * m for m in mean), scaled)) == pytest.approx(
        float(fwkd.relative_error(mean, t)), rel=1e-4
    )


def test_features_are_paired_one_to_one():
    one = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError):
        fwkd.relative_error((one,), (one, one))


# -------------------------------------------------------------------------------------- FwKD itself


def test_a_few_steps_lower_the_error_on_what_was_not_seen(narrow, tmp_path):
    before, unseen = state(narrow), a_batch(NARROW, 8, seed=10**6)  # `draw` takes seeds below
    pairs = [("E1", "RA"), ("D2", "RA")]
    start = fwkd.errors(narrow, fwkd.surrogates(narrow, pairs), [unseen])
    nets, record = fwkd.distil(narrow, pairs, draw, 12, 1e-2, tmp_path)
    end = fwkd.errors(narrow, nets, [unseen])
    assert all(0 < end[k] < 0.8 * start[k] for k in start)
    assert record[-1]["step"] == 12 and not nets.training
    assert same(before, narrow.state_dict()) and hooks(narrow) == 0
    assert all(p.grad is None and not p.requires_grad for p in narrow.parameters())


def test_one_shared_pass_teaches_what_separate_passes_teach(narrow, tmp_path):
    pairs = [("E1", "RA"), ("E3", "R"), ("D2", "RA")]
    together, _ = fwkd.distil(narrow, pairs, draw, 5, 1e-2, tmp_path / "all", seed=3)
    for i, pair in enumerate(pairs):
        alone, _ = fwkd.distil(narrow, [pair], draw, 5, 1e-2, tmp_path / str(i), seed=3)
        start = fwkd.surrogates(narrow, [pair]).state_dict()
        for k, v in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[k], v, rtol=0, atol=1e-6)
        assert not same(start, alone.state_dict())


def test_the_original_e3_is_taught_too_and_takes_its_place(narrow):
    """E3:RARA learns D4's output; a network of six stages carries it, SD 1.5 whole does not."""
    pairs = arch.taught()
    assert len(pairs) == 31 and ("E3", "RARA") in pairs
    assert ("E3", "RARA") not in list(arch.alternatives())
    nets = fwkd.surrogates(narrow, [("E3", "RARA")])
    for p in nets.parameters():
        nn.init.constant_(p, 0.25)
    six = surgery.assemble(arch.Arch(**arch.BASE), narrow, nets)
    whole = surgery.assemble(NANOSD["SD1.5"], narrow, nets)
    assert all((p == 0.25).all() for p in six.stage("E3").parameters())
    assert not any((p == 0.25).all() for p in whole.stage("E3").parameters())


def test_one_error_for_all_codes_of_a_stage(narrow):
    """The teacher's own stage misses nothing that is read of it; a constant for each channel, 1."""
    batch = a_batch(NARROW, 8, seed=5)
    own = fwkd.surrogates(narrow, [("E1", "RARA"), ("D2", "RARARA")])
    both = fwkd.errors_each(narrow, own, [batch])
    assert all(x.abs().max() < 1e-10 for v in both.values() for x in v.values())
    seen = fwkd.look(narrow, batch)
    for t in fwkd.read_later(seen, "E1"):
        flat = t.mean((0, 2, 3), keepdim=True).expand_as(t)
        assert float((flat - t).pow(2).mean() / fwkd.within(t)) == pytest.approx(1, rel=1e-4)


def test_what_a_code_cannot_produce_counts(narrow):
    """One block hands the same tensor on as first and last: it is never taught first, and is judged
    by it all the same.
    """
    batch = a_batch(NARROW, 8, seed=6)
    seen = fwkd.look(narrow, batch)
    first, last, down = seen["E1"].outputs
    assert [tuple(x.shape) for x in fwkd.read_later(seen, "E1")] == [
        tuple(x.shape) for x in (first, last, down)
    ]
    net = fwkd.surrogates(narrow, [("E1", "R")])
    got = fwkd.handed_on(net["E1:R"], seen["E1"].inputs)
    assert len(got) == 3 and torch.equal(got[0], got[1])
    each = fwkd.errors_each(narrow, net, [batch])["E1:R"]["read_error"]
    want = zip(got, (first, last, down), strict=True)
    parts = [((g - t).pow(2).mean() / fwkd.within(t)).detach() for g, t in want]
    assert float(each.mean()) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)
    hidden, skip, other = fwkd.read_later(seen, "E3")
    assert torch.equal(hidden, seen["D4"].outputs[0]) and torch.equal(skip, seen["E3"].outputs[1])
    e3 = fwkd.surrogates(narrow, [("E3", "R")])["E3:R"]
    assert len({x.data_ptr() for x in fwkd.handed_on(e3, seen["E3"].inputs)[:2]}) == 1


def test_a_taught_stage_comes_back_with_its_errors(narrow, monkeypatch):
    g = torch.Generator().manual_seed(0)
    made = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    train = splits.Latents(made(16, 4, 8, 8), made(16, 5, 16), made(1, 5, 16))
    scheduler, pairs = DDIMScheduler(**SCHEDULER), [["E1", "RA"], ["D1", "R"]]
    heldout = [splits.noisy(train, scheduler, 8, g)]
    keys = ["E1:RA", "D1:R"]
    taught, used, draw = {}, [], splits.noisy
    for fraction in (1.0, 0.25):
        used.clear()
        monkeypatch.setattr(
            splits, "noisy", lambda *a, **kw: used.append(kw["among"]) or draw(*a, **kw)
        )
        how = dict(steps=4, batch=4, lr=1e-3, seed=0, fraction=fraction, e3_target="D4")
        taught[fraction] = teach(narrow, train, heldout, scheduler, pairs, how)
        monkeypatch.undo()
        assert len(used) == 4 and all(len(set(rows.tolist())) == 16 * fraction for rows in used)
        assert len({tuple(rows.tolist()) for rows in used}) == 1  # the same part in every step
    curve = taught[1.0]["curve"].pivot(index="step", columns="surrogate", values="relative_error")
    assert sorted(curve.columns) == sorted(keys) and list(curve.index) == [0, 1, 2, 3, 4]
    weights = taught[1.0]["weights"]
    assert {v.dtype for v in weights.values()} == {torch.float16}
    nets = fwkd.load(narrow, pairs, weights)
    assert not any(p.requires_grad for p in nets.parameters())
    again = fwkd.errors(narrow, nets, heldout)
    assert [again[k] for k in keys] == pytest.approx(curve.iloc[-1][keys].tolist(), rel=1e-2)
    found = fwkd.judged(pairs, "D4", narrow, nets, heldout)["errors"].set_index("surrogate")
    assert [found.relative_error[k] for k in keys] == pytest.approx([again[k] for k in keys])
    first = taught[1.0]["record"][0]["first"]
    short = teach(narrow, train, [], scheduler, pairs, how | {"fraction": 1.0, "until": 2})
    assert list(short) == ["record"]
    assert short["record"][0]["first"] == {k: v[:2] for k, v in first.items()}
    each = [first[k] for k in keys]
    assert first["loss"] == pytest.approx([sum(x) / 2 for x in zip(*each, strict=True)], rel=1e-5)


def teach(teacher, train, heldout, scheduler, pairs, how):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return fwkd.teach(teacher, train, heldout, scheduler, pairs, scratch=Path(folder), **how)


def test_alignment_brings_a_student_nearer_to_its_teacher_on_what_was_not_seen(narrow, tmp_path):
    before, unseen = state(narrow), a_batch(NARROW, 8, seed=10**6)
    student = surgery.student(NANOSD["N2"], narrow)
    want = tafid.predictions(narrow, [unseen])
    start = tafid.denoising_error(tafid.predictions(student, [unseen]), want).value
    record = align.align(nn.ModuleDict({"N2": student}), narrow, draw, 20, 1e-3, tmp_path)
    end = tafid.denoising_error(tafid.predictions(student, [unseen]), want).value
    assert 0 < end < 0.8 * start
    assert record[-1]["step"] == 20 and not student.training
    assert same(before, narrow.state_dict())


def test_networks_are_aligned_side_by_side_as_alone(sd_mini, tmp_path):
    """Company decides nothing; the first steps come out again on data made on demand."""
    what = {"split": "train", "scenes": 12, "crops": 4, "seed": 0}
    latents = splits.Latents(**splits.latents(sd_mini, **what)["latents"])
    nets = fwkd.surrogates(sd_mini.unet, arch.taught())
    n5, n7 = (str(NANOSD[k]) for k in ("N5", "N7"))
    how = dict(steps=3, batch=4, lr=1e-3, seed=0, pipe=sd_mini, surrogates=nets)
    both = align.align_archs([n5, n7], latents=latents, scratch=tmp_path / "both", **how)
    alone = align.align_archs([n7], latents=latents, scratch=tmp_path / "alone", **how)
    for k, v in alone["weights"].items():
        assert k.startswith(f"{n7}.") and v.dtype == torch.float16
        torch.testing.assert_close(both["weights"][k].float(), v.float(), rtol=1e-3, atol=1e-5)
    some = splits.on_demand(sd_mini, **what)
    again = align.align_archs([n7], latents=some, scratch=tmp_path / "c", **how, until=2)
    want = both["record"][0]["first"][n7][:2]
    assert again["record"][0]["first"][n7] == pytest.approx(want, rel=1e-5)
    net = align.load(n7, sd_mini.unet, {k[len(n7) + 1 :]: v for k, v in alone["weights"].items()})
    assert not net.training and net.dtype == torch.float32


def test_looking_ends_behind_the_last_stage_that_is_asked_for(narrow):
    batch, ran = a_batch(NARROW), []
    block = narrow.up_blocks[-1]
    handle = block.register_forward_hook(lambda *a: ran.append(1))
    few = fwkd.look(narrow, batch, ["E2"])
    handle.remove()
    assert ran == [] and not few["D1"].outputs and hooks(narrow) == 0
    whole = fwkd.look(narrow, batch)
    for one, two in zip(few["E2"].outputs, whole["E2"].outputs, strict=True):
        assert torch.equal(one, two)
    assert fwkd.look(narrow, batch, ["E3"])["D4"].outputs  # what E3 is taught


def test_rows_on_demand_are_those_of_the_whole(sd_mini):
    what = {"split": "train", "scenes": 6, "crops": 5, "seed": 0}
    whole = splits.Latents(**splits.latents(sd_mini, **what)["latents"])
    some, i = splits.on_demand(sd_mini, **what), torch.tensor([9, 0, 3, 6])
    assert len(some) == 11 and some.z.shape == whole.z.shape and some.z.dtype == whole.z.dtype
    torch.testing.assert_close(some.z[i], whole.z[i], rtol=0, atol=1e-5)
    torch.testing.assert_close(some.text[i], whole.text[i], rtol=0, atol=1e-5)
    found = splits.fingerprint(sd_mini, **what, few=4)["found"]
    assert found["scenes.std"] == pytest.approx(float(whole.z[:4].std()), rel=1e-5)
    assert found["crops.abs"] == pytest.approx(float(whole.z[6:10].abs().mean()), rel=1e-5)
    other = splits.fingerprint(sd_mini, **what | {"seed": 1}, few=4)["found"]
    assert all(abs(other[k] / v - 1) > 1e-3 for k, v in found.items() if "text" not in k)


def test_the_denoising_error_of_the_teacher_is_zero_and_of_nothing_one(narrow):
    batch = a_batch(NARROW)
    want = tafid.predictions(narrow, [batch, batch])
    assert tafid.denoising_error(want, want) == (0, 0, 0)
    silent = UNet2DConditionModel.from_config(narrow.config).eval()
    nn.init.zeros_(silent.conv_out.weight), nn.init.zeros_(silent.conv_out.bias)
    nothing = tafid.predictions(silent, [batch, batch])
    assert tafid.denoising_error(nothing, want) == pytest.approx((1, 1, 1))


# ---------------------------------------------------------------------------------------- survivors


def test_survivors():
    rows = [
        ("E1", "RARA", 100, 0.0, True),
        ("E1", "RA", 60, 0.2, True),
        ("E1", "RR", 80, 0.3, True),  # larger and worse than RA, yet accurate
        ("E1", "R", 40, 0.6, False),  # above the limit
        ("E2", "RA", 95, 0.5, True),  # at the limit
        ("E3", "R", 10, 0.5001, False),
        ("E3", "RA", 20, float("nan"), False),  # diverged
    ]
    columns = ["stage", "code", "params", "relative_error", "kept"]
    table = pd.DataFrame(rows, columns=columns)
    assert pruning.survivors(table, keep_error=0.5) == table.kept.tolist()
    assert pruning.survivors(table.sample(frac=1, random_state=0), 0.5) == (
        table.sample(frac=1, random_state=0).kept.tolist()
    )


def test_noise_levels_do_not_depend_on_the_sampler():
    """A sampler set to few steps must not decide how noisy x_t is (DPM-Solver's add_noise does)."""
    z, text = torch.randn(64, 4, 8, 8), torch.zeros(64, 3, 16)
    ddim = DDIMScheduler(**SCHEDULER)
    sampler = DPMSolverMultistepScheduler.from_config(ddim.config)
    draws = []
    for steps in (None, 4, 10):
        if steps:
            sampler.set_timesteps(steps)
        b = splits.noisy(
            splits.Latents(z, text, text[:1]), sampler, 32, torch.Generator().manual_seed(3)
        )
        draws.append(b)
    i = torch.randint(64, (32,), generator=torch.Generator().manual_seed(3))
    want = ddim.add_noise(z[i], draws[0]["noise"], draws[0]["t"])
    for b in draws:
        assert torch.allclose(b["x"], want, atol=1e-5)


def test_no_held_out_batch_has_the_noise_of_a_training_step(monkeypatch):
    z, text, used, plain = torch.zeros(4, 4, 8, 8), torch.zeros(4, 3, 16), [], splits.noisy
    pipe = SimpleNamespace(scheduler=DDIMScheduler(**SCHEDULER), device=torch.device("cpu"))
    latents = splits.Latents(z, text, text[:1])
    spy = lambda d, s, n, g, **kw: used.append(g.initial_seed()) or plain(d, s, n, g, **kw)  # noqa: E731
    monkeypatch.setattr(splits, "noisy", spy)
    made = {s: splits.heldout_batches(latents, pipe, 1000, s)[:5] for s in (0, 1, 2)}
    steps = {fit.rng(s, i).initial_seed() for s in range(4) for i in range(20_000)}
    assert len(set(used)) == len(used) == 3 * (1000 // 32) and not steps & set(used)
    noises = {b["noise"].numpy().tobytes() for batches in made.values() for b in batches}
    assert len(noises) == 15  # another seed, other noise
    again = splits.heldout_batches(latents, pipe, 1000, 1)[0]
    assert all(torch.equal(again[k], v) for k, v in made[1][0].items())


# ------------------------------------------------------------------------------- bfloat16 teachers


def test_a_bfloat16_teacher_is_distilled_from_float32_weights(tmp_path):
    """Steps smaller than bfloat16 can hold still add up: master weights are float32."""
    pipe = pipeline.load_teacher("data/sd-mini", "bfloat16")
    latents = splits.Latents(**splits.latents(pipe, "heldout", 8, 0, 0)["latents"])
    draw = lambda g: splits.noisy(latents, pipe.scheduler, 4, g)  # noqa: E731
    nets, record = fwkd.distil(pipe.unet, [("E1", "RA"), ("D1", "RR")], draw, 3, 1e-6, tmp_path)
    assert {p.dtype for p in nets.parameters()} == {torch.float32}
    fresh = fwkd.surrogates(pipe.unet, [("E1", "RA"), ("D1", "RR")]).float()
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(nets.parameters(), fresh.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 1e-4
    student = surgery.student("R RA RA | RARA RARA RR", pipe.unet)
    align.align(nn.ModuleDict({"N2": student}), pipe.unet, draw, 1, 1e-6, tmp_path)
    assert student.dtype == torch.bfloat16
