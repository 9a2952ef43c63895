"""The ledger as a reader sees it: shaded tables, bars of verdicts, and the one beside the other."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nanosd_lib import paper
from nanosd_lib.views import figures

SHADES = {
    "fails": "#f8d3cf",
    "differs": "#fbe3c8",
    "undecided": "#fdf6d2",
    "holds": "#e3f4e4",
    "reproduced": "#d7f0d9",
    "not run": "#eeeeee",
}
STRONG = {
    "fails": "#d4665b",
    "differs": "#e8a04c",
    "undecided": "#e6d36a",
    "holds": "#8cc793",
    "reproduced": "#4f9d5b",
    "not run": "#c4c4c4",
}
SHOWN = ["statement", "evidence", "paper", "ours", "verdict", "why"]


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


def number(x: float) -> str:
    """Three digits that matter; what is large or whole in full, nothing for a gap."""
    if not isinstance(x, int | float) or math.isnan(x):
        return ""
    return f"{x:,.0f}" if x == int(x) or abs(x) >= 1000 else f"{x:.3g}"


UNITS = {"ratio": "times", "share": "%", "rho": "(rank correlation)", "solutions": "solution"}
UNITS |= {"ends": "ends of the range", "yes = 1": "(1: yes)"}


def printed(x: float, unit: str) -> str:
    """A source's number as it is written: a share in per cent, a network by its name."""
    if unit == "model" and not math.isnan(x):
        return f"NanoSD{x:.0f}"
    if unit == "share" and not math.isnan(x):
        return f"{number(100 * x)} %"
    return number(x)


def with_interval(row: pd.Series) -> str:
    """ "0.93 [0.83, 1.03]" with its unit; the number alone where it has no interval."""
    if math.isnan(row.ours):
        return ""
    unit = row.unit if isinstance(row.unit, str) else ""
    if unit == "model":
        return printed(row.ours, unit)
    k = 100 if unit == "share" else 1
    ends = f" [{number(k * row.low)}, {number(k * row.high)}]" if row.low < row.high else ""
    return f"{number(k * row.ours)}{ends} {UNITS.get(unit, unit)}".strip()


def _told(row: pd.Series) -> str:
    """Why, and what the number is elsewhere: on other backends, other widths ("flips": by that
    number the verdict would be another).
    """
    said = [x for x in (row.why, row.elsewhere) if isinstance(x, str) and x]
    if len(said) == 2 or (said and said[0] == row.elsewhere):
        said[-1] = f"elsewhere: {said[-1]}"
    return "; ".join([*(x.removesuffix(".") for x in said[:-1]), *said[-1:]])


def worst_first(ledger: pd.DataFrame) -> pd.DataFrame:
    """Rows by step of the paper, within a step the worst news first."""
    rank = ledger.verdict.map({v: k for k, v in enumerate(paper.VERDICTS)})
    step = ledger.step.map({s: k for k, s in enumerate(paper.STEPS.values())})
    return ledger.assign(_rank=rank, _step=step).sort_values(["_step", "_rank"], kind="stable")


def _folded(shown: pd.DataFrame) -> pd.DataFrame:
    """One row in the place of three or more that say the same of several NanoSDs and came out
    alike: their numbers stand in it one after the other.
    """
    told = shown.statement.str.extract(r"^NanoSD(\d) ((?:has|takes) .*)$")
    same = told[1].str.replace(r"\d+(\.\d+)?", "…", regex=True)
    gone: list[int] = []
    for (words, *_), rows in shown.groupby([same, "evidence", "verdict", "why"], sort=False):
        if len(rows) < 3:
            continue
        first, *others = rows.index
        gone += others
        shown.loc[first, "statement"] = f"NanoSD{', '.join(told.loc[rows.index, 0])}: each {words}"
        for column in ("paper", "ours"):
            numbers = [x for x in rows[column] if x]
            unit = numbers[-1].partition(" ")[2] if numbers else ""
            shown.loc[first, column] = ", ".join(
                [*(x.removesuffix(f" {unit}") for x in numbers[:-1]), *numbers[-1:]]
            )
        shown.loc[first, "id"] = f"{rows.id.iloc[0]} to {rows.id.iloc[-1]}"
    return shown.drop(index=gone)


def shade(
    ledger: pd.DataFrame, by_step: bool = False, ids: bool = False
) -> pd.io.formats.style.Styler:
    """The ledger as a rendered table: numbers with their intervals, verdicts coloured."""
    rows = worst_first(ledger)
    shown = pd.DataFrame(
        {
            "step": rows.step,
            "id": rows.id,
            "statement": rows.statement,
            "evidence": rows.evidence,
            "paper": [printed(x, str(unit)) for x, unit in zip(rows.paper, rows.unit, strict=True)],
            "ours": [with_interval(r) for _, r in rows.iterrows()],
            "verdict": rows.verdict,
            "why": [_told(r) for _, r in rows.iterrows()],
        }
    )
    shown = _folded(shown)[[*(["step"] if by_step else []), *(["id"] if ids else []), *SHOWN]]
    colour = lambda v: f"background-color: {SHADES.get(v, '#ffffff')}; color: #111111"  # noqa: E731
    style = shown.style.map(colour, subset=["verdict"]).hide(axis="index")
    if any("(flips)" in said for said in shown.why):
        style = style.set_caption("flips: by that backend's number the verdict would be another")
    return style.set_properties(
        **{"text-align": "left", "font-size": "11px", "vertical-align": "top"}
    )


def only(
    ledger: pd.DataFrame, step: str, evidence: str, verdict: str
) -> pd.io.formats.style.Styler:
    """The rows of one step, one kind of evidence and one verdict; "all" leaves nothing out."""
    for column, value in (("step", step), ("evidence", evidence), ("verdict", verdict)):
        if value != "all":
            ledger = ledger[ledger[column] == value]
    return shade(ledger, by_step=step == "all")


def verdict_bars(ledger: pd.DataFrame) -> Figure:
    """How many rows of each step, and of each kind of evidence, got which verdict."""
    fig, axes = figures.subplots(1, 2, figsize=(10, 3.8), width_ratios=(1.2, 1))
    orders: list[tuple[str, list[str]]] = [
        ("step", [*paper.STEPS.values()]),
        ("evidence", [*paper.EVIDENCE]),
    ]
    for ax, (column, order) in zip(axes, orders, strict=True):
        counts = pd.crosstab(ledger[column], ledger.verdict)
        counts = counts.reindex(
            index=[o for o in order if o in counts.index],
            columns=[v for v in SHADES if v in counts],
        )
        left = np.zeros(len(counts))
        for verdict in counts:
            ax.barh(counts.index, counts[verdict], left=left, color=STRONG[verdict], label=verdict)
            left += counts[verdict].to_numpy()
        ax.invert_yaxis()
        ax.set(xlabel="rows of the ledger", title=f"by {column}")
        ax.set_xlim(0, 1.04 * left.max())
    axes[1].legend(fontsize=8, loc="lower right")
    fig.tight_layout()
    return fig
