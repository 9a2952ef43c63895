"""How far the witness of a released member moves on other arithmetic: threads, and instruction sets
switched off by the libraries' own variables. Beside it, how far apart two seeds are.

A row for each way and kind of member: the largest relative difference, and how many members were
refused. `runs.release.TOLERANCE` lies above all of them, and `recipes.restoring.LATER` above those
of S3Diff and of a network from nothing, whose second loss rounding moves further.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

KINDS = {
    "surrogates": "surrogates/E3",
    "aligned networks": "aligned/N2",
    "autoencoders": "vae/slim-0",
    "OSEDiff": "adapters/osediff-N2-matched-0",
    "S3Diff": "adapters/s3diff",
    "from scratch": "adapters/scratch",
}

SCRIPT = """
import sys
from nanosd_lib.recipes import releasing, shared
from nanosd_lib.runs import notebook
import torch
run = notebook.open_run("replay", "mini", 0, {"threads": int(sys.argv[2])})
table = releasing.verify(run, shared.teacher(run), sys.argv[1])
table = table[table.state != "absent"]
assert len(table), "no member's name begins so"
print("ROW", len(table), table.difference.max(), (table.state == "refused").sum(), sep=",")
"""
WAYS = {
    "as it is, one thread": ("1", {}),
    "two threads": ("2", {}),
    "three threads": ("3", {}),
    "AVX2": ("1", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "no AVX": ("1", {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "no AVX, MKL at SSE4.2": (
        "1",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        },
    ),
}


def verified(only: str, threads: str, variables: dict[str, str]) -> dict:
    """members, difference, refused: of the members whose names begin so, replayed that way."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"NANOSD_RESULTS": folder, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, only, threads],
            env=os.environ | where | variables,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
    line = next(s for s in done.stdout.splitlines() if s.startswith("ROW,"))
    members, difference, refused = line.split(",")[1:]
    return {"members": int(members), "difference": float(difference), "refused": int(refused)}


def main() -> None:
    rows = []
    for kind, only in tqdm(KINDS.items(), desc="kinds"):
        for way, (threads, variables) in tqdm(WAYS.items(), desc=kind, leave=False):
            rows.append({"kind": kind, "way": way, **verified(only, threads, variables)})
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
