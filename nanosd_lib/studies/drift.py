"""Drift: what changes when the same study runs again, on this machine or with other threads.

    make drift                 # smoke, from scratch, with one thread and with two, then compared
    python -m nanosd_lib.cli drift results/a results/b

Every number of the ledger gets a label: `bit-equal`, `within tolerance` (the relative difference
that other sums of the same floats explain) or `statistical only` (samples fell on another side).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout

TOLERANCE = 1e-3  # relative; float32 sums in another order, through a few steps of sampling
LABELS = ("bit-equal", "within tolerance", "statistical only")


def label(a: float, b: float) -> tuple[str, float]:
    """(label, relative difference) of one number in two runs; two empty ones are equal."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return LABELS[0], 0.0
    if math.isnan(a) or math.isnan(b):
        return LABELS[2], math.inf
    drift = abs(a - b) / max(abs(a), abs(b))
    return LABELS[1 if drift <= TOLERANCE else 2], drift


def ledgers(one: Path, two: Path) -> pd.DataFrame:
    """id, one, two, drift, label, verdicts of two runs' claims.csv; ValueError for other claims."""
    a, b = (_ledger(folder) for folder in (one, two))
    if list(a.index) != list(b.index):
        raise ValueError(f"{paths.shown(one)} and {paths.shown(two)} do not hold the same claims")
    rows = []
    for claim in a.index:
        x, y = float(a.ours[claim]), float(b.ours[claim])
        name, drift = label(x, y)
        same = a.verdict[claim] == b.verdict[claim]
        verdicts = a.verdict[claim] if same else f"{a.verdict[claim]} / {b.verdict[claim]}"
        rows.append((claim, x, y, drift, name, verdicts))
    return pd.DataFrame(rows, columns=["id", "one", "two", "drift", "label", "verdicts"])


def _ledger(folder: Path) -> pd.DataFrame:
    """claims.csv, its numbers in full as the notebooks recorded them."""
    table = pd.read_csv(folder / layout.LEDGER).set_index("id")
    for path in (folder / "records").glob("*.json"):
        for claim, entry in json.loads(path.read_text(encoding="utf-8")).items():
            table.loc[claim, "ours"] = entry["value"]
    return table


def tables(one: Path, two: Path) -> dict[str, bool]:
    """Name -> whether both runs wrote the same bytes."""
    names = sorted({p.name for folder in (one, two) for p in (folder / "tables").glob("*.csv")})
    return {n: _bytes(one, n) is not None and _bytes(one, n) == _bytes(two, n) for n in names}


def _bytes(folder: Path, name: str) -> bytes | None:
    path = folder / "tables" / name
    return path.read_bytes() if path.exists() else None


def scrubbed(path: Path) -> str:
    """An executed notebook without what may differ: times, widgets, what was loaded or computed."""
    cells = []
    for cell in nbformat.read(path, as_version=4).cells:
        outputs = [plain for o in cell.get("outputs", []) if (plain := _plain(o))]
        cells.append([cell.cell_type, cell.source, outputs])
    # pandas draws ids for styled tables, and objects print where they lie
    return re.sub(r"\bT_[0-9a-f]{5}|\bat 0x[0-9a-f]+", "", json.dumps(cells, sort_keys=True))


def _plain(output: dict) -> dict | None:
    """None for a line about progress; the output itself otherwise."""
    if output.get("output_type") == "stream":
        lines = output["text"].splitlines()
        kept = [s for s in lines if not s.startswith("cached ") and "%|" not in s and s.strip()]
        return {**output, "text": "\n".join(kept)} if kept and output["name"] == "stdout" else None
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return None
    return {k: v for k, v in output.items() if k != "metadata"}


def notebooks(one: Path, two: Path) -> dict[str, bool]:
    """Name -> whether both runs' executed notebooks are equal after `scrubbed`."""
    names = sorted(p.name for p in (one / "notebooks").glob("*.ipynb"))
    return {n: scrubbed(one / "notebooks" / n) == scrubbed(two / "notebooks" / n) for n in names}


def study(results: Path, device: Path, *more: str, verb: str = "reproduce") -> Path:
    """A smoke run from scratch in `results`, with the machine's measurements in `device`; its
    folder. RuntimeError with the last lines where it fails.
    """
    shutil.rmtree(results, ignore_errors=True)
    env = os.environ | {"NANOSD_RESULTS": str(results), "NANOSD_DEVICE": str(device)}
    env |= {"NANOSD_STORE": str(results / "store"), "HF_HUB_OFFLINE": "1"}
    words = [
        sys.executable,
        "-m",
        "nanosd_lib.cli",
        verb,
        "--profile",
        "smoke",
        *more,
    ]
    done = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[2:])}: {(done.stdout + done.stderr)[-2000:]}")
    return next(p.parent for p in results.glob("smoke*/run.json"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make drift", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    options = parser.parse_args(argv)
    out = paths.results_root() / "drift"
    try:
        if len(options.folders) == 2:
            one, two = options.folders
        elif options.folders:
            raise ValueError("two folders of results are wanted, or none")
        else:
            device = out / "device"
            one = study(out / "one", device, "--set", "threads=1")
            two = study(out / "two", device, "--set", "threads=2")
        table = ledgers(one, two)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    paths.write_atomic(out / "drift.csv", table.to_csv(index=False, float_format="%.6g").encode())
    counts = table[table.one.notna()].label.value_counts()
    summary = {"claims": counts.to_dict(), "tables": tables(one, two)}
    summary["notebooks"] = notebooks(one, two)
    paths.write_atomic(out / "drift.json", (json.dumps(summary, indent=1) + "\n").encode())
    moved = table[table.label != LABELS[0]].sort_values("drift", ascending=False)
    print(moved.to_string(index=False, float_format="%.4g") if len(moved) else "nothing moved")
    print(", ".join(f"{n} {name}" for name, n in counts.items()), f"({paths.shown(out)})")
    return 0
