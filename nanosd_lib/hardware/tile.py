"""A tile's time: what each part of the pipeline costs, with either VAE."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.hardware import timing
from nanosd_lib.networks import counting, pipeline, precision, surgery, vae
from nanosd_lib.networks.vae import Autoencoder

MS = ["ms_median", "ms_low", "ms_high"]
FASTER = ["faster", "faster_low", "faster_high"]


def _encoder(net: Autoencoder, x: Tensor) -> Callable[[], object]:
    return timing.call(net.encode, {"x": x})


def _decoder(net: Autoencoder, z: Tensor) -> Callable[[], object]:
    return timing.call(net.decode, {net_argument(net): z})


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
    ms_median, ms_low, ms_high, and `FASTER`: the teacher's over each model's within a round, the
    median with its interval. The slim U-Net is the network of that arch.
    """
    side, w = pipeline.side(pipe), pipe.unet.conv_in.weight
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, side, side, generator=g, dtype=torch.float32).to(w)
    tokens = pipe.tokenizer.model_max_length
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=w.device)
    inputs = counting.network_inputs(pipe.unet, batch, tokens)
    calls = {("text encoder", "teacher"): timing.call(pipe.text_encoder, {"input_ids": ids})}
    for name, net in vaes.items():
        calls["VAE encoder", name] = _encoder(net, x)
        calls["VAE decoder", name] = _decoder(net, inputs["sample"])
    for name, net in (("teacher", pipe.unet), ("slim", surgery.student(arch, pipe.unet).eval())):
        calls["U-Net", name] = timing.call(net, inputs)
    each = timing.rounds({"|".join(k): v for k, v in calls.items()}, repeats, warmup)
    table = timing.quartiles(each)
    table[["component", "model"]] = table.name.str.split("|", expand=True)
    ratios = [each[f"{c}|teacher"] / each[f"{c}|{m}"] for c, m in calls]
    table[FASTER] = [timing.median(r) for r in ratios]
    return {"table": table[["component", "model", *MS, *FASTER]]}


@precision.single()
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
            rows.append((name, part, _parameters(net, part), sum(counting.flops(run))))
    return pd.DataFrame(rows, columns=["model", "part", "params", "gmac"])


def _parameters(net: Autoencoder, part: str) -> int:
    """Of all that `encode` or `decode` runs: AutoencoderKL has a 1x1 convolution beside each."""
    beside = getattr(net, {"encoder": "quant_conv", "decoder": "post_quant_conv"}[part], None)
    return sum(counting.parameters(m) for m in (getattr(net, part), beside) if m is not None)


def with_latency(counted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Rows of `vae_costs` beside measured latencies (component, model, ms_median, ms_low, ms_high,
    backend where several were measured, and `FASTER` where rounds were compared).
    """
    ms = measured[measured.component.str.startswith("VAE ")]
    ms = ms.assign(part=ms.component.str.removeprefix("VAE "))
    columns = ["model", "part", "backend", *MS, *FASTER]
    return counted.merge(ms[[c for c in columns if c in ms]], on=["model", "part"])


def against_teacher(table: pd.DataFrame) -> pd.DataFrame:
    """`with_latency`'s rows with fewer_macs and `FASTER`: the teacher's over each model's. Where no
    rounds were compared, the ends are those of the quartiles against each other, which is wide.
    """
    keys = [c for c in ("part", "backend") if c in table]
    base = table[table.model == "teacher"].set_index(keys)[["gmac", *MS]]
    joined = table.join(base.add_suffix("_teacher"), on=keys)
    found = table.assign(fewer_macs=joined.gmac_teacher / joined.gmac)
    if "faster" in table:
        return found[[c for c in found if c not in FASTER] + FASTER]
    alone = (table.model == "teacher").to_numpy()  # against itself: 1, and no question
    for name, over, under in zip(FASTER, MS, [MS[0], MS[2], MS[1]], strict=True):
        ratio = joined[f"{over}_teacher"] / joined[under]
        found[name] = ratio.mask(alone, 1.0 if name == "faster" else float("nan"))
    return found


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
