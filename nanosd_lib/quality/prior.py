"""What is kept of the teacher's prior: resemblance, diversity, and smooth ways between two noises.

Every function keeps a row for each prompt or path, so that two networks are compared on the same
ones; rows that are `known` are drawn no more than for a witness (`extractors.witnessed`).
"""

from __future__ import annotations

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.networks import pipeline
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import extractors, metrics

PAIRED = ("detail", "detail_teacher", "lpips_near", "cosine_near", "lpips_far", "cosine_far")
WITNESSES = extractors.KEPT  # pictures; of paths one


@torch.no_grad()
def resemblance(
    pipe: StableDiffusionPipeline,
    student: UNet2DConditionModel,
    images: int,
    judge: str,
    how: Sampling,
    known: Tensor | None = None,
) -> dict:
    """pairs: for each prompt, lpips and cosine of the student's picture to the teacher's from the
    same noise (near), and of the teacher's own from other noise (far: the control); power above
    half the Nyquist frequency of student (detail) and teacher (detail_teacher). features: the
    same as rows.
    """
    prompts = splits.prompts(images, how.seed)
    drawn = {
        "teacher": (pipe, how),
        "near": (pipeline.with_parts(pipe, unet=student), how),
        "far": (pipe, how.but(seed=how.seed + 50_000)),
    }
    noises = {k: pipeline.noise(pipe, images, own.seed) for k, (_, own) in drawn.items()}
    look = extractors.extractor(how.features, pipe.device)

    def draw(n: int) -> tuple[Tensor, None]:
        rows = []
        for i in tqdm(range(0, n, how.batch), desc="resemblance", leave=False):
            some = slice(i, min(i + how.batch, n))
            made = {
                k: pipeline.generate(one, prompts[some], own, k, noises[k][some])
                for k, (one, own) in drawn.items()
            }
            f = {k: extractors.features(look, x) for k, x in made.items()}
            part = {"detail": metrics.detail(made["near"])}
            part["detail_teacher"] = metrics.detail(made["teacher"])
            for k in ("near", "far"):
                part[f"lpips_{k}"] = extractors.perceptual(
                    made[k], made["teacher"], judge, pipe.device
                )
                part[f"cosine_{k}"] = metrics.cosines(f[k], f["teacher"])
            rows.append(torch.stack([part[k].double() for k in PAIRED], 1))
        return torch.cat(rows), None

    rows, _ = extractors.witnessed(draw, images, WITNESSES, "resemblance", known)
    table = pd.DataFrame(rows.numpy(), columns=list(PAIRED))
    table.insert(0, "prompt", prompts)
    return {"pairs": table, "features": {"pairs": rows}}


def diversity(
    pipe: StableDiffusionPipeline,
    n: int,
    samples: int,
    how: Sampling,
    known: Tensor | None = None,
) -> dict:
    """spread: mean distance of those features between `samples` pictures of each of n two-object
    prompts, (n,); features: of every picture (n samples, D).
    """
    prompts = [p for p in splits.prompts(n, how.seed, objects=2) for _ in range(samples)]
    keep = 0 if known is None else WITNESSES
    f, _ = extractors.looked_at(pipe, prompts, how, "diversity", keep, known)
    apart = torch.stack([torch.pdist(some).mean() for some in f.split(samples)])
    return {"spread": {"spread": apart}, "features": {"pictures": f}}


@torch.no_grad()
def interpolation(
    pipe: StableDiffusionPipeline,
    pairs: int,
    frames: int,
    how: Sampling,
    known: Tensor | None = None,
) -> dict:
    """Images along great circles between `pairs` of noises, a one-object prompt each (article,
    quality); gaps: of each path the largest step of its features over the mean one, and its length;
    features: the same as rows.
    """
    noise, w = (
        pipeline.noise(pipe, 2 * pairs, how.seed + 77),
        torch.linspace(0, 1, frames, dtype=torch.float32),
    )
    prompts = splits.prompts(pairs, how.seed, objects=1)
    look = extractors.extractor(how.features, pipe.device)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        first: list[Tensor] = []
        gaps = []
        for i in tqdm(range(n), desc="paths", leave=False):
            way = _circle(noise[2 * i], noise[2 * i + 1], w)
            made = pipeline.generate(pipe, [prompts[i]] * frames, how, "path", way)
            f = extractors.features(look, made)
            gap = (f[1:] - f[:-1]).norm(dim=1)
            gaps.append(torch.stack([gap.max() / gap.mean(), gap.sum()]))
            first = first or [made]
        return torch.stack(gaps), first[0]

    rows, first = extractors.witnessed(draw, pairs, 1, "paths", known)
    largest, length = rows.T.contiguous()
    return {
        "pictures": {"path": first},
        "gaps": {"largest_over_mean": largest.clone(), "length": length.clone()},
        "features": {"paths": rows},
    }


def _circle(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Noises (len(w), C, h, w) along the great circle from a to b."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    u = w[:, None, None, None] * angle
    return (torch.sin(angle - u) * a + torch.sin(u) * b) / torch.sin(angle)
