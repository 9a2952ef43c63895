"""Figures: what a reader looks at. Functions return a figure and show nothing themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.collections import PathCollection
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
CODES = ("R", "RA", "RR", "RAR", "RRA", "RRR", "RARA")
COLOURS = dict(E1="#1b6ca8", E2="#3fa7d6", E3="#9bd1e5", D3="#f6c28b", D2="#ee8434", D1="#c95d2e")


def subplots(*args, **kwargs) -> tuple[Figure, Any]:
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
    n, points = max(len(v) for v in rows.values()), 7 if size < 2 else 10
    across = int(size * 72 / (0.58 * points))  # letters above a picture
    heads = [wrap(t.replace(" = ", "\u00a0=\u00a0"), across) for t in titles]
    head = 0.16 + points / 55 * max(map(len, heads), default=0)  # inches
    width, height = n * size + margin, len(rows) * size + head
    fig, ax = subplots(figsize=(width, height))  # one for all: an axis for each takes seconds
    for k, (name, pictures) in enumerate(rows.items()):
        for i, picture in enumerate(pictures):
            place(ax, picture, i + 0.5, k + 0.5)
        whole = name.replace(" = ", "\u00a0=\u00a0")  # an equation stays on its line
        label = name if "\n" in name else "\n".join(wrap(whole, round(11 * margin)))
        ax.text(-0.06, k + 0.5, label, ha="right", va="center")
    for i, lines in enumerate(heads[:n]):
        ax.text(i + 0.5, -0.04, "\n".join(lines), fontsize=points, ha="center", va="bottom")
    ax.set(xlim=(0, n), ylim=(len(rows), 0), aspect="equal", anchor="SW")
    ax.axis("off")
    fig.subplots_adjust((margin - 0.05) / width, 0.01, 0.995, 1 - head / height)
    return fig


def place(ax: plt.Axes, picture: Tensor, x: float, y: float, side: float = 0.96) -> None:
    """A picture (3, H, W) with its middle at (x, y), its longer side so long; y grows downwards."""
    high, wide = (side / 2 * n / max(picture.shape[1:]) for n in picture.shape[1:])
    where = (x - wide, x + wide, y + high, y - high)
    ax.imshow(to_image(picture), interpolation="nearest", extent=where)


def wrap(text: str, width: int = 20) -> list[str]:
    """Lines of at most `width` characters, broken at spaces."""
    import textwrap

    return textwrap.wrap(text, width)


def plain(ax: plt.Axes) -> None:
    """Plain numbers on a logarithmic y: each decade, at 1, 2 and 5 where there are few."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 2e3 * low else (1,)))
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def bars(table: pd.DataFrame, value: str, label: str, low: str = "", high: str = "") -> Figure:
    """Horizontal bars of a table with columns stage and code, one colour for each stage."""
    fig, ax, y = _lines(table, label)
    ax.barh(y, table[value], color=[COLOURS.get(s, "#999999") for s in table.stage])
    if low:
        ax.hlines(y, table[low], table[high], color="black", lw=1)
    fig.tight_layout()
    return fig


def dots(table: pd.DataFrame, value: str, label: str, low: str, high: str) -> Figure:
    """The same on a logarithmic axis, where a bar has no beginning: a dot within its interval."""
    fig, ax, y = _lines(table, label)
    colours = [COLOURS.get(s, "#999999") for s in table.stage]
    ax.hlines(y, table[low], table[high], color=colours, lw=1.5)
    ax.scatter(table[value], y, color=colours, s=18, zorder=3)
    ax.set_xscale("log")
    ax.grid(axis="y", visible=True, lw=0.4, alpha=0.5)
    fig.tight_layout()
    return fig


def _lines(table: pd.DataFrame, label: str) -> tuple[Figure, plt.Axes, np.ndarray]:
    """A line for each row of a table with columns stage and code, from above."""
    fig, ax = subplots(figsize=(7, 0.19 * len(table) + 0.8))
    y = np.arange(len(table))[::-1]
    ax.set_yticks(y, table.stage + "  " + table.code, fontsize=7)
    ax.set_xlabel(label)
    ax.set_ylim(-0.7, len(table) - 0.3)
    ax.grid(axis="y", visible=False)
    return fig, ax, y


