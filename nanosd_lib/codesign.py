"""What the slim VAE keeps and what it buys: reconstruction beside other autoencoders, and the
pipeline with either U-Net and either VAE (paper, method steps 4 and 5; the article's co-design).
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from nanosd_lib import cost, data, evaluate, quality, surgery, vae
from nanosd_lib.vae import Autoencoder

PARTS = ("both", "encoder", "decoder")


# ---------------------------------------------------------------------------------- reconstruction


@torch.no_grad()
def latents(net: Autoencoder, x: Tensor, batch: int = 64) -> tuple[Tensor, Tensor | None]:
    """Scaled means and standard deviations (N, C, h, w) of pictures (N, 3, H, W), in float32."""
    weight = next(net.parameters())
    some = batch if x.shape[-1] <= 64 else 1
    pairs = [vae.encoded(net, p.to(weight)) for p in x.split(some)]
    mean, std = zip(*pairs, strict=True)
    return torch.cat(mean).float().cpu(), None if std[0] is None else torch.cat(std).float().cpu()


@torch.no_grad()
def pictures(net: Autoencoder, z: Tensor, batch: int = 64) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] of scaled latents, in float32."""
    weight = next(net.parameters())
    some = batch if z.shape[-1] <= 16 else 1
    made = [vae.decoded(net, p.to(weight)).float().cpu() for p in z.split(some)]
    return torch.cat(made).clamp(-1, 1)


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of two sets of latents (N, C, h, w) in each channel: (C,)."""
    pairs = zip(a.transpose(0, 1).flatten(1), b.transpose(0, 1).flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(p))[0, 1] for p in pairs])


def compare(
    pipe: StableDiffusionPipeline, student: Autoencoder | None, n: int, judge: str, seed: int
) -> dict:
    """Held-out pictures through a student, through its encoder and the teacher's decoder, and the
    other way round; through the teacher's own where student is None.

    table: part, pictures, n, psnr, ssim, lpips, latent_corr (mean over channels; NaN where the
    encoder is the teacher's); channels: one row for each latent channel with its correlation, the
    share of the teacher's variance that is explained (which an offset or another scale lowers,
    and a correlation does not see), mean, deviation and posterior deviation (sigma); examples: the
    first eight of each kind.
    """
    teacher, rows, channels, examples = pipe.vae, [], [], {}
    net = teacher if student is None else student
    for kind, x in evaluate.heldout_pictures(pipe, n, seed).items():
        (m, s), (mt, st) = latents(net, x), latents(teacher, x)
        corr = correlations(m, mt)
        mixes = {"both": (m, net), "encoder": (m, teacher), "decoder": (mt, net)}
        for part in PARTS if student is not None else PARTS[:1]:
            y = pictures(mixes[part][1], mixes[part][0])
            scores = (
                quality.psnr(x, y),
                quality.ssim(x, y),
                quality.perceptual(x, y, judge, pipe.device),
            )
            same = float("nan") if part == "decoder" or student is None else float(corr.mean())
            rows.append((part, kind, n, *(float(v.mean()) for v in scores), same))
            examples[f"{kind}, {part}"] = y[:8].clone()
        examples |= {kind: x[:8].clone(), f"{kind}, latents": m[:8].clone()}
        for c in range(m.shape[1]):
            stats = [float(v[:, c].mean()) for v in (m, mt)] + [
                float(v[:, c].std()) for v in (m, mt)
            ]
            sigmas = [float("nan") if v is None else float(v[:, c].mean()) for v in (s, st)]
            missed = float((m[:, c] - mt[:, c]).pow(2).mean() / mt[:, c].var())
            channels.append((kind, c, float(corr[c]), 1 - missed, *stats, *sigmas))
    columns = ["part", "pictures", "n", "psnr", "ssim", "lpips", "latent_corr"]
    names = ["pictures", "channel", "corr", "explained"]
    names += ["mean", "mean_teacher", "std", "std_teacher", "sigma", "sigma_teacher"]
    return {
        "table": pd.DataFrame(rows, columns=columns),
        "channels": pd.DataFrame(channels, columns=names),
        "examples": examples,
    }


@torch.no_grad()
def strip(net: Autoencoder, x: Tensor, frames: int) -> Tensor:
    """Pictures (frames, 3, H, W) along the straight line between the latents of x[0] and x[1]."""
    z, w = latents(net, x[:2])[0], torch.linspace(0, 1, frames)[:, None, None, None]
    return pictures(net, (1 - w) * z[:1] + w * z[1:2])


# ------------------------------------------------------------------------------------- the pipeline


@torch.no_grad()
def denoised(pipe: StableDiffusionPipeline, n: int, t: int, seed: int) -> float:
    """PSNR in dB of held-out scenes encoded, noised to step t, denoised in one step with empty text
    and decoded: what a one-step restoration asks of encoder, U-Net and decoder together (not in the
    paper: our assumption).
    """
    x = evaluate.heldout_pictures(pipe, n, seed)["held-out scenes"]
    z, _ = latents(pipe.vae, x)
    g = torch.Generator().manual_seed(seed)
    noise, a = torch.randn(z.shape, generator=g), pipe.scheduler.alphas_cumprod.cpu()[t]
    text, made = data.embed(pipe, [""]), []
    for zt, e in zip(z.split(32), noise.split(32), strict=True):
        noisy = a.sqrt() * zt + (1 - a).sqrt() * e
        eps = pipe.unet(noisy.to(text), t, text.expand(len(zt), -1, -1)).sample.float().cpu()
        made.append((noisy - (1 - a).sqrt() * eps) / a.sqrt())
    return float(quality.psnr(x, pictures(pipe.vae, torch.cat(made))).mean())


def judge(
    pipe: StableDiffusionPipeline,
    teacher_features: Tensor,
    arch: str,
    heldout: int,
    t: int,
    **protocol,
) -> dict:
    """tAFID, cosine and one-step PSNR of a pipeline as it stands, and its first images; `arch` is
    what its U-Net was assembled as.
    """
    scores, made = evaluate.score(pipe.unet, pipe, teacher_features, **protocol)
    psnr = denoised(pipe, heldout, t, protocol["seed"])
    return {
        "scores": scores | {"psnr_denoised": psnr, "arch": arch},
        "pictures": {"pictures": made},
    }


def _encoder(net: Autoencoder, x: Tensor) -> Callable[[], object]:
    return cost.call(net.encode, {"x": x})


def _decoder(net: Autoencoder, z: Tensor) -> Callable[[], object]:
    return cost.call(net.decode, {net_argument(net): z})


def net_argument(net: Autoencoder) -> str:
    """What `decode` calls its latents: AutoencoderKL says z, AutoencoderTiny x."""
    return "z" if isinstance(net, AutoencoderKL) else "x"


def profile_tile(
    pipe: StableDiffusionPipeline,
    arch: str,
    vaes: dict[str, Autoencoder],
    batch: int,
    repeats: int,
    warmup: int,
) -> dict:
    """Latency of every part of the pipeline over `batch` tiles, in turns: component, model,
    ms_median, ms_low, ms_high; the slim U-Net is the network of that arch.
    """
    side, w = data.side(pipe), pipe.unet.conv_in.weight
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, side, side, generator=g).to(w)
    tokens = pipe.tokenizer.model_max_length
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=w.device)
    inputs = cost.network_inputs(pipe.unet, batch, tokens)
    calls = {("text encoder", "teacher"): cost.call(pipe.text_encoder, {"input_ids": ids})}
    for name, net in vaes.items():
        calls["VAE encoder", name] = _encoder(net, x)
        calls["VAE decoder", name] = _decoder(net, inputs["sample"])
    for name, net in (("teacher", pipe.unet), ("slim", surgery.student(arch, pipe.unet).eval())):
        calls["U-Net", name] = cost.call(net, inputs)
    table = cost.measure({"|".join(k): v for k, v in calls.items()}, repeats, warmup)
    table[["component", "model"]] = table.name.str.split("|", expand=True)
    return {"table": table[["component", "model", "ms_median", "ms_low", "ms_high"]]}


def vae_costs(teacher: AutoencoderKL, side: int) -> pd.DataFrame:
    """model, part, params, gmac of the teacher's VAE, the slim one and AutoencoderTiny at side x
    side pixels, batch 1.
    """
    rows, c = [], teacher.config
    with torch.device("meta"):
        teacher = AutoencoderKL.from_config(c)
        nets = {"teacher": teacher} | {k: make(teacher) for k, make in vae.KINDS.items()}
        x = torch.empty(1, 3, side, side)
        z = torch.empty(1, c.latent_channels, *[side >> (len(c.block_out_channels) - 1)] * 2)
    for name, net in nets.items():
        for part, run in (("encoder", _encoder(net, x)), ("decoder", _decoder(net, z))):
            rows.append((name, part, cost.parameters(getattr(net, part)), sum(cost.flops(run))))
    return pd.DataFrame(rows, columns=["model", "part", "params", "gmac"])


def judge_gmac(judge: str, size: int) -> float:
    """Multiply-adds (10^9) of one LPIPS of two pictures of size x size; nothing is downloaded."""
    net = quality.lpips_over(judge, trained=False).to("meta")
    x = torch.empty(1, 3, size, size, device="meta")
    return sum(cost.flops(lambda: net(x, x)))


def with_latency(counted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Rows of `vae_costs` beside measured latencies (component, model, ms_median, ms_low, ms_high,
    and backend where several were measured).
    """
    ms = measured[measured.component.str.startswith("VAE ")]
    ms = ms.assign(part=ms.component.str.removeprefix("VAE "))
    columns = ["model", "part", "backend", "ms_median", "ms_low", "ms_high"]
    return counted.merge(ms[[c for c in columns if c in ms]], on=["model", "part"])


