"""Readings of notebook 01: what its figures and tables say, in words made from the numbers (see
`readings`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nanosd_lib.views.readings import digits, listed


def answer(tiles: pd.DataFrame, overhead: float, photo: pd.DataFrame, table: pd.DataFrame) -> str:
    """Page 01 in a few sentences: tiling.csv, how many times its pixels a photograph is computed,
    photo_latency.csv and memory.csv.
    """
    first, by = tiles.iloc[0], photo.set_index("model")
    old, new = by.loc["SD1.5 (w4)"], by.loc["NanoSD2"]
    fast = "the photograph too" if new.with_vae_s <= 1 else "one tile only"
    took = lambda r: f"{digits(r.unet_only_s)} s ({digits(r.with_vae_s)} s with its VAE)"  # noqa: E731
    share = _weights(table)
    return (
        f"A {first.width}x{first.height} photograph is {first.tiles} overlapping tiles, which"
        f" compute {overhead:.2f} times its pixels. By the published milliseconds one step takes"
        f" SD 1.5 {took(old)} and NanoSD2 {took(new)}: under a second is true of {fast}. In fp16"
        f" SD 1.5's weights take {digits(share.sum() / 1e3)} GB, {share.max() / share.sum():.0%} of"
        f" it the {share.idxmax()}."
    )


def _weights(table: pd.DataFrame) -> pd.Series:
    """Megabytes of weights in fp16, by component."""
    return table[table.format == "fp16"].set_index("component").weights_mb


def coverage(seen: np.ndarray) -> str:
    """How often pixels are computed: (H, W) of counts."""
    once, often = float((seen == 1).mean()), float((seen > 2).mean())
    return (
        f"{once:.0%} of the pixels are computed once, {often:.0%} three times or more, at most"
        f" {seen.max()}: the work is {seen.mean():.2f} times the picture's."
    )


def seconds(photo: pd.DataFrame) -> str:
    """Where a photograph's time goes (photo_latency.csv)."""
    more = photo[photo.with_vae_s > 2 * photo.unet_only_s].model
    under = photo[photo.with_vae_s <= 1].model
    best = photo.loc[photo.with_vae_s.idxmin()]
    vae = "No network spends more on its VAE than on its U-Net"
    if len(more):
        vae = f"For {listed(list(more))} the VAE is the larger half"
    fast = f"{listed(list(under))} stay under a second" if len(under) else "none is under a second"
    return f"{vae}; {fast}: the fastest, {best.model}, takes {digits(best.with_vae_s)} s."


def memory(table: pd.DataFrame) -> str:
    """Whose activations outweigh their weights (memory.csv), in fp16."""
    some = table[table.format == "fp16"]
    more = some[some.peak_activation_mb > some.weights_mb].component
    most = some.loc[some.weights_mb.idxmax()]
    first = "weights outweigh activations everywhere"
    if len(more):
        verb = "hold" if len(more) > 1 else "holds"
        first = f"the {listed(list(more))} {verb} more in activations than in weights"
    share = most.weights_mb / some.weights_mb.sum()
    return f"In fp16 {first}; {share:.0%} of all weights are the {most.component}'s."


def seams(blending: pd.DataFrame) -> str:
    """What blending does to the borders of tiles (blending.csv)."""
    by = blending.set_index(["blending", "overlap"]).roughness
    plain = by.xs("none", level="blending")
    smooth = blending[blending.blending != "none"]
    some = [f"{r.blending} over {r.overlap} {r.roughness:.2f}" for r in smooth.itertuples()]
    return (
        f"Without overlap the error steps {plain.loc[0]:.2f} times as far across a border as"
        f" elsewhere (1: no seam). An overlap of {plain.index[-1]} pixels cut hard leaves"
        f" {plain.iloc[-1]:.2f}; blended, {listed(some)}."
    )


def streamed(table: pd.DataFrame) -> str:
    """Whether streaming is exact, and how its memory goes with the height (streaming.csv)."""
    low, high = table.iloc[table.height.argmin()], table.iloc[table.height.argmax()]
    off = table.largest_difference.max()
    exact = "no pixel differs" if off == 0 else f"pixels differ by at most {digits(off)}"
    return (
        f"A picture {high.height / low.height:.1f} times as high takes"
        f" {high.peak_mb / low.peak_mb:.2f} times the memory; against the picture enlarged in one"
        f" piece {exact}."
    )
