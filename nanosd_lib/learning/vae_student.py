"""Distillation of a slim VAE with four terms (paper, method step 4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from nanosd_lib.data import folder, splits
from nanosd_lib.learning import fit
from nanosd_lib.networks import pipeline, vae
from nanosd_lib.networks.vae import KINDS, Autoencoder, SlimVAE
from nanosd_lib.quality import extractors

TERMS = ("latent", "kl", "reconstruction", "perceptual")


def standard_kl(mean: Tensor, std: Tensor, scale: float) -> Tensor:
    """KL divergence to the standard normal of each picture's unscaled posterior, the mean over the
    numbers of its latent, so that a weight means the same at every size: (N,).
    """
    m, s = mean / scale, std / scale
    return 0.5 * (m.pow(2) + s.pow(2) - 1 - 2 * s.log()).mean((1, 2, 3))


@torch.no_grad()
def moments(
    pipe,
    scenes: int,
    crops: int,
    size: int,
    seed: int,
    mine: folder.Photographs | None = None,
) -> dict:
    """Training pictures as uint8 (N, 3, 64, 64), a user's own (N, 3, size, size), and the teacher's
    scaled mean and standard deviation of each at size x size, once for every student that learns
    from them.
    """
    few = 256 if size <= 64 else 8
    pixels, means, stds = [], [], []
    for x in splits.batches("train", scenes, crops, seed, size, few, mine)[0]:
        pixels.append(((x + 1) * 127.5).round().clamp(0, 255).byte())
        some = pipeline.sized(x, size).to(pipe.device, pipe.vae.dtype)
        mean, std = vae.encoded(pipe.vae, some)
        means.append(mean.half().cpu())
        assert std is not None, "a teacher's VAE has a variance"
        stds.append(std.half().cpu())
    mean, std = torch.cat(means).contiguous(), torch.cat(stds).contiguous()
    return {"moments": {"pixels": torch.cat(pixels), "mean": mean, "std": std}}


@functools.lru_cache(maxsize=1)
def moments_on_demand(pipe, scenes: int, crops: int, size: int, seed: int) -> dict:
    """The tensors of `moments`, each row made when it is asked for, once for every student that
    asks for the same.
    """
    look, text = splits.pictures_on_demand("train", scenes, crops, seed)
    n = len(text)
    pixels = splits.Rows(n, lambda i: ((look(i) + 1) * 127.5).round().clamp(0, 255).byte())

    @torch.no_grad()
    def both(i: Tensor) -> Tensor:
        x = pipeline.sized(look(i), size).to(pipe.device, pipe.vae.dtype)
        mean, std = vae.encoded(pipe.vae, x)
        assert std is not None, "a teacher's VAE has a variance"
        return torch.stack([mean.half().cpu(), std.half().cpu()], dim=1)

    made = splits.Rows(n, both)
    mean, std = splits.Rows(n, lambda i: made[i][:, 0]), splits.Rows(n, lambda i: made[i][:, 1])
    return {"pixels": pixels, "mean": mean, "std": std}


def terms(
    net: Autoencoder,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    g: torch.Generator,
    perceptual: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The four losses of one batch of pictures x (N, 3, H, W) with the teacher's scaled moments.

    The first half of the batch is decoded from the teacher's latents, the other half from the
    student's own, which also teaches the encoder. Latent matching: squared errors of mean and of
    standard deviation, each over the teacher's mean square, so that the small one counts. KL: of
    the student's posterior to the standard normal, the mean over a latent. Reconstruction: absolute
    and squared difference to the picture itself, which is what sd-mini's teacher was trained on.
    The paper names the terms; their forms are our assumption.
    """
    m, s = vae.encoded(net, x)
    noise = torch.randn(mean.shape, generator=g, dtype=torch.float32).to(mean)
    k, zero = len(x) // 2, x.new_zeros(())
    own = m[k:] + (std if s is None else s)[k:] * noise[k:]
    y = vae.decoded(net, torch.cat([mean[:k] + std[:k] * noise[:k], own])).float()
    relative = lambda a, b: (a.float() - b).pow(2).mean() / b.pow(2).mean()  # noqa: E731
    scale = net.config.scaling_factor
    return {
        "latent": relative(m, mean) + (zero if s is None else relative(s, std)),
        "kl": zero if s is None else standard_kl(m.float(), s.float(), scale).mean(),
        "reconstruction": (y - x).abs().mean() + (y - x).pow(2).mean(),
        "perceptual": perceptual(y, x).mean(),
    }


@torch.no_grad()
def _begin_at(net: SlimVAE, taught: dict[str, Tensor]) -> None:
    """Start the encoder at the teacher's average mean and deviation of the first 256 pictures: from
    anywhere else the deviations of the first steps, which are exponentials, may be astronomical.
    """
    k, few = net.config.scaling_factor, torch.arange(min(256, len(taught["mean"])))
    average = lambda v: v[few].float().mean((0, 2, 3))  # noqa: E731
    mean, std = (average(taught[n]).to(net.device) / k for n in ("mean", "std"))
    net.encoder[-1].bias.copy_(torch.cat([mean, 2 * std.log()]))


def distil(
    kind: str,
    steps: int,
    batch: int,
    lr: float,
    weights: dict[str, float],
    judge: str,
    seed: int,
    teacher: AutoencoderKL,
    taught: dict[str, Tensor],
    size: int,
    scratch: Path,
    until: int | None = None,
) -> dict:
    """Train a student of that kind: its weights in float16, and every term along the way.

    weights: one for each of `TERMS`, 0 leaves it out; judge: the backbone of the perceptual term;
    taught: what `moments` returns. Weights are float32 under bfloat16 autocast, which is 1.7 times
    as fast here (narrow U-Nets are slower that way). With `until`, the record alone, all of it in
    float32: sums that do not depend on how a machine rounds.
    """
    torch.manual_seed(seed)
    net, perceptual = KINDS[kind](teacher).to(teacher.device).train(), extractors.lpips_over(judge)
    perceptual = perceptual.to(teacher.device)
    if kind == "slim":
        _begin_at(net, taught)

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        i = torch.randint(len(taught["pixels"]), (batch,), generator=g)
        x = pipeline.sized(taught["pixels"][i].float() / 127.5 - 1, size).to(teacher.device)
        mean, std = (taught[k][i].float().to(teacher.device) for k in ("mean", "std"))
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=until is None):
            parts = terms(net, x, mean, std, g, perceptual)
        whole = sum((weights[k] * v for k, v in parts.items() if weights[k]), x.new_zeros(()))
        return {"loss": whole} | parts

    schedule = fit.Schedule(steps, lr, seed)
    every = max(1, steps // 8)
    record = fit.fit("vae", net, loss_of, schedule, scratch, every, until=until)
    if until:
        return {"training": {"record": record}}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    return {"weights": weights, "training": {"record": record}}


@torch.no_grad()
def judged(
    n: int,
    seed: int,
    pipe,
    net: Autoencoder,
    mine: folder.Photographs | None = None,
) -> dict[str, dict[str, float]]:
    """Mean square error of held-out pictures through both halves of a student, float32."""
    seen = splits.heldout_pictures(pipe, n, seed, mine)
    found = {}
    for kind, x in seen.items():
        parts = [
            vae.decoded(net, vae.encoded(net, some)[0]) for some in x.to(pipe.device).split(32)
        ]
        found[kind] = float((torch.cat(parts).float().cpu() - x).pow(2).mean())
    return {"errors": found}
