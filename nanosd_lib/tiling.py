"""Tiles: how many a photograph needs and what they cost (paper, poster's background section). Pure
arithmetic.
"""

from __future__ import annotations

from math import ceil

import pandas as pd

BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Left edges of tiles that cover [0, length): stride tile - overlap, the last one pushed back
    to fit.

    Raises ValueError where a tile is not larger than its overlap, or anything is not positive.
    """
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


def grid(width: int, height: int, tile: int, overlap: int) -> tuple[int, int]:
    """(columns, rows) of tiles over a width x height image."""
    return len(positions(width, tile, overlap)), len(positions(height, tile, overlap))


def count(width: int, height: int, tile: int, overlap: int) -> int:
    """Number of tiles over a width x height image."""
    columns, rows = grid(width, height, tile, overlap)
    return columns * rows


def weights_gb(parameters: int) -> dict[str, float]:
    """Gigabytes (1e9 bytes) of weights in each number format."""
    return {k: parameters * b / 1e9 for k, b in BYTES.items()}


def photo_seconds(tiles: int, unet_ms: float, vae_ms: float = 0.0, steps: int = 1) -> float:
    """Seconds for one photograph: every tile is encoded and decoded once and denoised `steps`
    times.
    """
    return tiles * (steps * unet_ms + vae_ms) / 1e3


def photo_table(family: pd.DataFrame, tiles: int, vae_ms: float) -> pd.DataFrame:
    """Seconds a photograph for each published model (columns model, htp_ms), without and with the
    VAE.
    """
    known = family.dropna(subset=["htp_ms"])[["model", "htp_ms"]].copy()
    known["unet_only_s"] = [photo_seconds(tiles, ms) for ms in known.htp_ms]
    known["with_vae_s"] = [photo_seconds(tiles, ms, vae_ms) for ms in known.htp_ms]
    return known
