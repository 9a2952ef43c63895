"""cost: counts at SD 1.5's width, stages that add up, and rows measured in turns."""

from __future__ import annotations

import itertools
import math
import random

import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel

from nanosd_lib.hardware import timing
from nanosd_lib.learning import fwkd
from nanosd_lib.learning.sd_mini import UNET
from nanosd_lib.networks import arch, counting, sd15, surgery
from nanosd_lib.networks.arch import BASE, NANOSD, STAGES, Arch

NARROW = UNET | dict(
    sample_size=8,
    block_out_channels=(8, 16, 32, 32),
    cross_attention_dim=16,
    norm_num_groups=4,
    attention_head_dim=2,
)


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return UNet2DConditionModel(**NARROW).eval()


@pytest.fixture(scope="module")
def table(narrow):
    return counting.stage_table(counting.on_meta(narrow), tokens=5)


def test_multiply_adds_at_the_width_of_sd15():
    some = {m: NANOSD[m] for m in ("SD1.5", "N2", "N4")}
    got = counting.counts(some, sd15.unet()).set_index("model")
    total = got.gmac_linear + got.gmac_attention
    assert total.to_dict() == pytest.approx({"SD1.5": 401.6, "N2": 184.7, "N4": 164.8}, rel=1e-3)
    assert got.arch.to_dict() == {m: str(a) for m, a in some.items()}
    assert got.params["SD1.5"] == 859_520_964


def test_attention_is_counted_apart():
    torch.manual_seed(0)
    q = torch.empty(1, 2, 50, 8, device="meta")
    linear = torch.nn.Linear(8, 4, device="meta")
    run = lambda: linear(torch.nn.functional.scaled_dot_product_attention(q, q, q))  # noqa: E731
    got = counting.flops(run)
    assert got == pytest.approx((100 * 8 * 4 / 1e9, 2 * 2 * 50 * 50 * 8 / 1e9))


def test_a_network_on_meta_counts_as_its_original(narrow):
    net = counting.on_meta(narrow)
    assert net.device.type == "meta" and counting.parameters(net) == counting.parameters(narrow)


def test_the_stage_table_has_36_rows(table):
    assert len(table) == 36 == len(set(zip(table.stage, table.code, strict=True)))
    assert table[["params", "gmac_linear", "gmac_attention"]].ge(0).all(axis=None)
    bare = ~table.code.str.contains("A")
    assert (table.gmac_attention[bare] == 0).all() and (table.gmac_attention[~bare] > 0).all()


def test_stages_and_the_rest_add_up_to_the_network(narrow, table):
    base, some = Arch(**BASE), random.Random(1).sample(arch.space(), 8)
    meta = counting.on_meta(narrow)
    whole = counting.counts({str(a): a for a in (base, *some)}, meta, tokens=5)
    for column in ("params", "gmac_linear", "gmac_attention"):
        rest = whole[column][0] - counting.additive([base], table, column)[0]
        assert rest > 0 or column == "gmac_attention"
        more = pd.concat([table, pd.DataFrame([{"stage": "rest", "code": "", column: rest}])])
        got = counting.additive([base, *some], more, column)
        assert got == pytest.approx(whole[column].to_numpy()), column


def test_without_a_rest_only_stages_are_added():
    rows = [(s, c, 10**i) for i, (s, c) in enumerate(BASE.items())]
    table = pd.DataFrame(rows, columns=["stage", "code", "x"])
    assert counting.additive([Arch(**BASE)], table, "x").tolist() == [111_111]


def test_stage_inputs_are_what_the_teachers_stages_read(narrow):
    g = torch.Generator().manual_seed(0)
    x = {"x": torch.randn(2, 4, 8, 8, generator=g), "text": torch.randn(2, 5, 16, generator=g)}
    seen = fwkd.look(narrow, x | {"t": torch.tensor([1, 2])})
    for stage in STAGES:
        made, real = counting.stage_inputs(narrow, stage, batch=2, tokens=5), seen[stage].inputs
        for key, value in made.items():
            shape = lambda v: [t.shape for t in v] if isinstance(v, tuple) else v.shape  # noqa: E731
            assert shape(value) == shape(real[key]), (stage, key)


