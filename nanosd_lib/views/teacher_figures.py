"""Figures of notebook 00: the world, one sampling, reconstructions, and what each stage is for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from torch import Tensor

from nanosd_lib.views import figures
from nanosd_lib.views.figures import COLOURS, to_image, wrap
from nanosd_lib.views.readings import CAN_FAIL, digits

BANDS = {"early": ("<", "#1b6ca8"), "middle": ("o", "#7a7a7a"), "late": (">", "#c95d2e")}


def captioned(
    pictures: Tensor, captions: Sequence[str], notes: Sequence[str] = (), columns: int = 8
) -> Figure:
    """Pictures (N, 3, H, W), each above its own caption and a note."""
    wide, high = 1.3, 2.0  # inches of a picture with its caption
    rows = -(-len(pictures) // columns)
    size = (wide * columns, high * rows)
    fig, ax = figures.subplots(figsize=size)
    for i, picture in enumerate(pictures):
        x, y = wide * (i % columns + 0.5), high * (i // columns) + wide / 2
        figures.place(ax, picture, x, y, 0.94 * wide)
        lines = wrap(captions[i], 20) + ([notes[i]] if len(notes) else [])
        ax.text(x, y + wide / 2, "\n".join(lines), ha="center", va="top", fontsize=7)
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
    ax.axis("off")
    fig.subplots_adjust(0, 0, 1, 1)
    return fig


def ticks(right: dict[str, list[bool]]) -> list[str]:
    """For each picture what was recognised: "shape ✓ colour ✗", and the texture below."""
    mark = lambda k, i: f"{k} {'✓' if right[k][i] else '✗'}"  # noqa: E731
    n = len(right["shape"])
    return [f"{mark('shape', i)}  {mark('colour', i)}\n{mark('texture', i)}" for i in range(n)]


def sampling(seen: dict[str, Tensor], prompt: str) -> Figure:
    """One sampling: noisy latents above, the expected picture below, a column for each step."""
    n = len(seen["t"])
    fig, axes = figures.subplots(2, n, figsize=(1.5 * n + 0.9, 3.3), squeeze=False)
    for row, kind, label in ((0, "noisy", "decoded $x_t$"), (1, "expected", "expected\npicture")):
        for i, ax in enumerate(axes[row]):
            ax.imshow(to_image(seen[kind][i]), interpolation="nearest")
            ax.axis("off")
        axes[row][0].text(
            -0.08, 0.5, label, transform=axes[row][0].transAxes, ha="right", va="center"
        )
    for t, ax in zip(seen["t"].tolist(), axes[0], strict=True):
        ax.set_title(f"t = {t}", fontsize=8)
    fig.suptitle(f"“{prompt}”", fontsize=8, y=0.99)
    fig.subplots_adjust(0.9 / (1.5 * n + 0.9), 0.01, 0.99, 0.87, 0.04, 0.04)
    return fig


def reconstructions(examples: dict[str, Tensor], names: Sequence[str]) -> Figure:
    """One crop of each name: as it is, through the VAE, through bicubic of a quarter of the size,
    and the signed error of the VAE in brightness.
    """
    heads = ("original", "through the VAE", "bicubic, a quarter", "VAE's error")
    fig, axes = figures.subplots(
        4, len(names), figsize=(1.35 * len(names) + 1.6, 5.7), squeeze=False
    )
    for column, name in zip(axes.T, names, strict=True):
        x, y, z = (examples[name + k][0] for k in ("", ", reconstructed", ", bicubic"))
        for ax, picture in zip(column, (x, y, z), strict=False):
            ax.imshow(to_image(picture), interpolation="nearest")
        error = (y - x).mean(0).numpy() / 2
        shown = column[3].imshow(error, cmap="RdBu_r", vmin=-0.15, vmax=0.15)
        column[0].set_title(name.replace("held-out ", ""), fontsize=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    for ax, head in zip(axes[:, 0], heads, strict=True):
        ax.set_ylabel(head, fontsize=8)
    bar = fig.colorbar(
        shown, ax=axes.ravel().tolist(), fraction=0.02, pad=0.01, shrink=0.25, anchor=(0, 0)
    )
    bar.ax.tick_params(labelsize=7)
    bar.set_label("of the whole range", fontsize=7)
    return fig


def stages_that_matter(table: pd.DataFrame) -> Figure:
    """What the prediction loses without each stage, in three bands of the timestep, with intervals;
    shaded: where no claim can fail.
    """
    stages = list(dict.fromkeys(table.removed))
    fig, ax = figures.subplots(figsize=(6.4, 0.36 * len(stages) + 1.1))
    for k, (band, (mark, colour)) in enumerate(BANDS.items()):
        rows = table[table.band == band].set_index("removed").loc[stages]
        y = np.arange(len(stages))[::-1] + 0.22 * (1 - k)
        spread = [rows.eps_error - rows.eps_error_low, rows.eps_error_high - rows.eps_error]
        how = dict(fmt=mark, ms=4, lw=1, color=colour, label=f"{band} timesteps")
        ax.errorbar(rows.eps_error, y, xerr=np.maximum(spread, 0), **how)
    ax.set(xscale="log", xlabel="change of the predicted noise, relative to its power")
    ax.set_yticks(np.arange(len(stages))[::-1], stages)
    low, high = ax.get_xlim()
    ax.axvspan(min(low, CAN_FAIL / 3), CAN_FAIL, color="#999999", alpha=0.15, lw=0)
    ax.set_xlim(min(low, CAN_FAIL / 3), high)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncol=3)
    fig.tight_layout()
    return fig


def distances(table: pd.DataFrame) -> Figure:
    """Frechet distances as dots with whiskers on a logarithmic axis."""
    fig, ax = figures.subplots(figsize=(6.4, 0.36 * len(table) + 0.8))
    y = np.arange(len(table))[::-1]
    spread = [table.frechet - table.frechet_low, table.frechet_high - table.frechet]
    ax.errorbar(
        table.frechet, y, xerr=np.maximum(spread, 0), fmt="o", ms=4, lw=1, color=COLOURS["E1"]
    )
    ax.set(xscale="log", xlabel=f"Frechet distance over {int(table.n.iloc[0])} pictures a side")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    for x, high, at in zip(table.frechet, table.frechet_high, y, strict=True):
        ax.annotate(digits(x), (high, at), (6, 0), textcoords="offset points", va="center")
    ax.margins(x=0.08)
    ax.set_yticks(y, table.pictures)
    ax.set_ylim(-0.6, len(table) - 0.4)
    fig.tight_layout()
    return fig
