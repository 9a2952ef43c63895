"""What predicts latency? Least squares with each row left out once, for the published rows and ours
(paper, surgery step: operator layout and tensor shape decide, not parameters).

Few rows, several coefficients: these fits describe, they validate nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nanosd_lib.networks.arch import STAGES, Arch

PREDICTORS = {
    "parameters": ["params"],
    "multiply-adds": ["gmac"],
    "attention at 64x64": ["a64"],
    "attention by resolution": ["a64", "a32", "a16"],
    "roofline": ["roofline_ms"],
}


def fit(X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """y = base + X b (n, k): rank (correlation of the fit with y) and r2; then, of each row when
    the others alone decide b, the rank correlation of predictions with y ("spearman") and the mean
    and largest absolute error (in y's unit).

    A constant column predicts nothing: its rank correlations are 0. Left out, a column that tells
    next to nothing comes out below 0, since a row that is left out moves the mean of the others
    away.
    """
    y = np.asarray(y, float)
    coef, held = _least_squares(X, y)
    fitted = coef[0] + X @ coef[1:]
    flat = np.ptp(fitted) < 1e-9 * np.abs(y).max()
    order = lambda x: 0.0 if flat else pd.Series(x).corr(pd.Series(y), method="spearman")  # noqa: E731
    r2 = 1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    out = np.abs(y - held)
    found = {"rank": order(fitted), "spearman": order(held), "r2": r2}
    return found | {"loo_mean": out.mean(), "loo_max": out.max()}


def _least_squares(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(base, b) of y = base + X b (k + 1,), and what the others predict for each row (n,)."""
    X = np.column_stack([np.ones(len(y)), X])
    solve = lambda rows: np.linalg.lstsq(X[rows], y[rows], rcond=None)[0]  # noqa: E731
    others = ~np.eye(len(y), dtype=bool)
    held = [x @ solve(rows) for x, rows in zip(X, others, strict=True)]
    return solve(np.ones(len(y), bool)), np.array(held)


def left_out(features: pd.DataFrame, ms: pd.Series, predictor: str) -> pd.Series:
    """What the other rows predict for each row, in ms (`PREDICTORS` names what they go by)."""
    X = features[PREDICTORS[predictor]].to_numpy(float)
    return pd.Series(_least_squares(X, ms[features.index].to_numpy())[1], features.index)


def describe(archs: dict[str, Arch], stages: pd.DataFrame) -> pd.DataFrame:
    """model -> params, gmac, roofline_ms (sums over its stages, "rest" and, where it has them, the
    "deep" ones) and a64, a32, a16 (attention blocks in each resolution's two stages).

    stages: columns stage, code, params, gmac, roofline_ms; rows "rest" and "deep" have code "".
    """
    costs = stages.set_index(["stage", "code"])[["params", "gmac", "roofline_ms"]]
    rows = {}
    for name, a in archs.items():
        parts = [(s, getattr(a, s)) for s in STAGES] + [("rest", "")]
        total = costs.loc[parts + ([("deep", "")] if a.deep else [])].sum()
        counts = attention_counts({s: getattr(a, s) for s in STAGES})
        rows[name] = [*total, *counts]
    columns = ["params", "gmac", "roofline_ms", "a64", "a32", "a16"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def stage_features(stages: pd.DataFrame) -> pd.DataFrame:
    """The same columns for the stages themselves, one row each."""
    found = stages[stages.code != ""].copy()
    attention = found.code.str.count("A")
    for column, pair in (("a64", ("E1", "D1")), ("a32", ("E2", "D2")), ("a16", ("E3", "D3"))):
        found[column] = attention.where(found.stage.isin(pair), 0)
    return found


def study(
    features: pd.DataFrame, targets: dict[str, pd.Series], strings: str, rows: str
) -> pd.DataFrame:
    """predictor, target, rank, spearman, r2, loo_mean, loo_max, rows, n, strings: every predictor
    against every target (aligned with the rows of `features`; NaN rows are left out).
    """
    table = []
    for target, values in targets.items():
        known = values.reindex(features.index).dropna()
        for predictor, columns in PREDICTORS.items():
            found = fit(features.loc[known.index, columns].to_numpy(float), known.to_numpy())
            facts = {"predictor": predictor, "target": target, **found}
            table.append(facts | {"rows": rows, "n": len(known), "strings": strings})
    return pd.DataFrame(table)


def additivity(
    stages: pd.DataFrame, networks: pd.DataFrame, rest: pd.DataFrame, archs: dict[str, Arch]
) -> pd.DataFrame:
    """model, backend, ms_median, sum_of_stages_ms, relative_error: is a network its stages' sum?

    stages: stage, code, backend, ms_median; networks: model, ...; rest: row ("rest", "deep"), ...
    """
    one = stages.set_index(["stage", "code", "backend"]).ms_median
    other = rest.set_index(["row", "backend"]).ms_median
    table = networks[networks.model.isin(archs)][["model", "backend", "ms_median"]].copy()

    def total(row) -> float:
        a = archs[row.model]
        parts = sum(one[s, getattr(a, s), row.backend] for s in STAGES)
        return parts + other["rest", row.backend] + (other["deep", row.backend] if a.deep else 0.0)

    table["sum_of_stages_ms"] = [total(row) for row in table.itertuples()]
    table["relative_error"] = table.sum_of_stages_ms / table.ms_median - 1
    return table.reset_index(drop=True)


def rank_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation between every two backends: rows are what was measured."""
    return table.corr(method="spearman")


def attention_counts(row: Mapping[str, str]) -> tuple[int, int, int]:
    """Attention modules at 64x64 (E1, D1), 32x32 (E2, D2) and 16x16 (E3, D3) latents."""
    top, middle, low = ((row[f"E{i}"] + row[f"D{i}"]).count("A") for i in (1, 2, 3))
    return top, middle, low


def fit_latency(df: pd.DataFrame, column: str, printed: bool = False) -> dict[str, object]:
    """ms = base + a64 #A(E1,D1) + a32 #A(E2,D2) + a16 #A(E3,D3) by least squares (our reading).

    Nine rows, four coefficients: descriptive, not a validation. `printed` takes the poster's
    strings as they stand. The rest is `fit`'s, in ms.
    """
    rows = df.dropna(subset=[column])
    for d in ("D3", "D2", "D1") if printed else ():
        rows = rows.assign(**{d: rows[d].where(rows[f"printed_{d}"] == "", rows[f"printed_{d}"])})
    X = np.array([attention_counts(row) for _, row in rows.iterrows()], float)  # (9, 3)
    y = rows[column].to_numpy(float)
    coef = _least_squares(X, y)[0].tolist()
    return {"coef": dict(zip(("base", "a64", "a32", "a16"), coef, strict=True)), **fit(X, y)}
