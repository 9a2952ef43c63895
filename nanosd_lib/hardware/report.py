"""The measured profile, read back and laid beside counts and published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from nanosd_lib import paper, paths
from nanosd_lib.networks.arch import BASE
from nanosd_lib.paths import ROOT

TABLES = ("stages", "networks", "rest", "traces", "memory")


def read(device: str = "cpu") -> dict[str, Any]:
    """The tables and the protocol measured on this machine, else those of the reference run.

    FileNotFoundError names the verb where there are none; "where" says whose they are.
    """
    folder = _measured(device, "protocol.json")
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    return found | {"protocol": protocol, "where": paths.shown(folder)}


def read_pipeline(device: str = "cpu") -> tuple[pd.DataFrame, dict[str, Any]]:
    """`pipeline.csv` and its protocol, found as `read` finds the rest."""
    folder = _measured(device, "pipeline.json")
    protocol = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    return pd.read_csv(folder / "pipeline.csv"), protocol | {"where": paths.shown(folder)}


def _measured(device: str, file: str) -> Path:
    for where in (paths.results_root() / "hardware", ROOT / "results" / "reference" / "hardware"):
        if (where / device / file).exists():
            return where / device
    raise paths.Missing(f"no hardware profile of {device!r}: measure one with `make hardware`")


def stage_rows(measured: dict[str, Any], counts: pd.DataFrame) -> pd.DataFrame:
    """stage, code, params, gmac_linear, gmac_attention, peak_activation_mb, moved_mb, roofline_ms,
    backend, ms_median, ms_low, ms_high, rounds: 36 stages on each backend.
    """
    traces_ = measured["traces"][measured["traces"].row.str.match(r"[ED]\d:")].copy()
    traces_[["stage", "code"]] = traces_.row.str.split(":", expand=True)
    traces_ = traces_.drop(columns=["row", "gmac"])
    order = ["backend", "ms_median", "ms_low", "ms_high", "rounds"]
    times = measured["stages"][["stage", "code", *order]]
    return counts.merge(traces_, on=["stage", "code"]).merge(times, on=["stage", "code"])


def family_rows(
    measured: dict[str, Any], counts: pd.DataFrame, published: pd.DataFrame
) -> pd.DataFrame:
    """model, arch, params, params_printed, gmac, backend, ms_median, ms_low, ms_high, rounds,
    ratio_to_sd15, htp_ms, ane_ms; `counts` and `published` name models as the paper does.
    """
    times = measured["networks"].assign(model=measured["networks"].model.map(paper.paper_name))
    whole = times[times.model == "SD1.5"].set_index("backend").ms_median
    times["ratio_to_sd15"] = times.ms_median / times.backend.map(whole)
    printed = published[["model", "params_m", "htp_ms", "ane_ms"]]
    printed = printed.rename(columns={"params_m": "params_printed"})
    ours = counts.assign(gmac=counts.gmac_linear + counts.gmac_attention)
    table = ours[["model", "arch", "params", "gmac"]].merge(times, on="model")
    return table.merge(printed, on="model", how="left")


def cost_rows(measured: dict[str, Any], stages: pd.DataFrame, params: dict[str, int]):
    """stage, code, params, gmac, roofline_ms of the 36 stages, of "rest" and of the "deep" ones,
    whose parameters `params` holds: what any network's costs are added up from.
    """
    table = stages.assign(gmac=stages.gmac_linear + stages.gmac_attention)
    table = table.drop_duplicates(["stage", "code"])
    traced = measured["traces"].set_index("row")
    columns = ["stage", "code", "params", "gmac", "roofline_ms"]
    rest = [(k, "", n, traced.gmac[k], traced.roofline_ms[k]) for k, n in params.items()]
    return pd.concat([table[columns], pd.DataFrame(rest, columns=columns)], ignore_index=True)


def peaks(measured: dict[str, Any]) -> pd.Series:
    """Peak activations in MB (float32) of the whole networks, by their names in `arch.NANOSD`."""
    traced = measured["traces"].set_index("row").peak_activation_mb
    nets = traced[traced.index.str.startswith("net:")]
    return nets.rename(lambda row: row.removeprefix("net:"))


def attention_rows(stages: pd.DataFrame) -> pd.DataFrame:
    """ms in transformer blocks: each original stage minus the same without them; one column a
    backend, last row the share of E1 and D1.
    """
    ms = stages.pivot(index=["stage", "code"], columns="backend", values="ms_median")
    table = pd.DataFrame(
        {s: ms.loc[s, c] - ms.loc[s, c.replace("A", "")] for s, c in BASE.items()}
    ).T
    positive = table.clip(lower=0)
    table.loc["E1 + D1, share"] = positive.loc[["E1", "D1"]].sum() / positive.sum()
    return table