def test_rows_are_measured_in_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    got = timing.measure(calls, repeats=4, warmup=2)
    turns = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(turns) == 6 and all(sorted(t) == ["a", "b", "c"] for t in turns)
    assert all(one == two[::-1] for one, two in itertools.pairwise(turns))  # there and back
    assert list(got.name) == ["a", "b", "c"]


def test_quartiles_leave_the_warm_up_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    spent = iter([9000, 9000, 1, 2, 3, 4, 5])

    def call():
        clock[0] += next(spent) / 1e3

    (row,) = timing.measure({"a": call}, repeats=5, warmup=2).to_dict("records")
    assert row == pytest.approx({"name": "a", "ms_median": 3, "ms_low": 2, "ms_high": 4})


def test_what_is_saved_is_paired_by_round():
    """A machine that gets slower moves both calls of a round; their difference stays."""
    drift = pd.Series(range(20)) * 5.0
    noise = pd.Series([0.1, -0.1] * 10)
    value, low, high = timing.median(drift + 2 + noise - drift)
    assert low < value < high and abs(value - 2) < 0.11 and high - low < 0.5
    few, same = pd.Series([1.0, 2.0, 3.0]), pd.Series([1.0] * 20)
    assert all(math.isnan(x) for each in (few, same) for x in timing.median(each)[1:])
    assert timing.median(drift)[1:] == (25.0, 70.0)  # the sixth and the fifteenth of twenty


def test_profiles_of_stages_and_networks(narrow):
    networks = {m: str(NANOSD[m]) for m in ("N2", "N6")}
    both = timing.profile_stages(narrow, networks, batch=1, tokens=5, repeats=1, warmup=0)
    table = both["stages"]
    assert list(both["networks"].name) == ["N2", "N6"]
    pairs = set(zip(table.stage, table.code, strict=True))
    assert pairs == {(s, c) for s in STAGES for c in arch.CHOICES[s]} | {("rest", "")}
    assert (table.ms_median[table.stage != "rest"] > 0).all()
    got = timing.profile_networks(narrow, networks, batch=1, tokens=5, repeats=2, warmup=1)["table"]
    assert list(got.name) == ["N2", "N6"] and (got.ms_low <= got.ms_high).all()


def test_what_is_profiled_are_the_students_own_stages(narrow, monkeypatch):
    """The modules that are timed, weight by weight, and what they are called with."""
    timed = {}
    monkeypatch.setattr(timing, "call", lambda net, kwargs: lambda: (net, kwargs))

    def measure(calls, repeats, warmup):
        timed.update({name: call() for name, call in calls.items()})
        return pd.DataFrame({"name": list(calls), "ms_median": 1.0, "ms_low": 1.0, "ms_high": 1.0})

    monkeypatch.setattr(timing, "measure", measure)
    codes = {s: {BASE[s], c} for s, c in NANOSD["N6"].stages.items()}
    monkeypatch.setattr(timing, "CHOICES", codes)  # the others take their time and say the same
    networks = {"N6": str(NANOSD["N6"])}
    timing.profile_stages(narrow, networks, batch=2, tokens=5, repeats=1, warmup=0)
    net, inputs = timed["N6"]
    for stage, code in NANOSD["N6"].stages.items():
        part, given = timed[f"{stage}:{code}"]
        own, other = part.state_dict(), net.stage(stage).state_dict()
        assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)
        assert not part.training and len(given["hidden_states"]) == len(inputs["sample"]) == 2
        with torch.no_grad():
            part(**given)
    whole = surgery.student(Arch(**BASE), narrow).state_dict()
    assert timed["whole"][0].state_dict().keys() == whole.keys()
