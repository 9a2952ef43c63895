"""prediction: least squares on tables whose answer is known, and the published rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from nanosd_lib import paper
from nanosd_lib.hardware import prediction
from nanosd_lib.networks.arch import BASE, CHOICES, NANOSD, PRINTED, STAGES, Arch


@pytest.fixture(scope="module")
def stages() -> pd.DataFrame:
    """Parameters that grow with the code, multiply-adds with its attention, roofline with both."""
    rows = [(s, c, len(c), c.count("A"), len(c) + c.count("A")) for s in STAGES for c in CHOICES[s]]
    rows += [("rest", "", 10, 1, 11), ("deep", "", 100, 0, 5)]
    return pd.DataFrame(rows, columns=["stage", "code", "params", "gmac", "roofline_ms"])


def test_an_exact_line_is_found_and_predicts_what_it_has_not_seen():
    x = np.arange(8.0)[:, None]
    found = prediction.fit(x, 3 + 2 * x[:, 0])
    assert found["r2"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    assert found["loo_max"] < 1e-9


def test_leaving_one_out_is_worse_than_fitting_it():
    x, y = np.arange(6.0)[:, None], np.array([0, 1, 2, 3, 4, 20.0])
    found = prediction.fit(x, y)
    assert found["loo_max"] == pytest.approx(15)  # the line through the other five says 5
    assert found["loo_mean"] > np.abs(y - np.poly1d(np.polyfit(x[:, 0], y, 1))(x[:, 0])).mean()


def test_what_is_left_out_is_predicted_by_the_others():
    """The same by the hat matrix: a residual over 1 - h is the residual of the row left out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 3))
    y = x @ [2.0, 1, 0] + 3 * rng.normal(size=9)
    design = np.c_[np.ones(9), x]
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    left_out = (y - hat @ y) / (1 - np.diag(hat))
    found = prediction.fit(x, y)
    assert found["loo_mean"] == pytest.approx(np.abs(left_out).mean())
    assert found["loo_max"] == pytest.approx(np.abs(left_out).max())
    features = pd.DataFrame(x, columns=["a64", "a32", "a16"])
    held = prediction.left_out(features, pd.Series(y), "attention by resolution")
    assert held.to_numpy() == pytest.approx(y - left_out)
    assert found["r2"] == pytest.approx(np.corrcoef(hat @ y, y)[0, 1] ** 2)
    ranks = [scipy.stats.spearmanr(v, y).statistic for v in (y - left_out, hat @ y)]
    assert found["spearman"] == pytest.approx(ranks[0]) != ranks[1]


def test_columns_of_noise_predict_no_order():
    """Six of them fit twelve rows well; on average they predict none."""
    rng = np.random.default_rng(1)
    found = [prediction.fit(rng.normal(size=(12, 6)), rng.normal(size=12)) for _ in range(40)]
    assert np.mean([f["r2"] for f in found]) > 0.4
    assert np.mean([f["spearman"] for f in found]) < 0.1


def test_a_constant_predicts_nothing():
    found = prediction.fit(np.ones((5, 1)), np.arange(5.0))
    assert found["spearman"] == 0 and found["r2"] == pytest.approx(0)


def test_networks_are_described_by_sums(stages):
    table = prediction.describe({"N2": NANOSD["N2"], "SD1.5": NANOSD["SD1.5"]}, stages)
    assert table.params["N2"] == 10 + sum(len(getattr(NANOSD["N2"], s)) for s in STAGES)
    assert table.params["SD1.5"] == 110 + sum(map(len, BASE.values()))
    assert table.loc["N2", ["a64", "a32", "a16"]].tolist() == [0, 3, 3]


def test_published_rows_and_their_attention(stages):
    family = paper.family().dropna(subset=["htp_ms"]).set_index("model")
    archs = {m: a for m, a in NANOSD.items() if m != "SD1.5"}
    names = {m: m.replace("N", "NanoSD") if m[0] == "N" else m for m in archs}
    features = prediction.describe({names[m]: a for m, a in archs.items()}, stages)
    table = prediction.study(features, {"htp_ms": family.htp_ms}, "corrected", "published")
    assert set(table.predictor) == set(prediction.PREDICTORS) and table.n.eq(9).all()
    ours = table.set_index("predictor").loc["attention by resolution"]
    assert ours.r2 == pytest.approx(0.9973, abs=1e-4)
    assert ours.loo_mean == pytest.approx(1.288, abs=1e-3)  # ms
    printed = prediction.describe({"TinySD": PRINTED["TinySD"]}, stages)
    assert printed.a64["TinySD"] == 2 and features.a64["TinySD"] == 3


def test_stages_carry_their_own_attention(stages):
    found = prediction.stage_features(stages).set_index(["stage", "code"])
    assert len(found) == 36
    assert found.loc[("D1", "RARARA"), ["a64", "a32", "a16"]].tolist() == [3, 0, 0]
    assert found.loc[("E2", "RA"), ["a64", "a32", "a16"]].tolist() == [0, 1, 0]


def test_additivity_of_a_network_that_is_its_sum(stages):
    one = stages[stages.code != ""].assign(backend="b", ms_median=lambda t: t.params)
    rest = pd.DataFrame({"row": ["rest", "deep"], "backend": "b", "ms_median": [1.0, 7.0]})
    archs = {"N2": NANOSD["N2"], "SD1.5": NANOSD["SD1.5"], "six": Arch(**BASE)}
    six = sum(map(len, BASE.values()))
    n2 = sum(len(getattr(NANOSD["N2"], s)) for s in STAGES)
    networks = pd.DataFrame(
        {"model": ["N2", "SD1.5", "six", "else"], "backend": "b",
         "ms_median": [n2 + 1.0, six + 8.0, 2 * (six + 1.0), 1.0]}
    )  # fmt: skip
    table = prediction.additivity(one, networks, rest, archs).set_index("model")
    assert table.relative_error.round(9).to_dict() == {"N2": 0, "SD1.5": 0, "six": -0.5}
