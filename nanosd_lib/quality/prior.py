"""What is kept of the teacher's prior: diversity, and smooth ways between two noises."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from nanosd_lib.data import splits
from nanosd_lib.networks import pipeline
from nanosd_lib.quality import extractors


def diversity(
    pipe: StableDiffusionPipeline,
    n: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
) -> dict:
    """Mean distance of those features between n samples of one prompt."""
    prompts = splits.prompts(1, seed, objects=2) * n
    pictures = pipeline.generate(
        pipe, prompts, pipeline.protocol_of(n, steps, guidance, seed), batch
    )
    f = extractors.features(extractors.extractor(features, pipe.device), pictures)
    return {"spread": {"distance": float(torch.pdist(f).mean())}}


@torch.no_grad()
def interpolation(
    pipe: StableDiffusionPipeline,
    pairs: int,
    frames: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
) -> dict:
    """Images along great circles between `pairs` of noises, one prompt, and the steps of their
    features (article, quality).
    """
    noise, w = (
        pipeline.noise(pipe, 2 * pairs, seed + 77),
        torch.linspace(0, 1, frames, dtype=torch.float32),
    )
    prompts, protocol = (
        splits.prompts(1, seed, objects=1) * frames,
        pipeline.protocol_of(frames, steps, guidance, seed),
    )
    look, paths, gaps = extractors.extractor(features, pipe.device), [], []
    for a, b in zip(noise[::2], noise[1::2], strict=True):
        angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
        u = w[:, None, None, None] * angle
        z = (torch.sin(angle - u) * a + torch.sin(u) * b) / torch.sin(angle)
        paths.append(pipeline.generate(pipe, prompts, protocol, batch, desc="path", z=z))
        f = extractors.features(look, paths[-1])
        gap = (f[1:] - f[:-1]).norm(dim=1)
        gaps.append(float(gap.max() / gap.mean()))
    return {
        "pictures": {"path": paths[0]},
        "gaps": {"largest_over_mean": sum(gaps) / len(gaps)},
    }
