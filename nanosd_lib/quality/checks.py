"""Checks of a teacher: reconstruction, distance to renders, and that networks compose (`following`:
whether it draws what is asked).
"""

from __future__ import annotations

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import folder, miniworld, raycast, splits
from nanosd_lib.networks import pipeline, precision, surgery
from nanosd_lib.networks.arch import space
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import extractors, metrics, uncertainty


@torch.no_grad()
def reconstruct(pipe: StableDiffusionPipeline, x: Tensor, batch: int = 64) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] through the VAE and back."""
    one = lambda p: pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample  # noqa: E731
    parts = tqdm(x.split(batch), desc="reconstruct", leave=False)
    made = [one(p.to(pipe.device, pipe.vae.dtype)).float().cpu() for p in parts]
    return torch.cat(made).clamp(-1, 1)


def bicubic(x: Tensor, times: int = 4) -> Tensor:
    """Pictures made that many times smaller and larger again: what a reconstruction must beat."""
    side = x.shape[-1]
    return pipeline.sized(pipeline.sized(x, side // times), side)


def colour_error(x: Tensor, y: Tensor) -> Tensor:
    """How far the mean colour of each picture (N, 3, H, W) moved, of the whole range: (N,)."""
    return (y.mean((2, 3)) - x.mean((2, 3))).abs().mean(1) / 2


def check_vae(
    pipe: StableDiffusionPipeline, n: int, seed: int, mine: folder.Photographs | None = None
) -> dict:
    """Reconstructions of n held-out scenes and of 64 crops (or n, if that is less) of each held-out
    photograph: pictures, n, psnr and colour with their intervals, worst, bicubic, and four examples
    of each.

    The last row is the mean of the photographs: its n counts photographs, and so does its interval.
    """
    scenes = splits.heldout_pictures(pipe, n, seed, mine)["held-out scenes"]
    photographs = splits.heldout_photographs(pipe, min(64, n), seed, mine)
    rows: list[dict] = []
    examples: dict[str, Tensor] = {}
    for kind, x in ({"held-out scenes": scenes} | photographs).items():
        y = reconstruct(pipe, x, 64 if x.shape[-1] <= 64 else 1)
        psnr, plain = metrics.psnr(x, y), metrics.psnr(x, bicubic(x))
        row = {"pictures": kind, "n": len(x), **uncertainty.mean(psnr).named("psnr")}
        row |= {"worst": float(psnr.min()), "bicubic": float(plain.mean())}
        rows.append(row | uncertainty.mean(colour_error(x, y)).named("colour"))
        made = {"": x, ", reconstructed": y, ", bicubic": bicubic(x[:4])}
        examples |= {kind + what: some[:4] for what, some in made.items()}
    table = pd.DataFrame([*rows, _photographs(pd.DataFrame(rows[1:]))])
    return {"table": table, "examples": examples}


def _photographs(each: pd.DataFrame) -> dict:
    row: dict = {"pictures": "held-out photographs", "n": len(each)}
    for name in ("psnr", "colour"):
        row |= uncertainty.mean(torch.tensor(each[name].to_numpy())).named(name)
    return row | {"worst": each.worst.min(), "bicubic": each.bicubic.mean()}


@precision.single()
def check_frechet(
    pipe: StableDiffusionPipeline,
    teacher_features: Tensor,
    other_features: Tensor,
    how: Sampling,
    known: Tensor | None = None,
) -> dict:
    """Frechet distances with their intervals, all of as many pictures as `tafid.reference` drew:
    the teacher's samples to held-out renders beside renders to renders and an untrained U-Net; and
    the yardstick, the teacher to itself with other noise. features: the untrained network's, which
    may be `known`.
    """
    n, where = len(teacher_features), splits.SEEDS["heldout"] + 11 + 1000 * how.seed
    look = extractors.extractor(how.features, pipe.device)
    renders = (raycast.render(miniworld.sample(n, where + k))[0] for k in (0, 1))
    one, two = (extractors.features(look, x) for x in renders)
    torch.manual_seed(how.seed)
    untrained = UNet2DConditionModel.from_config(pipe.unet.config)
    drawn = pipeline.with_parts(pipe, unet=untrained.to(next(pipe.unet.parameters())))
    prompts = splits.prompts(n, how.seed)
    noise, _ = extractors.looked_at(drawn, prompts, how, "untrained", known=known)
    made = {
        "renders to renders": uncertainty.frechet(two, one, paired=False),
        "teacher to itself, other noise": uncertainty.frechet(other_features, teacher_features),
        "teacher to renders": uncertainty.frechet(teacher_features, one, paired=False),
        "untrained network to renders": uncertainty.frechet(noise, one, paired=False),
    }
    rows = [{"pictures": k, "n": n, **f.named("frechet")} for k, f in made.items()]
    kept = {"features": {"untrained": noise}, "extractor": how.features}
    return {"table": pd.DataFrame(rows), **kept}


def rendered(n: int, how: Sampling) -> dict:
    """features: of renders of the very scenes that the first n of `splits.prompts` describe."""
    scenes = miniworld.sample(n, splits.SEEDS["prompts"] + 1000 * how.seed)
    assert miniworld.captions(scenes) == splits.prompts(n, how.seed)
    look = extractors.extractor(how.features)
    return {"features": {"renders": extractors.features(look, raycast.render(scenes)[0])}}


def teacher_table(vae: dict, asked: pd.DataFrame, apart: dict, how: str) -> pd.DataFrame:
    """check, kind, value, value_low, value_high, beside, n, protocol: what the teacher can do.

    `beside` is what the value is to be read against: bicubic of a quarter of the size, chance, or
    the distance of renders to renders. asked: tables of `following`.
    """
    size, own = "at the teacher's size", "classifier trained on renders alone"
    features, floor = f"{apart['extractor']}, {how}", apart["table"].frechet[0]
    rows: list[tuple] = []
    for r in vae["table"].itertuples():
        rows.append(
            ("VAE PSNR (dB)", r.pictures, r.psnr, r.psnr_low, r.psnr_high, r.bicubic, r.n, size)
        )
        moved = (r.colour, r.colour_low, r.colour_high)
        rows.append(("VAE colour error", r.pictures, *moved, None, r.n, size))
    for r in asked.itertuples():
        said = own if r.kind.startswith("renders") else f"{own}, {how}"
        ends = (r.value, r.value_low, r.value_high)
        rows.append((f"prompts, {r.attribute}", r.kind, *ends, r.chance, r.n, said))
    for r in apart["table"].itertuples():
        ends = (r.frechet, r.frechet_low, r.frechet_high)
        rows.append(("Frechet distance", r.pictures, *ends, floor, r.n, features))
    columns = ["check", "kind", "value", "value_low", "value_high", "beside", "n", "protocol"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def compose(pipe: StableDiffusionPipeline, n: int, seed: int) -> dict:
    """Which of n networks drawn at random run forward with the right output shape."""
    networks, g = space(), torch.Generator().manual_seed(seed)
    size = pipe.unet.config.sample_size
    x = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=g, dtype=torch.float32)
    text = pipeline.embed(pipe, [""])
    drawn = [str(networks[int(i)]) for i in torch.randperm(len(networks), generator=g)[:n]]
    ran = []
    for a in tqdm(drawn, desc="compose"):
        y = surgery.borrow(a, pipe.unet)(x.to(text), 500, text).sample
        ran.append(y.shape == x.shape and bool(y.isfinite().all()))
    return {"table": pd.DataFrame({"arch": drawn, "ran": ran})}
