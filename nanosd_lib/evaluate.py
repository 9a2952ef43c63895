"""The stages of notebooks 00, 02, 05 and 06: functions of plain parameters that return tables and
tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from nanosd_lib import data, distill, judges, miniworld, quality, surgery
from nanosd_lib.arch import Arch, space
from nanosd_lib.quality import Protocol


def _protocol(
    images: int, steps: int, guidance: float, seed: int, features: str = "mini-clip"
) -> Protocol:
    return Protocol(features, images, steps, guidance, seed)


# -------------------------------------------------------------------------------------- the teacher


@torch.no_grad()
def reconstruct(pipe: StableDiffusionPipeline, x: Tensor, batch: int = 64) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] through the VAE and back."""
    one = lambda p: pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample  # noqa: E731
    parts = tqdm(x.split(batch), desc="reconstruct", leave=False)
    parts = [one(p.to(pipe.device, pipe.vae.dtype)).float().cpu() for p in parts]
    return torch.cat(parts).clamp(-1, 1)


def heldout_pictures(pipe: StableDiffusionPipeline, n: int, seed: int) -> dict[str, Tensor]:
    """n held-out scenes and n crops of held-out photographs, at the size the teacher works at."""
    where = data.SEEDS["heldout"] + 1000 * seed
    scenes, crops = miniworld.render(miniworld.sample(n, where))[0], miniworld.crops
    kinds = {"held-out scenes": scenes, "held-out photographs": crops("heldout", n, where)[0]}
    return {k: quality.sized(x, data.side(pipe)) for k, x in kinds.items()}


def check_vae(pipe: StableDiffusionPipeline, n: int, seed: int) -> dict:
    """PSNR of reconstructions of n held-out scenes and n crops of held-out photographs; 8 examples
    of each.
    """
    rows, examples = [], {}
    for kind, x in heldout_pictures(pipe, n, seed).items():
        y = reconstruct(pipe, x, 64 if x.shape[-1] <= 64 else 1)
        p = quality.psnr(x, y)
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
    where = data.SEEDS["prompts"] + 1000 * seed
    scenes, net = miniworld.sample(n, where, objects=1), quality.classifier()
    pictures = quality.generate(
        pipe, miniworld.captions(scenes), _protocol(n, steps, guidance, seed), batch
    )
    heldout = miniworld.sample(max(n, 256), data.SEEDS["heldout"] + 7 + 1000 * seed, objects=1)
    rows = {
        "samples": judges.recognised(net, pictures, scenes),
        "samples, other prompts": judges.recognised(net, pictures.flip(0), scenes),
        "held-out renders": judges.recognised(net, miniworld.render(heldout)[0], heldout),
    }
    table = pd.DataFrame(rows).T.rename_axis("pictures").reset_index()
    return {
        "table": table,
        "examples": {"pictures": pictures[:32]},
        "captions": miniworld.captions(scenes)[:32],
    }


def check_frechet(
    pipe: StableDiffusionPipeline, n: int, steps: int, guidance: float, batch: int, seed: int
) -> dict:
    """Frechet distance of n samples to n held-out renders, beside renders against renders and an
    untrained U-Net.
    """
    where = data.SEEDS["heldout"] + 11 + 1000 * seed
    look = quality.extractor("mini-clip")
    renders = (miniworld.render(miniworld.sample(n, where + k))[0] for k in (0, 1))
    one, two = (quality.features(look, x) for x in renders)
    prompts, protocol = data.prompts(n, seed), _protocol(n, steps, guidance, seed)
    torch.manual_seed(seed)
    untrained = UNet2DConditionModel.from_config(pipe.unet.config)
    untrained.to(next(pipe.unet.parameters()))
    drawn = lambda p: quality.looked_at(p, prompts, protocol, batch)[0]  # noqa: E731
    made = {
        "teacher samples": drawn(pipe),
        "held-out renders (floor)": two,
        "untrained network (ceiling)": drawn(quality.with_parts(pipe, unet=untrained)),
    }
    rows = [(k, n, quality.frechet(f, one)) for k, f in made.items()]
    return {"table": pd.DataFrame(rows, columns=["pictures", "n", "frechet"])}


def teacher_table(vae: dict, asked: dict, apart: dict, n: dict[str, int], how: str) -> pd.DataFrame:
    """metric, value, floor, protocol: what sd-mini can do, from the three checks above.

    `n` holds how many pictures each check used (reconstructions, prompts, frechet).
    """
    psnr = vae["table"].set_index("pictures").psnr
    follows, distance = (t["table"].set_index("pictures") for t in (asked, apart))
    frechet = distance.frechet
    floor = frechet["held-out renders (floor)"]
    own, prompts = "trained on renders alone", f"{n['prompts']} one-object prompts, {how}"
    features = f"mini-clip, n={n['frechet']}, {how}"
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


# -------------------------------------------------------------------------------------------- tAFID


def reference(
    pipe: StableDiffusionPipeline,
    images: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
) -> dict:
    """The teacher's side of tAFID: features of its images, and of the same prompts from other noise
    (the floor).
    """
    prompts, protocol = (
        data.prompts(images, seed),
        _protocol(images, steps, guidance, seed, features),
    )
    again = replace(protocol, seed=seed + 50_000)
    f, pictures = quality.looked_at(pipe, prompts, protocol, batch, "teacher")
    g, other = quality.looked_at(pipe, prompts, again, batch, "teacher, other noise")
    return {
        "features": {"teacher": f, "other": g},
        "pictures": {"teacher": pictures, "other": other},
        "prompts": prompts,
        "floor": {
            "tafid": quality.frechet(g, f),
            "cosine": quality.cosine(g, f),
            "protocol": str(protocol),
        },
    }


