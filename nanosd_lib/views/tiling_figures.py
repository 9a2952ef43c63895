"""Figures of notebook 01: the grid over a photograph, seconds of a photograph, seams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from nanosd_lib.views import figures

UNET, VAE = "#1b6ca8", "#f6c28b"


class Grid(Protocol):
    """What is read of `restoration.tiling.Grid`."""

    width: int
    height: int
    tile: int
    overlap: int

    @property
    def xs(self) -> Sequence[int]: ...
    @property
    def ys(self) -> Sequence[int]: ...
    @property
    def columns(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def count(self) -> int: ...


def counted(grid: Grid) -> np.ndarray:
    """(H, W): how many tiles see each input pixel."""
    along = [np.zeros(n, dtype=int) for n in (grid.height, grid.width)]
    for line, starts in zip(along, (grid.ys, grid.xs), strict=True):
        for x in starts:
            line[x : x + grid.tile] += 1
    return np.outer(*along)


def coverage(grid: Grid, picture: np.ndarray) -> Figure:
    """How often each pixel is computed, over a photograph (H, W, 3) in 0 .. 1; one tile framed."""
    seen = counted(grid)
    fig, ax = plt.subplots(figsize=(7.2, 4.8))
    wide = round(picture.shape[0] * grid.width / grid.height)
    where = (0, grid.width, grid.height, 0)
    ax.imshow(picture[:, :wide].mean(2), cmap="gray", extent=where)
    levels = np.unique(seen)
    norm = BoundaryNorm([*levels, levels[-1] + 1], 256)
    shown = ax.imshow(seen, cmap="viridis", norm=norm, alpha=0.45, extent=where)
    bar = fig.colorbar(shown, ax=ax, fraction=0.034, pad=0.02, label="times a pixel is computed")
    middles = [(a + b) / 2 for a, b in zip(levels, [*levels[1:], levels[-1] + 1], strict=True)]
    bar.set_ticks(middles, labels=[str(k) for k in levels])
    tile = plt.Rectangle((0, 0), grid.tile, grid.tile, fill=False, ec="#ee8434", lw=2.5)
    ax.add_patch(tile)
    ax.set_title(
        f"{grid.columns} x {grid.rows} = {grid.count} tiles of {grid.tile}, overlap {grid.overlap}",
        fontsize=10,
    )
    ax.axis("off")
    fig.tight_layout()
    return fig


def seconds(photo: pd.DataFrame) -> Figure:
    """Seconds of one photograph, U-Net and VAE, for each model: model, unet_only_s, with_vae_s."""
    fig, ax = figures.subplots(figsize=(6.8, 3.2))
    ax.barh(photo.model, photo.unet_only_s, color=UNET, label="U-Net")
    rest = photo.with_vae_s - photo.unet_only_s
    ax.barh(photo.model, rest, left=photo.unet_only_s, color=VAE, label="VAE")
    ax.axvline(1, color="black", lw=1, ls=":", label="one second")
    ax.set(xlabel="seconds for one 1000 x 750 photograph, one step, published ms")
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    ax.grid(axis="y", visible=False)
    fig.tight_layout()
    return fig


def _mark_borders(ax: plt.Axes, grid: Grid, rows: slice, columns: slice) -> None:
    """Strokes outside a crop where tiles begin and end in it."""
    how = {"color": "black", "lw": 1, "clip_on": False}
    ax.autoscale(False)
    for starts, part, across in ((grid.xs, columns, False), (grid.ys, rows, True)):
        for border in {*starts[1:], *(s + grid.tile for s in starts[:-1])}:
            if part.start < border < part.stop:
                at, below = [border - part.start - 0.5] * 2, rows.stop - rows.start
                ax.plot(*(([-7, -2], at) if across else (at, [below + 1, below + 6])), **how)


def seams(
    picture: np.ndarray, made: Mapping[str, np.ndarray], grids: Mapping[str, Grid], most: int = 12
) -> Figure:
    """A photograph (H, W, 3) in [-1, 1] and what tiles of those grids made of it: of each a crop
    with strokes where its tiles begin and end, its error eight times as large, and the error's step
    against the distance from a tile's border.
    """
    part = slice(90, 190), slice(110, 235)
    n = len(made) + 1
    fig = plt.figure(figsize=(3.1 * n + 3.4, 4.6))
    cells = fig.add_gridspec(2, n + 1, width_ratios=[1] * n + [1.25])
    for k, (name, x) in enumerate({"photograph": picture, **made}.items()):
        for row, view in enumerate((x / 2 + 0.5, np.abs(x - picture) * 4)):
            ax = fig.add_subplot(cells[row, k])
            ax.axis("off")
            if row == 0 or k:
                ax.imshow(view[part].clip(0, 1))
                ax.set_title(name if row == 0 else "its error x 8", fontsize=9)
            if k:
                _mark_borders(ax, grids[name], *part)
    ax = fig.add_subplot(cells[:, n])
    for name, x in made.items():
        xs = grids[name].xs
        ends = np.array([*xs[1:], *(s + grids[name].tile for s in xs[:-1])])
        step = np.abs(np.diff(x - picture, axis=1)).mean((0, 2))
        far = np.abs(np.arange(1, len(step) + 1)[:, None] - ends).min(1)
        line = [step[far == d].mean() / step.mean() for d in range(most)]
        ax.plot(range(most), line, marker="o", ms=3, label=name)
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set(xlabel="pixels from a tile's border", ylabel="step of the error / its mean")
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig
