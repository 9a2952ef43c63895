"""search: fronts by hand, EHVI against quadrature and BoTorch, the loop on synthetic tables."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from botorch.test_functions.multi_objective import BraninCurrin
from torch import Tensor

from nanosd_lib.networks import arch
from nanosd_lib.recipes import searching
from nanosd_lib.search import ehvi, loop

SIZES = (4, 4, 4, 8, 8, 8)
COLUMNS = ["index", "order", "known", "quality", "hypervolume", "phase"]


def space(sizes=SIZES) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def additive(codes: Tensor, sizes, seed: int, pairs: float) -> Tensor:
    """Random main effects, plus `pairs` times random pairwise effects, of unordered codes. (N,)"""
    draw = torch.Generator().manual_seed(seed)
    columns = range(len(sizes))
    effects = [torch.rand(n, generator=draw, dtype=torch.float64) for n in sizes]
    total = sum(effects[d][codes[:, d]] for d in columns)
    for a, b in itertools.combinations(columns, 2):
        table = torch.rand(sizes[a], sizes[b], generator=draw, dtype=torch.float64)
        total = total + pairs * table[codes[:, a], codes[:, b]]
    return total


def table(sizes=SIZES, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """codes (N, D), quality (N,), known (N,) and a reference point (2,)."""
    codes = space(sizes)
    quality = additive(codes, sizes, seed, pairs=0.3)
    known = 10 * additive(codes, sizes, seed + 100, pairs=0.0)
    return codes, quality, known, ehvi.reference_point(torch.stack([quality, known], 1))


def area(Y: Tensor, ref: Tensor) -> float:
    """Two-dimensional hypervolume by a sweep, written independently of the library."""
    total, best = 0.0, float(ref[1])
    for y0, y1 in sorted(Y.tolist()):
        if y0 < ref[0] and y1 < best:
            total, best = total + (float(ref[0]) - y0) * (best - y1), y1
    return total


# fronts


def test_pareto_mask_keeps_the_first_of_equal_rows():
    Y = torch.tensor([[1, 4], [2, 2], [2, 2], [3, 3], [4, 1], [1, 5]])
    assert ehvi.pareto_mask(Y).tolist() == [True, True, False, False, True, False]


def test_pareto_mask_equals_the_definition():
    Y = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dominated = ((Y[None] <= Y[:, None]).all(2) & (Y[None] < Y[:, None]).any(2)).any(1)
    assert torch.equal(ehvi.pareto_mask(Y), ~dominated)


@pytest.mark.parametrize(
    ("Y", "ref", "volume"),
    [
        ([[1, 2], [2, 1]], [3, 3], 3),
        ([[1, 2], [2, 1], [2, 2], [5, 0]], [3, 3], 3),
        ([[3, 3]], [3, 3], 0),
        ([[0, 0, 0]], [1, 2, 3], 6),
    ],
)
def test_hypervolume_by_hand(Y, ref, volume):
    assert ehvi.hypervolume(torch.tensor(Y), ref) == pytest.approx(volume)


def test_hypervolume_of_a_random_cloud():
    Y = torch.rand(300, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ref = torch.tensor([0.9, 0.8], dtype=torch.float64)
    assert ehvi.hypervolume(Y, ref) == pytest.approx(area(Y, ref), rel=1e-12)


def branin_currin(steps: int) -> tuple[Tensor, Tensor, BraninCurrin]:
    """Grid codes (steps^2, 2), the objectives there (steps^2, 2), and BoTorch's problem."""
    problem, codes = BraninCurrin(dtype=torch.float64), space((steps, steps))
    return codes, problem(codes.double() / (steps - 1)), problem


def test_dense_branin_currin_nears_its_published_hypervolume_from_below():
    _, Y, problem = branin_currin(400)
    assert problem.max_hv == 59.36011874867746 and problem.ref_point.tolist() == [18.0, 6.0]
    ours = ehvi.hypervolume(Y, problem.ref_point)
    assert 0.98 * problem.max_hv <= ours <= problem.max_hv


def test_reference_point_lies_a_margin_beyond_the_worst():
    Y = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    assert ehvi.reference_point(Y).tolist() == pytest.approx([2.2, 32.0])


def test_initial_design_uses_every_level_equally():
    codes = space()
    rows = ehvi.initial_design(codes, 16, seed=3)
    counts = [torch.bincount(codes[rows][:, d], minlength=n) for d, n in enumerate(SIZES)]
    assert len(set(rows)) == 16 and rows == ehvi.initial_design(codes, 16, seed=3)
    assert rows != ehvi.initial_design(codes, 16, seed=4)
    assert [count.tolist() for count in counts] == [[4] * 4] * 3 + [[2] * 8] * 3