def score(
    unet: UNet2DConditionModel,
    pipe: StableDiffusionPipeline,
    teacher_features: Tensor,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
    features: str,
    keep: int = 16,
) -> tuple[dict[str, float], Tensor]:
    """tAFID and paired cosine of a U-Net against the teacher's features, and its first images."""
    n = len(teacher_features)
    protocol = _protocol(n, steps, guidance, seed, features)
    f, pictures = quality.looked_at(
        quality.with_parts(pipe, unet=unet), data.prompts(n, seed), protocol, batch, "student", keep
    )
    return {
        "tafid": quality.frechet(f, teacher_features),
        "cosine": quality.cosine(f, teacher_features),
    }, pictures


def score_arch(
    arch: str,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    teacher_features: Tensor,
    **protocol,
) -> dict:
    """`score` of the network assembled from trained surrogates, without any training (paper, search
    step).
    """
    net = surgery.assemble(Arch.parse(arch), pipe.unet, surrogates)
    scores, pictures = score(net, pipe, teacher_features, **protocol)
    return {"scores": scores | {"arch": arch}, "pictures": {"pictures": pictures}}


@torch.no_grad()
def compose(pipe: StableDiffusionPipeline, n: int, seed: int) -> dict:
    """Which of n networks drawn at random run forward with the right output shape."""
    networks, g = space(), torch.Generator().manual_seed(seed)
    size = pipe.unet.config.sample_size
    x = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=g)
    text = data.embed(pipe, [""])
    drawn = [str(networks[int(i)]) for i in torch.randperm(len(networks), generator=g)[:n]]
    ran = []
    for a in tqdm(drawn, desc="compose"):
        y = surgery.borrow(a, pipe.unet)(x.to(text), 500, text).sample
        ran.append(y.shape == x.shape and bool(y.isfinite().all()))
    return {"table": pd.DataFrame({"arch": drawn, "ran": ran})}


# ----------------------------------------------------------------------------------- held-out noise


def heldout_batches(
    latents: data.Latents, pipe: StableDiffusionPipeline, n: int, batch: int = 32
) -> list[dict[str, Tensor]]:
    """Fixed noisy batches of about n held-out latents; batch k is drawn from seed k."""
    draws = [torch.Generator().manual_seed(k) for k in range(max(1, n // batch))]
    return [
        data.noisy(latents, pipe.scheduler, min(batch, n), g, device=pipe.device) for g in draws
    ]


# --------------------------------------------------------------------------------------- the family


def align_arch(
    arch: str,
    align_steps: int,
    lr: float,
    train_batch: int,
    seed: int,
    pipe: StableDiffusionPipeline,
    surrogates: nn.ModuleDict,
    latents: data.Latents,
    teacher_features: Tensor,
    scratch: Path,
    **protocol,
) -> dict:
    """Assemble, align for a few steps, score: the arch's weights, scores and images afterwards."""
    net = surgery.assemble(Arch.parse(arch), pipe.unet, surrogates)

    def draw(g: torch.Generator) -> dict[str, Tensor]:
        return data.noisy(latents, pipe.scheduler, train_batch, g, device=pipe.device)

    record = distill.align(net, pipe.unet, draw, align_steps, lr, scratch, seed)
    scores, pictures = score(net, pipe, teacher_features, seed=seed, **protocol)
    return {
        "weights": dict(net.state_dict()),
        "scores": scores | {"arch": arch, "record": record},
        "pictures": {"pictures": pictures},
    }


def diversity(
    pipe: StableDiffusionPipeline, n: int, steps: int, guidance: float, batch: int, seed: int
) -> dict:
    """Mean distance of mini-clip embeddings between n samples of one prompt."""
    prompts = data.prompts(1, seed, objects=2) * n
    pictures = quality.generate(pipe, prompts, _protocol(n, steps, guidance, seed), batch)
    f = quality.features(quality.extractor("mini-clip"), pictures)
    return {"spread": {"distance": float(torch.pdist(f).mean())}}


@torch.no_grad()
def interpolation(
    pipe: StableDiffusionPipeline,
    pairs: int,
    frames: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
) -> dict:
    """Images along great circles between `pairs` of noises, one prompt, and their embedding's steps
    (article, quality).
    """
    noise, w = quality.noise(pipe, 2 * pairs, seed + 77), torch.linspace(0, 1, frames)
    prompts, protocol = (
        data.prompts(1, seed, objects=1) * frames,
        _protocol(frames, steps, guidance, seed),
    )
    look, paths, gaps = quality.extractor("mini-clip"), [], []
    for a, b in zip(noise[::2], noise[1::2], strict=True):
        angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
        u = w[:, None, None, None] * angle
        z = (torch.sin(angle - u) * a + torch.sin(u) * b) / torch.sin(angle)
        paths.append(quality.generate(pipe, prompts, protocol, batch, desc="path", z=z))
        f = quality.features(look, paths[-1])
        gap = (f[1:] - f[:-1]).norm(dim=1)
        gaps.append(float(gap.max() / gap.mean()))
    return {
        "pictures": {"path": paths[0]},
        "gaps": {"largest_over_mean": sum(gaps) / len(gaps)},
    }