def curves(table: pd.DataFrame, constant: dict[str, float]) -> Figure:
    """Learning curves (surrogate, step, relative_error), a panel for each stage, codes named at the
    ends of their lines; dashed, the error of the best constant for each channel.
    """
    stages = list(dict.fromkeys(name.split(":")[0] for name in table.surrogate))
    fig, axes = subplots(2, -(-len(stages) // 2), figsize=(7.6, 5.2), squeeze=False)
    for ax, stage in zip(axes.flat, stages, strict=False):
        mine = table[table.surrogate.str.startswith(stage + ":")]
        ends = mine.groupby("surrogate").relative_error.last().sort_values()
        for name in ends.index:
            rows = mine[mine.surrogate == name]
            look = {"marker": "o", "ms": 2.5, "lw": 1.2, "color": _of_code(str(name))}
            ax.plot(rows.step, rows.relative_error, **look)
        ax.axhline(constant[stage], color="black", lw=0.8, ls="--")
        ax.set(title=stage, yscale="log", xlim=(None, mine.step.max() * 1.4))
        plain(ax)
        _name_ends(ax, {str(k): v for k, v in ends.items()}, mine.step.max())
    for ax in axes[-1]:
        ax.set_xlabel("steps")
    for ax in axes[:, 0]:
        ax.set_ylabel("held-out error")
    for ax in list(axes.flat)[len(stages) :]:
        ax.axis("off")
    fig.tight_layout()
    return fig


def _name_ends(ax: plt.Axes, ends: dict[str, float], x: float, gap: float = 0.065) -> None:
    """Codes of lines on a logarithmic y beside their ends ("E1:R" -> end, rising) at x, each led to
    its line, no two nearer than so much of the axis.
    """
    low, high = np.log(ax.get_ylim())
    want = (np.log(list(ends.values())) - low) / (high - low)
    place = want.copy()
    for k in range(1, len(place)):
        place[k] = max(place[k], place[k - 1] + gap)
    place[-1] = min(place[-1], 0.97)
    for k in range(len(place) - 2, -1, -1):
        place[k] = min(place[k], place[k + 1] - gap)
    for name, y in zip(ends, np.exp(low + place * (high - low)), strict=True):
        colour = _of_code(name)
        lead = dict(arrowstyle="-", lw=0.5, color=colour, shrinkA=0, shrinkB=0)
        ax.annotate(
            name.split(":")[1], (x, ends[name]), (1.09 * x, y), fontsize=6.5, va="center",
            color=colour, arrowprops=lead,
        )  # fmt: skip


def _of_code(name: str) -> str:
    """One colour for a code ("E1:RA") in every panel."""
    return f"C{CODES.index(name.split(':')[1])}"


def name_points(
    ax: plt.Axes, x: Iterable[float], y: Iterable[float], names: Iterable[str], **how
) -> None:
    """Names beside their points, no two over each other nor over a point or a bar that is drawn
    there: after everything else, the layout included. `how` goes to textalloc (textsize, textcolor,
    x_lines, y_lines).
    """
    import textalloc

    x, y = list(x), list(y)
    look: dict[str, Any] = {"textsize": 7, "linecolor": "#999999", "linewidth": 0.5}
    points = [path for path in ax.collections if isinstance(path, PathCollection)]
    drawn = [np.asarray(path.get_offsets()) for path in points]
    drawn += [
        np.column_stack(line.get_data(orig=False))
        for line in ax.lines
        if line.get_marker() != "None"
    ]
    all_x, all_y = np.concatenate([[x, y], *(d.T for d in drawn)], axis=1, dtype=float)
    scatter = {"x_scatter": all_x, "y_scatter": all_y}
    textalloc.allocate(ax, x, y, list(names), **(look | scatter | how))


def upright(x: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, list[list[float]]]:
    """Bars from low to high at x, for `name_points` to stay clear of."""
    pairs = [[a, b] for a, b in zip(low, high, strict=True)]
    return {"x_lines": [[a, a] for a in x], "y_lines": pairs}


def scatter(
    table: pd.DataFrame, x: str, y: str, label: str = "", xlabel: str = "", ylabel: str = ""
) -> Figure:
    """Points of two columns, named by a third."""
    fig, ax = subplots(figsize=(4.6, 3.4))
    ax.scatter(table[x], table[y], s=22, color="#1b6ca8")
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y)
    fig.tight_layout()
    if label:
        name_points(ax, table[x], table[y], table[label])
    return fig
