"""Memory of SD 1.5's parts over one tile: weights packed in each format, activations recorded."""

from __future__ import annotations

import gc
from functools import partial

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from nanosd_lib.hardware import builders, roofline
from nanosd_lib.networks import sd15


def table(config: dict = sd15.SD15, vae: dict = sd15.VAE, clip: dict = sd15.CLIP) -> pd.DataFrame:
    """component, format, weights_mb, peak_activation_mb, basis: SD 1.5's parts over one tile.

    Weights are packed in each format and their bytes counted. Activations of fp32 and fp16 (run in
    bfloat16, which takes as many bytes) are recorded from a run; int8 holds one byte for each
    element of the recorded peak; int4 is weight-only, so its activations are fp16's.
    """
    table = []
    parts = {
        k: b
        for (k, model), b in builders.components(config, vae, clip).items()
        if model == "teacher"
    }
    for name, build in tqdm(parts.items(), desc="memory"):
        peak = {}
        for dtype in (torch.float32, torch.bfloat16):
            net, inputs = build(dtype, "cpu")
            seen = roofline.trace(partial(net, **inputs), inputs)
            peak[dtype] = seen.peak_bytes / 1e6
            weights = packed_mb(net)
            del net
            gc.collect()
        half = peak[torch.bfloat16]
        for kind, activation, basis in (
            ("fp32", peak[torch.float32], "recorded"),
            ("fp16", half, "recorded in bfloat16"),
            ("int8", half / 2, "one byte for each element of the fp16 peak"),
            ("int4", half, "weight-only: fp16 activations"),
        ):
            table.append((name, kind, weights[kind], activation, basis))
    return pd.DataFrame(
        table, columns=["component", "format", "weights_mb", "peak_activation_mb", "basis"]
    )


def packed_mb(net: nn.Module, group: int = 64) -> dict[str, float]:
    """Megabytes of a network's parameters in each format (our assumption of the layout).

    int8: one fp16 scale for each output channel; int4: two weights a byte, one fp16 scale for each
    `group` weights; vectors (biases, norms) stay fp16 in both.
    """
    total = dict.fromkeys(("fp32", "fp16", "int8", "int4"), 0.0)
    for p in net.parameters():
        n, rows_ = p.numel(), len(p)
        vector = p.ndim < 2
        total["fp32"] += 4 * n
        total["fp16"] += 2 * n
        total["int8"] += 2 * n if vector else n + 2 * rows_
        total["int4"] += (
            2 * n if vector else rows_ * (-(-n // rows_ // 2) + 2 * -(-n // rows_ // group))
        )
    return {k: v / 1e6 for k, v in total.items()}
