"""Figures of one kind of result each: backends, removal, memory, fronts, alignment."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure

from nanosd_lib.views import figures
from nanosd_lib.views.figures import COLOURS

ENDS = ("low", "high")  # of an interval
BACKENDS = {  # none of them a stage's colour
    "eager": "#444444",
    "eager-bf16": "#a0a0a0",
    "ort-fp32": "#7fbf7b",
    "ort-int8": "#1b7837",
}


def backends(table: pd.DataFrame, label: str) -> Figure:
    """A dot for each row and backend on a logarithmic axis, quartiles as whiskers: name, backend,
    ms_median, ms_low, ms_high.
    """
    names = list(dict.fromkeys(table.name))
    fig, ax = figures.subplots(figsize=(7.2, 0.19 * len(names) + 0.9))
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
    fig, axes = figures.subplots(1, len(columns), figsize=(2.9 * len(columns), 2.9), sharey=True)
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for stage, rows in features.groupby(level="stage", sort=False):
            ax.scatter(rows[column], ms[rows.index], s=18, color=COLOURS[stage], label=stage)
        few = features[column].nunique() < 10  # counts: a logarithm would lose the zeros
        ax.set(xlabel=label, xscale="linear" if few else "log", yscale="log")
        if not few:
            ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        figures.plain(ax)
    axes[0].set_ylabel("ms")
    axes[-1].legend(fontsize=7)
    fig.tight_layout()
    return fig


def removal(table: pd.DataFrame) -> Figure:
    """What taking a stage away costs in tAFID (with its interval) against what it saves: removed,
    how, params_saved_share, ms_saved (and its), tafid, floor.
    """
    fig, axes = figures.subplots(1, 2, figsize=(9.4, 3.8), sharey=True)
    marks = {"removed": ("#c95d2e", "o"), "one R": ("#1b6ca8", "s")}
    columns = {}
    for ax, column, label in (
        (axes[0], "params_saved_share", "share of the parameters saved"),
        (axes[1], "ms_saved", "ms saved (sd-mini, this machine)"),
    ):
        for how, rows in table.groupby("how"):
            colour, marker = marks[how]
            ends = {"yerr": [rows.tafid - rows.tafid_low, rows.tafid_high - rows.tafid]}
            if f"{column}_low" in rows:
                x = [rows[f"{column}_{end}"] for end in ENDS]
                ends["xerr"] = [(rows[column] - x[0]).fillna(0), (x[1] - rows[column]).fillna(0)]
            look = dict(fmt=marker, ms=5, lw=1, color=colour, label=how)
            ax.errorbar(rows[column], rows.tafid, **ends, **look)
        ax.axhline(table.floor.iloc[0], ls=":", color="black", lw=1, label="teacher, other noise")
        ax.set(xlabel=label, yscale="log")
        ax.margins(0.2, 0.12)
        figures.plain(ax)
        columns[ax] = column
    axes[0].set_ylabel("mini-clip tAFID, nothing retrained")
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, fontsize=8, ncol=3, loc="upper center")
    fig.tight_layout(rect=(0, 0, 1, 0.93))
    for ax, column in columns.items():
        x = table[column]
        bars = figures.upright(x, table.tafid_low, table.tafid_high)
        colours = [marks[how][0] for how in table.how]
        figures.name_points(ax, x, table.tafid, table.removed, textcolor=colours, **bars)
    return fig


def memory(table: pd.DataFrame) -> Figure:
    """Weights and peak activations of each component in each format: component, format, weights_mb,
    peak_activation_mb.
    """
    parts = list(dict.fromkeys(table.component))
    fig, axes = figures.subplots(1, len(parts), figsize=(2.4 * len(parts), 2.7), sharey=True)
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


def pareto(
    panels: dict[str, tuple[pd.DataFrame, str]], ylabel: str, floor: float | None = None
) -> Figure:
    """One panel for each cost: networks judged, by group, and the front of the EHVI search.

    `panels` maps a label to (table with columns group, front (whether it stands there), tafid and
    the cost, name of the cost column).
    """
    marks = {"initial": ("#bbbbbb", "o"), "random": ("#888888", "x"), "EHVI": ("#c95d2e", "o")}
    marks["paper's table"] = ("#1b6ca8", "D")
    fig, axes = figures.subplots(1, len(panels), figsize=(5 * len(panels), 3.8), sharey=True)
    for ax, (label, (table, cost)) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for group, rows in table.groupby("group", sort=False):
            colour, marker = marks.get(group, ("black", "."))
            ax.scatter(rows[cost], rows.tafid, c=colour, marker=marker, s=20, label=group, zorder=3)
        best = table[table.front].sort_values(cost)
        ax.step(
            best[cost],
            best.tafid,
            where="post",
            color="#c95d2e",
            lw=1,
            zorder=2,
            label="front of the EHVI search",
        )
        if floor is not None:
            ax.axhline(floor, ls=":", color="black", lw=1, label="teacher, other noise")
        ax.set(xlabel=label, yscale="log")
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        figures.plain(ax)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel(ylabel)
    fig.legend(*first.get_legend_handles_labels(), fontsize=8, ncol=6, loc="upper center")
    fig.tight_layout(rect=(0, 0, 1, 0.93))
    for ax, (table, cost) in zip(np.atleast_1d(axes), panels.values(), strict=True):
        named = table[table.group == "paper's table"]
        figures.name_points(ax, named[cost], named.tafid, named.model)
    return fig


def hypervolumes(table: pd.DataFrame) -> Figure:
    """Hypervolume against evaluations, by direction: direction, order, EHVI, random, random_std."""
    groups = list(table.groupby("direction"))
    fig, axes = figures.subplots(1, len(groups), figsize=(4.4 * len(groups), 3))
    for ax, (direction, rows) in zip(np.atleast_1d(axes), groups, strict=True):
        judged = rows.order + 1
        ax.plot(judged, rows["EHVI"], color="#c95d2e", label="EHVI")
        ax.plot(judged, rows["random"], color="#888888", label="random, mean")
        low, high = (rows["random"] + k * rows["random_std"] for k in (-1, 1))
        band = "random, one deviation over redraws of one pool"
        ax.fill_between(judged, low, high, color="#888888", alpha=0.2, lw=0, label=band)
        title, unit = f"log tAFID and {direction}", "ms" if direction == "latency" else direction
        ax.set(xlabel="networks judged", ylabel=f"hypervolume (log tAFID x {unit})", title=title)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        ax.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    first = np.atleast_1d(axes)[0]
    fig.legend(*first.get_legend_handles_labels(), fontsize=8, ncol=3, loc="upper center")
    fig.tight_layout(rect=(0, 0, 1, 0.92))
    return fig


def before_after(table: pd.DataFrame) -> Figure:
    """tAFID against latency, an arrow from each assembled network to its aligned self; hollow where
    `alignment` is another than most networks'.
    """
    fig, ax = figures.subplots(figsize=(7, 4))
    alike = table.alignment == table.alignment.mode()[0]
    for when, rows, colour, fill, said in (
        ("assembled", table, "#bbbbbb", "#bbbbbb", "assembled"),
        ("aligned", table[alike], "#c95d2e", "#c95d2e", "aligned"),
        ("aligned", table[~alike], "#c95d2e", "white", "aligned for less"),
    ):
        y, low, high = (rows[f"tafid_{when}{end}"] for end in ("", "_low", "_high"))
        bars = dict(fmt="o", ms=5, lw=1, color=colour, mfc=fill, label=f"{said}, 95 % interval")
        if len(rows):
            ax.errorbar(rows.latency_ms, y, yerr=[y - low, high - y], **bars)
    for r in table.itertuples():
        ax.annotate(
            "",
            (r.latency_ms, r.tafid_aligned),
            (r.latency_ms, r.tafid_assembled),
            arrowprops={"arrowstyle": "->", "color": "#999999"},
        )
    ax.axhline(table.floor.iloc[0], ls=":", color="black", lw=1, label="teacher, other noise")
    ax.set(xlabel="ms of the whole network (sd-mini, this machine)", yscale="log")
    ax.set_ylabel("mini-clip tAFID (lower is nearer to the teacher)")
    ax.margins(x=0.1)
    figures.plain(ax)
    ax.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    fig.tight_layout()
    x = table.latency_ms
    low, high = (table[[f"tafid_{w}_{end}" for w in ("assembled", "aligned")]] for end in ENDS)
    upright = figures.upright(x, low.min(axis=1), high.max(axis=1))
    figures.name_points(ax, x, table.tafid_aligned, table.model, **upright)
    return fig


def more_pictures(family: pd.DataFrame, n: int, many: pd.DataFrame) -> Figure:
    """tAFID of aligned networks on the n pictures of family.csv and on more (`Many.table`), each
    beside the teacher with other noise at that number: a distance shrinks with it.
    """
    few = (
        family.set_index("model")
        .loc[many.model]
        .rename(columns=lambda c: c.replace("_aligned", ""))
    )
    fig, ax = figures.subplots(figsize=(7, 3.2))
    where = np.arange(len(many))
    for x, colour, rows, pictures in (
        (-0.12, "#6f9dc4", few, n),
        (0.12, "#c95d2e", many, many.n.iloc[0]),
    ):
        off = [rows.tafid - rows.tafid_low, rows.tafid_high - rows.tafid]
        said = f"{pictures} pictures, 95 % interval"
        ax.errorbar(where + x, rows.tafid, yerr=off, fmt="o", ms=4, lw=1, color=colour, label=said)
        other = f"teacher, other noise, {pictures}"
        ax.axhline(rows.floor.iloc[0], ls=":", color=colour, lw=1.2, label=other)
    ax.set_xticks(where, many.model, rotation=30, ha="right", fontsize=8)
    ax.set(yscale="log", ylabel="mini-clip tAFID")
    figures.plain(ax)
    ax.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    fig.tight_layout()
    return fig
