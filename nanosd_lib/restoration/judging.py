"""What a restoration gives: held-out pictures damaged, restored, compared with what they were."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import degradations, folder, splits
from nanosd_lib.networks.pipeline import Sampling
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


@functools.lru_cache(maxsize=1)
def _clean(
    pipe: StableDiffusionPipeline, n: int, seed: int, features: str, mine: folder.Photographs | None
) -> dict[str, Tensor]:
    """Features of the clean pictures by kind: every restoration is laid beside them."""
    look = extractors.extractor(features, pipe.device)
    return {
        kind: extractors.features(look, clean)
        for kind, (clean, _, _) in heldout(pipe, n, None, seed, mine).items()
    }


def judged(
    pipe: StableDiffusionPipeline,
    restore: Callable[[Tensor], Tensor] | None,
    fixes: list[str],
    n: int,
    family: str,
    judge: str,
    how: Sampling,
    said: str = "",
    mine: folder.Photographs | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> dict:
    """About n held-out pictures of each kind (`splits.heldout_sets`), damaged, restored, and with
    each of the colour fixes; where `restore` is None the damaged ones as they are, by bicubic
    interpolation. Of `how`, the seed and the features.

    table: data, fix, n, each measure and the Frechet distance to the clean pictures with their
    ends; n counts scenes, or photographs. sets: each measure by data and fix, one number a set, for
    paired comparisons; crops: the same of every picture, one set after another; pictures: the first
    eight (one of a photograph) clean, damaged, restored; features: what was seen in every picture,
    by "`said`: data". Where that is `known`, only those eight are restored again, and must look
    as they did (ValueError).
    """

    def make(clean: Tensor, damaged: Tensor) -> dict[str, Tensor]:
        made = damaged if restore is None else restore(damaged)
        return {fix: colour.FIXES[fix](made, damaged) for fix in fixes}

    return _judged(pipe, make, n, family, judge, how, said, mine, known or {})


def _judged(
    pipe: StableDiffusionPipeline,
    make: Callable[[Tensor, Tensor], dict[str, Tensor]],
    n: int,
    family: str | None,
    judge: str,
    how: Sampling,
    said: str,
    mine: folder.Photographs | None,
    known: Mapping[str, Tensor],
) -> dict:
    table: list[dict] = []
    sets: dict[str, Tensor] = {}
    crops: dict[str, Tensor] = {}
    shown: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    look = extractors.extractor(how.features, pipe.device)
    was = _clean(pipe, n, how.seed, how.features, mine)
    for kind, (clean, damaged, each) in heldout(pipe, n, family, how.seed, mine).items():
        first = [int(i) for i in torch.tensor([0, *each[:-1]]).cumsum(0)[:8]]
        shown |= {f"{kind}, clean": clean[first], f"{kind}, damaged": damaged[first]}
        label = f"{said}: {kind}"
        some = first if label in known else list(range(len(clean)))
        made = {k: x.clamp(-1, 1) for k, x in make(clean[some], damaged[some]).items()}
        rows = torch.cat(
            [_seen(clean[some], x, judge, look, pipe.device) for x in made.values()], 1
        )
        if label in known:
            _alike(rows, known[label][first], len(made), label)
            rows = known[label].double()
        features[label] = rows
        for (fix, x), block in zip(made.items(), rows.chunk(len(made), 1), strict=True):
            row: dict = {"data": kind, "fix": fix, "n": len(each)}
            for name, found in zip(MEASURES, block.T, strict=False):
                by = torch.stack([part.mean() for part in found.split(each)])
                row |= uncertainty.mean(by).named(name)
                sets[f"{kind}, {fix}, {name}"] = by
                crops[f"{kind}, {fix}, {name}"] = found.clone()
            now = block[:, len(MEASURES) :]
            table.append(row | uncertainty.frechet(now, was[kind], each=each).named("frechet"))
            shown[f"{kind}, {fix}"] = x[[some.index(i) for i in first]]
    seen = {"sets": sets, "crops": crops, "pictures": shown, "features": features}
    return {"table": pd.DataFrame(table), **seen}


def _seen(clean: Tensor, made: Tensor, judge: str, look, device: torch.device) -> Tensor:
    """Each of `MEASURES` and the features of every picture (N, 3 + D)."""
    found = scores(clean, made, judge, device)
    measured = torch.stack([found[k].double() for k in MEASURES], 1)
    return torch.cat([measured, extractors.features(look, made)], 1)


def _alike(again: Tensor, known: Tensor, fixes: int, said: str) -> None:
    """ValueError where a measure, or the features, are not those that were `known`."""
    if again.shape != known.shape:
        raise ValueError(
            f"{said}: {known.shape[1]} numbers a picture are shipped, not those of now"
        )
    parts = [1, 1, 1, again.shape[1] // fixes - len(MEASURES)] * fixes
    for one, other in zip(again.split(parts, 1), known.split(parts, 1), strict=True):
        extractors.alike(one, other, said)


def ceiling(
    pipe: StableDiffusionPipeline,
    net: Autoencoder,
    n: int,
    judge: str,
    how: Sampling,
    mine: folder.Photographs | None = None,
) -> dict:
    """The clean pictures through a VAE alone, judged as `judged` does it: what no restoration
    around that VAE can exceed.
    """

    def make(clean: Tensor, damaged: Tensor) -> dict[str, Tensor]:
        return {"none": autoencoders.pictures(net, autoencoders.latents(net, clean)[0])}

    return _judged(pipe, make, n, None, judge, how, "ceiling", mine, {})


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
