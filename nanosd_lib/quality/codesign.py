"""What a pipeline gives with either U-Net and either VAE (paper, method step 5; the article's
co-design).
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import folder, splits
from nanosd_lib.networks import pipeline
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import autoencoders, metrics, tafid


@torch.no_grad()
def denoised(
    pipe: StableDiffusionPipeline,
    n: int,
    t: int,
    seed: int,
    mine: folder.Photographs | None = None,
) -> Tensor:
    """PSNR in dB (N,) of `splits.judged` pictures encoded, noised to step t, denoised in one step
    with empty text and decoded: what a one-step restoration asks of encoder, U-Net and decoder
    together (not in the paper: our assumption).
    """
    x = splits.heldout_pictures(pipe, n, seed, mine)[splits.judged(mine)]
    z, _ = autoencoders.latents(pipe.vae, x)
    g = torch.Generator().manual_seed(seed)
    noise, a = (
        torch.randn(z.shape, generator=g, dtype=torch.float32),
        pipe.scheduler.alphas_cumprod.cpu()[t],
    )
    text, made = pipeline.embed(pipe, [""]), []
    for zt, e in zip(z.split(32), noise.split(32), strict=True):
        noisy = a.sqrt() * zt + (1 - a).sqrt() * e
        eps = pipe.unet(noisy.to(text), t, text.expand(len(zt), -1, -1)).sample.float().cpu()
        made.append((noisy - (1 - a).sqrt() * eps) / a.sqrt())
    return metrics.psnr(x, autoencoders.pictures(pipe.vae, torch.cat(made)))


def judge(
    pipe: StableDiffusionPipeline,
    teacher_features: Tensor,
    arch: str,
    heldout: int,
    t: int,
    how: Sampling,
    mine: folder.Photographs | None = None,
    known: Tensor | None = None,
) -> dict:
    """tAFID and cosine of a pipeline as it stands, `denoised` (psnr) and its first images; `arch`
    is what its U-Net was assembled as; `known`: features of its images, drawn once before.
    """
    scores, kept = tafid.score(pipe.unet, pipe, teacher_features, how, known=known)
    each = denoised(pipe, heldout, t, how.seed, mine)
    return {"scores": scores | {"arch": arch}, "psnr": {"psnr": each}, **kept}
