"""What is kept of the teacher's prior: resemblance, diversity, and smooth ways between two noises.

Every function keeps a number for each prompt, pair or path, so that two networks are compared on
the same ones.
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


@torch.no_grad()
def resemblance(
    pipe: StableDiffusionPipeline,
    student: UNet2DConditionModel,
    images: int,
    judge: str,
    how: Sampling,
) -> dict:
    """pairs: for each prompt, lpips and cosine of the student's picture to the teacher's from the
    same noise (near), and of the teacher's own from other noise (far: the control); power above
    half the Nyquist frequency of student (detail) and teacher (detail_teacher).
    """
    prompts = splits.prompts(images, how.seed)
    drawn = {
        "teacher": (pipe, how),
        "near": (pipeline.with_parts(pipe, unet=student), how),
        "far": (pipe, how.but(seed=how.seed + 50_000)),
    }
    noises = {k: pipeline.noise(pipe, images, own.seed) for k, (_, own) in drawn.items()}
    look, rows = extractors.extractor(how.features, pipe.device), []
    for i in tqdm(range(0, images, how.batch), desc="resemblance", leave=False):
        some = slice(i, i + how.batch)
        made = {
            k: pipeline.generate(one, prompts[some], own, k, noises[k][some])
            for k, (one, own) in drawn.items()
        }
        f = {k: extractors.features(look, x) for k, x in made.items()}
        part = {"detail": metrics.detail(made["near"])}
        part["detail_teacher"] = metrics.detail(made["teacher"])
        for k in ("near", "far"):
            part[f"lpips_{k}"] = extractors.perceptual(made[k], made["teacher"], judge, pipe.device)
            part[f"cosine_{k}"] = metrics.cosines(f[k], f["teacher"])
        rows.append(pd.DataFrame({k: v.double().numpy() for k, v in part.items()}))
    table = pd.concat(rows, ignore_index=True)
    table.insert(0, "prompt", prompts)
    return {"pairs": table}


def diversity(
    pipe: StableDiffusionPipeline,
    n: int,
    samples: int,
    how: Sampling,
) -> dict:
    """spread: mean distance of those features between `samples` pictures of each of n two-object
    prompts, (n,).
    """
    prompts = [p for p in splits.prompts(n, how.seed, objects=2) for _ in range(samples)]
    f, _ = extractors.looked_at(pipe, prompts, how, "diversity", keep=0)
    apart = torch.stack([torch.pdist(some).mean() for some in f.split(samples)])
    return {"spread": {"spread": apart}}


@torch.no_grad()
def interpolation(
    pipe: StableDiffusionPipeline,
    pairs: int,
    frames: int,
    how: Sampling,
) -> dict:
    """Images along great circles between `pairs` of noises, a one-object prompt each (article,
    quality); gaps: of each path the largest step of its features over the mean one, and its length.
    """
    noise, w = (
        pipeline.noise(pipe, 2 * pairs, how.seed + 77),
        torch.linspace(0, 1, frames, dtype=torch.float32),
    )
    ends = zip(splits.prompts(pairs, how.seed, objects=1), noise[::2], noise[1::2], strict=True)
    look, first, gaps = extractors.extractor(how.features, pipe.device), None, []
    for prompt, a, b in tqdm(ends, desc="paths", total=pairs, leave=False):
        made = pipeline.generate(pipe, [prompt] * frames, how, "path", _circle(a, b, w))
        f = extractors.features(look, made)
        gap = (f[1:] - f[:-1]).norm(dim=1)
        gaps.append(torch.stack([gap.max() / gap.mean(), gap.sum()]))
        first = made if first is None else first
    largest, length = torch.stack(gaps).T.contiguous()
    return {
        "pictures": {"path": first},
        "gaps": {"largest_over_mean": largest.clone(), "length": length.clone()},
    }


def _circle(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Noises (len(w), C, h, w) along the great circle from a to b."""
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    u = w[:, None, None, None] * angle
    return (torch.sin(angle - u) * a + torch.sin(u) * b) / torch.sin(angle)
