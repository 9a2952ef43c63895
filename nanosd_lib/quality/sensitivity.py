"""Sensitivity: which stages of the U-Net can go (paper, surgery step: E4, M and D4 cost much and
give little).

Each stage in turn is simplified to the shortest code of its shapes (one R) and taken away
altogether (`blocks.Bridge`); nothing is retrained. The paper does not say how it took stages away.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.networks import ablation, counting
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import tafid

BANDS = {"all": (0, 1), "early": (2 / 3, 1), "middle": (1 / 3, 2 / 3), "late": (0, 1 / 3)}


def sensitivity(
    pipe: StableDiffusionPipeline,
    latents: splits.Latents,
    way: str,
    pairs: int,
    teacher_features: Tensor,
    how: Sampling,
    known: Mapping[str, Tensor] | None = None,
) -> dict:
    """Denoising error and tAFID without each stage, nothing retrained, and what it saves.

    way: "removed" or "one R". A row for each stage and band of the timestep (`BANDS`; early is
    where sampling begins, at large t). eps_error is ||U_S - U_T||^2 / ||U_T||^2 on about `pairs`
    held-out noisy latents of the band; tAFID and cosine belong to the network, whatever the band.
    Every metric has its interval in `_low` and `_high`. features: those of each network's pictures,
    by what was removed; `known`: the same, drawn once before.
    """
    have = known or {}
    teacher, whole = pipe.unet, counting.parameters(pipe.unet)
    batches = {
        band: splits.heldout_batches(latents, pipe, pairs, how.seed, between=part)
        for band, part in BANDS.items()
    }
    said = {band: tafid.predictions(teacher, some) for band, some in batches.items()}
    rows, shown, drew = [], {}, {}
    nets = {removed: net for (removed, w), net in ablation.variants(teacher).items() if w == way}
    for removed, net in tqdm(nets.items(), desc=f"sensitivity, {way}"):
        scores, kept = tafid.score(net, pipe, teacher_features, how, 8, have.get(removed))
        saved = whole - counting.parameters(net)
        what = {"removed": removed, "how": way, "params_saved": saved}
        what["params_saved_share"] = saved / whole
        for band, some in batches.items():
            error = tafid.denoising_error(tafid.predictions(net, some), said[band])
            rows.append(what | {"band": band, **error.named("eps_error")} | scores)
        shown[f"{removed}, {way}"] = kept["pictures"]["pictures"]
        drew[removed] = kept["features"]["features"]
    return {"table": pd.DataFrame(rows), "pictures": shown, "features": drew}
