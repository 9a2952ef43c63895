"""Sensitivity: which stages of the U-Net can go (paper, surgery step: E4, M and D4 cost much and
give little).

Each stage in turn is simplified to the shortest code of its shapes (one R) and taken away
altogether (`blocks.Bridge`); nothing is retrained. The paper does not say how it took stages away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.networks import ablation, counting
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import tafid, uncertainty
from nanosd_lib.quality.extractors import witnessed

BANDS = {"all": (0, 1), "early": (2 / 3, 1), "middle": (1 / 3, 2 / 3), "late": (0, 1 / 3)}
TEACHER = "teacher"


def errors(
    pipe: StableDiffusionPipeline,
    latents: splits.Latents,
    way: str,
    pairs: int,
    how: Sampling,
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """By network and band of the timestep (`label`), the root mean square (N, 1) of what each
    network predicts otherwise than the teacher, on about `pairs` held-out noisy latents of the
    band; of what the teacher predicts itself, by the name `TEACHER`.

    Of what is `known` only the first batch is looked at again (`extractors.witnessed`).
    """
    found, nets = {}, {TEACHER: None, **_nets(pipe, way)}
    for band, part in BANDS.items():
        batches = splits.heldout_batches(latents, pipe, pairs, how.seed, between=part)
        told = functools.cache(functools.partial(_told, pipe.unet, batches))
        for name, net in tqdm(nets.items(), desc=f"errors, {band}", leave=False):
            said = label(name, band, len(latents))
            found[said] = _missed(told, net, batches, said, (known or {}).get(said))
    return {"features": found}


def _told(unet: UNet2DConditionModel, batches: Sequence[dict[str, Tensor]], few: int) -> Tensor:
    """Predictions for the first few batches."""
    return tafid.predictions(unet, batches[:few])


def _missed(
    told: Callable[[int], Tensor],
    net: UNet2DConditionModel | None,
    batches: Sequence[dict[str, Tensor]],
    said: str,
    known: Tensor | None,
) -> Tensor:
    """Root mean square (N, 1) of a network's predictions less what the teacher `told` of as many
    batches; of the latter where there is no network.
    """
    size = len(batches[0]["x"])

    def draw(n: int) -> tuple[Tensor, None]:
        few = -(-n // size)
        x = told(few) if net is None else _told(net, batches, few) - told(few)
        return x.double().pow(2).mean((1, 2, 3)).sqrt()[:, None], None

    return witnessed(draw, size * len(batches), size, said, known)[0]


def label(name: str, band: str, latents: int) -> str:
    """Of a network's `errors` in a band, drawn from so many latents."""
    return f"{name}, {band} of {latents}"


def _squares(missed: Mapping[str, Tensor], name: str, band: str) -> Tensor:
    """Mean squares (N,) of a network in a band, from however many latents they were drawn."""
    (rows,) = (x for k, x in missed.items() if k.startswith(f"{name}, {band} of "))
    return rows.flatten().pow(2)


def _nets(pipe: StableDiffusionPipeline, way: str) -> dict[str, UNet2DConditionModel]:
    """What is left of the teacher, by what was removed."""
    return {what: net for (what, how), net in ablation.variants(pipe.unet).items() if how == way}


def sensitivity(
    pipe: StableDiffusionPipeline,
    missed: Mapping[str, Tensor],
    way: str,
    teacher_features: Tensor,
    how: Sampling,
    known: Mapping[str, Tensor] | None = None,
) -> dict:
    """Denoising error and tAFID without each stage, nothing retrained, and what it saves.

    way: "removed" or "one R". A row for each stage and band of the timestep (`BANDS`; early is
    where sampling begins, at large t). eps_error is ||U_S - U_T||^2 / ||U_T||^2, of what `errors`
    found (`missed`); tAFID and cosine belong to the network, whatever the band.
    Every metric has its interval in `_low` and `_high`. features: those of each network's pictures,
    by what was removed; `known`: the same, drawn once before.
    """
    have, whole = known or {}, counting.parameters(pipe.unet)
    rows, shown, drew = [], {}, {}
    for removed, net in tqdm(_nets(pipe, way).items(), desc=f"sensitivity, {way}"):
        scores, kept = tafid.score(net, pipe, teacher_features, how, 8, have.get(removed))
        saved = whole - counting.parameters(net)
        what = {"removed": removed, "how": way, "params_saved": saved}
        what["params_saved_share"] = saved / whole
        for band in BANDS:
            off, scale = (_squares(missed, name, band) for name in (removed, TEACHER))
            error = uncertainty.ratio(off, scale)
            rows.append(what | {"band": band, **error.named("eps_error")} | scores)
        shown[f"{removed}, {way}"] = kept["pictures"]["pictures"]
        drew[removed] = kept["features"]["features"]
    return {"table": pd.DataFrame(rows), "pictures": shown, "features": drew}
