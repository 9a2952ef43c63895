"""Tiles: where they lie, how they blend, and a pipeline that runs any tile function over them
(paper, poster's background section; the published systems tile the same way).

    grid = tiling.Grid(1000, 750, tile=128, overlap=32, scale=4)     # 11 x 8 = 88 tiles
    out = tiling.run(picture, upscale, grid, batch=8)                # (3000, 4000, 3)
    tiling.stream(memmap, upscale, grid, emit=writer)                # rows leave as they finish
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from nanosd_lib.data import pictures

WINDOWS = ("gaussian", "linear", "none")  # "none" cuts hard: the later of two tiles wins
TileFunction = Callable[[np.ndarray], np.ndarray]  # (N, t, t, C) -> (N, s t, s t, C')


def whole(name: str, value: Any) -> int:
    """A number of pixels, tiles or times as an int: 2, 2.0 and numpy's integers; ValueError, in one
    line, for anything else.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    if not number or value != np.floor(value) or abs(value) == np.inf:
        raise ValueError(f"tiling: {name} {value!r} must be a whole number")
    return int(value)


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Left edges of tiles that cover [0, length): stride tile - overlap, the last one pushed back
    to fit.

    Raises ValueError where a tile is not larger than its overlap, or anything is not positive or
    not whole.
    """
    length, tile = whole("length", length), whole("tile", tile)
    overlap = whole("overlap", overlap)
    if not 0 <= overlap < tile or length <= 0:
        raise ValueError(
            f"tiling: overlap {overlap} must lie in 0 .. tile - 1 (tile {tile})"
            f" and length {length} be positive"
        )
    if length <= tile:
        return [0]
    stride = tile - overlap
    n = ceil((length - tile) / stride) + 1
    return [min(i * stride, length - tile) for i in range(n)]


@dataclass(frozen=True)
class Grid:
    """Square tiles over a width x height picture whose output is `scale` times as large (pixels).

    Raises ValueError where a tile is not larger than its overlap, or anything is not positive or
    not whole; 2.0 is taken as 2.
    """

    width: int
    height: int
    tile: int
    overlap: int
    scale: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, whole(field.name, getattr(self, field.name)))
        if self.scale < 1:
            raise ValueError(f"tiling: scale {self.scale} must be at least 1")
        _ = self.xs, self.ys

    @cached_property
    def xs(self) -> list[int]:
        """Left edges, in input pixels."""
        return positions(self.width, self.tile, self.overlap)

    @cached_property
    def ys(self) -> list[int]:
        """Top edges, in input pixels."""
        return positions(self.height, self.tile, self.overlap)

    @property
    def columns(self) -> int:
        return len(self.xs)

    @property
    def rows(self) -> int:
        return len(self.ys)

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.columns * self.rows

    @property
    def output(self) -> tuple[int, int]:
        """(width, height) of the result."""
        return self.width * self.scale, self.height * self.scale

    def buffer_mb(self, batch: int, channels: int = 3) -> float:
        """Megabytes that `stream` holds besides the tile function's own: one band of rows in and
        out, and a batch of tiles. The height of the picture is not in it.
        """
        per, t, s = max(1, batch // self.columns), self.tile, self.scale
        band = t + (per - 1) * (t - self.overlap)
        # the band and its copy when it moves on, in float64; tiles in and out in float32
        wide = 2 * 8 * band * s * max(self.width, t) * s + 4 * band * max(self.width, t)
        return (wide + 4 * batch * t * t * (1 + 2 * s * s)) * channels / 1e6


def window(tile: int, kind: str) -> np.ndarray:
    """(tile,) positive weights across a tile: "gaussian" (sigma a sixth of it) or "linear"."""
    at = np.arange(tile) + 0.5
    if kind == "linear":
        return np.minimum(at, tile - at)
    if kind == "gaussian":
        return np.exp(-0.5 * ((at - tile / 2) / (tile / 6)) ** 2)
    raise ValueError(f"tiling: window {kind!r} does not exist: use one of {', '.join(WINDOWS)}")


def shares(starts: list[int], tile: int, kind: str) -> np.ndarray:
    """(len(starts), tile) weights of each tile along one axis; over any pixel they add up to 1.

    A window is a product of two such rows, so no buffer of weights is needed.
    """
    if kind == "none":
        until = [*starts[1:], starts[-1] + tile]
        ends = zip(starts, until, strict=True)
        return np.stack([(np.arange(tile) < end - x).astype(float) for x, end in ends])
    w, total = window(tile, kind), np.zeros(starts[-1] + tile)
    for x in starts:
        total[x : x + tile] += w
    return np.stack([w / total[x : x + tile] for x in starts])


def stream(
    source: Any,
    tile_function: TileFunction,
    grid: Grid,
    emit: Callable[[int, np.ndarray], None],
    batch: int = 8,
    kind: str = "gaussian",
    progress: bool = True,
) -> None:
    """Run a tile function over a picture; finished rows go to `emit(top, rows)`, top to bottom.

    source: anything of shape (H, W, C) that can be sliced by rows (array, memory map). The function
    gets float32 tiles (N, t, t, C) and returns (N, s t, s t, C'). Memory is `Grid.buffer_mb`
    whatever the height: one band of tile rows at a time. A picture smaller than a tile is mirrored
    up to it and cut again. ValueError for a source or a result of another shape, and for a writer
    (`npy_writer`) on the file that the source is mapped from.
    """
    if len(getattr(source, "shape", ())) != 3 or source.shape[:2] != (grid.height, grid.width):
        shape = getattr(source, "shape", None)
        raise ValueError(
            f"tiling: the picture has shape {shape} and the grid wants"
            f" ({grid.height}, {grid.width}, channels)"
        )
    batch = whole("batch", batch)
    if batch < 1:
        raise ValueError(f"tiling: batch {batch} must be at least 1")
    _refuse_own_input(source, emit)
    t, s, per = grid.tile, grid.scale, max(1, batch // grid.columns)
    across, down = (shares([p * s for p in starts], t * s, kind) for starts in (grid.xs, grid.ys))
    band, top = None, 0  # output rows from `top` on, in float64: what later tiles may still change
    with tqdm(total=grid.count, desc="tiles", unit="tile", disable=not progress) as bar:
        for first in range(0, grid.rows, per):
            rows = range(first, min(first + per, grid.rows))
            places = [(i, j) for i in rows for j in range(grid.columns)]
            bottom = (grid.ys[rows[-1]] + t) * s
            for k in range(0, len(places), batch):
                chosen = places[k : k + batch]
                cut = np.stack([_cut(source, grid.ys[i], grid.xs[j], t) for i, j in chosen])
                made = np.asarray(tile_function(cut))
                if made.shape[:3] != (len(chosen), t * s, t * s) or made.ndim != 4:
                    raise ValueError(
                        f"tiling: the tile function gave shape {made.shape} for {cut.shape};"
                        f" ({len(chosen)}, {t * s}, {t * s}, channels) is wanted"
                    )
                if band is None or len(band) < bottom - top:
                    band = _grown(band, bottom - top, (grid.xs[-1] + t) * s, made.shape[3])
                for (i, j), tile in zip(chosen, made, strict=True):
                    y, x = grid.ys[i] * s - top, grid.xs[j] * s
                    weight = down[i][:, None, None] * across[j][None, :, None]
                    band[y : y + t * s, x : x + t * s] += weight * tile
                bar.update(len(chosen))
            last = rows[-1] + 1 == grid.rows
            until = grid.output[1] if last else grid.ys[rows[-1] + 1] * s
            if band is not None and until > top:
                emit(top, band[: until - top, : grid.output[0]].astype(np.float32))
                band, top = band[until - top :].copy(), until


def _cut(source: Any, y: int, x: int, tile: int) -> np.ndarray:
    """One tile in float32; pixels beyond a picture smaller than it are mirrored."""
    part = np.asarray(source[y : y + tile, x : x + tile], np.float32)
    more = tile - part.shape[0], tile - part.shape[1]
    return np.pad(part, ((0, more[0]), (0, more[1]), (0, 0)), "symmetric") if any(more) else part


def _grown(band: np.ndarray | None, height: int, width: int, channels: int) -> np.ndarray:
    bigger = np.zeros((height, width, channels))
    if band is not None:
        bigger[: len(band)] = band
    return bigger


def run(
    source: Any,
    tile_function: TileFunction,
    grid: Grid,
    batch: int = 8,
    kind: str = "gaussian",
    progress: bool = True,
) -> np.ndarray:
    """The whole result (s H, s W, C') in float32; see `stream`."""
    parts: list[np.ndarray] = []
    stream(source, tile_function, grid, lambda _, rows: parts.append(rows), batch, kind, progress)
    return np.concatenate(parts)


def read_picture(path: str | Path) -> np.ndarray:
    """A picture (H, W, 3) in uint8 by `pictures.read`; a `.npy` file (H, W, C) as a memory map,
    which is never read whole.

    ValueError, in one line, for what is no picture.
    """
    array = Path(path).suffix.lower() == ".npy"
    return pictures.mapped(path) if array else pictures.read(path)


class NpyWriter:
    """An `emit` for `stream`: rows go into a float32 `.npy` file, which is begun with the first."""

    def __init__(self, path: str | Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape = Path(path).absolute(), shape
        self.out: np.memmap | None = None

    def __call__(self, top: int, rows: np.ndarray) -> None:
        if self.out is None:
            self.out = np.lib.format.open_memmap(self.path, "w+", np.float32, self.shape)
        self.out[top : top + len(rows)] = rows
        self.out.flush()


def npy_writer(path: str | Path, grid: Grid, channels: int = 3) -> NpyWriter:
    """An `emit` for `stream` that writes rows into a float32 `.npy` file as they finish.

    Nothing is written before the first rows. ValueError for a name without `.npy` (the file would
    hold an array under the name of a picture) and for a folder that is not there.
    """
    path, (width, height) = Path(path), grid.output
    if path.suffix.lower() != ".npy":
        raise ValueError(f"tiling: the result {path} is an array: let its name end with .npy")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"tiling: there is no folder for the result {path}: make it first")
    return NpyWriter(path, (height, width, whole("channels", channels)))


def _refuse_own_input(source: Any, emit: Callable) -> None:
    """ValueError where a writer's file is the one that the source, or what it views, is mapped from
    (by any link or path).
    """
    target = getattr(emit, "path", None)
    while source is not None and target is not None:
        file = getattr(source, "filename", None)
        if file and Path(file).exists() and target.exists() and target.samefile(file):
            raise ValueError(
                f"tiling: the result {target} is the file that the picture is read from:"
                " give the result another name"
            )
        source = getattr(source, "base", None)


def torch_tiles(net: Callable, device: str = "cpu") -> TileFunction:
    """A tile function from a torch one that maps (N, C, t, t) to (N, C', s t, s t)."""
    import torch

    def call(tiles: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(device)
        with torch.no_grad():
            return net(x).float().cpu().permute(0, 2, 3, 1).numpy()

    return call


def _error(picture: np.ndarray, reference: np.ndarray, grid: Grid) -> np.ndarray:
    """picture - reference (H, W, C) in float64; ValueError unless both fit the grid and each other
    and are finite.
    """
    picture, reference = np.asarray(picture, float), np.asarray(reference, float)
    fits = picture.ndim == 3 and picture.shape[:2] == grid.output[::-1] and picture.shape[2] > 0
    if picture.shape != reference.shape or not fits:
        raise ValueError(
            f"tiling: shapes {picture.shape} and {reference.shape} must both be"
            f" ({grid.output[1]}, {grid.output[0]}, channels)"
        )
    if not np.isfinite(picture).all() or not np.isfinite(reference).all():
        raise ValueError("tiling: a picture with NaN or infinite values has no seams to look for")
    return picture - reference
