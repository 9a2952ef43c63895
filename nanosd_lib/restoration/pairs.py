"""Clean and damaged pictures: what restorations learn from, and how far the two lie apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import degradations, splits
from nanosd_lib.networks import pipeline, vae
from nanosd_lib.restoration import one_step


@dataclass(frozen=True)
class Drawn:
    """Clean pictures (N, 3, H, W) in [-1, 1], the same ones damaged and at their size, the
    embeddings of their captions (N, T, D), and where the damage was drawn.
    """

    clean: Tensor
    damaged: Tensor
    text: Tensor
    drawn: tuple[str, int, list[int]]

    @property
    def scores(self) -> Tensor:
        """How blurred and how noisy each became (`degradations.scores`): (N, 2)."""
        return degradations.scores(self.clean, *self.drawn)


@dataclass(frozen=True)
class Pairs:
    """What a restoration learns from: clean pictures as uint8 (N, 3, H, W), embeddings of their
    captions (N, T, D), and the family that damages them.
    """

    pixels: Any  # indexed by a tensor: stored, or made on demand
    text: Any
    family: str
    side: int = 64  # pixels that a network works at

    def __len__(self) -> int:
        return len(self.text)

    def draw(self, n: int, seed: int, g: torch.Generator) -> Drawn:
        """n pictures, each damaged by a draw of its own."""
        i = torch.randint(len(self), (n,), generator=g)
        clean = pipeline.sized(self.pixels[i].float() / 127.5 - 1, self.side)
        at = torch.randint(2**31, (n,), generator=g).tolist()
        damaged = degradations.pairs(clean, self.family, seed, at=at)
        return Drawn(clean, damaged, self.text[i].float(), (self.family, seed, at))


def pictures(pipe: StableDiffusionPipeline, scenes: int, crops: int, seed: int) -> dict:
    """Training pictures as uint8 (N, 3, H, W), and the embeddings of their captions in float16."""
    x, text = splits.pictures("train", scenes, crops, seed)
    said = [pipeline.embed(pipe, text[i : i + 256]).half().cpu() for i in range(0, len(text), 256)]
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).byte()
    return {"pictures": {"pixels": pixels, "text": torch.cat(said)}}


def on_demand(
    pipe: StableDiffusionPipeline, scenes: int, crops: int, seed: int, family: str
) -> Pairs:
    """The same, each made when it is asked for."""
    look, text = splits.pictures_on_demand("train", scenes, crops, seed)
    n = len(text)
    said = lambda i: pipeline.embed(pipe, [text[k] for k in i.tolist()]).half().cpu()  # noqa: E731
    pixels = lambda i: ((look(i) + 1) * 127.5).round().clamp(0, 255).byte()  # noqa: E731
    return Pairs(splits.Rows(n, pixels), splits.Rows(n, said), family, pipeline.side(pipe))


@torch.no_grad()
def distances(
    scenes: int, crops: int, seed: int, family: str, pipe: StableDiffusionPipeline
) -> dict:
    """`one_step.distance` of training pictures, damaged and clean."""
    clean = pipeline.sized(splits.pictures("train", scenes, crops, seed)[0], pipeline.side(pipe))
    damaged = degradations.pairs(clean, family, seed)
    found = []
    for x, y in zip(damaged.split(64), clean.split(64), strict=True):
        z, w = (
            vae.encoded(pipe.vae, p.to(pipe.device, pipe.vae.dtype))[0].float().cpu()
            for p in (x, y)
        )
        found.append(one_step.distance(z, w))
    return {"apart": {"apart": torch.cat(found)}}


def errors(n: int, seed: int, family: str, pipe, restore: Callable) -> dict:
    """Mean square error of n held-out scenes and as many crops, damaged and restored."""
    found = {}
    for kind, clean in splits.heldout_pictures(pipe, n, seed).items():
        damaged = degradations.pairs(clean, family, splits.SEEDS["heldout"] + seed)
        found[kind] = float((restore(damaged) - clean).pow(2).mean())
    return {"errors": found}
