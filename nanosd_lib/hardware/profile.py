"""The hardware profile: rows converted for every backend, timed in turns, and traced."""

from __future__ import annotations

import contextlib
import gc
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from nanosd_lib import paths
from nanosd_lib.hardware import roofline
from nanosd_lib.hardware.backends import Backend, Builder


def convert(found: dict[str, Builder], chosen: list[Backend], folder: Path) -> None:
    """Convert and quantise every row for every backend; what is finished is kept."""
    for name, build in tqdm(found.items(), desc="convert, quantise"):
        for backend in chosen:
            backend.prepare(build, folder / paths.plain(name))
        gc.collect()


def profile(
    found: dict[str, Builder], chosen: list[Backend], rounds: int, folder: Path
) -> pd.DataFrame:
    """row, backend, ms_median, ms_low, ms_high (quartiles), rounds: one warm-up and one timed call
    of each row on each backend in every round. Finished measurements are kept in `samples.jsonl`.
    """
    log = folder / "samples.jsonl"
    samples = _lines(log)
    done = {(s["round"], s["row"], s["backend"]) for s in samples}
    for k in range(rounds):
        turns = [(name, b) for name in found for b in chosen]
        for name, backend in tqdm(turns[:: 1 if k % 2 else -1], desc=f"round {k + 1}/{rounds}"):
            if (k, name, backend.name) in done:
                continue
            call = backend.load(found[name], folder / paths.plain(name))
            call()
            ms = backend.time(call)
            del call
            gc.collect()
            samples.append({"round": k, "row": name, "backend": backend.name, "ms": ms})
            with log.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(samples[-1]) + "\n")
    return _quartiles(pd.DataFrame(samples), list(found), [b.name for b in chosen], rounds)


def _lines(log: Path) -> list[dict[str, Any]]:
    """Finished samples; a last line that a killed run left half written does not count."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _quartiles(samples: pd.DataFrame, names: list[str], kinds: list[str], rounds: int):
    ours = samples[
        samples.row.isin(names) & samples.backend.isin(kinds) & (samples["round"] < rounds)
    ]
    table = ours.groupby(["row", "backend"], sort=False).ms.quantile([0.5, 0.25, 0.75]).unstack()
    table.columns = ["ms_median", "ms_low", "ms_high"]
    return table.assign(rounds=ours.groupby(["row", "backend"]).ms.size()).reset_index()


def traces(found: dict[str, Builder], constants: roofline.Machine) -> pd.DataFrame:
    """row, peak_activation_mb, moved_mb, gmac, roofline_ms of one float32 call on the CPU."""
    table = []
    for name, build in tqdm(found.items(), desc="trace"):
        net, inputs = build(torch.float32, "cpu")
        seen = roofline.trace(partial(net, **inputs), inputs)
        gmac = sum(f for f, _ in seen.ops) / 2e9
        limits = seen.peak_bytes / 1e6, seen.moved_bytes / 1e6, gmac, seen.roofline_ms(constants)
        table.append((name, *limits))
    return pd.DataFrame(
        table, columns=["row", "peak_activation_mb", "moved_mb", "gmac", "roofline_ms"]
    )
