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
    assert value == low == 0 and (high < 1e-9) == paired  # up to rounding


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


def test_a_ratio_of_distances_shares_its_prompts():
    """Two students that err alike on the same prompts: the ratio is far surer than either."""
    against = draw(96, 8, 1)
    a = against + 0.5 * draw(96, 8, 2)
    value, low, high = uncertainty.frechet_ratio([1.1 * (a - against) + against], [a], against)
    assert low < value < high and value > 1.05
    single = uncertainty.frechet(a, against)
    assert high / low < single.high / single.low


def test_equal_students_have_ratio_one_and_other_rows_do_not_pair():
    against = draw(40, 8, 1)
    a = against + draw(40, 8, 2)
    assert uncertainty.frechet_ratio([a, a], [a, a], against) == (1, 1, 1)
    with pytest.raises(ValueError, match="frechet_ratio: every set needs the rows"):
        uncertainty.frechet_ratio([a[:-1]], [a], against)
    value, low, high = uncertainty.frechet_ratio([against], [a], against)
    assert value == 0 and math.isnan(low) and math.isnan(high)  # a perfect student: no ends


def test_a_geometric_mean_over_networks():
    against = draw(64, 8, 1)
    a, b = (against + s * draw(64, 8, s) for s in (2, 3))
    both = uncertainty.frechet_ratio([a, b], [b, a], against)
    assert both.value == pytest.approx(1)


@pytest.mark.parametrize("x", [[0.5], [0.5, 0.5, 0.5]])
def test_one_seed_or_equal_seeds_say_nothing_of_the_spread(x):
    value, low, high = uncertainty.over_seeds(x)
    assert value == 0.5 and math.isnan(low) and math.isnan(high)


def test_students_t_by_hand():
    """1, 2, 3: mean 2, deviation 1, t(.975, 2) = 4.3027: 2 -+ 4.3027 / sqrt 3."""
    assert uncertainty.over_seeds([1, 2, 3]) == pytest.approx((2, -0.4842, 4.4842), abs=1e-3)


def test_a_ratio_of_shares_is_never_certain():
    hits = torch.arange(32) < 20
    assert uncertainty.share_ratio(hits, hits) == (1, 1, 1)  # the same tries, the same answers
    none = torch.zeros(32, dtype=torch.bool)
    value, low, high = uncertainty.share_ratio(none, hits)
    assert value == low == 0 and high > 0.1
    assert math.isnan(uncertainty.share_ratio(hits, none).value)
    other = uncertainty.share_ratio(torch.arange(32) >= 12, hits)
    assert other.low < 1 == other.value < other.high


def test_correlations_of_networks_and_of_whole_tables():
    x = list(range(20))
    y = [v + (3 if v % 2 else -3) for v in x]
    value, low, high = uncertainty.rank_correlation(x, y)
    assert low < value < high <= 1 and value > 0.8
    assert math.isnan(uncertainty.rank_correlation([1, 2, 3], [1, 3, 2]).low)
    total = [1.0, 2.0, 6.0]
    mean = lambda keep: sum(total[k] for k in keep) / len(keep)  # noqa: E731
    assert uncertainty.jackknife(mean, 3) == (3, 1.5, 4)
