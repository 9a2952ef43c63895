"""Alignment of whole students with the teacher (paper, method step 5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.data import splits
from nanosd_lib.learning import fit
from nanosd_lib.networks import surgery
from nanosd_lib.networks.arch import Arch


def align(
    students: nn.ModuleDict,
    teacher: UNet2DConditionModel,
    draw: Callable[[torch.Generator], dict[str, Tensor]],
    steps: int,
    lr: float,
    scratch: Path,
    seed: int = 0,
    until: int | None = None,
) -> list[dict]:
    """Short end-to-end training, ||U_S(a z + s eps, t, c) - U_T(a z + s eps, t, c)||^2 (paper, step
    5), in place, of several students in one shared teacher pass a step; each keeps its own gradient
    norm below 1, so none depends on which others are trained beside it. The record holds the mean
    loss and each student's own.

    Students train in float32, under autocast for a teacher in bfloat16. Where the batch has the
    slim VAE's latents (`own`), they read those and the teacher its own VAE's (z_S, z_T).
    """

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        b, each = draw(g), {}
        want = answer(teacher, b).float()
        for name, net in students.items():
            with fit.mixed(teacher):
                own = b.get("own", b["x"])
                got = net(own, b["t"], encoder_hidden_states=b["text"]).sample
            loss = (got.float() - want).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            each[name] = loss.detach()
        return {"loss": torch.stack(list(each.values())).mean()} | each

    students.float().train()
    schedule = fit.Schedule(steps, lr, seed, decay=0.9, clip=None, warmup=max(5, steps // 20))
    record = fit.fit("align", students, loss_of, schedule, scratch, max(1, steps // 4), until=until)
    students.to(next(teacher.parameters())).eval()
    return record


@torch.no_grad()
def answer(teacher: UNet2DConditionModel, b: dict[str, Tensor]) -> Tensor:
    """The noise that the teacher predicts on a batch."""
    return teacher(b["x"], b["t"], encoder_hidden_states=b["text"]).sample


def align_archs(
    archs: list[str],
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    latents: splits.Latents,
    scratch: Path,
    until: int | None = None,
) -> dict:
    """Assemble each network of trained surrogates and align it: weights in float16, named
    "R RA RA | RARA RARA RR.conv_in.weight", and the record. With `until`, the record alone.
    """
    nets = nn.ModuleDict({a: surgery.assemble(Arch.parse(a), pipe.unet, surrogates) for a in archs})
    draw = lambda g: splits.noisy(latents, pipe.scheduler, batch, g, device=pipe.device)  # noqa: E731
    record = align(nets, pipe.unet, draw, steps, lr, scratch, seed, until)
    if until:
        return {"record": record}
    return {"weights": {k: v.half() for k, v in nets.state_dict().items()}, "record": record}


def load(arch: str, teacher: UNet2DConditionModel, weights: dict[str, Tensor]) -> surgery.NanoUNet:
    """An aligned network, frozen, on the teacher's device and in its dtype."""
    net = surgery.student(arch, teacher)
    net.load_state_dict(weights)
    return cast(surgery.NanoUNet, net.to(next(teacher.parameters())).eval().requires_grad_(False))
