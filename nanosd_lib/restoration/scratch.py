"""The control of a prior: the same network as a backbone, with random weights, trained on the task
alone for as many multiply-adds as the pretrained one's distillation, alignment and adapter took
together (not in the paper: our assumption).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from nanosd_lib.learning import fit
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import extractors
from nanosd_lib.restoration import adapters, one_step
from nanosd_lib.restoration.lesson import NAME, Lesson
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.pairs import Pairs

WEIGHTS = {"l2": 1.0, "lpips": 2.0}  # OSEDiff's without distillation, which is the prior's


def fresh(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """A network of that configuration with weights of its own draw."""
    torch.manual_seed(seed)
    net = type(unet).from_config(unet.config)
    return net.to(next(unet.parameters()).device)


def train(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    pairs: Pairs,
    scratch: Path,
    until: int | None = None,
    **numbers: Any,
) -> dict:
    """Train a whole U-Net of unet's configuration, and the encoder's adapter: weights in float16
    and the record of every loss; `numbers` are `Lesson`'s, of which `guidance` decides nothing.
    With `until`, the record alone.
    """
    n = Lesson(**numbers)
    other, auto = fresh(unet, n.seed).train(), copy.deepcopy(net).float()
    adapters.add(auto, "vae", n.rank, NAME)
    one = one_step.of(pipe, other, auto, n.t)
    perceptual = extractors.lpips_over(n.loss).to(pipe.device)

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        b = pairs.draw(n.batch, n.seed, g)
        clean, damaged = b.clean.to(pipe.device), b.damaged.to(pipe.device)
        with fit.mixed(pipe.unet):
            y = one.both(damaged)[1].float()
        parts = {"l2": F.mse_loss(y, clean), "lpips": perceptual(y, clean).mean()}
        return {"loss": n.whole(parts), **{k: v.detach() for k, v in parts.items()}}

    def kept() -> dict[str, Tensor]:
        own = {f"scratch.{k}": v for k, v in other.state_dict().items()}
        return adapters.weights(NAME, vae=auto) | own

    return n.learn("scratch", {"unet": other, "vae": auto}, loss_of, scratch, until, kept)


def restorer(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    t: int,
    weights: dict[str, Tensor],
) -> OneStep:
    """damaged (N, 3, H, W) -> restored by the network that was trained from nothing."""
    other, auto = fresh(unet, 0), copy.deepcopy(net)
    start = "scratch."
    own = {k.removeprefix(start): v.float() for k, v in weights.items() if k.startswith(start)}
    other.load_state_dict(own)
    part = {k: v.float() for k, v in weights.items() if k.startswith("vae.")}
    adapters.load_part(part, "vae", auto, NAME)
    for one in (other, auto):
        one.eval().requires_grad_(False)
    return one_step.of(pipe, other, auto, t)
