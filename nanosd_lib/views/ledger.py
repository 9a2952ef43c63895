"""The ledger as a reader sees it: shaded tables and bars of verdicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nanosd_lib.views import figures

VERDICTS = {
    "reproduced": "#d7f0d9",
    "trend holds": "#e3f4e4",
    "differs": "#fbe3c8",
    "trend fails": "#f8d3cf",
    "not run": "#eeeeee",
}


def compare(
    ours: pd.DataFrame, paper: pd.DataFrame, on: str, columns: dict[str, str]
) -> pd.DataFrame:
    """Ours beside the paper's: for each of our columns the paper's column of another name, row by
    row.
    """
    theirs = paper[[on, *columns.values()]].rename(
        columns={v: f"{v} (paper)" for v in columns.values()}
    )
    return ours[[on, *columns]].merge(theirs, on=on, how="left")


def shade(ledger: pd.DataFrame) -> pd.io.formats.style.Styler:
    """The ledger as a rendered table, its verdicts coloured."""
    colour = lambda v: f"background-color: {VERDICTS.get(v, '#ffffff')}"  # noqa: E731
    style = ledger.style.map(colour, subset=["verdict"]).hide(axis="index")
    return style.format({"paper": "{:.6g}", "ours": "{:.6g}"}, na_rep="").set_properties(
        **{"text-align": "left", "font-size": "11px", "vertical-align": "top"}
    )


def verdict_bars(ledger: pd.DataFrame) -> Figure:
    """How many claims of each kind got which verdict."""
    counts = ledger.groupby(["notebook", "verdict"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=[v for v in VERDICTS if v in counts])
    strong = ["#4f9d5b", "#8cc793", "#e8a04c", "#d4665b", "#c4c4c4"]
    palette = dict(zip(VERDICTS, strong, strict=True))
    fig, ax = figures.subplots(figsize=(7, 0.32 * len(counts) + 1))
    left = np.zeros(len(counts))
    for verdict in counts:
        ax.barh(counts.index, counts[verdict], left=left, color=palette[verdict], label=verdict)
        left += counts[verdict].to_numpy()
    ax.invert_yaxis()
    ax.set_xlabel("claims")
    ax.legend(fontsize=7, loc="lower right")
    fig.tight_layout()
    return fig
