"""tAFID: the Frechet distance between a student's and the teacher's images for the same prompts and
the same noise (paper, search step); and the denoising error, which needs no images.

The plain name tAFID is kept for Inception features; numbers over other features say which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.data import splits
from nanosd_lib.networks import pipeline, surgery
from nanosd_lib.networks.arch import Arch
from nanosd_lib.quality import extractors, metrics, uncertainty


@torch.no_grad()
def squares(
    student: UNet2DConditionModel,
    teacher: UNet2DConditionModel,
    batches: Sequence[dict[str, Tensor]],
) -> tuple[Tensor, Tensor]:
    """||U_S - U_T||^2 and ||U_T||^2 of each held-out noisy latent: (N,) twice."""
    off, whole = [], []
    for b in batches:
        want = teacher(b["x"], b["t"], encoder_hidden_states=b["text"]).sample.float()
        got = student(b["x"], b["t"], encoder_hidden_states=b["text"]).sample.float()
        off.append((got - want).pow(2).mean((1, 2, 3)).cpu())
        whole.append(want.pow(2).mean((1, 2, 3)).cpu())
    return torch.cat(off), torch.cat(whole)


def denoising_error(
    student: UNet2DConditionModel,
    teacher: UNet2DConditionModel,
    batches: Sequence[dict[str, Tensor]],
) -> uncertainty.Interval:
    """||U_S - U_T||^2 / ||U_T||^2 on held-out noisy latents."""
    return uncertainty.ratio(*squares(student, teacher, batches))


def reference(
    pipe: StableDiffusionPipeline,
    images: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
) -> dict:
    """The teacher's side of tAFID: features of its images, and of the same prompts from other noise
    (the floor).
    """
    prompts, protocol = (
        splits.prompts(images, seed),
        pipeline.protocol_of(images, steps, guidance, seed, features),
    )
    again = replace(protocol, seed=seed + 50_000)
    f, pictures = extractors.looked_at(pipe, prompts, protocol, batch, "teacher")
    g, other = extractors.looked_at(pipe, prompts, again, batch, "teacher, other noise")
    return {
        "features": {"teacher": f, "other": g},
        "pictures": {"teacher": pictures, "other": other},
        "prompts": prompts,
        "floor": {
            **uncertainty.frechet(g, f).named("tafid"),
            "cosine": metrics.cosine(g, f),
            "protocol": str(protocol),
        },
    }


def score(
    unet: UNet2DConditionModel,
    pipe: StableDiffusionPipeline,
    teacher_features: Tensor,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
    keep: int = 16,
) -> tuple[dict[str, float], Tensor]:
    """tAFID with its interval and paired cosine of a U-Net against the teacher's features, and its
    first images.
    """
    n = len(teacher_features)
    protocol = pipeline.protocol_of(n, steps, guidance, seed, features)
    f, pictures = extractors.looked_at(
        pipeline.with_parts(pipe, unet=unet),
        splits.prompts(n, seed),
        protocol,
        batch,
        "student",
        keep,
    )
    cosine = {"cosine": metrics.cosine(f, teacher_features)}
    return uncertainty.frechet(f, teacher_features).named("tafid") | cosine, pictures


def score_arch(
    arch: str,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    teacher_features: Tensor,
    **protocol,
) -> dict:
    """`score` of the network assembled from trained surrogates, without any training (paper, search
    step).
    """
    net = surgery.assemble(Arch.parse(arch), pipe.unet, surrogates)
    scores, pictures = score(net, pipe, teacher_features, **protocol)
    return {"scores": scores | {"arch": arch}, "pictures": {"pictures": pictures}}
