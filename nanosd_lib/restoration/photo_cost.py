"""What a photograph costs, tile by tile: counts, seconds, gigabytes."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from nanosd_lib.restoration.tiling import Grid

BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}


def weights_gb(parameters: int) -> dict[str, float]:
    """Gigabytes (1e9 bytes) of weights in each number format, scales not counted."""
    return {k: parameters * b / 1e9 for k, b in BYTES.items()}


def photo_seconds(tiles: int, unet_ms: float, vae_ms: float = 0.0, steps: int = 1) -> float:
    """Seconds for one photograph: every tile is encoded and decoded once and denoised `steps`
    times.
    """
    return tiles * (steps * unet_ms + vae_ms) / 1e3


def photo_table(family: pd.DataFrame, tiles: int, vae_ms: Mapping[str, float]) -> pd.DataFrame:
    """Seconds a photograph for each published model (columns model, htp_ms), without and with its
    own VAE: vae_ms by model, "" for all that are not named.
    """
    known = family.dropna(subset=["htp_ms"])[["model", "htp_ms"]].copy()
    known["vae_ms"] = [vae_ms.get(model, vae_ms[""]) for model in known.model]
    known["unet_only_s"] = [photo_seconds(tiles, ms) for ms in known.htp_ms]
    known["with_vae_s"] = [photo_seconds(tiles, r.htp_ms, r.vae_ms) for r in known.itertuples()]
    return known


def explore(
    grid: Grid,
    unet_ms: float,
    vae_ms: float,
    memory: pd.DataFrame,
    kind: str = "fp16",
    parameters: float | None = None,
) -> pd.Series:
    """Tiles, seconds and gigabytes of one photograph: what the explorer's sliders show.

    parameters: of another U-Net than SD 1.5's; its weights then take the place of those in memory.

    memory: component, format, weights_mb, peak_activation_mb of one tile of 512 output pixels;
    activations grow with a tile's area (attention by attention kernels that never hold the whole
    matrix). Components run one after the other, so the largest one's activations count.
    """
    rows = memory[memory.format == kind]
    if rows.empty:
        known = ", ".join(dict.fromkeys(memory.format))
        raise ValueError(f"format {kind!r} does not exist: use one of {known}")
    area = (grid.tile * grid.scale / 512) ** 2
    held = rows.set_index("component").weights_mb / 1e3
    if parameters is not None:
        held["U-Net"] = parameters * BYTES[kind] / 1e9
    weights, active = held.sum(), area * rows.peak_activation_mb.max() / 1e3
    buffers = grid.buffer_mb(1) / 1e3
    return pd.Series(
        {
            "tiles": grid.count,
            "columns x rows": f"{grid.columns} x {grid.rows}",
            "output, megapixels": grid.output[0] * grid.output[1] / 1e6,
            "seconds, U-Net": photo_seconds(grid.count, unet_ms),
            "seconds, U-Net and VAE": photo_seconds(grid.count, unet_ms, vae_ms),
            "GB, weights": weights,
            "GB, activations": active,
            "GB, rows in flight": buffers,
            "GB, all": weights + active + buffers,
        }
    )
