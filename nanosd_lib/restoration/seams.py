"""What tiling leaves in a picture, and what streaming keeps in memory: measured."""

from __future__ import annotations

import tempfile
import time
import tracemalloc

import numpy as np
import pandas as pd

from nanosd_lib.restoration import tiling
from nanosd_lib.restoration.tiling import Grid, TileFunction


def stream_report(heights: list[int], width: int, tile: int, overlap: int, scale: int) -> dict:
    """A table: height, output_megapixels, tiles, seconds, peak_mb, largest_difference; pictures of
    height enlarged tile by tile (each pixel repeated) from file to file.

    peak_mb is what Python allocates while streaming, the files' own pages left out.
    """
    enlarge = lambda t: t.repeat(scale, axis=1).repeat(scale, axis=2)  # noqa: E731
    table = []
    for height in heights:
        grid = Grid(width, height, tile, overlap, scale)
        with tempfile.TemporaryDirectory() as folder:
            source = np.lib.format.open_memmap(
                f"{folder}/in.npy", "w+", np.uint8, (height, width, 3)
            )
            for y in range(height):  # a gradient with fine lines: nothing that blends by chance
                source[y] = (np.arange(width)[:, None] * (1, 3, 7) + 5 * y) % 251
            tracemalloc.start()
            began = time.perf_counter()
            tiling.stream(source, enlarge, grid, tiling.npy_writer(f"{folder}/out.npy", grid))
            seconds = time.perf_counter() - began
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            made = tiling.read_picture(f"{folder}/out.npy")
            apart = max(
                float(
                    np.abs(
                        made[y * scale : (y + 1) * scale] - enlarge(source[None, y : y + 1])[0]
                    ).max()
                )
                for y in range(height)
            )
        size = grid.output[0] * grid.output[1] / 1e6
        table.append((height, size, grid.count, seconds, peak, apart))
    columns = ["height", "output_megapixels", "tiles", "seconds", "peak_mb", "largest_difference"]
    return {"table": pd.DataFrame(table, columns=columns)}


def blend_report(
    picture: np.ndarray, tile_function: TileFunction, tile: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """blending, overlap (pixels), tiles, roughness of a few ways to blend, and the pictures, named
    "gaussian, overlap 16".

    Roughness is `seam` at the borders of the way's own tiles. "none" cuts hard, the later of two
    tiles wins: with an overlap it is the control, what the overlap does without any blending. The
    later tile covers half of its borders, so that its roughness is less than that of its cuts.
    """
    quarter, half = tile // 4, tile // 2
    ways = [("none", 0), ("none", quarter), ("linear", quarter)]
    ways += [("gaussian", quarter), ("gaussian", half)]
    (height, width, _), rows, made = picture.shape, [], {}
    for kind, overlap in ways:
        grid = Grid(width, height, tile, overlap)
        result = tiling.run(picture, tile_function, grid, 32, kind)
        rows.append((kind, overlap, grid.count, seam(result, picture, grid)))
        made[f"{kind}, overlap {overlap}"] = result
    return pd.DataFrame(rows, columns=["blending", "overlap", "tiles", "roughness"]), made


def seam(picture: np.ndarray, reference: np.ndarray, grid: Grid) -> float:
    """How much rougher the error is across tile borders than elsewhere: 1 where no seam shows.

    picture, reference: (H, W, C) at the grid's output size. Along each axis that has borders, the
    error's mean absolute step from one pixel to the next, at the borders over everywhere; their
    mean. 1 as well where there are no borders (one tile) or no step beyond float32's rounding.
    ValueError for other shapes and for values that are not finite.
    """
    error = tiling._error(picture, reference, grid)
    rounding = 2e-6 * float(max(np.max(np.abs(x)) for x in (picture, reference)))
    axes = (1, grid.xs), (0, grid.ys)
    parts = [_rougher(error, axis, starts, grid, rounding) for axis, starts in axes]
    return float(np.mean([p for p in parts if p is not None] or 1.0))


def _rougher(
    error: np.ndarray, axis: int, starts: list[int], grid: Grid, rounding: float
) -> float | None:
    """Mean step of the error (H, W, C) along an axis at the borders of tiles that begin at starts,
    over the mean step everywhere; None without borders, 1 where no step exceeds the rounding.
    """
    step = np.abs(np.diff(error, axis=axis)).mean((1 - axis, 2))
    s = grid.scale
    borders = {x * s - 1 for x in starts[1:]} | {(x + grid.tile) * s - 1 for x in starts[:-1]}
    at = sorted(b for b in borders if 0 <= b < len(step))
    if not at:
        return None
    return float(step[at].mean() / step.mean()) if step.max() > rounding else 1.0
