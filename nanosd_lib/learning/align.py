"""Alignment of a whole student with the teacher (paper, method step 5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.learning import fit
from nanosd_lib.networks import surgery
from nanosd_lib.networks.arch import Arch
from nanosd_lib.networks.pipeline import Sampling
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
    5), in place. Where a batch has the teacher's answer (`want`), it is not asked again.

    The student trains in float32, under autocast for a teacher in bfloat16. Where the batch has the
    slim VAE's latents (`own`), the student reads those and the teacher its own VAE's (z_S, z_T).
    """

    def loss_of(g: torch.Generator) -> Tensor:
        b = draw(g)
        want = b["want"] if "want" in b else answer(teacher, b)
        with fit.mixed(teacher):
            own = b.get("own", b["x"])
            got = student(own, b["t"], encoder_hidden_states=b["text"]).sample
        return (got.float() - want.float()).pow(2).mean()

    student.float().train()
    schedule = fit.Schedule(steps, lr, seed, decay=0.9, warmup=5)
    record = fit.fit(name, student, loss_of, schedule, scratch, every=50)
    student.to(next(teacher.parameters())).eval()
    return record


@torch.no_grad()
def answer(teacher: UNet2DConditionModel, b: dict[str, Tensor]) -> Tensor:
    """The noise that the teacher predicts on a batch."""
    return teacher(b["x"], b["t"], encoder_hidden_states=b["text"]).sample


def answers(
    align_steps: int,
    train_batch: int,
    seed: int,
    pipe: StableDiffusionPipeline,
    latents: splits.Latents,
) -> dict[str, dict[str, Tensor]]:
    """The teacher's answers (steps, batch, C, h, w) on the batches of every step: all networks of
    one seed are aligned on the same.
    """
    made = []
    for step in tqdm(range(align_steps), desc="teacher's answers", leave=False):
        g = fit.rng(seed, step)
        b = splits.noisy(latents, pipe.scheduler, train_batch, g, device=pipe.device)
        made.append(answer(pipe.unet, b).cpu())
    return {"answers": {"want": torch.stack(made)}}


def align_arch(
    arch: str,
    align_steps: int,
    lr: float,
    train_batch: int,
    how: Sampling,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    latents: splits.Latents,
    teacher_features: Tensor,
    scratch: Path,
    answers: Tensor | None = None,
) -> dict:
    """Assemble, align for a few steps, score: the arch's weights, scores and images afterwards.

    answers: what the function of that name returns for these steps, batch and seed.
    """
    net, seed = surgery.assemble(Arch.parse(arch), pipe.unet, surrogates), how.seed

    def draw(g: torch.Generator) -> dict[str, Tensor]:
        step = fit.step_of(g, seed)
        b = splits.noisy(latents, pipe.scheduler, train_batch, g, device=pipe.device)
        return b if answers is None else b | {"want": answers[step].to(b["x"])}

    record = align(net, pipe.unet, draw, align_steps, lr, scratch, seed)
    scores, kept = tafid.score(net, pipe, teacher_features, how)
    return {
        "weights": dict(net.state_dict()),
        "scores": scores | {"arch": arch, "record": record},
        **kept,
    }