def against_teacher(table: pd.DataFrame) -> pd.DataFrame:
    """`with_latency`'s rows with fewer_macs and faster: the teacher's over each model's."""
    keys = [c for c in ("part", "backend") if c in table]
    base = table[table.model == "teacher"].set_index(keys)[["gmac", "ms_median"]]
    joined = table.join(base, on=keys, rsuffix="_teacher")
    ratios = {
        "fewer_macs": joined.gmac_teacher / joined.gmac,
        "faster": joined.ms_median_teacher / joined.ms_median,
    }
    return table.assign(**ratios)


CONFIGURATIONS = {  # U-Net, VAE
    "teacher": ("teacher", "teacher"),
    "slim U-Net": ("slim", "teacher"),
    "slim VAE": ("teacher", "slim"),
    "both slim": ("slim", "slim"),
}


def pipeline_time(parts: pd.DataFrame, geometry: str) -> pd.DataFrame:
    """geometry, configuration, component, ms_median: the parts' latencies (component, model,
    ms_median) put together for each of `CONFIGURATIONS`.
    """
    ms, rows = parts.set_index(["component", "model"]).ms_median, []
    for name, (unet, net) in CONFIGURATIONS.items():
        chosen = {"text encoder": "teacher", "VAE encoder": net, "U-Net": unet, "VAE decoder": net}
        rows += [(geometry, name, part, ms[part, model]) for part, model in chosen.items()]
    return pd.DataFrame(rows, columns=["geometry", "configuration", "component", "ms_median"])


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """geometry, configuration, ms, ratio to the teacher's pipeline, and vae_share of the rows of
    `pipeline_time`.
    """
    keys = ["geometry", "configuration"]
    ms = table.groupby(keys, sort=False).ms_median.sum()
    in_vae = table[table.component.str.startswith("VAE")].groupby(keys, sort=False).ms_median.sum()
    before = ms.xs("teacher", level="configuration")
    found = pd.DataFrame({"ms": ms, "vae_share": in_vae / ms}).reset_index()
    return found.assign(ratio=found.ms / found.geometry.map(before))
