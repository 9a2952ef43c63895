"""Latency, measured here: rows in turns (row 1, row 2, ..., row 1, ...), so that a noisy machine
cannot favour one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from tqdm.auto import tqdm

from nanosd_lib.networks import ablation, counting, surgery
from nanosd_lib.networks.arch import BASE, CHOICES, STAGES, Arch

LEVEL = 0.95


def rounds(calls: dict[str, Callable[[], object]], repeats: int, warmup: int) -> pd.DataFrame:
    """Latency of each call (a column) in ms, in turns: a row for each round."""
    times: dict[str, list[float]] = {k: [] for k in calls}
    for k in range(warmup + repeats):
        order = list(calls) if k % 2 else list(calls)[::-1]
        for name in tqdm(order, desc=f"profile {k + 1}/{warmup + repeats}", leave=False):
            began = time.perf_counter()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - began) * 1e3)
    return pd.DataFrame(times)[warmup:].reset_index(drop=True)


def quartiles(each: pd.DataFrame) -> pd.DataFrame:
    """name, ms_median, ms_low, ms_high (quartiles) of `rounds`."""
    found = each.quantile([0.5, 0.25, 0.75]).T
    found.columns = pd.Index(["ms_median", "ms_low", "ms_high"])
    return found.rename_axis("name").reset_index()


def measure(calls: dict[str, Callable[[], object]], repeats: int, warmup: int) -> pd.DataFrame:
    """Latency of each call in ms, in turns: name, ms_median, ms_low, ms_high (quartiles)."""
    return quartiles(rounds(calls, repeats, warmup))


def median(each: pd.Series) -> tuple[float, float, float]:
    """The median over rounds with its interval, from their order alone (no shape is assumed); NaN
    ends for rounds that are too few to have one, or all equal.
    """
    from scipy.stats import quantile_test

    value = float(each.median())
    if each.nunique() < 2:
        return value, float("nan"), float("nan")
    ends = quantile_test(each.to_numpy(), q=value, p=0.5).confidence_interval(LEVEL)
    return value, float(ends.low), float(ends.high)


def call(net: nn.Module, kwargs: dict) -> Callable[[], object]:
    """A call without gradients, to be timed."""

    def run() -> object:
        with torch.no_grad():
            return net(**kwargs)

    return run


def profile_stages(
    teacher: UNet2DConditionModel,
    archs: dict[str, str],
    batch: int,
    tokens: int,
    repeats: int,
    warmup: int,
) -> dict:
    """Latency of all 36 stages and of whole networks on this machine (PyTorch eager), in one run.

    Stage "rest" is the original six-stage network minus its stages: conv_in, time embedding, output
    layers, glue.
    """
    calls = {}
    for stage in STAGES:
        inputs = counting.stage_inputs(teacher, stage, batch, tokens, teacher.device.type)
        for code in CHOICES[stage]:
            calls[f"{stage}:{code}"] = call(surgery.surrogate(stage, code, teacher).eval(), inputs)
    for name, a in (archs | {"whole": str(Arch(**BASE))}).items():
        net = surgery.student(a, teacher)
        calls[name] = call(net, counting.network_inputs(net, batch, tokens))
    df = measure(calls, repeats, warmup).set_index("name")
    networks = df.loc[list(archs)].reset_index()
    base = sum(df.ms_median[f"{s}:{c}"] for s, c in BASE.items())
    df.loc["rest:"] = (df.ms_median["whole"] - base, np.nan, np.nan)
    df = df.drop([*archs, "whole"]).reset_index()
    df[["stage", "code"]] = df.name.str.split(":", expand=True)
    stages = df[["stage", "code", "ms_median", "ms_low", "ms_high"]]
    return {"stages": stages, "networks": networks}


def profile_networks(
    teacher: UNet2DConditionModel,
    archs: dict[str, str],
    batch: int,
    tokens: int,
    repeats: int,
    warmup: int,
) -> dict:
    """Latency of whole networks, measured in turns."""
    nets = {name: surgery.student(a, teacher) for name, a in archs.items()}
    calls = {k: call(n, counting.network_inputs(n, batch, tokens)) for k, n in nets.items()}
    return {"table": measure(calls, repeats, warmup)}


def profile_ablations(
    pipe: StableDiffusionPipeline, batch: int, tokens: int, repeats: int, warmup: int
) -> dict:
    """removed, how, ms_median (with quartiles), ms_saved (with its interval): every variant and the
    teacher, measured in turns; what is saved is the median of differences within a round.
    """
    nets = {("", "teacher"): pipe.unet, **ablation.variants(pipe.unet)}
    calls = {
        " ".join(k): call(n, counting.network_inputs(pipe.unet, batch, tokens))
        for k, n in nets.items()
    }
    each = rounds(calls, repeats, warmup)
    table = quartiles(each)
    table.insert(0, "removed", [k[0] for k in nets])
    table.insert(1, "how", [k[1] for k in nets])
    saved = [median(each.iloc[:, 0] - each[name]) for name in each]
    table[["ms_saved", "ms_saved_low", "ms_saved_high"]] = saved
    return {"table": table.drop(columns="name")[1:].reset_index(drop=True)}
