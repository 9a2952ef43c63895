"""OSEDiff (Wu et al. 2024): one-step super-resolution with an L2 and a perceptual loss, and
variational score distillation (VSD) by the teacher and a regulariser that follows what the student
makes.

Where this is not the published training: the encoder's mean is taken, not a draw from it; the
prompt is empty (as it is at test) where the published one has tags of the truth, which VSD alone
reads here; student and regulariser take their steps together; guidance of VSD is the profile's.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from nanosd_lib.learning import fit
from nanosd_lib.networks import pipeline
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import extractors
from nanosd_lib.restoration import adapters, one_step
from nanosd_lib.restoration.lesson import NAME, Lesson
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.pairs import Pairs

REGULARISER = "regulariser"
WEIGHTS = {"l2": 1.0, "lpips": 2.0, "vsd": 1.0}  # as published
BETWEEN = (20, 980)  # timesteps of VSD, as published


def vsd(
    z: Tensor,
    text: Tensor,
    empty: Tensor,
    abar: Tensor,
    teacher: UNet2DConditionModel,
    regulariser: UNet2DConditionModel,
    guidance: float,
    g: torch.Generator,
) -> Tensor:
    """Variational score distillation of latents z (N, C, h, w), (N,): half the squared distance to
    z - grad, where grad = (x0 of the regulariser - x0 of the teacher) / mean |z - x0 of the
    teacher|, both of the same noisy z; its gradient is grad, over the size of a latent.
    """
    t = torch.randint(*BETWEEN, (len(z),), generator=g).to(z.device)
    noise = torch.randn(z.shape, generator=g, dtype=torch.float32).to(z)
    a = abar.to(z)[t.cpu() if not z.is_cuda else t].view(-1, 1, 1, 1)
    with torch.no_grad():
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        both = torch.cat([empty.expand(len(z), -1, -1), text])
        told = teacher(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=both).sample
        without, asked = told.chunk(2)
        real = _clean(x, without + guidance * (asked - without), a)
        fake = _clean(x, regulariser(x, t, encoder_hidden_states=text).sample, a)
        off = (z - real).abs().mean((1, 2, 3), keepdim=True)
        target = z - (fake - real) / off.clamp_min(1e-6)
    return 0.5 * (z - target).pow(2).mean((1, 2, 3))


def _clean(x: Tensor, eps: Tensor, a: Tensor) -> Tensor:
    return (x - (1 - a).sqrt() * eps) / a.sqrt()


def regularised(
    z: Tensor,
    text: Tensor,
    abar: Tensor,
    regulariser: UNet2DConditionModel,
    g: torch.Generator,
) -> Tensor:
    """The regulariser's own loss: the noise in noisy latents of what the student makes, uniform in
    t; a number.
    """
    t = torch.randint(len(abar), (len(z),), generator=g)
    noise = torch.randn(z.shape, generator=g, dtype=torch.float32).to(z)
    a = abar[t].to(z).view(-1, 1, 1, 1)
    x = a.sqrt() * z.detach() + (1 - a).sqrt() * noise
    return F.mse_loss(regulariser(x, t.to(z.device), encoder_hidden_states=text).sample, noise)


def system(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    t: int,
    rank: int,
) -> OneStep:
    """OSEDiff around copies of a U-Net and a VAE, with new adapters that do nothing yet."""
    unet, net = copy.deepcopy(unet).float(), copy.deepcopy(net).float()
    adapters.add(unet, "unet", rank, NAME)
    adapters.add(net, "vae", rank, NAME)
    return one_step.of(pipe, unet, net, t)


def train(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    pairs: Pairs,
    scratch: Path,
    until: int | None = None,
    **numbers: Any,
) -> dict:
    """Train the adapters of one system: their weights in float16 and the record of every loss. The
    teacher is the pipeline's U-Net; unet and net are the backbone and the VAE, which stay as they
    are; `numbers` are `Lesson`'s. Students train in float32, under autocast for a teacher in
    bfloat16. With `until`, the record alone.
    """
    n = Lesson(**numbers)
    torch.manual_seed(n.seed)  # of the adapters' start
    one = system(pipe, unet, net, n.t, n.rank)
    other = copy.deepcopy(pipe.unet).float()
    adapters.add(other, "unet", n.rank, REGULARISER)
    perceptual = extractors.lpips_over(n.loss).to(pipe.device)
    abar, empty = one_step.alphas(pipe), pipeline.embed(pipe, [""])

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        b = pairs.draw(n.batch, n.seed, g)
        clean, damaged, text = (x.to(pipe.device) for x in (b.clean, b.damaged, b.text))
        with fit.mixed(pipe.unet):
            z, y = (x.float() for x in one.both(damaged))
        parts = {"l2": F.mse_loss(y, clean), "lpips": perceptual(y, clean).mean()}
        if n.weights["vsd"]:
            told = (text, empty, abar, pipe.unet, other, n.guidance, g)
            with fit.mixed(pipe.unet):
                parts["vsd"] = vsd(z, *told).mean()
        whole = n.whole(parts)
        seen = {k: v.detach() for k, v in parts.items()}
        if n.weights["vsd"]:
            with fit.mixed(pipe.unet):
                follow = regularised(z, text, abar, other, g)
            seen["regulariser"] = follow.detach()
            whole = whole + follow  # of other parameters: z is detached there
        return {"loss": whole, **seen}

    parts = {"unet": one.unet, "vae": one.vae, "regulariser": other}
    kept = functools.partial(adapters.weights, NAME, unet=one.unet, vae=one.vae)
    return n.learn("osediff", parts, loss_of, scratch, until, kept)


def restorer(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    t: int,
    weights: dict[str, Tensor] | None,
) -> OneStep:
    """damaged (N, 3, H, W) -> restored, of trained adapters around copies of the backbone and the
    VAE; without weights, of the backbone as it is.
    """
    unet, net = copy.deepcopy(unet), copy.deepcopy(net)
    if weights is not None:
        adapters.load({k: v.float() for k, v in weights.items()}, NAME, unet=unet, vae=net)
    for part in (unet, net):
        part.eval().requires_grad_(False)
    return one_step.of(pipe, unet, net, t)
