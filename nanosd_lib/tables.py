"""Tables and figures: what a reader looks at. Functions return a figure or a table and show nothing
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib import ticker
from matplotlib.figure import Figure
from torch import Tensor

STYLE = {
    "figure.dpi": 90,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "legend.frameon": False,
    "axes.axisbelow": True,
}
plt.rcParams.update(STYLE)
COLOURS = dict(E1="#1b6ca8", E2="#3fa7d6", E3="#9bd1e5", D3="#f6c28b", D2="#ee8434", D1="#c95d2e")
VERDICTS = {
    "reproduced": "#d7f0d9",
    "trend holds": "#e3f4e4",
    "differs": "#fbe3c8",
    "trend fails": "#f8d3cf",
    "not run": "#eeeeee",
}


def subplots(*args, **kwargs) -> tuple[Figure, np.ndarray]:
    """As `plt.subplots`, but forgotten by pyplot, so that a notebook shows the figure once."""
    fig, axes = plt.subplots(*args, **kwargs)
    plt.close(fig)
    return fig, axes


def to_image(picture: Tensor) -> np.ndarray:
    """A picture (3, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    return (picture.float().permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()


def grid(
    rows: dict[str, Tensor], titles: Sequence[str] = (), size: float = 1.05, margin: float = 1.3
) -> Figure:
    """One row of pictures (N, 3, H, W) for each name; `titles` stand above the first row, names in
    a margin of so many inches.
    """
    n = max(len(v) for v in rows.values())
    head = 0.16 + 0.108 * max((len(wrap(t)) for t in titles), default=0)  # inches
    width, height = n * size + margin, len(rows) * size + head
    fig, axes = subplots(len(rows), n, figsize=(width, height), squeeze=False)
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        for ax in line:
            ax.axis("off")
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(to_image(picture), interpolation="nearest")
        label = name if "\n" in name else "\n".join(wrap(name, round(11 * margin)))
        line[0].text(-0.08, 0.5, label, transform=line[0].transAxes, ha="right", va="center")
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title("\n".join(wrap(title)), fontsize=6)
    fig.subplots_adjust((margin - 0.05) / width, 0.01, 0.995, 1 - head / height, 0.04, 0.04)
    return fig


def wrap(text: str, width: int = 20) -> list[str]:
    """Lines of at most `width` characters, broken at spaces."""
    import textwrap

    return textwrap.wrap(text, width)


def bars(table: pd.DataFrame, value: str, label: str, low: str = "", high: str = "") -> Figure:
    """Horizontal bars of a table with columns stage and code, one colour for each stage."""
    fig, ax = subplots(figsize=(7, 0.19 * len(table) + 0.8))
    y = np.arange(len(table))[::-1]
    names = table.stage + "  " + table.code
    ax.barh(y, table[value], color=[COLOURS.get(s, "#999999") for s in table.stage])
    if low:
        ax.hlines(y, table[low], table[high], color="black", lw=1)
    ax.set_yticks(y, names, fontsize=7)
    ax.set_xlabel(label)
    ax.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig


def curves(table: pd.DataFrame, x: str, title: str = "") -> Figure:
    """Learning curves: one panel for each stage of the columns "E1:RA", ..., on a log scale."""
    stages = list(dict.fromkeys(c.split(":")[0] for c in table.columns if ":" in c))
    fig, axes = subplots(1, len(stages), figsize=(2.1 * len(stages), 3.2), sharey=True)
    for ax, stage in zip(np.atleast_1d(axes), stages, strict=True):
        for c in [c for c in table.columns if c.startswith(stage + ":")]:
            ax.plot(table[x], table[c], marker="o", ms=2.5, lw=1.2, label=c.split(":")[1])
        ax.set(title=stage, xlabel=x, yscale="log")
        ax.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=3)
    np.atleast_1d(axes)[0].set_ylabel("held-out relative error")
    fig.suptitle(title, y=1.02)
    fig.tight_layout()
    return fig


BACKENDS = {
    "eager": "#1b6ca8",
    "eager-bf16": "#9bd1e5",
    "ort-fp32": "#ee8434",
    "ort-int8": "#c95d2e",
}


def backends(table: pd.DataFrame, label: str) -> Figure:
    """A dot for each row and backend on a logarithmic axis, quartiles as whiskers: name, backend,
    ms_median, ms_low, ms_high.
    """
    names = list(dict.fromkeys(table.name))
    fig, ax = subplots(figsize=(7.2, 0.19 * len(names) + 0.9))
    for kind, rows in table.groupby("backend", sort=False):
        y = [len(names) - names.index(n) for n in rows.name]
        spread = [rows.ms_median - rows.ms_low, rows.ms_high - rows.ms_median]
        how = dict(fmt="o", ms=4, lw=1, color=BACKENDS.get(kind), label=kind)
        ax.errorbar(rows.ms_median, y, xerr=spread, **how)
    ax.set(yticks=range(len(names), 0, -1), xscale="log", xlabel=label)
    ax.set_yticklabels(names, fontsize=7, family="monospace")
    ax.set_ylim(0.3, len(names) + 0.7)
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.legend(
        fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1 + 0.45 / len(names) * 2), ncol=4
    )
    fig.tight_layout()
    return fig


