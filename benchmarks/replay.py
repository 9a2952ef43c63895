"""How far the witness of a released member moves on other arithmetic: threads, and instruction sets
switched off by the libraries' own variables. Beside it, how far apart two seeds are.

Prints one row for each way: the largest relative difference over the members asked for (ONLY, by
default the encoder's surrogates). `runs.release.TOLERANCE` lies above all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pandas as pd

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


def main() -> None:
    only = os.environ.get("ONLY", "surrogates/E")
    rows = []
    for way, (threads, variables) in WAYS.items():
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
        row = {"way": way, "members": int(members), "difference": float(difference)}
        rows.append(row | {"refused": int(refused)})
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)


if __name__ == "__main__":
    main()
