"""How sure a number is: the interval that belongs to each kind of measurement (not in the paper).

Every function returns an `Interval` at 95 %. What was drawn with the same prompts is resampled
together: two sets of features of the same prompts lose and gain the same rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanosd_lib.quality import metrics

LEVEL = 0.95
DRAWS = 1000  # resamples of plain numbers
FEW = 200  # resamples of a Frechet distance; a tenth of it where its matrices are large
LARGE = 256


class Interval(NamedTuple):
    """A measured value between its lower and upper end."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """{name, name_low, name_high}: the three columns of a table."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def share(hits: int, n: int) -> Interval:
    """A share of n tries (Wilson 1927): never of width zero, also for 0 or n hits."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"share: {hits} of {n} is none")
    z = float(torch.special.ndtri(torch.tensor((1 + LEVEL) / 2, dtype=torch.float64)))
    p, spread = hits / n, z**2 / n
    middle = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (p * (1 - p) / n + spread / (4 * n)) ** 0.5
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def share_ratio(above: Tensor, below: Tensor, seed: int = 0) -> Interval:
    """A share over another of the same tries, both as hits (N,), by bootstrap over the tries; by
    the outer ends of both Wilson intervals where one has no hit or no miss, of which a bootstrap
    makes certainty.
    """
    a, b = (share(int(x.sum()), len(x)) for x in (above, below))
    if not b.low:  # a ratio to what may be nothing
        return Interval(*[float("nan")] * 3)
    if any(s.value in (0, 1) for s in (a, b)):
        return Interval(a.value / b.value, a.low / b.high, a.high / b.low)
    return ratio(above, below, seed)


def mean(x: Tensor, seed: int = 0) -> Interval:
    """The mean of independent numbers (N,), by bootstrap; NaN at both ends for a single one."""
    x = x.double().flatten()
    return ratio(x, torch.ones_like(x), seed)


def ratio(above: Tensor, below: Tensor, seed: int = 0) -> Interval:
    """sum(above) / sum(below) of paired numbers (N,): a bootstrap over the pairs."""
    above, below = (x.double().flatten() for x in (above, below))
    if len(above) != len(below) or not len(above):
        raise ValueError(f"ratio: {len(above)} and {len(below)} numbers do not pair")
    value = float(above.sum() / below.sum())
    if len(above) == 1:
        return Interval(value, float("nan"), float("nan"))
    rows = resamples(len(above), DRAWS, seed)
    return Interval(value, *_ends(above[rows].sum(1) / below[rows].sum(1)))


def frechet(
    a: Tensor, b: Tensor, paired: bool = True, seed: int = 0, each: Sequence[int] | None = None
) -> Interval:
    """Frechet distance of features (N, D), (M, D), by bootstrap over pictures; `paired`: row i of
    both is of one prompt. `each`: rows come in sets of so many, which are drawn whole.

    The distance is biased upwards, and drawing with replacement raises it further, so percentiles
    may leave their own value outside. Taken instead is how far the resampled distances spread
    around their median, as a factor: the value lies inside, and of equal sets it is 0 to 0 upwards.
    """
    value = metrics.frechet(a, b)
    few = FEW if min(len(a), a.shape[1]) <= LARGE else FEW // 10
    rows: Sequence[Tensor] | Tensor = resamples(len(a), few, seed)
    if each is not None:
        sets = torch.arange(len(a)).split(list(each))
        picks = resamples(len(sets), few, seed).tolist()
        rows = [torch.cat([sets[k] for k in pick]) for pick in picks]
    other = rows if paired else resamples(len(b), few, seed + 1)
    pairs = zip(rows, other, strict=True)
    drawn = torch.tensor([metrics.frechet_of(a[i], b[j]) for i, j in pairs])
    middle, (low, high) = float(drawn.median()), _ends(drawn)
    if value == 0 or middle == 0:
        return Interval(value, 0.0, value + high - low)
    return Interval(value, value * low / middle, value * high / middle)


def frechet_ratio(above: Sequence[Tensor], below: Sequence[Tensor], against: Tensor) -> Interval:
    """Geometric mean of d(above_i) / d(below_i), d the Frechet distance to `against` (N, D), by
    bootstrap over prompts: row k of every set is of one prompt and one noise, and all lose and gain
    the same rows. A pair has one network, a family many.

    Spread around the median, as a factor, as for `frechet`: the value lies inside. ValueError where
    sets do not pair; NaN ends where a distance is 0.
    """
    if (
        len(above) != len(below)
        or not above
        or {len(x) for x in (*above, *below)} != {len(against)}
    ):
        raise ValueError(
            "frechet_ratio: every set needs the rows of `against`, and above its below"
        )

    over, under = (torch.stack([_logs(x, against) for x in xs]) for xs in (above, below))
    value, *drawn = (over - under).mean(0).tolist()
    middle, (low, high) = float(torch.tensor(drawn).median()), _ends(torch.tensor(drawn))
    found = torch.tensor([value, value + low - middle, value + high - middle]).exp()
    return Interval(*(float(x) if x.isfinite() else float("nan") for x in found))


@functools.lru_cache(maxsize=64)  # one set of features is in many ratios of a page
def _logs(x: Tensor, against: Tensor) -> Tensor:
    """Logarithms of the Frechet distance of all rows, and of resampled ones."""
    few = FEW if min(len(against), against.shape[1]) <= LARGE else FEW // 10
    to = [metrics.frechet(x, against)]
    to += [metrics.frechet_of(x[i], against[i]) for i in resamples(len(against), few, 0)]
    return torch.tensor(to, dtype=torch.float64).log()


def over_seeds(x: Sequence[float]) -> Interval:
    """The mean of what several seeds gave, with Student's t; NaN at both ends for a single seed,
    and where all gave the same: that says nothing of the spread.
    """
    from scipy.stats import t

    values = torch.tensor(list(x), dtype=torch.float64)
    value, spread = float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
    if spread == 0:
        return Interval(value, float("nan"), float("nan"))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return Interval(value, value - half, value + half)


def rank_correlation(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Interval:
    """Spearman's correlation of paired columns, by bootstrap over the pairs; draws in which a
    column does not vary are left out. NaN ends for fewer than four pairs.
    """
    from scipy.stats import rankdata

    value = metrics.spearman(list(a), list(b))
    if len(a) < 4:
        return Interval(value, float("nan"), float("nan"))
    rows = resamples(len(a), DRAWS, seed).numpy()
    ranks = (rankdata(np.asarray(list(c), float)[rows], axis=1) for c in (a, b))
    x, y = (torch.from_numpy(r - r.mean(axis=1, keepdims=True)) for r in ranks)
    drawn = ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).clamp(-1, 1)
    low, high = _ends(drawn[drawn.isfinite()])
    return Interval(value, min(low, value), max(high, value))


def jackknife(f, rows: int) -> Interval:
    """f(keep) of all rows, between the smallest and the largest of f with one row left out; `keep`
    holds row numbers. No confidence level: it describes a table that is whole.
    """
    every = list(range(rows))
    value = float(f(every))
    left = [float(f([k for k in every if k != out])) for out in every]
    return Interval(value, min(value, *left), max(value, *left))


def resamples(n: int, draws: int, seed: int) -> Tensor:
    """Row numbers (draws, n), drawn with replacement."""
    return torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))


def _ends(x: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = x.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