def test_initial_design_of_a_space_with_dropped_levels():
    codes = space()
    codes = codes[(codes[:, 3] != 5) & (codes[:, 0] != 0)]
    chosen = codes[ehvi.initial_design(codes, 12, seed=0)]
    for d in range(6):
        count = torch.unique(chosen[:, d], return_counts=True)[1]
        assert len(count) == len(codes[:, d].unique()) and count.max() - count.min() <= 1


# expected hypervolume improvement


def ehvi_case() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    mu, sigma, known = torch.rand(3, 40, generator=draw, dtype=torch.float64)
    front = torch.rand(12, 2, generator=draw, dtype=torch.float64)
    ref_point = torch.tensor([0.95, 0.9], dtype=torch.float64)
    return dict(mu=mu, sigma=0.05 + sigma / 2, known=known, front=front, ref_point=ref_point)


def test_closed_form_ehvi_equals_quadrature():
    case = ehvi_case()
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    base = area(case["front"], case["ref_point"])
    for i, value in enumerate(ehvi.ehvi_exact(**case)[:6]):
        quality = case["mu"][i] + case["sigma"][i] * z
        points = torch.stack([quality, case["known"][i].expand(len(z))], 1)[:, None]
        volume = [area(torch.cat([case["front"], point]), case["ref_point"]) for point in points]
        integral = torch.trapezoid(weight * (torch.tensor(volume) - base), z)
        assert float(value) == pytest.approx(float(integral), rel=1e-4, abs=1e-7)


def test_closed_form_ehvi_without_a_front_is_expected_improvement_times_length():
    value = ehvi.ehvi_exact([1.0], [0.5], [2.0], torch.empty(0, 2), [1.0, 5.0])
    assert float(value) == pytest.approx(3 * 0.5 / math.sqrt(2 * math.pi), rel=1e-12)


def test_log_ehvi_stays_finite_in_the_tail_and_is_minus_infinity_when_nothing_can_be_gained():
    front, ref = torch.tensor([[0.0, 1.0]]), [1.0, 2.0]
    mu, known = torch.tensor([60.0, 50.0, 0.0]), torch.tensor([0.5, 0.5, 2.5])
    value = ehvi.log_ehvi_exact(mu, torch.ones(3), known, front, ref)
    assert value[0] < value[1] < -1000 and value[2] == -torch.inf
    near = ehvi.log_ehvi_exact([2.0 - 1e-9, 2.0 + 1e-9], [1.0] * 2, [0.5] * 2, front, ref)
    assert float(near[0]) == pytest.approx(float(near[1]), abs=1e-7)


def test_closed_form_and_botorch_agree():
    codes, quality, known, ref = table()
    rows = ehvi.initial_design(codes, 24, seed=0)
    Y = torch.stack([quality, known], 1)[rows]
    model = ehvi.fit_quality(codes[rows], Y[:, 0], SIZES)
    some = torch.arange(0, len(codes), 61)
    exact = ehvi.log_ehvi_exact(*ehvi.marginals(model, codes[some]), known[some], Y, ref)
    sampled = ehvi.log_ehvi_sampled(model, codes[some], known[some], Y, ref, SIZES, seed=0)
    error = (exact.exp() - sampled.exp()).abs() / exact.exp().max()
    assert error.max() < 0.02  # 128 quasi-Monte Carlo samples, and qLogEHVI is smoothed
    assert exact.argmax() == sampled.argmax()
    options = dict(known=known[some], ref_point=ref, sizes=SIZES)
    first = ehvi.suggest(codes[rows], Y, codes[some], **options)
    assert torch.equal(
        first, ehvi.suggest(codes[rows], Y, codes[some], acquisition="qlogehvi", **options)
    )


# the loop


@pytest.mark.parametrize("acquisition", ["exact", "qlogehvi", "random"])
@pytest.mark.parametrize("encoding", ["hamming", "ordinal"])
def test_suggest_skips_observed_designs_and_repeats_itself(acquisition, encoding):
    sizes = (2, 3, 4)
    codes, quality, known, ref = table(sizes)
    seen = ehvi.initial_design(codes, 19, seed=1)
    args = (codes[seen], torch.stack([quality, known], 1)[seen], codes, known, ref, sizes)
    options = dict(acquisition=acquisition, encoding=encoding, seed=5)
    chosen = ehvi.suggest(*args, q=5, **options).tolist()
    assert sorted(chosen + seen) == list(range(24))  # the five that are left, each once
    assert chosen == ehvi.suggest(*args, q=5, **options).tolist()
    assert len(ehvi.suggest(*args, pool=1, **options)) == 1


