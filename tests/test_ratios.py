"""ratios: of latencies with quartiles; what is equal is found, what overlaps is said."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from nanosd_lib.networks.arch import BASE, CHOICES
from nanosd_lib.quality import ratios
from nanosd_lib.recipes import shared


def table(*rows):
    columns = ["model", "backend", "ms_median", "ms_low", "ms_high"]
    return pd.DataFrame(rows, columns=columns)


def stages(slow=1.0, spread=0.0):
    """36 stages whose time is a second for each R and `slow` for each A."""
    rows = [
        (s, c, t := c.count("R") + slow * c.count("A"), t - spread, t + spread)
        for s, codes in CHOICES.items()
        for c in codes
    ]
    return pd.DataFrame(rows, columns=["stage", "code", "ms_median", "ms_low", "ms_high"])


def test_a_ratio_takes_the_worst_of_both_quartiles():
    found = table(
        ("a", "x", 10, 9, 12), ("b", "x", 5, 4, 6), ("a", "y", 3, 3, 3), ("b", "y", 1, 1, 1)
    )
    both = ratios.by_backend(found, "a", "b")
    assert both["x"] == (2, 9 / 6, 12 / 4) and both["y"] == (3, 3, 3)


def test_the_largest_ratio_is_among_equals_only():
    t = table(("a", "x", 10, 10, 10), ("b", "x", 4, 4, 4), ("c", "x", 1, 1, 1))
    t["params"] = [100, 105, 300]
    assert ratios.equal_cost(t, "params")[0].value == 2.5
    assert ratios.equal_cost(t, "params")[1:] == ("a", "b")
    with pytest.raises(ValueError, match="no two rows have params within 10%"):
        ratios.equal_cost(t.assign(params=[1, 2, 3]), "params")


def test_attention_share_of_equal_stages():
    """E1 has two transformer blocks of ten, D1 three of them: a half."""
    attention = {s: c.count("A") for s, c in BASE.items()}
    value, low, high = ratios.attention_share(stages(slow=2.0, spread=0.1))
    assert value == pytest.approx((attention["E1"] + attention["D1"]) / sum(attention.values()))
    assert low < value < high


def test_order_matters_only_where_it_does():
    same = stages()
    assert ratios.order_matters(same) == (0, 0, 0)
    other = same.copy()
    other.loc[
        (other.stage == "D2") & (other.code == "RRA"), ["ms_median", "ms_low", "ms_high"]
    ] *= 1.3
    assert ratios.order_matters(other) == pytest.approx((0.3, 0.3, 0.3))
    assert ratios.order_matters(stages(spread=0.2)).low == 0


def test_faster_alternatives_are_counted_with_their_quartiles():
    assert ratios.faster(stages()) == (1, 1, 1)
    wide = ratios.faster(stages(spread=3.0))
    assert wide.low < wide.value == 1 == wide.high


class Made(dict):
    """An artifact as far as pairing reads it."""

    def __init__(self, n=3, seed=0, batch=4):
        super().__init__(features={"features": torch.zeros(n, 2)}, prompts=["a"] * n)
        how = {"seed": seed, "steps": 10, "guidance": 3.0, "batch": batch}
        self.manifest = {"parts": {"params": {"how": how}}}


def test_only_pictures_of_the_same_prompts_and_noise_are_paired():
    against = Made()
    assert len(shared.features(Made(batch=64), against)) == 3  # a batch decides no picture
    with pytest.raises(ValueError, match="pictures that do not pair: seed 1, 0"):
        shared.features(Made(seed=1), against)
    with pytest.raises(ValueError, match="pictures that do not pair: images 2, 3"):
        shared.features(Made(n=2), against)
