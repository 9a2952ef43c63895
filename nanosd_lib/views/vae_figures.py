"""Figures of notebook 04; they return a figure and show nothing, as those of `tables` do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nanosd_lib.views.figures import plain, subplots

MODELS = {"teacher": "#333333", "slim": "#c95d2e", "tiny": "#3fa7d6"}
COMPONENTS = {
    "text encoder": "#bbbbbb",
    "VAE encoder": "#f6c28b",
    "U-Net": "#1b6ca8",
    "VAE decoder": "#ee8434",
}


def busiest(pictures: Tensor, box: int) -> list[tuple[int, int]]:
    """Row and column of the box x box pixels with the largest variance in each (N, 3, H, W)."""
    grey = pictures.mean(1, keepdim=True)
    mean, square = (torch.nn.functional.avg_pool2d(v, box, stride=1) for v in (grey, grey**2))
    best = (square - mean**2).flatten(1).argmax(1)
    return [divmod(int(i), mean.shape[-1]) for i in best]


def detail(pictures: Tensor, corners: list[tuple[int, int]], box: int) -> Tensor:
    """box x box pixels at those corners of pictures (N, 3, H, W), magnified to H x W."""
    boxes = [p[:, y : y + box, x : x + box] for p, (y, x) in zip(pictures, corners, strict=True)]
    return torch.nn.functional.interpolate(torch.stack(boxes), pictures.shape[-2:], mode="nearest")


def error_map(pictures: Tensor, originals: Tensor, gain: float = 4) -> Tensor:
    """Absolute differences times `gain`, as pictures: black where they are equal."""
    return ((pictures - originals).abs() * gain).clamp(0, 2) - 1


def judged(originals: Tensor, made: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows for `figures.grid`, like below like: originals and every model's pictures, the busiest
    part of each (3/8 of a side) magnified, and the errors.
    """
    box = originals.shape[-1] * 3 // 8
    corners = busiest(originals, box)
    rows = {"original": originals} | made
    rows |= {f"{name}, detail": detail(y, corners, box) for name, y in [*rows.items()]}
    return rows | {f"{name}, error": error_map(y, originals) for name, y in made.items()}


def latent_match(student: Tensor, teacher: Tensor, corr: np.ndarray) -> Figure:
    """A student's latents against the teacher's (N, C, h, w), one panel for each channel."""
    fig, axes = subplots(1, len(corr), figsize=(2.5 * len(corr), 3.1), sharey=True)
    limit = float(teacher.abs().quantile(0.999))
    for c, ax in enumerate(axes):
        a, b = (v[:, c].flatten().numpy() for v in (teacher, student))
        box = (-limit, limit, -limit, limit)
        ax.hexbin(a, b, gridsize=45, extent=box, cmap="Oranges", bins="log", mincnt=1)
        ax.plot([-limit, limit], [-limit, limit], color="black", lw=0.8, ls=":")
        ax.set(title=f"channel {c}: {float(corr[c]):.3f}", xlabel="teacher", aspect="equal")
        ax.grid(visible=False)
    axes[0].set_ylabel("student")
    fig.tight_layout()
    return fig


def terms(records: dict[str, list[dict]], names: tuple[str, ...]) -> Figure:
    """Every term of the loss along the training of several students; on a logarithmic axis where it
    falls by half and more. Seeds of one student
    are shades of its colour.
    """
    fig, axes = subplots(1, len(names), figsize=(2.5 * len(names), 2.9))
    before = [label.split(",")[0] for label in records]
    for ax, name in zip(axes, names, strict=True):
        for k, (label, record) in enumerate(records.items()):
            x, y = [r["step"] for r in record], [r[name] for r in record]
            if any(y):
                look = {"color": MODELS[before[k]], "alpha": 0.5 ** before[:k].count(before[k])}
                ax.plot(x, y, marker="o", ms=2.5, lw=1, label=label, **look)
        low, high = (f(y for line in ax.lines for y in line.get_ydata()) for f in (min, max))
        ax.set(title=name, xlabel="step")
        if high > 2 * low > 0:
            ax.set_yscale("log")
            plain(ax)
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=7, ncol=5, loc="upper center")
    fig.tight_layout(rect=(0, 0, 1, 0.93))
    return fig


def pipeline_bars(table: pd.DataFrame, label: str) -> Figure:
    """Where the time of one tile goes: one stacked bar for each configuration, one panel for each
    geometry: geometry, configuration, component, ms_median. Percentages are of the first bar.
    """
    groups = list(table.groupby("geometry", sort=False))
    fig, axes = subplots(len(groups), 1, figsize=(7.4, 1.75 * len(groups) + 0.5), squeeze=False)
    for ax, (geometry, rows) in zip(axes[:, 0], groups, strict=True):
        names = list(dict.fromkeys(rows.configuration))
        wide = rows.pivot(index="configuration", columns="component", values="ms_median")
        wide, left = wide.loc[names], np.zeros(len(names))
        for part, colour in COMPONENTS.items():
            ax.barh(names, wide[part], left=left, color=colour, label=part, height=0.7)
            left += wide[part].to_numpy()
        for y, total in enumerate(left):
            ax.text(total, y, f"  {total / left[0]:.0%}", va="center", fontsize=8)
        ax.set(title=geometry, xlabel=label, xlim=(0, left.max() * 1.1))
        ax.title.set_fontsize(9)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
    axes[0, 0].legend(fontsize=7, loc="lower right")
    fig.tight_layout()
    return fig


def reconstruction(table: pd.DataFrame, floor: pd.Series) -> Figure:
    """PSNR lost against the teacher's VAE by each student and swap: model, part, pictures, psnr;
    `floor` is the teacher's PSNR by kind of pictures. A point for each seed.
    """
    kinds = list(dict.fromkeys(table.pictures))
    fig, axes = subplots(1, len(kinds), figsize=(3.7 * len(kinds), 2.6), sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        rows = table[(table.pictures == kind) & (table.model != "teacher")]
        labels = list(dict.fromkeys(rows.model + ", " + rows.part))[::-1]
        for (model, part), some in rows.groupby(["model", "part"], sort=False):
            y = [labels.index(f"{model}, {part}")] * len(some)
            ax.scatter(some.psnr - floor[kind], y, color=MODELS[model], s=22)
        ax.axvline(0, color="black", lw=0.8, ls=":")
        ax.set(title=kind, xlabel="dB against the teacher's VAE", yticks=range(len(labels)))
        ax.set_yticklabels(labels)
    fig.tight_layout()
    return fig