def test_suggest_takes_the_noise_of_the_observations():
    codes, quality, known, ref = table((2, 3, 4))
    Y = torch.stack([quality, known], 1)[:12]
    options = dict(sizes=(2, 3, 4), q=2, y_var=torch.full((12,), 0.01))
    chosen = ehvi.suggest(codes[:12], Y, codes, known, ref, **options).tolist()
    assert len(set(chosen)) == 2 and min(chosen) >= 12


def test_search_leaves_the_global_generator_alone_and_is_deterministic():
    codes, quality, known, ref = table((3, 3, 4))
    seen: list[dict] = []
    args = (lambda row: float(quality[row]), codes, known, (3, 3, 4), [0, 7, 20, 33], 6, ref, 1)
    state = torch.get_rng_state()
    trials = loop.search(*args, on_step=seen.append)
    assert torch.equal(state, torch.get_rng_state())
    pd.testing.assert_frame_equal(trials, loop.search(*args))
    assert list(trials) == COLUMNS and seen == trials.to_dict("records")
    assert trials.phase.tolist() == ["initial"] * 4 + ["ehvi"] * 6
    assert trials["index"].is_unique and trials.order.tolist() == list(range(10))
    assert trials.hypervolume.is_monotonic_increasing
    Y = torch.tensor(trials[["quality", "known"]].values.tolist(), dtype=torch.float64)
    assert trials.hypervolume.iloc[-1] == pytest.approx(area(Y, ref), rel=1e-12)


def shares(problem: tuple, initial: list[int], evaluations: int, **options) -> tuple:
    """Of the whole table's hypervolume: what EHVI found as notebook 05 asks for it, and each of
    twenty random searches.
    """
    quality, codes, known, sizes, ref = problem
    args = (lambda row: float(quality[row]), codes, known, sizes, initial, evaluations, ref)
    best = ehvi.hypervolume(torch.stack([quality, known], 1), ref)
    ours = loop.search(*args, seed=0, acquisition="qlogehvi", **options)
    drawn = [loop.random_search(*args, seed=s) for s in range(20)]
    start = len(initial)
    assert set(ours.phase[start:]) == {"ehvi"} and set(drawn[0].phase[start:]) == {"random"}
    pd.testing.assert_frame_equal(ours[:start], drawn[0][:start])
    return ours.hypervolume.iloc[-1] / best, [d.hypervolume.iloc[-1] / best for d in drawn]


@pytest.mark.parametrize("seed", [0, 1])
def test_search_beats_random_search_at_equal_budget(seed):
    sizes = (4, 4, 4, 4)
    codes, quality, known, ref = table(sizes, seed)
    problem = (quality, codes, known, sizes, ref)
    found, drawn = shares(problem, ehvi.initial_design(codes, 8, seed), 12)
    assert 0.9 < found <= 1 and found > max(drawn) and sum(drawn) / 20 < 0.85


def test_ordinal_search_nears_the_front_of_a_branin_currin_grid():
    codes, Y, problem = branin_currin(21)
    problem = (Y[:, 0], codes, Y[:, 1], (21, 21), problem.ref_point)
    found, drawn = shares(problem, ehvi.initial_design(codes, 8, 0), 16, encoding="ordinal")
    assert 0.98 < found <= 1 and max(drawn) < 0.9


def networks_judged() -> tuple[list[arch.Arch], np.ndarray, dict[str, float]]:
    """Every 2,000th network, a cost and a tAFID for each."""
    networks = arch.space()[::2000]
    cost = np.arange(len(networks), 0, -1.0)
    return networks, cost, {str(a): 1.0 + i for i, a in enumerate(networks)}


