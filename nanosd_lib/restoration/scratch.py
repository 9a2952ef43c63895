"""The control of a prior: the same network as a backbone, with random weights, trained on the task
alone for as many multiply-adds as the pretrained one's distillation, alignment and adapter took
together (not in the paper: our assumption).
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from nanosd_lib.learning import fit
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import extractors
from nanosd_lib.restoration import adapters, one_step
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.osediff import NAME, Learning
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
    """Train a whole U-Net of unet's configuration, and the encoder's adapter: weights in float16
    and the record of every loss. `guidance` decides nothing. With `until`, the record alone.
    """
    other, auto = fresh(unet, seed).train(), copy.deepcopy(net).float()
    adapters.add(auto, "vae", rank, NAME)
    one = one_step.of(pipe, other, auto, t)
    perceptual = extractors.lpips_over(loss).to(pipe.device)

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        b = pairs.draw(batch, seed, g)
        clean, damaged = b.clean.to(pipe.device), b.damaged.to(pipe.device)
        with fit.mixed(pipe.unet):
            y = one.both(damaged)[1].float()
        parts = {"l2": F.mse_loss(y, clean), "lpips": perceptual(y, clean).mean()}
        whole = torch.stack([weights[k] * v for k, v in parts.items()]).sum()
        return {"loss": whole, **{k: v.detach() for k, v in parts.items()}}

    learning, every = Learning(unet=other, vae=auto), max(1, steps // 8)
    schedule = fit.Schedule(steps, lr, seed)
    record = fit.fit("scratch", learning, loss_of, schedule, scratch, every, until=until)
    if until:
        return {"training": {"record": record}}
    kept = adapters.weights(NAME, vae=auto)
    kept |= {f"scratch.{k}": v for k, v in other.state_dict().items()}
    return {"weights": {k: v.half() for k, v in kept.items()}, "training": {"record": record}}


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
