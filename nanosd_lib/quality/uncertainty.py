"""How sure a number is: the interval that belongs to each kind of measurement (not in the paper).

Every function returns an `Interval` at 95 %. What was drawn with the same prompts is resampled
together: two sets of features of the same prompts lose and gain the same rows.
"""

from __future__ import annotations

from typing import NamedTuple

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


def frechet(a: Tensor, b: Tensor, paired: bool = True, seed: int = 0) -> Interval:
    """Frechet distance of features (N, D), (M, D), by bootstrap over pictures; `paired`: row i of
    both is of one prompt.

    The distance is biased upwards, and drawing with replacement raises it further, so percentiles
    may leave their own value outside. Taken instead is how far the resampled distances spread
    around their median, as a factor: the value lies inside, and of equal sets it is 0 to 0 upwards.
    """
    value = metrics.frechet(a, b)
    few = FEW if min(len(a), a.shape[1]) <= LARGE else FEW // 10
    rows = resamples(len(a), few, seed)
    other = rows if paired else resamples(len(b), few, seed + 1)
    pairs = zip(rows, other, strict=True)
    drawn = torch.tensor([metrics.frechet_by_singular_values(a[i], b[j]) for i, j in pairs])
    middle, (low, high) = float(drawn.median()), _ends(drawn)
    if value == 0 or middle == 0:
        return Interval(value, 0.0, value + high - low)
    return Interval(value, value * low / middle, value * high / middle)


def resamples(n: int, draws: int, seed: int) -> Tensor:
    """Row numbers (draws, n), drawn with replacement."""
    return torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))


def _ends(x: Tensor) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = x.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
