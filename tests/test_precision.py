"""precision: torch's default dtype, which a user may set, decides no network, noise or picture."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nanosd_lib.data import miniworld, photographs, raycast, splits
from nanosd_lib.learning import fit, sd_mini, vae_student
from nanosd_lib.networks import arch, counting, pipeline, precision, sd15, surgery, vae
from nanosd_lib.quality import autoencoders, checks, codesign, extractors, judges, metrics, prior

N6, HOW = arch.NANOSD["N6"], pipeline.Sampling(steps=1, guidance=3.0, batch=2)
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
TAUGHT = {"pixels": (X * 255).byte(), "mean": torch.ones(2, 4, 32, 32, dtype=torch.float16)}
TAUGHT["std"] = TAUGHT["mean"]
SHAPES = (9, 4, 32, 32), (9, 24, 64), (1, 24, 64)
KEPT = splits.Latents(*(torch.zeros(shape, dtype=torch.float32) for shape in SHAPES))
TOKENIZER = judges.tokenizer()


def trained(pipe, folder):
    how = dict(weights=dict.fromkeys(vae_student.TERMS, 1.0), judge="mini-attributes", seed=0)
    how |= dict(teacher=pipe.vae, taught=TAUGHT, size=64, scratch=folder)
    return vae_student.distil("slim", 1, 2, 1e-3, **how)["weights"]


def classifier(folder):
    one = miniworld.sample(2, 0, objects=1)
    lesson = sd_mini.classifier_lesson(TAUGHT["pixels"], one, 0)
    lesson.learn(1, folder, 0)
    return lesson.net


def frechet(pipe):
    seen = torch.rand(2, 64, dtype=torch.float64)
    return checks.check_frechet(pipe, seen, seen + 1, HOW)


MADE = {  # what is made of a teacher's pipeline and an empty folder
    "student": lambda pipe, _: surgery.student(N6, pipe.unet),
    "student of bfloat16": lambda pipe, _: surgery.student(N6, copy.deepcopy(pipe.unet).bfloat16()),
    "borrowed": lambda pipe, _: surgery.borrow(N6, pipe.unet),
    "surrogate": lambda pipe, _: surgery.surrogate("D2", "R", pipe.unet),
    "slim VAE": lambda pipe, _: vae.slim(pipe.vae),
    "tiny VAE": lambda pipe, _: vae.tiny(pipe.vae),
    "slim VAE, trained": trained,
    "classifier, trained": lambda _, folder: classifier(folder),
    "noise": lambda pipe, _: pipeline.noise(pipe, 2, 1),
    "pictures": lambda pipe, _: pipeline.generate(pipe, ["a red cube"], HOW),
    "stage inputs": lambda pipe, _: counting.stage_inputs(pipe.unet, "D2", 1),
    "network inputs": lambda pipe, _: counting.network_inputs(pipe.unet, 1, 4),
    "multiply-adds": lambda *_: counting.gmac(sd15.unet()),
    "scenes": lambda *_: vars(miniworld.sample(9, 0)),
    "renders": lambda *_: raycast.render(miniworld.sample(2, 3)),
    "crops": lambda *_: photographs.crops("train", 4, 0)[0],
    "noisy batch": lambda pipe, _: splits.noisy(KEPT, pipe.scheduler, 4, fit.rng(0, 0)),
    "mini-clip, untrained": lambda *_: judges.clip(TOKENIZER),
    "classifier": lambda *_: judges.classifier(),
    "features": lambda *_: extractors.features(extractors.extractor("mini-clip"), X),
    "LPIPS": lambda *_: extractors.perceptual(X, X.flip(-1)),
    "SSIM": lambda *_: metrics.ssim(X, X.flip(-1)),
    "strip": lambda pipe, _: autoencoders.strip(pipe.vae, X, 3),
    "one step": lambda pipe, _: codesign.denoised(pipe, 1, 500, 0),
    "path": lambda pipe, _: prior.interpolation(pipe, 1, 2, HOW)["pictures"],
    "networks that compose": lambda pipe, _: list(checks.compose(pipe, 1, 0)["table"].ran),
    "untrained U-Net": lambda pipe, _: list(frechet(pipe)["table"].frechet),
}


def leaves(made) -> list:
    """The tensors and numbers in what was made, in order."""
    made = made.state_dict() if isinstance(made, nn.Module) else made
    made = list(made.values()) if isinstance(made, dict) else made
    return [v for m in made for v in leaves(m)] if isinstance(made, (list, tuple)) else [made]


@pytest.mark.parametrize("what", MADE)
def test_the_default_dtype_decides_nothing(sd_mini, tmp_path, what):
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            found.append(leaves(MADE[what](sd_mini, tmp_path / str(dtype))))
            assert torch.get_default_dtype() == dtype
        finally:
            torch.set_default_dtype(torch.float32)
    for one, two in zip(*found, strict=True):
        assert getattr(one, "dtype", None) == getattr(two, "dtype", None)
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_the_default_comes_back_after_an_error():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ZeroDivisionError), precision.single():
            assert torch.zeros(1).dtype == torch.float32
            _ = 1 / 0
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
