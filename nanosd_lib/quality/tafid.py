"""tAFID: the Frechet distance between a student's and the teacher's images for the same prompts and
the same noise (paper, search step); and the denoising error, which needs no images.

The plain name tAFID is kept for Inception features; numbers over other features say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.data import splits
from nanosd_lib.networks import pipeline, surgery
from nanosd_lib.networks.arch import Arch
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import extractors, metrics, uncertainty


@torch.no_grad()
def predictions(unet: UNet2DConditionModel, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """The noise that a U-Net sees in held-out noisy latents: (N, C, h, w), in float32."""
    made = [unet(b["x"], b["t"], encoder_hidden_states=b["text"]).sample for b in batches]
    return torch.cat(made).float().cpu()


def denoising_error(student: Tensor, teacher: Tensor) -> uncertainty.Interval:
    """||U_S - U_T||^2 / ||U_T||^2 of `predictions` on the same latents."""
    off, whole = (x.pow(2).mean((1, 2, 3)) for x in (student - teacher, teacher))
    return uncertainty.ratio(off, whole)


def denoised(
    archs: list[str],
    pipe: StableDiffusionPipeline,
    nets: dict[str, UNet2DConditionModel],
    heldout: Sequence[dict[str, Tensor]],
) -> dict[str, dict[str, dict[str, float]]]:
    """`denoising_error` of each network on held-out latents, with its ends; where a batch has the
    slim VAE's latents (`own`), the network reads those.
    """
    want, read = predictions(pipe.unet, heldout), [b | {"x": b.get("own", b["x"])} for b in heldout]
    found = {a: denoising_error(predictions(nets[a], read), want) for a in archs}
    return {"errors": {a: x.named("eps_error") for a, x in found.items()}}


def reference(
    pipe: StableDiffusionPipeline,
    images: int,
    how: Sampling,
    known: Mapping[str, Tensor] | None = None,
) -> dict:
    """The teacher's side of tAFID: features of its images, and of the same prompts from other noise
    (the floor). `known`: those features, by the names they have in the result.
    """
    prompts, have = splits.prompts(images, how.seed), known or {}
    f, pictures = extractors.looked_at(pipe, prompts, how, "teacher", known=have.get("teacher"))
    again, said = how.but(seed=how.seed + 50_000), "teacher, other noise"
    g, other = extractors.looked_at(pipe, prompts, again, said, known=have.get("other"))
    return {
        "features": {"teacher": f, "other": g},
        "pictures": {"teacher": pictures, "other": other},
        "prompts": prompts,
        "floor": {
            **uncertainty.frechet(g, f).named("tafid"),
            **_cosine(g, f).named("cosine"),
            "protocol": how.protocol(images),
        },
    }


def score(
    unet: UNet2DConditionModel,
    pipe: StableDiffusionPipeline,
    teacher_features: Tensor,
    how: Sampling,
    keep: int = extractors.KEPT,
    known: Tensor | None = None,
) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
    """tAFID and paired cosine of a U-Net against the teacher's features, with their intervals; and
    what an artifact keeps beside them: `features` (N, D), from which ratios of two networks get
    theirs, and the first `pictures`. `known`: the features of its pictures, drawn once before.
    """
    prompts = splits.prompts(len(teacher_features), how.seed)
    drawn = pipeline.with_parts(pipe, unet=unet)
    f, pictures = extractors.looked_at(drawn, prompts, how, "student", keep, known)
    scores = uncertainty.frechet(f, teacher_features).named("tafid")
    kept = {"features": {"features": f}, "pictures": {"pictures": pictures}}
    return scores | _cosine(f, teacher_features).named("cosine"), kept


def _cosine(a: Tensor, b: Tensor) -> uncertainty.Interval:
    """Mean cosine of paired features (N, D)."""
    return uncertainty.mean(metrics.cosines(a, b))


def score_arch(
    arch: str,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    teacher_features: Tensor,
    how: Sampling,
    known: Mapping[str, Tensor] | None = None,
    keep: int = extractors.KEPT,
) -> dict:
    """`score` of the network assembled from trained surrogates, without any training (paper, search
    step).
    """
    net = surgery.assemble(Arch.parse(arch), pipe.unet, surrogates)
    return score_net(arch, pipe, net, teacher_features, how, known, keep)


def score_net(
    arch: str,
    pipe: StableDiffusionPipeline,
    net: UNet2DConditionModel,
    teacher_features: Tensor,
    how: Sampling,
    known: Mapping[str, Tensor] | None = None,
    keep: int = extractors.KEPT,
) -> dict:
    """`score` of that network as a computation's values; `known`: features by arch."""
    scores, kept = score(net, pipe, teacher_features, how, keep, (known or {}).get(arch))
    return {"scores": scores | {"arch": arch}, **kept}
