"""The dry run: every computation of the study once, at the teacher's real size with random weights,
and a plan of what the whole would take.

`make dryrun PROFILE=sd15` needs no weights, no network and no GPU. It saves a random pipeline in a
temporary folder, loads it as the real one is loaded, and calls the study's own functions for
one image, one step or one batch. What they make is thrown away; times and memory stay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from nanosd_lib import paths
from nanosd_lib.networks import pipeline
from nanosd_lib.recipes import random_weights
from nanosd_lib.recipes.dry_study import DryStudy
from nanosd_lib.runs import artifacts, profiles

A100_LATENTS = 115  # a second: SD 1.5's U-Net at 64x64, eager, batch 16; public figure, not ours
PAPER_HOURS = {"fwkd": 360, "all stages": 750}  # A100 hours, article
SD15_FLOP = 0.8033e12  # one of its passes, counted on the meta device (a test holds this)
COLUMNS = ["stage", "notebook", "peak_memory_gb", "disk_gb", "gpu_hours", "paper_gpu_hours"]
COLUMNS += ["cpu_hours", "seconds", "tflop", "basis"]


@contextmanager
def peak_memory(every: float = 0.05):
    """[bytes]: the largest resident memory of this process (or of the GPU) inside the block."""
    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], me.memory_info().rss)
            done.wait(every)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        if torch.cuda.is_available():
            peak[0] = torch.cuda.max_memory_allocated()


def plan(profile: profiles.Profile, work_folder: Path, device: str) -> pd.DataFrame:
    """One row for each computation: what it took here, and what the profile's budget would take.

    stage, notebook, peak_memory_gb (of the dry run), disk_gb, gpu_hours, paper_gpu_hours,
    cpu_hours, seconds (of the dry run), tflop (planned), basis.
    """
    folder = work_folder / "teacher"
    began = time.perf_counter()
    with peak_memory() as peak:
        random_weights.random_pipeline(folder, **random_weights.configs(profile))
        pipe = pipeline.load_teacher(str(folder), profile.dtype, device)
    study = DryStudy(pipe, profile, work_folder)
    row = _row("teacher", "all", peak[0], time.perf_counter() - began, _bytes(folder))
    rows = [row | {"basis": "random weights, saved in float16 and loaded"}]
    rate = A100_LATENTS * SD15_FLOP
    for step in study.steps():
        print(f"dry run: {step.name}", flush=True)
        began = time.perf_counter()
        with peak_memory() as peak:
            values = step.call()
        spent = time.perf_counter() - began
        kept = artifacts.write(work_folder / "store" / step.name, "0" * 64, values, {}).bytes
        here = spent * step.planned / step.done / 3600
        row = _row(step.name, step.notebook, peak[0], spent, kept * step.files)
        row |= {"tflop": step.planned / 1e12, "gpu_hours": step.planned / rate / 3600}
        basis = f"counted operations at {rate / 1e12:.0f} Tflop/s (A100, public figure)"
        if device == "cuda":
            row["gpu_hours"], basis = here, "measured on this GPU at batch 1, scaled by operations"
        else:
            row["cpu_hours"] = here
        rows.append(row | {"basis": f"random weights; {basis}"})
    table = pd.DataFrame(rows)
    total = table.drop(columns=["stage", "notebook", "basis"]).sum().to_dict()
    total |= {"stage": "all stages", "notebook": "all", "basis": "sum; of memory the largest"}
    total["peak_memory_gb"] = table.peak_memory_gb.max()
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    table["paper_gpu_hours"] = table.stage.map(PAPER_HOURS)
    return table[COLUMNS]


def _row(name: str, notebook: str, peak: float, seconds: float, disk: float) -> dict[str, Any]:
    row = {"stage": name, "notebook": notebook, "seconds": seconds, "gpu_hours": 0.0}
    row |= {"cpu_hours": 0.0, "tflop": 0.0}
    return row | {"peak_memory_gb": peak / 1e9, "disk_gb": disk / 1e9}


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make dryrun", description=__doc__)
    parser.add_argument("--profile", default="sd15")
    options = parser.parse_args(argv)
    try:
        profile = profiles.load(options.profile)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(min(profile.threads, psutil.cpu_count(logical=False) or 1))
        temporary = Path(tempfile.gettempdir())
        paths.check_space(temporary, 16e9 if not profile.teacher.local else 1e9, "the dry run")
        with tempfile.TemporaryDirectory(prefix="nanosd-dryrun-") as folder:
            table = plan(profile, Path(folder), device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = paths.results_root() / f"plan_{profile.name}.csv"
    paths.write_atomic(out, table.to_csv(index=False, float_format="%.4g").encode())
    print(table.drop(columns=["basis", "notebook"]).round(2).to_string(index=False))
    print(f"the plan is in {paths.shown(out)}; basis of its hours: its last column")
    return 0
