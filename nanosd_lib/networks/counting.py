"""What a network costs before it runs: parameters and multiply-adds, counted by torch on the meta
device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nanosd_lib.networks import blocks, sd15, surgery
from nanosd_lib.networks.arch import BASE, CHOICES, STAGES, Arch
from nanosd_lib.networks.sd15 import TOKENS


def on_meta(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same network without memory, for counting."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(unet.config)


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def flops(run: Callable[[], object]) -> tuple[float, float]:
    """Multiply-adds (convolution and linear, attention products) of a call, in G."""
    with FlopCounterMode(display=False) as counter:
        run()
    by_op = counter.get_flop_counts()["Global"]
    attention = sum(v for k, v in by_op.items() if "bmm" in str(k) or "attention" in str(k))
    return (sum(by_op.values()) - attention) / 2e9, attention / 2e9


def gmac(unet: UNet2DConditionModel, tokens: int = TOKENS) -> tuple[float, float]:
    """(convolution and linear, attention products) of one forward pass in G multiply-adds; unet on
    meta.
    """
    size, d = unet.config.sample_size, unet.config.cross_attention_dim
    x = torch.empty(1, unet.config.in_channels, size, size, device="meta", dtype=unet.dtype)
    text = torch.empty(1, tokens, d, device="meta", dtype=unet.dtype)
    return flops(lambda: unet(x, torch.empty(1, device="meta"), encoder_hidden_states=text))


def stage_inputs(
    unet: UNet2DConditionModel, stage: str, batch: int, tokens: int = TOKENS, device: str = "cpu"
) -> dict:
    """Random keyword arguments a stage of this U-Net is called with: hidden states, skips, time and
    text.
    """
    w, size, i = unet.config.block_out_channels, unet.config.sample_size, blocks.STAGE_DEPTH[stage]
    g = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        if device == "meta":
            return torch.empty(*shape, device=device, dtype=unet.dtype)
        return torch.randn(*shape, generator=g, dtype=torch.float32).to(device, unet.dtype)

    side = size >> i
    kwargs = {
        "temb": make(batch, 4 * w[0]),
        "encoder_hidden_states": make(batch, tokens, unet.config.cross_attention_dim),
    }
    if stage[0] == "E":
        return kwargs | {"hidden_states": make(batch, w[max(i - 1, 0)], side, side)}
    skips = (w[max(i - 1, 0)], w[i], w[i])
    return kwargs | {
        "hidden_states": make(batch, w[min(i + 1, len(w) - 1)], side, side),
        "res_hidden_states_tuple": tuple(make(batch, c, side, side) for c in skips),
    }


def stage_table(teacher: UNet2DConditionModel, tokens: int = TOKENS) -> pd.DataFrame:
    """One row for each of the 36 (stage, code): parameters and multiply-adds; teacher on the meta
    device.
    """
    rows = []
    for stage in STAGES:
        inputs = stage_inputs(teacher, stage, 1, tokens, "meta")
        for code in CHOICES[stage]:
            net = surgery.surrogate(stage, code, teacher)
            linear, attention = flops(partial(net, **inputs))
            rows.append((stage, code, parameters(net), linear, attention))
    return pd.DataFrame(rows, columns=["stage", "code", "params", "gmac_linear", "gmac_attention"])


def parameter_table(teacher: UNet2DConditionModel) -> pd.DataFrame:
    """stage, code, params of the 36 rows and of "rest", which no choice changes; on meta."""
    rows = []
    for stage in STAGES:
        for code in CHOICES[stage]:
            rows.append((stage, code, parameters(surgery.surrogate(stage, code, teacher))))
    whole = parameters(surgery.student(Arch(**BASE), teacher))
    rows.append(("rest", "", whole - sum(n for s, c, n in rows if c == BASE[s])))
    return pd.DataFrame(rows, columns=["stage", "code", "params"])


def counts(
    archs: dict[str, Arch], teacher: UNet2DConditionModel, tokens: int = TOKENS
) -> pd.DataFrame:
    """model, arch, params and multiply-adds of whole networks; teacher on the meta device."""
    rows = []
    for name, a in archs.items():
        net = surgery.student(a, teacher)
        rows.append((name, str(a), parameters(net), *gmac(net, tokens)))
    return pd.DataFrame(rows, columns=["model", "arch", "params", "gmac_linear", "gmac_attention"])


def sd15_counts(archs: dict[str, str]) -> dict:
    """Both tables at SD 1.5's width: the 36 stage rows, and whole networks by name."""
    teacher = sd15.unet()
    networks = counts({k: Arch.parse(a) for k, a in archs.items()}, teacher)
    return {"stages": stage_table(teacher), "networks": networks}


def network_inputs(unet: UNet2DConditionModel, batch: int, tokens: int) -> dict:
    """Random keyword arguments of a whole U-Net: noisy latent, one timestep, text."""
    size, weight = unet.config.sample_size, unet.conv_in.weight
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, unet.config.in_channels, size, size, generator=g, dtype=torch.float32)
    text = torch.randn(
        batch, tokens, unet.config.cross_attention_dim, generator=g, dtype=torch.float32
    )
    t = torch.full((batch,), 500, device=weight.device)
    return {"sample": x.to(weight), "timestep": t, "encoder_hidden_states": text.to(weight)}


def additive(archs: Sequence[Arch], stages: pd.DataFrame, column: str) -> np.ndarray:
    """Sum of a stage table's column over each network's six stages and, where there is one, the row
    "rest".
    """
    value = stages.set_index(["stage", "code"])[column].to_dict()
    rest = value.get(("rest", ""), 0.0)
    return np.array([rest + sum(value[s, getattr(a, s)] for s in STAGES) for a in archs])
