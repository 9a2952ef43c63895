"""The hardware profile: SD 1.5's stages and networks at their real width, on the backends that this
machine has (paper, surgery step).

`make hardware` measures, resumes where it stopped, and leaves `results/hardware/<device>/`: tables
and the protocol. Latency does not depend on the values of the weights, so they are random. One row
is in memory at a time, and rounds go over all rows and backends in turns (there and back), so that
a noisy minute cannot favour one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from nanosd_lib import backends, builders, cost, layout, roofline
from nanosd_lib.arch import BASE, Arch
from nanosd_lib.backends import Backend, Builder
from nanosd_lib.provenance import (
    MACHINERY,
    ROOT,
    canonical,
    git_state,
    lock_hash,
    machine,
    source_closure,
    text_hash,
)

TABLES = ("stages", "networks", "rest", "traces", "memory")


# ---------------------------------------------------------------------------------------- measuring


def convert(found: dict[str, Builder], chosen: list[Backend], folder: Path) -> None:
    """Convert and quantise every row for every backend; what is finished is kept."""
    for name, build in tqdm(found.items(), desc="convert, quantise"):
        for backend in chosen:
            backend.prepare(build, folder / layout.plain(name))
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
            call = backend.load(found[name], folder / layout.plain(name))
            call()
            ms = backend.time(call)
            del call
            gc.collect()
            samples.append({"round": k, "row": name, "backend": backend.name, "ms": ms})
            with log.open("a") as handle:
                handle.write(json.dumps(samples[-1]) + "\n")
    return _quartiles(pd.DataFrame(samples), list(found), [b.name for b in chosen], rounds)


def _lines(log: Path) -> list[dict[str, Any]]:
    """Finished samples; a last line that a killed run left half written does not count."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
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
        seen = roofline.trace(lambda net=net, inputs=inputs: net(**inputs), inputs)
        gmac = sum(f for f, _ in seen.ops) / 2e9
        limits = seen.peak_bytes / 1e6, seen.moved_bytes / 1e6, gmac, seen.roofline_ms(constants)
        table.append((name, *limits))
    return pd.DataFrame(
        table, columns=["row", "peak_activation_mb", "moved_mb", "gmac", "roofline_ms"]
    )


def pipeline(
    names: tuple[str, ...], rounds: int, work: Path, out: Path, parts: tuple[dict, ...] = ()
) -> None:
    """Latency of every part of a pipeline over one tile: `pipeline.csv` (component, model, backend,
    ms_median, ms_low, ms_high, rounds) and its protocol, to `out`.
    """
    found = {"|".join(k): b for k, b in builders.components(*parts).items()}
    chosen, folder = backends.choose(names), work / "pipeline"
    folder.mkdir(parents=True, exist_ok=True)
    convert(found, chosen, folder)
    table = profile(found, chosen, rounds, folder)
    table[["component", "model"]] = table.row.str.split("|", expand=True)
    text = table.drop(columns="row").to_csv(index=False, float_format="%.6g")
    layout.write_atomic(out / "pipeline.csv", text.encode())
    said = json.dumps(_protocol(names, rounds), indent=1) + "\n"
    layout.write_atomic(out / "pipeline.json", said.encode())


def memory(
    config: dict = cost.SD15, vae: dict = builders.VAE, clip: dict = builders.CLIP
) -> pd.DataFrame:
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
            seen = roofline.trace(lambda net=net, inputs=inputs: net(**inputs), inputs)
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


# ------------------------------------------------------------------------------------------ results


def device_name(chosen: list[Backend]) -> str:
    """ "cpu", or the GPU's short name: the folder of the results."""
    if not any(isinstance(b, backends.Eager) and b.device == "cuda" for b in chosen):
        return "cpu"
    return torch.cuda.get_device_name().split()[-1].lower()