def against_latency(features: pd.DataFrame, ms: pd.Series, columns: dict[str, str]) -> Figure:
    """Latency against each predictor, stages in colours: columns maps a column to its label."""
    fig, axes = subplots(1, len(columns), figsize=(2.9 * len(columns), 2.9), sharey=True)
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for stage, rows in features.groupby(level="stage", sort=False):
            ax.scatter(rows[column], ms[rows.index], s=18, color=COLOURS[stage], label=stage)
        ax.set_xlabel(label)
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes[0].set_ylabel("ms")
    axes[-1].legend(fontsize=7)
    fig.tight_layout()
    return fig


def removal(table: pd.DataFrame) -> Figure:
    """What taking a stage away costs in tAFID against what it saves: removed, how,
    params_saved_share, ms_saved, tafid, floor.
    """
    fig, axes = subplots(1, 2, figsize=(9.4, 3.8), sharey=True)
    marks = {"removed": ("#c95d2e", "o"), "one R": ("#1b6ca8", "s")}
    for ax, column, label in (
        (axes[0], "params_saved_share", "share of the parameters saved"),
        (axes[1], "ms_saved", "ms saved (sd-mini, this machine)"),
    ):
        for how, rows in table.groupby("how"):
            colour, marker = marks[how]
            ax.scatter(rows[column], rows.tafid, c=colour, marker=marker, s=24, label=how)
            for r in rows.itertuples():
                at = getattr(r, column), r.tafid
                ax.annotate(
                    r.removed,
                    at,
                    xytext=(4, 3),
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                )
        ax.axhline(table.floor.iloc[0], ls=":", color="black", lw=1, label="teacher, other noise")
        ax.set(xlabel=label, yscale="log")
        _plain(ax)
    axes[0].set_ylabel("mini-clip tAFID, nothing retrained")
    axes[1].legend(fontsize=7)
    fig.tight_layout()
    return fig


def memory(table: pd.DataFrame) -> Figure:
    """Weights and peak activations of each component in each format: component, format, weights_mb,
    peak_activation_mb.
    """
    parts = list(dict.fromkeys(table.component))
    fig, axes = subplots(1, len(parts), figsize=(2.4 * len(parts), 2.7), sharey=True)
    for ax, part in zip(axes, parts, strict=True):
        rows = table[table.component == part]
        ax.bar(rows.format, rows.weights_mb / 1e3, color="#1b6ca8", label="weights")
        peak = rows.peak_activation_mb / 1e3
        ax.bar(
            rows.format, peak, bottom=rows.weights_mb / 1e3, color="#f6c28b", label="activations"
        )
        ax.set_title(part)
    axes[0].set_ylabel("GB")
    axes[0].legend(fontsize=7)
    fig.tight_layout()
    return fig


def scatter(
    table: pd.DataFrame, x: str, y: str, label: str = "", xlabel: str = "", ylabel: str = ""
) -> Figure:
    """Points of two columns, named by a third."""
    fig, ax = subplots(figsize=(4.6, 3.4))
    ax.scatter(table[x], table[y], s=22, color="#1b6ca8")
    for _, row in table.iterrows() if label else ():
        ax.annotate(
            row[label], (row[x], row[y]), xytext=(4, 3), textcoords="offset points", fontsize=7
        )
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y)
    fig.tight_layout()
    return fig


