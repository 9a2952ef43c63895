"""What a restoration gives: held-out pictures damaged, restored, compared with what they were."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import degradations, folder, splits
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import autoencoders, extractors, metrics, uncertainty
from nanosd_lib.restoration import colour
from nanosd_lib.restoration.s3diff import S3Diff

MEASURES = ("psnr_y", "ssim_y", "lpips")
_LUMA = torch.tensor([65.481, 128.553, 24.966])  # ITU-R BT.601, as published tools take Y


def luma(x: Tensor) -> Tensor:
    """Y of pictures (N, 3, H, W) in [-1, 1], repeated over the channels: in [-1, 1] as well, 16 of
    255 its black and 235 its white.
    """
    y = torch.einsum("nchw,c->nhw", (x + 1) / 2, _LUMA.to(x)) + 16
    return (y / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def scores(clean: Tensor, restored: Tensor, judge: str, device: torch.device) -> dict[str, Tensor]:
    """psnr_y (dB), ssim_y and LPIPS over that backbone of each pair (N, 3, H, W): (N,) each."""
    y, z = luma(clean), luma(restored)
    lpips = extractors.perceptual(clean, restored, judge, device)
    return {"psnr_y": metrics.psnr(y, z), "ssim_y": metrics.ssim(y, z), "lpips": lpips}


@functools.lru_cache(maxsize=3)  # a page judges many restorations in two families
def heldout(
    pipe: StableDiffusionPipeline,
    n: int,
    family: str | None,
    seed: int,
    mine: folder.Photographs | None = None,
) -> dict[str, tuple[Tensor, Tensor, list[int]]]:
    """`splits.heldout_sets` (N, 3, H, W) by kind, clean and damaged (where a family is named), and
    how many pictures each set has. To be looked at, not to be written to.
    """
    found = {}
    for kind, parts in splits.heldout_sets(pipe, n, seed, mine).items():
        clean = damaged = torch.cat(parts)
        if family is not None:
            damaged = degradations.pairs(clean, family, splits.SEEDS["heldout"] + seed)
        found[kind] = (clean, damaged, [len(p) for p in parts])
    return found


def judged(
    pipe: StableDiffusionPipeline,
    restore: Callable[[Tensor], Tensor] | None,
    fixes: list[str],
    n: int,
    family: str,
    judge: str,
    features: str,
    seed: int,
    mine: folder.Photographs | None = None,
) -> dict:
    """About n held-out pictures of each kind (`splits.heldout_sets`), damaged, restored, and with
    each of the colour fixes; where `restore` is None the damaged ones as they are, by bicubic
    interpolation.

    table: data, fix, n, each measure and the Frechet distance to the clean pictures with their
    ends; n counts scenes, or photographs. sets: each measure by data and fix, one number a set, for
    paired comparisons; crops: the same of every picture, one set after another; pictures: the first
    eight (one of a photograph) clean, damaged, restored.
    """

    def make(clean: Tensor, damaged: Tensor) -> dict[str, Tensor]:
        made = damaged if restore is None else restore(damaged)
        return {fix: colour.FIXES[fix](made, damaged) for fix in fixes}

    return _judged(pipe, make, n, family, judge, features, seed, mine)


def _judged(
    pipe: StableDiffusionPipeline,
    make: Callable[[Tensor, Tensor], dict[str, Tensor]],
    n: int,
    family: str | None,
    judge: str,
    features: str,
    seed: int,
    mine: folder.Photographs | None,
) -> dict:
    rows: list[dict] = []
    sets: dict[str, Tensor] = {}
    crops: dict[str, Tensor] = {}
    shown: dict[str, Tensor] = {}
    look = extractors.extractor(features, pipe.device)
    for kind, (clean, damaged, each) in heldout(pipe, n, family, seed, mine).items():
        first = [int(i) for i in torch.tensor([0, *each[:-1]]).cumsum(0)[:8]]
        shown |= {
            f"{kind}, clean": clean[first].clone(),
            f"{kind}, damaged": damaged[first].clone(),
        }
        was = extractors.features(look, clean)
        for fix, x in make(clean, damaged).items():
            made = x.clamp(-1, 1)
            row: dict = {"data": kind, "fix": fix, "n": len(each)}
            for name, found in scores(clean, made, judge, pipe.device).items():
                by = torch.stack([part.double().mean() for part in found.split(each)])
                row |= uncertainty.mean(by).named(name)
                sets[f"{kind}, {fix}, {name}"] = by
                crops[f"{kind}, {fix}, {name}"] = found
            now = extractors.features(look, made)
            rows.append(row | uncertainty.frechet(now, was, each=each).named("frechet"))
            shown[f"{kind}, {fix}"] = made[first].clone()
    return {"table": pd.DataFrame(rows), "sets": sets, "crops": crops, "pictures": shown}


def ceiling(
    pipe: StableDiffusionPipeline,
    net: Autoencoder,
    n: int,
    judge: str,
    features: str,
    seed: int,
    mine: folder.Photographs | None = None,
) -> dict:
    """The clean pictures through a VAE alone, judged as `judged` does it: what no restoration
    around that VAE can exceed.
    """

    def make(clean: Tensor, damaged: Tensor) -> dict[str, Tensor]:
        return {"none": autoencoders.pictures(net, autoencoders.latents(net, clean)[0])}

    return _judged(pipe, make, n, None, judge, features, seed, mine)


@torch.no_grad()
def estimated(
    n: int, family: str, seed: int, pipe: StableDiffusionPipeline, system: S3Diff
) -> dict:
    """What S3Diff's estimator says of held-out pictures, beside the scores they were damaged by:
    data, score, n (scenes, or photographs: all crops of one count as one), error (mean absolute,
    with its ends), spread (what the best constant would err by), correlation (of ranks, with its
    ends; over pictures).
    """
    rows = []
    where = splits.SEEDS["heldout"] + seed
    for kind, (x, damaged, sizes) in heldout(pipe, n, family, seed, None).items():
        seen = system.estimator(damaged.to(pipe.device)).cpu()
        true = degradations.scores(x, family, where, range(len(x)))
        for i, score in enumerate(("blur", "noise")):
            a, b = seen[:, i], true[:, i]
            row = {"data": kind, "score": score, "n": len(sizes)}
            off = torch.stack([part.mean() for part in (a - b).abs().split(sizes)])
            row |= uncertainty.mean(off).named("error")
            row["spread"] = float((b - b.median()).abs().mean())
            ranks = uncertainty.rank_correlation(a.tolist(), b.tolist())
            rows.append(row | ranks.named("correlation"))
    return {"table": pd.DataFrame(rows)}
