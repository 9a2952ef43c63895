"""What a slim VAE keeps: reconstruction beside other autoencoders (paper, method step 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import folder, splits
from nanosd_lib.networks import counting, vae
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import extractors, metrics, uncertainty

PARTS = ("both", "encoder", "decoder")


@torch.no_grad()
def latents(net: Autoencoder, x: Tensor, batch: int = 64) -> tuple[Tensor, Tensor | None]:
    """Scaled means and standard deviations (N, C, h, w) of pictures (N, 3, H, W), in float32."""
    weight = next(net.parameters())
    some = batch if x.shape[-1] <= 64 else 1
    pairs = [vae.encoded(net, p.to(weight)) for p in x.split(some)]
    mean, std = zip(*pairs, strict=True)
    return torch.cat(mean).float().cpu(), None if std[0] is None else torch.cat(std).float().cpu()


@torch.no_grad()
def pictures(net: Autoencoder, z: Tensor, batch: int = 64) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of scaled latents, in float32."""
    weight = next(net.parameters())
    side = z.shape[-1] * 2 ** (len(net.config.block_out_channels) - 1)  # of the pictures
    some = batch if side <= 64 else 1
    made = [vae.decoded(net, p.to(weight)).float().cpu() for p in z.split(some)]
    return torch.cat(made).clamp(-1, 1)


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of two sets of latents (N, C, h, w) in each channel: (C,)."""
    pairs = zip(a.transpose(0, 1).flatten(1), b.transpose(0, 1).flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(p))[0, 1] for p in pairs])


def _by(each: list[int], scores: Tensor) -> Tensor:
    """The mean score of each set of so many pictures."""
    return torch.stack([part.double().mean() for part in scores.split(each)])


def encoded(
    pipe: StableDiffusionPipeline, n: int, seed: int, mine: folder.Photographs | None = None
) -> dict[str, dict[str, Tensor]]:
    """The teacher's scaled means and standard deviations of the pictures that `compare` sees, by
    their kind.
    """
    sets = splits.heldout_sets(pipe, n, seed, mine)
    each = {kind: latents(pipe.vae, torch.cat(some)) for kind, some in sets.items()}
    std = {kind: s for kind, (_, s) in each.items() if s is not None}
    return {"mean": {kind: m for kind, (m, _) in each.items()}, "std": std}


def compare(
    pipe: StableDiffusionPipeline,
    student: Autoencoder | None,
    n: int,
    judge: str,
    seed: int,
    mine: folder.Photographs | None = None,
    parts: Sequence[str] = PARTS,
    taught: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> dict:
    """Held-out pictures through a student, through its encoder and the teacher's decoder, and the
    other way round (those of `PARTS` that are asked for); through the teacher's own where student
    is None. taught: what `encoded` returns, where it is at hand.

    table: part, pictures, n, psnr with its interval, ssim, lpips, latent_corr (mean over channels;
    NaN where the encoder is the teacher's). About n pictures of each kind are seen; the table's n
    counts scenes, or photographs, of which all crops count as one. channels: one row for each
    latent channel with its correlation, the share of the teacher's variance that is explained
    (which an offset or another scale lowers, and a correlation does not see), mean, deviation and
    posterior deviation (sigma); examples: eight of each kind, of as many photographs as there are.
    """
    teacher, rows, channels, examples = pipe.vae, [], [], {}
    taught = taught or encoded(pipe, n, seed, mine)
    net = teacher if student is None else student
    for kind, sets in splits.heldout_sets(pipe, n, seed, mine).items():
        x, each = torch.cat(sets), [len(p) for p in sets]
        few = max(1, 8 // len(each))  # shown of each set
        shown = torch.cat([i[:few] for i in torch.arange(len(x)).split(each)])[:8]
        mt, st = taught["mean"][kind], taught["std"].get(kind)
        m, s = (mt, st) if student is None else latents(net, x)
        corr = correlations(m, mt)
        mixes = {"both": (m, net), "encoder": (m, teacher), "decoder": (mt, net)}
        for part in parts if student is not None else PARTS[:1]:
            y = pictures(mixes[part][1], mixes[part][0])
            psnr, ssim, lpips = (
                _by(each, v)
                for v in (
                    metrics.psnr(x, y),
                    metrics.ssim(x, y),
                    extractors.perceptual(x, y, judge, pipe.device),
                )
            )
            same = float("nan") if part == "decoder" or student is None else float(corr.mean())
            row = {"part": part, "pictures": kind, "n": len(psnr)}
            row |= uncertainty.mean(psnr).named("psnr")
            row |= {"ssim": float(ssim.mean()), "lpips": float(lpips.mean())}
            rows.append(row | {"latent_corr": same})
            examples[f"{kind}, {part}"] = y[shown].clone()
        examples |= {kind: x[shown].clone(), f"{kind}, latents": m[shown].clone()}
        for c in range(m.shape[1]):
            stats = [float(v[:, c].mean()) for v in (m, mt)] + [
                float(v[:, c].std()) for v in (m, mt)
            ]
            sigmas = [float("nan") if v is None else float(v[:, c].mean()) for v in (s, st)]
            missed = float((m[:, c] - mt[:, c]).pow(2).mean() / mt[:, c].var())
            channels.append((kind, c, float(corr[c]), 1 - missed, *stats, *sigmas))
    names = ["pictures", "channel", "corr", "explained"]
    names += ["mean", "mean_teacher", "std", "std_teacher", "sigma", "sigma_teacher"]
    return {
        "table": pd.DataFrame(rows),
        "channels": pd.DataFrame(channels, columns=names),
        "examples": examples,
    }


@torch.no_grad()
def strip(net: Autoencoder, x: Tensor, frames: int) -> Tensor:
    """Pictures (frames, 3, H, W) along the straight line between the latents of x[0] and x[1]."""
    z, w = (
        latents(net, x[:2])[0],
        torch.linspace(0, 1, frames, dtype=torch.float32)[:, None, None, None],
    )
    return pictures(net, (1 - w) * z[:1] + w * z[1:2])


def judge_gmac(judge: str, size: int) -> float:
    """Multiply-adds (10^9) of one LPIPS of two pictures of size x size; nothing is downloaded."""
    net = extractors.lpips_over(judge, trained=False).to("meta")
    x = torch.empty(1, 3, size, size, device="meta", dtype=torch.float32)
    return sum(counting.flops(lambda: net(x, x)))