def pareto(
    panels: dict[str, tuple[pd.DataFrame, str]], ylabel: str, floor: float | None = None
) -> Figure:
    """One panel for each cost: every network judged, by group, and the front of the EHVI search.

    `panels` maps a label to (table with columns group, tafid and the cost, name of the cost
    column).
    """
    marks = {"initial": ("#bbbbbb", "o"), "random": ("#888888", "x"), "EHVI": ("#c95d2e", "o")}
    marks["paper's family"] = ("#1b6ca8", "D")
    fig, axes = subplots(1, len(panels), figsize=(5 * len(panels), 3.8), sharey=True)
    for ax, (label, (table, cost)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for group, rows in table.groupby("group", sort=False):
            colour, marker = marks.get(group, ("black", "."))
            ax.scatter(rows[cost], rows.tafid, c=colour, marker=marker, s=20, label=group, zorder=3)
        own = table[table.group.isin(["initial", "EHVI"])].sort_values(cost)
        best = own[own.tafid.cummin() == own.tafid]
        ax.step(
            best[cost], best.tafid, where="post", color="#c95d2e", lw=1, zorder=2, label="front"
        )
        for _, row in table[table.group == "paper's family"].iterrows():
            ax.annotate(
                row.model,
                (row[cost], row.tafid),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
            )
        if floor is not None:
            ax.axhline(floor, ls=":", color="black", lw=1, label="teacher, other noise")
        ax.set(xlabel=label, yscale="log")
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        _plain(ax)
        ax.legend(fontsize=7)
    np.atleast_1d(axes)[0].set_ylabel(ylabel)
    fig.tight_layout()
    return fig


def hypervolumes(table: pd.DataFrame) -> Figure:
    """Hypervolume against evaluations, by direction: direction, order, EHVI, random, random_std."""
    groups = list(table.groupby("direction"))
    fig, axes = subplots(1, len(groups), figsize=(4.4 * len(groups), 3))
    for ax, (direction, rows) in zip(np.atleast_1d(axes), groups, strict=True):
        ax.plot(rows.order, rows["EHVI"], color="#c95d2e", label="EHVI")
        ax.plot(rows.order, rows["random"], color="#888888", label="random, mean")
        low, high = (rows["random"] + k * rows["random_std"] for k in (-1, 1))
        ax.fill_between(rows.order, low, high, color="#888888", alpha=0.2, lw=0)
        ax.set(xlabel="networks judged", ylabel="hypervolume", title=f"tAFID and {direction}")
        ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def _plain(ax: plt.Axes) -> None:
    """Plain numbers on a logarithmic axis: each decade, at 1, 2 and 5 where there are few."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 2e3 * low else (1,)))
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def before_after(table: pd.DataFrame) -> Figure:
    """tAFID against latency, an arrow from each assembled network to its aligned self."""
    fig, ax = subplots(figsize=(7, 4))
    ax.scatter(table.latency_ms, table.tafid_assembled, c="#bbbbbb", label="assembled")
    ax.scatter(table.latency_ms, table.tafid_aligned, c="#c95d2e", label="aligned")
    for r in table.itertuples():
        ax.annotate(
            "",
            (r.latency_ms, r.tafid_aligned),
            (r.latency_ms, r.tafid_assembled),
            arrowprops={"arrowstyle": "->", "color": "#999999"},
        )
        ax.annotate(
            r.model,
            (r.latency_ms, r.tafid_aligned),
            xytext=(5, -3),
            textcoords="offset points",
            fontsize=7,
        )
    ax.axhline(table.floor.iloc[0], ls=":", color="black", lw=1, label="teacher, other noise")
    ax.set(xlabel="latency (ms, sd-mini, this machine)", ylabel="mini-clip tAFID", yscale="log")
    _plain(ax)
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


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
    fig, ax = subplots(figsize=(7, 0.32 * len(counts) + 1))
    left = np.zeros(len(counts))
    for verdict in counts:
        ax.barh(counts.index, counts[verdict], left=left, color=palette[verdict], label=verdict)
        left += counts[verdict].to_numpy()
    ax.invert_yaxis()
    ax.set_xlabel("claims")
    ax.legend(fontsize=7, loc="lower right")
    fig.tight_layout()
    return fig


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two columns."""
    return float(
        pd.Series(np.asarray(a, float)).corr(pd.Series(np.asarray(b, float)), method="spearman")
    )


def to_tensor(image: np.ndarray) -> Tensor:
    """A picture (H, W, 3) in 0..255 as (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1
