"""What notebooks 05 and 06 write into the ledger: numbers of searches and of assembled and aligned
networks, each with the interval of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nanosd_lib import paper
from nanosd_lib.quality import checks, metrics, uncertainty
from nanosd_lib.quality.uncertainty import Interval
from nanosd_lib.recipes import members, shared
from nanosd_lib.recipes.trained import Trained
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.search import ehvi

NEAR_REAL = 1.05  # of the teacher's distance to renders


# -------------------------------------------------------------------------------------- notebook 05
def search(
    run: Run, trials: Mapping[tuple[str, str], pd.DataFrame], volume: pd.DataFrame, floor: dict
) -> None:
    """Rows on the searches: trials by (direction, "EHVI" | "random") as `loop.run_search` gives
    them, volume as search_hypervolume.csv. All of one seed.
    """
    b = run.profile.search
    columns = [c for c in ("E4", "M", "D4") if (paper.family()[c][1:] == "").all()]
    run.record("decision-space", 9 - len(columns), "nine stage columns of the table, three empty")
    run.record("objectives-agree", 3 - 2, "article: quality, size and latency at once; poster: two")
    run.record("search-cheaper-printed", (750 - 360) / 360, "printed hours")
    for direction, rows in volume.groupby("direction"):
        first, last = rows.iloc[0], rows.iloc[-1]
        gain, usual = last.EHVI - first.EHVI, last.random - first.random
        drawn = _redrawn(trials[str(direction), "random"], b.initial, b.evaluations, run.seed)
        run.record(
            f"ehvi-beats-random-{direction}", gain / usual - 1 if usual > 0 else float(gain > 0),
            f"after {b.initial} + {b.evaluations} networks, log tAFID; {floor['protocol']}",
            seeds=1, n=b.images, beaten=float((drawn < last.EHVI).double().mean()),
        )  # fmt: skip
    second = volume[volume.direction == "params"].reset_index(drop=True)
    enough = second.index[second.EHVI >= 0.98 * second.EHVI.iloc[-1]][0]
    share = enough / b.evaluations
    run.record("search-agile", share, "evaluations beyond the shared start, one seed", seeds=1)


def _redrawn(trials: pd.DataFrame, initial: int, picks: int, seed: int, times: int = 200) -> Tensor:
    """Final hypervolumes of random searches redrawn from one pool of judged networks."""
    Y = torch.tensor(trials[["quality", "known"]].to_numpy().copy())
    ref, start, pool = ehvi.reference_point(Y[:initial]), Y[:initial], Y[initial:]
    g = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(pool), generator=g)[:picks] for _ in range(times)]
    return torch.tensor([ehvi.hypervolume(torch.cat([start, pool[o]]), ref) for o in orders])


def fronts(run: Run, front: Mapping[str, pd.DataFrame]) -> None:
    """Is the front of the latency search faster than that of the parameter search?"""
    median = {d: t.latency.median() for d, t in front.items()}
    how = "median latency on the front of each direction, one seed"
    run.record("search-directed", median["latency"] / median["params"], how, seeds=1)


def behind(
    run: Run, found: Mapping[str, Artifact], tiny: Artifact, against: Artifact
) -> dict[str, Interval]:
    """Is TinySD behind the front, on prompts that no network was chosen by? found: networks of the
    search that are faster than TinySD, judged again as TinySD was.
    """
    teacher = against["features"]["teacher"]
    of_tiny = shared.features(tiny, against)
    f = {
        k: uncertainty.frechet_ratio([shared.features(a, against)], [of_tiny], teacher)
        for k, a in found.items()
    }
    count = shared.counted([*f.values()], lambda x: x < 1)
    protocol = f"{len(f)} networks judged again, {against['floor']['protocol']}"
    run.record("tinysd-dominated-by-search", count, protocol, n=len(teacher), possible=count.high)
    return f


def stage_errors(
    run: Run, errors: pd.DataFrame, tafid: pd.Series, blind: np.ndarray
) -> tuple[Interval, Interval]:
    """Do stage errors (networks x stages) rank assembled networks? The correlation over those that
    were chosen `blind`, before anything was judged, which the ledger takes; and over all.
    """
    every = uncertainty.rank_correlation(errors.sum(axis=1), tafid)
    some, y = errors[blind], tafid[blind]
    rho = uncertainty.rank_correlation(some.sum(axis=1), y)
    less = metrics.spearman(some.drop(columns="E3").sum(axis=1).to_list(), y.to_list())
    how = f"{len(y)} assembled networks that no search picked, not aligned, bootstrap over networks"
    run.record("stage-errors-predict-tafid", rho, how, n=len(y), without_e3=less)
    return rho, every


# -------------------------------------------------------------------------------------- notebook 06
def family(
    run: Run,
    table: pd.DataFrame,
    before: Mapping[str, Artifact],
    after: Mapping[str, Artifact],
    against: Artifact,
    trained: Mapping[str, Trained],
    more: members.Many,
) -> None:
    """Rows on the aligned family: table as family.csv, before and after by name ("N2"), trained by
    arch; what compares aligned networks alone is of `more` pictures where they are there.
    """
    teacher = against["features"]["teacher"]
    b, a = ({k: shared.features(x, against) for k, x in y.items()} for y in (before, after))
    n, how = len(teacher), _alignment(trained)
    protocol = f"{how}, {against['floor']['protocol']}"
    by = table.set_index("model")
    nine = table.dropna(subset=["tafid_paper"])
    order = uncertainty.rank_correlation(nine.tafid_aligned, nine.tafid_paper)
    run.record("tafid-order", order, f"nine models, {protocol}", n=len(nine))
    way = {k: trained[by.arch[paper.paper_name(k)]].how for k in a}
    alike = [k for k in a if way[k] == way["N2"]]  # what was aligned for less is not counted in
    all_ = uncertainty.frechet_ratio([a[k] for k in alike], [b[k] for k in alike], teacher)
    each = [uncertainty.frechet_ratio([a[k]], [b[k]], teacher) for k in alike]
    worse = shared.counted(each, lambda x: x > 1)
    guard = {"made-worse": (worse.low, worse.low, worse.low)}
    protocol = f"alignment {way['N2']}, {against['floor']['protocol']}"
    said = f"geometric mean over {len(alike)} networks, {protocol}"
    run.record("alignment-improves", all_, said, n=n, guards=guard)
    same = by.loc[[paper.paper_name(k) for k in alike]]
    ranks = uncertainty.rank_correlation(same.tafid_assembled, same.tafid_aligned)
    guard = {"networks": (len(same), len(same), len(same))}
    run.record("search-ranks-survive-alignment", ranks, protocol, n=len(same), guards=guard)
    seen, of = (a, against) if more.against is None else (more.features, more.against)
    _against_each_other(run, by, seen, of, how)


def _against_each_other(
    run: Run, by: pd.DataFrame, a: Mapping[str, Tensor], against: Artifact, how: str
) -> None:
    """Rows that compare aligned networks with one another; a: features by name ("N2")."""
    teacher = against["features"]["teacher"]
    n, protocol = len(teacher), f"{how}, {against['floor']['protocol']}"
    ratio = lambda x, y: uncertainty.frechet_ratio([x], [y], teacher)  # noqa: E731
    light = min(("TinySD", "Hand-tuned"), key=lambda k: by.tafid_aligned[k])
    slower = by.latency_ms[light] / by.latency_ms["NanoSD2"]
    run.record(
        "beats-lightweight-baselines", ratio(a["N2"], a[light]), protocol, n=n, slower=slower
    )
    nano = [f"N{k}" for k in range(1, 8)]
    others = [k for k in nano if k != "N2"]
    best = min(others, key=lambda k: by.tafid_aligned[paper.paper_name(k)])
    run.record(
        "prime-best-of-family", ratio(a["N2"], a[best]), protocol, n=n, best=paper.paper_name(best)
    )
    run.record("distinct-operating-points", _alike(nano, a, by, teacher), protocol, n=n)
    _near_real(run, {k: a[k] for k in nano}, teacher, protocol)


def _alike(
    names: list[str], a: Mapping[str, Tensor], by: pd.DataFrame, teacher: Tensor
) -> Interval:
    """Pairs that neither tAFID (paired) nor latency (quartiles) tells apart."""
    alike = 0
    for i, one in enumerate(names):
        for two in names[i + 1 :]:
            x, y = by.loc[paper.paper_name(one)], by.loc[paper.paper_name(two)]
            r = uncertainty.frechet_ratio([a[one]], [a[two]], teacher)
            slow = x.latency_low <= y.latency_high and y.latency_low <= x.latency_high
            alike += r.low <= 1 <= r.high and slow
    return Interval(alike, alike, alike)


def _near_real(run: Run, a: Mapping[str, Tensor], teacher: Tensor, protocol: str) -> None:
    """Frechet distance to renders of the prompts' own scenes, member over teacher: the rows of all
    three sets are of one prompt.
    """
    n = len(teacher)
    asked = {"n": n, **shared.sampling(run, draw=1)}
    made = run.cached("rendered", checks.rendered, asked, [run.teacher_key], quiet=True)
    real = made["features"]["renders"]
    off = [uncertainty.frechet_ratio([x], [teacher], real) for x in a.values()]
    near = shared.counted(off, lambda x: x <= NEAR_REAL)
    said = f"renders of the same scenes, {protocol}"
    nearest = min(x.value for x in off)
    run.record("sd15-dominated-in-quality", near, said, n=n, nearest=nearest, possible=near.high)


def _alignment(trained: Mapping[str, Trained]) -> str:
    """How the networks were aligned: one way, or several."""
    ways = sorted({t.how for t in trained.values()})
    return f"alignment {'; '.join(ways)}"


def prior(run: Run, table: pd.DataFrame, t: Trained) -> None:
    """Rows on the teacher's prior; table as prior.csv (`members.prior_of`) of that network."""
    by = table.set_index(["measure", "model"])
    name = next(m for m in table.model if m not in ("teacher", "ratio", "difference"))

    def of(measure: str, model: str = "ratio") -> tuple[Interval, int]:
        r = by.loc[(measure, model)]
        return Interval(r.value, r.value_low, r.value_high), int(r.n)

    steps = f"N2 aligned ({t.how}), equal prompts and noise"
    judge = f"LPIPS's construction over {run.profile.vae.judge}, {steps}"
    asked = f"classifier trained on renders alone, {steps}"
    one, two = "one object", "two objects, new caption"
    for claim, measure, how, protocol in (
        ("images-resemble-teacher-lpips", "lpips", "ratio", judge),
        ("images-resemble-teacher-clip", "cosine", "difference", steps),
        ("prompts-followed-slightly-worse", two, "ratio", asked),
        ("simple-prompts-followed", one, "ratio", asked),
        ("diversity-slightly-lower", "diversity", "ratio", steps),
        ("detail-kept", "detail", "ratio", steps),
    ):
        found, n = of(measure, how)
        run.record(claim, _known(found), protocol, n=n, steps=t.steps)
    clone, n = of("cosine", name)
    control, _ = of("cosine", "teacher, other noise")
    run.record("near-perfect-clone", clone, steps, n=n, control=control.value)
    smooth, n = of("largest_over_mean")
    length, _ = of("length")
    guard = {"path-length": length}
    run.record("interpolation-smooth", smooth, f"nine frames a path, {steps}", n=n, guards=guard)


def _known(x: Interval) -> Interval | tuple[float, float, float]:
    """Of a teacher that follows no prompt itself no share can be taken: 0, nothing known of it."""
    return x if x.value == x.value else (0.0, nan, nan)
