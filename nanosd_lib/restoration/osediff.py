"""OSEDiff (Wu et al. 2024): one-step super-resolution with an L2 and a perceptual loss, and
variational score distillation (VSD) by the teacher and a regulariser that follows what the student
makes.

Where this is not the published training: the encoder's mean is taken, not a draw from it; the
prompt is empty (as it is at test) where the published one has tags of the truth, which VSD alone
reads here; student and regulariser take their steps together; guidance of VSD is the profile's.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from nanosd_lib.learning import fit
from nanosd_lib.networks import pipeline
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import extractors
from nanosd_lib.restoration import adapters, one_step
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.pairs import Pairs

NAME, REGULARISER = "restoration", "regulariser"
WEIGHTS = {"l2": 1.0, "lpips": 2.0, "vsd": 1.0}  # as published
BETWEEN = (20, 980)  # timesteps of VSD, as published


class Learning(nn.ParameterDict):
    """What learns, as one module for `fit`: parameters by name, which may not hold a dot."""

    def __init__(self, **parts: nn.Module) -> None:
        found = {
            f"{part}.{k}".replace(".", "|"): p
            for part, net in parts.items()
            for k, p in adapters.trained(net).items()
        }
        super().__init__(found)


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
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    t: int,
    rank: int,
    weights: dict[str, float],
    guidance: float,
    loss: str,
    scratch: Path,
    until: int | None = None,
) -> dict:
    """Train the adapters of one system: their weights in float16 and the record of every loss. The
    teacher is the pipeline's U-Net; unet and net are the backbone and the VAE, which stay as they
    are. `loss` is the backbone of the perceptual loss. Students train in float32, under autocast
    for a teacher in bfloat16. With `until`, the record alone.
    """
    schedule = fit.Schedule(steps, lr, seed)
    torch.manual_seed(seed)  # of the adapters' start
    one = system(pipe, unet, net, t, rank)
    other = copy.deepcopy(pipe.unet).float()
    adapters.add(other, "unet", rank, REGULARISER)
    perceptual = extractors.lpips_over(loss).to(pipe.device)
    abar, empty = one_step.alphas(pipe), pipeline.embed(pipe, [""])

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        b = pairs.draw(batch, seed, g)
        clean, damaged, text = (x.to(pipe.device) for x in (b.clean, b.damaged, b.text))
        with fit.mixed(pipe.unet):
            z, y = (x.float() for x in one.both(damaged))
        parts = {"l2": F.mse_loss(y, clean), "lpips": perceptual(y, clean).mean()}
        if weights["vsd"]:
            told = (text, empty, abar, pipe.unet, other, guidance, g)
            with fit.mixed(pipe.unet):
                parts["vsd"] = vsd(z, *told).mean()
        whole = torch.stack([weights[k] * v for k, v in parts.items()]).sum()
        seen = {k: v.detach() for k, v in parts.items()}
        if weights["vsd"]:
            with fit.mixed(pipe.unet):
                follow = regularised(z, text, abar, other, g)
            seen["regulariser"] = follow.detach()
            whole = whole + follow  # of other parameters: z is detached there
        return {"loss": whole, **seen}

    learning = Learning(unet=one.unet, vae=one.vae, regulariser=other)
    every = max(1, schedule.steps // 8)
    record = fit.fit("osediff", learning, loss_of, schedule, scratch, every, until=until)
    if until:
        return {"training": {"record": record}}
    kept = adapters.weights(NAME, unet=one.unet, vae=one.vae)
    return {"weights": {k: v.half() for k, v in kept.items()}, "training": {"record": record}}


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