def test_a_search_of_networks_is_over_log_tafid_and_cost():
    networks, cost, tafids = networks_judged()
    judge = lambda arch: {"scores": {"tafid": tafids[arch]}}  # noqa: E731
    trials = loop.run_search("random", [0, 9, 16], 4, 0, networks, cost, judge)["trials"]
    assert trials["index"][:3].tolist() == [0, 9, 16] and len(trials) == 7
    want = [math.log(1.0 + i) for i in trials["index"]]
    assert trials.quality.tolist() == pytest.approx(want)
    assert trials.known.tolist() == cost[trials["index"]].tolist()
    # a tenth of the initial design's range beyond its worst
    high, costs = math.log(17.0), cost[[0, 9, 16]]
    ref = torch.tensor([1.1 * high, costs.max() + 0.1 * np.ptp(costs)], dtype=torch.float64)
    Y = torch.tensor(trials[["quality", "known"]].to_numpy().copy())
    assert trials.hypervolume.iloc[-1] == pytest.approx(area(Y, ref), rel=1e-6)


def test_the_luck_of_random_search():
    """Three of three are no luck; one of three has the mean and the spread of the three."""
    Y = [[2.0, 4.0], [4.0, 2.0], [1.0, 3.5], [3.5, 1.0], [3.0, 3.0]]
    trials = pd.DataFrame(Y, columns=["quality", "known"])
    ref = torch.tensor([4.2, 4.2])
    volume = [
        area(torch.tensor(Y)[rows], ref) for rows in ([0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 4])
    ]
    whole = loop.random_volume(trials, 2, 3, 5, seed=0)
    assert whole.order.tolist() == [1, 2, 3, 4]
    assert whole.random[0] == pytest.approx(volume[0]) and whole.random_std[0] == 0
    assert whole.random[3] == pytest.approx(area(torch.tensor(Y), ref))
    assert whole.random_std[3] == pytest.approx(0, abs=1e-12)
    one = loop.random_volume(trials, 2, 1, 600, seed=0)
    assert one.random[1] == pytest.approx(np.mean(volume[1:]), rel=0.05)
    assert one.random_std[1] == pytest.approx(np.std(volume[1:]), rel=0.1)


# reference points that nobody can reach


def test_a_reference_point_that_no_cost_reaches_is_refused_before_anything_is_evaluated():
    codes, quality, known, ref = table((3, 3, 4))
    for low in (float(known.min()), float(known.min()) - 5, -1e300):
        for acquisition in ("exact", "qlogehvi", "random"):
            with pytest.raises(ValueError, match=r"^ref_point: no candidate can reach it[^\n]*$"):
                loop.search(
                    lambda row: pytest.fail("evaluated"),
                    codes,
                    known,
                    (3, 3, 4),
                    [0, 7],
                    2,
                    [float(ref[0]), low],
                    0,
                    acquisition,
                )


def test_a_reference_point_that_no_quality_reaches_is_said_at_the_end():
    codes, quality, known, ref = table((3, 3, 4))
    bad = [float(quality.min()) - 50, float(ref[1])]
    args = (lambda row: float(quality[row]), codes, known, (3, 3, 4), [0, 7, 20, 33], 4, bad, 0)
    with pytest.warns(UserWarning, match=r"^ref_point: none of the 8 designs evaluated[^\n]*$"):
        trials = loop.search(*args)
    assert trials.hypervolume.eq(0).all() and trials["index"].is_unique
    chosen = trials["index"][4:].tolist()
    assert chosen != [r for r in range(36) if r not in (0, 7, 20, 33)][:4]  # not the table's order


