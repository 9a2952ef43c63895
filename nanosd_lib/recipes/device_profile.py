"""`make hardware`: SD 1.5's stages, networks and pipeline measured on this machine, with their
protocol.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from nanosd_lib import paths
from nanosd_lib.hardware import backends, builders, memory, profile, roofline
from nanosd_lib.hardware.backends import Backend
from nanosd_lib.networks import sd15
from nanosd_lib.networks.arch import Arch
from nanosd_lib.paths import PACKAGE
from nanosd_lib.runs.provenance import (
    canonical,
    git_state,
    lock_hash,
    machine,
    source_closure,
    text_hash,
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
    profile.convert(found, chosen, folder)
    table = profile.profile(found, chosen, rounds, folder)
    table[["component", "model"]] = table.row.str.split("|", expand=True)
    text = table.drop(columns="row").to_csv(index=False, float_format="%.6g")
    paths.write_atomic(out / "pipeline.csv", text.encode())
    said = json.dumps(_protocol(names, rounds), indent=1) + "\n"
    paths.write_atomic(out / "pipeline.json", said.encode())


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
    config: dict = sd15.SD15,
    networks: dict[str, Arch] = builders.NETWORKS,
    parts: tuple[dict, dict] = (sd15.VAE, sd15.CLIP),
    tokens: int = sd15.TOKENS,
) -> None:
    """Convert, quantise, profile, record; write the tables and the protocol to `out`."""
    chosen = backends.choose(names)
    work.mkdir(parents=True, exist_ok=True)
    constants = roofline.measure_machine()
    found = builders.rows(builders.Teachers(config, tokens), networks)
    profile.convert(found, chosen, work)
    timed = profile.profile(found, chosen, rounds, work)
    seen, parts_table = profile.traces(found, constants), memory.table(config, *parts)
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
        paths.write_atomic(out / f"{name}.csv", text.encode())
    paths.write_atomic(out / "protocol.json", (json.dumps(protocol, indent=1) + "\n").encode())


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


def threads_of(wanted: int | None) -> int:
    """As many threads as asked for, else one a core."""
    return wanted or os.cpu_count() or 1


def _code() -> dict[str, str]:
    """What decides a sample: the networks and how they are run."""
    rooms = f"{PACKAGE}.hardware", f"{PACKAGE}.networks"
    return source_closure({f"{rooms[0]}.backends", f"{rooms[1]}.surgery", f"{rooms[1]}.vae"})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make hardware", description=__doc__)
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
        work = paths.store_root() / ".hardware" / f"{device}-{text_hash(canonical(same))[:12]}"
        held = sum(p.stat().st_size for p in work.rglob("*") if p.is_file())
        paths.check_space(work, 35e9 - held if device == "cpu" else 0, "the converted networks")
        out = paths.results_root() / "hardware" / device
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