def measure(
    names: tuple[str, ...],
    rounds: int,
    work: Path,
    out: Path,
    config: dict = cost.SD15,
    networks: dict[str, Arch] = builders.NETWORKS,
    parts: tuple[dict, dict] = (builders.VAE, builders.CLIP),
    tokens: int = cost.TOKENS,
) -> None:
    """Convert, quantise, profile, record; write the tables and the protocol to `out`."""
    chosen = backends.choose(names)
    work.mkdir(parents=True, exist_ok=True)
    constants = roofline.measure_machine()
    found = builders.rows(builders.Teachers(config, tokens), networks)
    convert(found, chosen, work)
    timed = profile(found, chosen, rounds, work)
    seen, parts_table = traces(found, constants), memory(config, *parts)
    is_net, is_stage = timed.row.str.startswith("net:"), timed.row.str.contains(":")
    split = timed[is_stage & ~is_net].copy()
    split[["stage", "code"]] = split.row.str.split(":", expand=True)
    nets = timed[is_net].assign(model=timed.row.str.removeprefix("net:"))
    tables = {
        "stages": split.drop(columns="row"),
        "networks": nets.drop(columns="row"),
        "rest": timed[~is_stage],
        "traces": seen,
        "memory": parts_table,
    }
    protocol = _protocol(names, rounds) | {
        "gflops": constants.flops / 1e9,
        "bandwidth_gb": constants.bandwidth / 1e9,
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.6g")
        layout.write_atomic(out / f"{name}.csv", text.encode())
    layout.write_atomic(out / "protocol.json", (json.dumps(protocol, indent=1) + "\n").encode())


def _protocol(names: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Machine, code and manner of a measurement."""
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "git": git_state(),
        "lock": lock_hash(),
        "backends": list(names),
        "rounds": rounds,
        "timing": "one warm-up and one timed call a round, rows and backends in turns; quartiles",
        "batch": 1,
        "weights": "random",
    }


def read(device: str = "cpu") -> dict[str, Any]:
    """The tables and the protocol measured on this machine, else those of the reference run.

    FileNotFoundError names the verb where there are none; "where" says whose they are.
    """
    folder = _measured(device, "protocol.json")
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    protocol = json.loads((folder / "protocol.json").read_text())
    return found | {"protocol": protocol, "where": layout.shown(folder)}


def read_pipeline(device: str = "cpu") -> tuple[pd.DataFrame, dict[str, Any]]:
    """`pipeline.csv` and its protocol, found as `read` finds the rest."""
    folder = _measured(device, "pipeline.json")
    protocol = json.loads((folder / "pipeline.json").read_text())
    return pd.read_csv(folder / "pipeline.csv"), protocol | {"where": layout.shown(folder)}


def _measured(device: str, file: str) -> Path:
    for where in (layout.results_root() / "hardware", ROOT / "results" / "reference" / "hardware"):
        if (where / device / file).exists():
            return where / device
    raise layout.Missing(f"no hardware profile of {device!r}: measure one with `make hardware`")


def stage_rows(measured: dict[str, Any], counts: pd.DataFrame) -> pd.DataFrame:
    """stage, code, params, gmac_linear, gmac_attention, peak_activation_mb, moved_mb, roofline_ms,
    backend, ms_median, ms_low, ms_high, rounds: 36 stages on each backend.
    """
    traces_ = measured["traces"][measured["traces"].row.str.match(r"[ED]\d:")].copy()
    traces_[["stage", "code"]] = traces_.row.str.split(":", expand=True)
    traces_ = traces_.drop(columns=["row", "gmac"])
    order = ["backend", "ms_median", "ms_low", "ms_high", "rounds"]
    times = measured["stages"][["stage", "code", *order]]
    return counts.merge(traces_, on=["stage", "code"]).merge(times, on=["stage", "code"])


def family_rows(
    measured: dict[str, Any], counts: pd.DataFrame, published: pd.DataFrame
) -> pd.DataFrame:
    """model, arch, params, params_printed, gmac, backend, ms_median, ms_low, ms_high, rounds,
    ratio_to_sd15, htp_ms, ane_ms; `counts` and `published` name models as the paper does.
    """
    times = measured["networks"].assign(model=measured["networks"].model.map(cost.paper_name))
    whole = times[times.model == "SD1.5"].set_index("backend").ms_median
    times["ratio_to_sd15"] = times.ms_median / times.backend.map(whole)
    printed = published[["model", "params_m", "htp_ms", "ane_ms"]]
    printed = printed.rename(columns={"params_m": "params_printed"})
    ours = counts.assign(gmac=counts.gmac_linear + counts.gmac_attention)
    table = ours[["model", "arch", "params", "gmac"]].merge(times, on="model")
    return table.merge(printed, on="model", how="left")


def cost_rows(measured: dict[str, Any], stages: pd.DataFrame, params: dict[str, int]):
    """stage, code, params, gmac, roofline_ms of the 36 stages, of "rest" and of the "deep" ones,
    whose parameters `params` holds: what any network's costs are added up from.
    """
    table = stages.assign(gmac=stages.gmac_linear + stages.gmac_attention)
    table = table.drop_duplicates(["stage", "code"])
    traced = measured["traces"].set_index("row")
    columns = ["stage", "code", "params", "gmac", "roofline_ms"]
    rest = [(k, "", n, traced.gmac[k], traced.roofline_ms[k]) for k, n in params.items()]
    return pd.concat([table[columns], pd.DataFrame(rest, columns=columns)], ignore_index=True)


def attention_rows(stages: pd.DataFrame) -> pd.DataFrame:
    """ms in transformer blocks: each original stage minus the same without them; one column a
    backend, last row the share of E1 and D1.
    """
    ms = stages.pivot(index=["stage", "code"], columns="backend", values="ms_median")
    table = pd.DataFrame(
        {s: ms.loc[s, c] - ms.loc[s, c.replace("A", "")] for s, c in BASE.items()}
    ).T
    positive = table.clip(lower=0)
    table.loc["E1 + D1, share"] = positive.loc[["E1", "D1"]].sum() / positive.sum()
    return table


def threads_of(wanted: int | None) -> int:
    """As many threads as asked for, else one a core."""
    return wanted or os.cpu_count() or 1


def _code() -> dict[str, str]:
    """What decides a sample: the networks and how they are run."""
    reached = source_closure({"nanosd_lib.backends", "nanosd_lib.surgery", "nanosd_lib.vae"})
    return {m: h for m, h in reached.items() if m.split(".")[1] not in MACHINERY}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nanosd_lib.hardware", description=__doc__)
    parser.add_argument("--backends", default=",".join(backends.CPU))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: one a core")
    parser.add_argument("--only", choices=("networks", "pipeline"), help="default: both")
    parser.add_argument("--keep", action="store_true", help="keep the converted networks (30 GB)")
    options = parser.parse_args(argv)
    torch.set_num_threads(threads_of(options.threads))
    names = tuple(options.backends.split(","))
    try:
        chosen = backends.choose(names)
        device = device_name(chosen)
        same = [threads_of(options.threads), machine(), lock_hash(), _code()]
        work = layout.store_root() / ".hardware" / f"{device}-{text_hash(canonical(same))[:12]}"
        held = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
        layout.check_space(work, 35e9 - held if device == "cpu" else 0, "the converted networks")
        out = layout.results_root() / "hardware" / device
        if options.only != "pipeline":
            measure(names, options.rounds, work, out)
        if options.only != "networks":
            pipeline(names, options.rounds, work, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.keep:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
