"""A picture of any size through a one-step restoration, four times as large, tile by tile.

    out = photograph.restored(pixels, system)            # (H, W, 3) uint8 -> (4H, 4W, 3) uint8
    photograph.stream(source, system, emit)              # rows leave as they finish

Decided here, once:

- Tiles are as large as what the network learned from, are enlarged by bicubic interpolation each by
  itself (as in training), restored, and blended.
- The colour fix is the wavelet's, of the *blended* picture, not of tiles: high bands of what was
  restored on the low band of the whole picture's bicubic enlargement. It is local, so rows can
  leave before the picture is finished, and a picture in one tile and in many is treated alike.
- Values are clipped once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from nanosd_lib.restoration import colour, tiling
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.s3diff import S3Diff
from nanosd_lib.restoration.tiling import Grid

SCALE = 4
OVERLAP = 0.25  # of a tile
LEVELS = 4  # of the wavelet: at 64 pixels the published five reach beyond a tile
LOOKED_AT = 64  # tiles that S3Diff takes its scores from
_ROWS = 3  # of the source, that a bicubic row reads above and below it


def grid(height: int, width: int, system: OneStep) -> Grid:
    """The tiles of a picture of that size: the network's own, a quarter of each shared."""
    tile = side(system) // SCALE
    return Grid(width, height, tile, int(tile * OVERLAP), SCALE)


def side(system: OneStep) -> int:
    """Pixels on a side of what the network restores at once."""
    c = system.vae.config
    widths = getattr(c, "block_out_channels", None) or c.encoder_block_out_channels
    return system.unet.config.sample_size << (len(widths) - 1)


def tile_function(system: OneStep) -> tiling.TileFunction:
    """uint8 tiles (N, t, t, 3) -> restored (N, 4t, 4t, 3) in [-1, 1], neither fixed nor clipped."""
    where = next(system.unet.parameters())

    @torch.no_grad()
    def call(tiles: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2).to(where.device, where.dtype) / 127.5 - 1
        large = F.interpolate(x, scale_factor=SCALE, mode="bicubic").clamp(-1, 1)
        return system.both(large)[1].float().cpu().permute(0, 2, 3, 1).numpy()

    return call


def enlarged(source: Any, top: int, bottom: int) -> Tensor:
    """Rows top to bottom of the output, (3, rows, 4W) in [-1, 1]: the whole source's bicubic
    enlargement, of which only these rows are made.
    """
    height = source.shape[0]
    first, last = max(0, top // SCALE - _ROWS), min(height, -(-bottom // SCALE) + _ROWS)
    x = torch.from_numpy(np.array(source[first:last], np.float32)).permute(2, 0, 1) / 127.5 - 1
    big = F.interpolate(x[None], scale_factor=SCALE, mode="bicubic")[0].clamp(-1, 1)
    return big[:, top - first * SCALE : bottom - first * SCALE]


class Fixer:
    """An `emit` for `tiling.stream`: fixes colours of rows as they come and passes them on as
    8 bits, holding back as many as the fix still needs.
    """

    def __init__(self, source: Any, emit: Callable[[int, np.ndarray], None]) -> None:
        self.source, self.emit = source, emit
        self.margin = 2**LEVELS - 1
        self.height = source.shape[0] * SCALE
        self.rows: Tensor | None = None  # (3, n, W), the first of them row `top` of the output
        self.top = self.done = 0

    def __call__(self, top: int, rows: np.ndarray) -> None:
        new = torch.from_numpy(rows).permute(2, 0, 1)
        self.rows = new if self.rows is None else torch.cat([self.rows, new], 1)
        end = top + len(rows)
        until = self.height if end == self.height else end - self.margin
        if until > self.done:
            self._fix(until)

    def _fix(self, until: int) -> None:
        assert self.rows is not None
        low = max(0, self.done - self.margin)
        high = min(self.height, until + self.margin)
        some = self.rows[:, low - self.top : high - self.top]
        plain = enlarged(self.source, low, high)
        fixed = colour.wavelet(some[None], plain[None], LEVELS)[0]
        kept = fixed[:, self.done - low : until - low].clamp(-1, 1)
        pixels = ((kept + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        self.emit(self.done, pixels)
        self.done, keep = until, max(0, until - self.margin)
        self.rows, self.top = self.rows[:, keep - self.top :].clone(), keep


def stream(
    source: Any,
    system: OneStep,
    emit: Callable[[int, np.ndarray], None],
    batch: int = 32,
    progress: bool = True,
) -> Grid:
    """Restore a picture (H, W, 3) of uint8 that can be sliced by rows; finished rows of uint8 go to
    `emit(top, rows)`. Memory grows with the width, not with the height. S3Diff looks at a few tiles
    first: its two scores are the picture's, the same in every tile.
    """
    g = grid(source.shape[0], source.shape[1], system)
    if isinstance(system, S3Diff):
        system.look(_some(source, g).to(next(system.unet.parameters())))
    fixer = Fixer(source, emit)
    tiling.stream(source, tile_function(system), g, fixer, batch, progress=progress)
    return g


def _some(source: Any, g: Grid) -> Tensor:
    """At most `LOOKED_AT` tiles, evenly over the picture, enlarged: (N, 3, 4t, 4t) in [-1, 1]."""
    places = [(y, x) for y in g.ys for x in g.xs]
    n = min(LOOKED_AT, len(places))
    chosen = [places[k * len(places) // n] for k in range(n)]
    cut = np.stack([tiling._cut(source, y, x, g.tile) for y, x in chosen])
    x = torch.from_numpy(cut).permute(0, 3, 1, 2) / 127.5 - 1
    return F.interpolate(x, scale_factor=SCALE, mode="bicubic").clamp(-1, 1)


def restored(
    pixels: np.ndarray, system: OneStep, batch: int = 32, progress: bool = True
) -> np.ndarray:
    """A picture (H, W, 3) or, with opacity last, (H, W, 4) of uint8, restored and four times as
    large. Opacity is enlarged by bicubic interpolation and clipped; under full transparency the
    network sees the nearest colour that shows, so that nothing hidden bleeds in.

    ValueError for another shape or type.
    """
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise ValueError(
            f"photograph: expected (H, W, 3) or (H, W, 4) of uint8, got {pixels.shape}"
            f" {pixels.dtype}: data.pictures.read gives it"
        )
    parts: list[np.ndarray] = []
    shown = beneath(pixels)
    stream(shown, system, lambda _, rows: parts.append(rows), batch, progress)
    out = np.concatenate(parts)
    if pixels.shape[2] == 4:
        out = np.concatenate([out, opacity(pixels[..., 3])[..., None]], 2)
    return out


def beneath(pixels: np.ndarray) -> np.ndarray:
    """The colours (H, W, 3) that a network may see: those under full transparency are the nearest
    visible ones; white, where nothing is visible.
    """
    if pixels.shape[2] == 3:
        return pixels
    hidden = pixels[..., 3] == 0
    if hidden.all():
        return np.full_like(pixels[..., :3], 255)
    if not hidden.any():
        return np.ascontiguousarray(pixels[..., :3])
    at = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return pixels[..., :3][tuple(at)]


def opacity(alpha: np.ndarray) -> np.ndarray:
    """Opacity (H, W) of uint8, four times as large, bicubic, clipped to 0 .. 255."""
    x = torch.from_numpy(alpha.astype(np.float32))[None, None]
    big = F.interpolate(x, scale_factor=SCALE, mode="bicubic")[0, 0]
    return big.round().clamp(0, 255).byte().numpy()
