"""Alignment of a whole student with the teacher (paper, method step 5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.data import splits
from nanosd_lib.learning import fit
from nanosd_lib.networks import surgery
from nanosd_lib.networks.arch import Arch
from nanosd_lib.quality import tafid


def align(
    student: UNet2DConditionModel,
    teacher: UNet2DConditionModel,
    draw: Callable[[torch.Generator], dict[str, Tensor]],
    steps: int,
    lr: float,
    scratch: Path,
    seed: int = 0,
    name: str = "align",
) -> list[dict]:
    """Short end-to-end training, ||U_S(a z + s eps, t, c) - U_T(a z + s eps, t, c)||^2 (paper, step
    5), in place.

    The student trains in float32, under autocast for a teacher in bfloat16. Where the batch has the
    slim VAE's latents (`own`), the student reads those and the teacher its own VAE's (z_S, z_T).
    """

    def loss_of(g: torch.Generator) -> Tensor:
        b = draw(g)
        with torch.no_grad():
            want = teacher(b["x"], b["t"], encoder_hidden_states=b["text"]).sample
        with fit.mixed(teacher):
            own = b.get("own", b["x"])
            got = student(own, b["t"], encoder_hidden_states=b["text"]).sample
        return (got.float() - want.float()).pow(2).mean()

    student.float().train()
    record = fit.fit(
        name, student, loss_of, steps, lr, scratch, seed, decay=0.9, every=50, warmup=5
    )
    student.to(next(teacher.parameters())).eval()
    return record


def align_arch(
    arch: str,
    align_steps: int,
    lr: float,
    train_batch: int,
    seed: int,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    latents: splits.Latents,
    teacher_features: Tensor,
    scratch: Path,
    **protocol,
) -> dict:
    """Assemble, align for a few steps, score: the arch's weights, scores and images afterwards."""
    net = surgery.assemble(Arch.parse(arch), pipe.unet, surrogates)

    def draw(g: torch.Generator) -> dict[str, Tensor]:
        return splits.noisy(latents, pipe.scheduler, train_batch, g, device=pipe.device)

    record = align(net, pipe.unet, draw, align_steps, lr, scratch, seed)
    scores, pictures = tafid.score(net, pipe, teacher_features, seed=seed, **protocol)
    return {
        "weights": dict(net.state_dict()),
        "scores": scores | {"arch": arch, "record": record},
        "pictures": {"pictures": pictures},
    }
