"""Sensitivity: which stages of the U-Net can go (paper, surgery step: E4, M and D4 cost much and
give little).

Each stage in turn is simplified to the shortest code of its shapes (one R) and taken away
altogether (`blocks.Bridge`); nothing is retrained. The paper does not say how it took stages away.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib import cost, data, distill, evaluate, surgery
from nanosd_lib.arch import BASE, DEEP, NANOSD, STAGES, Arch

WHOLE = NANOSD["SD1.5"]


def variants(teacher) -> dict[tuple[str, str], surgery.NanoUNet]:
    """(what, how) -> network: every stage as one R and removed, and E4, M and D4 together."""
    whole = surgery.borrow(WHOLE, teacher)
    shorter = [s for s in (*STAGES, *DEEP) if s != "M"]  # M has no shorter code
    nets = {(s, "one R"): surgery.borrow(replace(WHOLE, **{s: "R"}), teacher) for s in shorter}
    nets |= {(s, "removed"): surgery.without(whole, s) for s in (*STAGES, *DEEP)}
    return nets | {("E4+M+D4", "removed"): surgery.borrow(Arch(**BASE), teacher)}


def sensitivity(
    pipe: StableDiffusionPipeline,
    latents: data.Latents,
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
    teacher, whole = pipe.unet, cost.parameters(pipe.unet)
    batches, rows, shown = evaluate.heldout_batches(latents, pipe, pairs), [], {}
    for (removed, how), net in tqdm(variants(teacher).items(), desc="sensitivity"):
        scores, pictures = evaluate.score(
            net, pipe, teacher_features, steps, guidance, batch, seed, features
        )
        saved = whole - cost.parameters(net)
        error = distill.denoising_error(net, teacher, batches)
        rows.append((removed, how, saved, saved / whole, error, scores["tafid"]))
        shown[f"{removed}, {how}"] = pictures[:8]
    columns = ["removed", "how", "params_saved", "params_saved_share", "eps_error", "tafid"]
    return {"table": pd.DataFrame(rows, columns=columns), "pictures": shown}


def latency(
    pipe: StableDiffusionPipeline, batch: int, tokens: int, repeats: int, warmup: int
) -> dict:
    """removed, how, ms_median, ms_saved: every variant and the teacher, measured in turns."""
    nets = {("", "teacher"): pipe.unet, **variants(pipe.unet)}
    calls = {
        " ".join(k): cost.call(n, cost.network_inputs(pipe.unet, batch, tokens))
        for k, n in nets.items()
    }
    table = cost.measure(calls, repeats, warmup)
    table.insert(0, "removed", [k[0] for k in nets])
    table.insert(1, "how", [k[1] for k in nets])
    table["ms_saved"] = table.ms_median[0] - table.ms_median
    return {"table": table.drop(columns="name")[1:].reset_index(drop=True)}
