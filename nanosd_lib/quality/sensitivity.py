"""Sensitivity: which stages of the U-Net can go (paper, surgery step: E4, M and D4 cost much and
give little).

Each stage in turn is simplified to the shortest code of its shapes (one R) and taken away
altogether (`blocks.Bridge`); nothing is retrained. The paper does not say how it took stages away.
"""

from __future__ import annotations

import pandas as pd
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.networks import ablation, counting
from nanosd_lib.quality import tafid


def sensitivity(
    pipe: StableDiffusionPipeline,
    latents: splits.Latents,
    pairs: int,
    teacher_features: Tensor,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
) -> dict:
    """Denoising error and tAFID without each stage, nothing retrained, and what it saves.

    eps_error is ||U_S - U_T||^2 / ||U_T||^2 on held-out noisy latents.
    """
    teacher, whole = pipe.unet, counting.parameters(pipe.unet)
    batches, rows, shown = splits.heldout_batches(latents, pipe, pairs, seed), [], {}
    for (removed, how), net in tqdm(ablation.variants(teacher).items(), desc="sensitivity"):
        scores, pictures = tafid.score(
            net, pipe, teacher_features, steps, guidance, batch, seed, features
        )
        saved = whole - counting.parameters(net)
        error = tafid.denoising_error(net, teacher, batches)
        rows.append((removed, how, saved, saved / whole, error, scores["tafid"]))
        shown[f"{removed}, {how}"] = pictures[:8]
    columns = ["removed", "how", "params_saved", "params_saved_share", "eps_error", "tafid"]
    return {"table": pd.DataFrame(rows, columns=columns), "pictures": shown}
