"""Checks of a teacher: reconstruction, prompt following, distance to renders, and that networks
compose.
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
from nanosd_lib.quality import extractors, judges, metrics


@torch.no_grad()
def reconstruct(pipe: StableDiffusionPipeline, x: Tensor, batch: int = 64) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] through the VAE and back."""
    one = lambda p: pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample  # noqa: E731
    parts = tqdm(x.split(batch), desc="reconstruct", leave=False)
    made = [one(p.to(pipe.device, pipe.vae.dtype)).float().cpu() for p in parts]
    return torch.cat(made).clamp(-1, 1)


def check_vae(
    pipe: StableDiffusionPipeline, n: int, seed: int, mine: folder.Photographs | None = None
) -> dict:
    """PSNR of reconstructions of n held-out scenes and n crops of held-out photographs; 8 examples
    of each.
    """
    rows: list[tuple] = []
    examples: dict[str, Tensor] = {}
    for kind, x in splits.heldout_pictures(pipe, n, seed, mine).items():
        y = reconstruct(pipe, x, 64 if x.shape[-1] <= 64 else 1)
        p = metrics.psnr(x, y)
        rows.append((kind, n, float(p.mean()), float(p.std()), float(p.min())))
        examples |= {f"{kind}": x[:8], f"{kind}, reconstructed": y[:8]}
    table = pd.DataFrame(rows, columns=["pictures", "n", "psnr", "psnr_std", "psnr_min"])
    return {"table": table, "examples": examples}


def check_prompts(
    pipe: StableDiffusionPipeline, n: int, steps: int, guidance: float, batch: int, seed: int
) -> dict:
    """How often n one-object samples show the shape and the colour named, by a classifier trained
    on renders alone.
    """
    where = splits.SEEDS["prompts"] + 1000 * seed
    scenes, net = miniworld.sample(n, where, objects=1), judges.classifier()
    pictures = pipeline.generate(
        pipe, miniworld.captions(scenes), pipeline.protocol_of(n, steps, guidance, seed), batch
    )
    heldout = miniworld.sample(max(n, 256), splits.SEEDS["heldout"] + 7 + 1000 * seed, objects=1)
    rows = {
        "samples": judges.recognised(net, pictures, scenes),
        "samples, other prompts": judges.recognised(net, pictures.flip(0), scenes),
        "held-out renders": judges.recognised(net, raycast.render(heldout)[0], heldout),
    }
    table = pd.DataFrame(rows).T.rename_axis("pictures").reset_index()
    return {
        "table": table,
        "examples": {"pictures": pictures[:32]},
        "captions": miniworld.captions(scenes)[:32],
    }


@precision.single()
def check_frechet(
    pipe: StableDiffusionPipeline,
    n: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
) -> dict:
    """Frechet distance of n samples to n held-out renders, beside renders against renders and an
    untrained U-Net.
    """
    where = splits.SEEDS["heldout"] + 11 + 1000 * seed
    look = extractors.extractor(features, pipe.device)
    renders = (raycast.render(miniworld.sample(n, where + k))[0] for k in (0, 1))
    one, two = (extractors.features(look, x) for x in renders)
    prompts = splits.prompts(n, seed)
    protocol = pipeline.protocol_of(n, steps, guidance, seed, features)
    torch.manual_seed(seed)
    untrained = UNet2DConditionModel.from_config(pipe.unet.config)
    untrained.to(next(pipe.unet.parameters()))
    drawn = lambda p: extractors.looked_at(p, prompts, protocol, batch)[0]  # noqa: E731
    made = {
        "teacher samples": drawn(pipe),
        "held-out renders (floor)": two,
        "untrained network (ceiling)": drawn(pipeline.with_parts(pipe, unet=untrained)),
    }
    rows = [(k, n, metrics.frechet(f, one)) for k, f in made.items()]
    table = pd.DataFrame(rows, columns=["pictures", "n", "frechet"])
    return {"table": table, "features": features}


def teacher_table(vae: dict, asked: dict, apart: dict, n: dict[str, int], how: str) -> pd.DataFrame:
    """metric, value, floor, protocol: what sd-mini can do, from the three checks above.

    `n` holds how many pictures each check used (reconstructions, prompts, frechet).
    """
    psnr = vae["table"].set_index("pictures").psnr
    follows, distance = (t["table"].set_index("pictures") for t in (asked, apart))
    frechet = distance.frechet
    floor = frechet["held-out renders (floor)"]
    own, prompts = "trained on renders alone", f"{n['prompts']} one-object prompts, {how}"
    features = f"{apart['features']}, n={n['frechet']}, {how}"
    rows = [
        (f"VAE PSNR, {k} (dB)", v, None, f"mean of {n['reconstructions']}, 64x64")
        for k, v in psnr.items()
    ]
    for k in follows:
        chance = follows.loc["samples, other prompts", k]
        rows.append((f"prompt following, {k}", follows.loc["samples", k], chance, prompts))
    seen = follows.loc["held-out renders", "both"]
    rows.append(("attribute classifier, held-out renders, both", seen, None, own))
    rows.append(
        ("Frechet distance to held-out renders", frechet["teacher samples"], floor, features)
    )
    untrained = frechet["untrained network (ceiling)"]
    rows.append(("Frechet distance, untrained network", untrained, floor, features))
    return pd.DataFrame(rows, columns=["metric", "value", "floor", "protocol"])


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
