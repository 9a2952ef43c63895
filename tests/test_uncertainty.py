"""uncertainty: intervals hold what they should, and none is of width zero for want of knowledge."""

from __future__ import annotations

import math

import pytest
import torch

from nanosd_lib.quality import metrics, uncertainty


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64)


def test_wilson_by_hand():
    """8 of 10 at 95 %: (0.490, 0.943), as Wilson's formula gives it on paper."""
    assert uncertainty.share(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("hits, n", [(0, 32), (32, 32), (0, 1), (1, 1)])
def test_a_share_is_never_certain(hits, n):
    value, low, high = uncertainty.share(hits, n)
    assert low <= value <= high and high - low > 0.05


@pytest.mark.parametrize("hits, n", [(-1, 3), (4, 3), (0, 0)])
def test_a_share_of_nothing_is_refused(hits, n):
    with pytest.raises(ValueError, match="share:"):
        uncertainty.share(hits, n)


def test_the_mean_is_covered_about_as_often_as_promised():
    found = [uncertainty.mean(draw(40, 1, seed)) for seed in range(200)]
    covered = sum(low <= 0 <= high for _, low, high in found) / 200
    assert 0.88 <= covered <= 0.98
    assert all(low < value < high for value, low, high in found)


def test_one_number_alone_has_no_interval():
    value, low, high = uncertainty.mean(torch.tensor([3.0]))
    assert value == 3 and math.isnan(low) and math.isnan(high)


def test_ratios_are_of_pairs():
    below = draw(60, 1, 0).abs() + 0.1
    value, low, high = uncertainty.ratio(2 * below, below)
    assert (value, low, high) == pytest.approx((2, 2, 2))
    with pytest.raises(ValueError, match="do not pair"):
        uncertainty.ratio(below, below[:-1])


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [8, 48, 96])
def test_a_frechet_distance_lies_inside_its_interval(n, paired):
    a = draw(n, 16, 1)
    b = 0.9 * a + 0.5 * draw(n, 16, 2)
    value, low, high = uncertainty.frechet(a, b, paired)
    assert value == metrics.frechet(a, b) and low < value < high


@pytest.mark.parametrize("paired", [True, False])
def test_equal_sets_accept_zero(paired):
    a = draw(40, 8, 1)
    value, low, high = uncertainty.frechet(a, a, paired)
    assert value == low == 0 and (high == 0) == paired


def test_pairs_are_resampled_together():
    """A small change of every picture: far surer in pairs than as two separate sets."""
    a = draw(96, 16, 1)
    b = a + 0.2 * draw(96, 16, 2)
    width = {}
    for paired in (True, False):
        value, low, high = uncertainty.frechet(a, b, paired)
        width[paired] = (high - low) / value
    assert width[True] < width[False]


def test_more_pictures_are_surer():
    def width(n: int) -> float:
        value, low, high = uncertainty.frechet(draw(n, 8, 1), 1 + draw(n, 8, 2), paired=False)
        return (high - low) / value

    assert width(400) < 0.6 * width(50)