@pytest.mark.parametrize("acquisition", ["exact", "qlogehvi"])
def test_a_search_goes_on_when_all_who_could_reach_the_point_are_evaluated(acquisition):
    codes, quality, known, ref = table((3, 3, 4))
    cheap = known.argsort()
    edge = [float(ref[0]), float((known[cheap[5]] + known[cheap[6]]) / 2)]  # six lie below
    initial = cheap[[0, 3, -1]].tolist()
    args = (lambda row: float(quality[row]), codes, known, (3, 3, 4), initial, 6, edge, 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trials = loop.search(*args, acquisition=acquisition)
    assert trials["index"].is_unique
    if acquisition == "exact":  # the other is smoothed, and may take one just beyond before
        assert sorted(trials["index"][3:7]) == sorted(cheap[[1, 2, 4, 5]].tolist())
        assert trials["index"][7:].tolist() == cheap[6:8].tolist()  # then the nearest
        assert sum("no candidate left can come below" in str(w.message) for w in said) == 2


def test_suggestions_beyond_the_point_come_in_a_sane_order():
    codes, quality, known, ref = table((3, 3, 4))
    seen = [0, 7, 20, 33]
    Y = torch.stack([quality, known], 1)[seen]
    left = [i for i in known.argsort().tolist() if i not in seen]
    with pytest.warns(UserWarning, match=r"^ref_point: no candidate left[^\n]*$"):
        point = [float(ref[0]), float(known.min())]
        chosen = ehvi.suggest(codes[seen], Y, codes, known, point, (3, 3, 4), q=5)
    assert chosen.tolist() == left[:5]
    flat = torch.ones_like(known)  # equally far: the predicted quality decides
    with pytest.warns(UserWarning, match="no candidate left"):
        Y = torch.stack([quality, flat], 1)[seen]
        first = ehvi.suggest(codes[seen], Y, codes, flat, [9.0, 1.0], (3, 3, 4))
    mu = ehvi.marginals(ehvi.fit_quality(codes[seen], Y[:, 0], (3, 3, 4)), codes)[0]
    mu[seen] = torch.inf
    assert int(first) == int(mu.argmin())


def test_a_column_without_range_has_a_reference_point_below_which_it_lies():
    Y = torch.tensor([[0.5, 7.0, 0.0, -2.0], [0.25, 7.0, 0.0, -2.0]])
    ref = ehvi.reference_point(Y)
    assert ref.tolist() == pytest.approx([0.525, 7.7, 0.1, -1.8])
    assert ehvi.hypervolume(Y, ref) > 0


# errors: one line that names the field


CODES, KNOWN = space((2, 3)), torch.arange(6.0)
GOOD = dict(
    X_obs=CODES[:3],
    Y_obs=torch.rand(3, 2, generator=torch.Generator().manual_seed(0)),
    candidates=CODES,
    known=KNOWN,
    ref_point=[2.0, 9.0],
    sizes=(2, 3),
)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("X_obs", CODES[:3, :1]),
        ("X_obs", CODES[:3] + 1),
        ("Y_obs", torch.zeros(2, 2)),
        ("Y_obs", torch.full((3, 2), torch.nan)),
        ("candidates", CODES - 1),
        ("known", KNOWN[:4]),
        ("ref_point", [1.0]),
        ("q", 4),
        ("q", 0),
        ("encoding", "one-hot"),
        ("acquisition", "ei"),
        ("y_var", torch.ones(2)),
    ],
)
def test_suggest_names_the_wrong_field(field, bad):
    with pytest.raises(ValueError, match=rf"^{field}: [^\n]*$"):
        ehvi.suggest(**(GOOD | {field: bad}))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("initial", []),
        ("initial", [0, 0]),
        ("initial", [0, 6]),
        ("evaluations", 5),
        ("evaluations", -1),
        ("acquisition", "ei"),
        ("known", KNOWN[:4]),
        ("evaluate", lambda row: math.nan),
    ],
)
def test_search_names_the_wrong_field_before_it_starts(field, bad):
    good = dict(evaluate=float, candidates=CODES, known=KNOWN, sizes=(2, 3), initial=[0, 5])
    good |= dict(evaluations=1, ref_point=[9.0, 9.0], seed=0)
    with pytest.raises(ValueError, match=rf"^{field}: [^\n]*$"):
        loop.search(**(good | {field: bad}))


def test_other_errors_name_their_field():
    with pytest.raises(ValueError, match=r"^Y: [^\n]*$"):
        ehvi.pareto_mask(KNOWN)
    with pytest.raises(ValueError, match=r"^n: [^\n]*$"):
        ehvi.initial_design(CODES, 7, seed=0)
    with pytest.raises(ValueError, match=r"^X: [^\n]*$"):
        ehvi.fit_quality(CODES[:1], KNOWN[:1], (2, 3))
    with pytest.raises(ValueError, match=r"^sigma: [^\n]*$"):
        ehvi.ehvi_exact(KNOWN, KNOWN[:2], KNOWN, torch.empty(0, 2), [1.0, 1.0])


def test_what_lies_beyond_the_reference_point_is_not_on_the_front():
    """It is cheap and useless: nobody dominates it, and it adds no hypervolume."""
    rows = [("initial", 10.0, 50.0), ("initial", 20.0, 40.0), ("ehvi", 12.0, 30.0)]
    rows += [("ehvi", 90.0, 10.0), ("ehvi", 15.0, 45.0)]
    some = pd.DataFrame(rows, columns=["phase", "tafid", "latency"])
    some = some.assign(direction="latency", search="EHVI")
    found = searching.front(pd.concat([some, some.assign(search="random", tafid=1.0)]), "latency")
    assert found.tafid.tolist() == [10.0, 12.0]
