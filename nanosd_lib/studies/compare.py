"""`make compare RUN=results/other`: a reader's run beside the reference, claim by claim.

What the two runs are is said before any number: profile, machine, versions, and the rows whose
protocol or number of pictures differs. Whoever finds another verdict gets a text to report.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout
from nanosd_lib.studies import study
from nanosd_lib.studies.stale import REFERENCE

HELD = ("ours", "low", "high", "n", "verdict")
SAME = 1e-9  # relative: the same digits


def ledger_of(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """(run.json, claims.csv by id) of a whole run.

    FileNotFoundError where there is none, ValueError where it is partial, still running, or its
    ledger is not one of today's.
    """
    name = paths.shown(folder)
    if not (folder / study.REPORT).exists():
        raise FileNotFoundError(f"{name} holds no run: give a folder that `make reproduce` wrote")
    report = study.read(folder)
    books = {k: e["state"] for k, e in report["notebooks"].items()}
    if running := [k for k, state in books.items() if state == "running"]:
        raise ValueError(f"{name} is still running ({running[0]}): wait for its end")
    if bad := [f"{k} is {state}" for k, state in books.items() if state != "ok"]:
        raise ValueError(f"{name} is not whole ({bad[0]}): go on with `make reproduce`")
    if lacking := sorted(p.stem for p in _notebooks() if p.stem not in books):
        raise ValueError(f"{name} is not whole ({lacking[0]} is missing): run `make reproduce`")
    path = folder / layout.LEDGER
    if not path.exists():
        raise ValueError(f"{name} has no {layout.LEDGER}: run notebook 11 (`make run NB=11`)")
    table = pd.read_csv(path)
    if gone := [c for c in ("id", "protocol", "evidence", *HELD) if c not in table]:
        raise ValueError(f"{paths.shown(path)} has no column '{gone[0]}': it is of an older ledger")
    if table.empty or table.ours.isna().all():
        raise ValueError(f"{paths.shown(path)} holds no number: nothing can be compared")
    return report, table.set_index("id")


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def table(reference: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
    """id, evidence, the held columns of both ("ours", "ours_run" ...), verdict_same, and how the
    numbers lie: "equal", "overlap", "apart", or "no interval"; rows that both hold.
    """
    both = reference[["evidence", *HELD]].join(run[list(HELD)], suffixes=("", "_run"), how="inner")
    both = both[both.ours.notna() | both.ours_run.notna()]
    both["verdict_same"] = both.verdict == both.verdict_run
    both["numbers"] = [_lie(r) for r in both.itertuples()]
    return both.reset_index()


def _lie(r: Any) -> str:
    if math.isnan(r.ours) or math.isnan(r.ours_run):
        return "one side only"
    if math.isclose(r.ours, r.ours_run, rel_tol=SAME):
        return "equal"
    ends = (r.low, r.high, r.low_run, r.high_run)
    if any(math.isnan(x) for x in ends):
        return "no interval"
    return "overlap" if r.low <= r.high_run and r.low_run <= r.high else "apart"


def before(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """What is said before any number: the two runs, and how they differ."""
    lines = []
    for name, run in (("reference", one), ("run", two)):
        m = run["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
        what = f"profile {run['profile']}, seed {run['seed']}"
        what += f", {run['overrides']}" if run.get("overrides") else ""
        lines.append(f"{name}: {what}; {m['cpu']}, {m['cores']} cores, {m['gpu'] or 'no GPU'}")
        lines.append(f"  python {m['python']}, {versions}, commit {run['git']['commit'][:12]}")
    if one["profile"] != two["profile"]:
        lines.append("Another profile: the numbers below are of another study; only counted rows,")
        lines.append("arithmetic and restated ones must agree.")
    return lines


def protocols(one: pd.DataFrame, two: pd.DataFrame) -> list[str]:
    """Rows that are measured in another way, or with another number of pictures."""
    both = one.join(two, suffixes=("", "_run"), how="inner")
    both = both[both.ours.notna() & both.ours_run.notna()]
    other = both[(both.protocol != both.protocol_run) | (both.n.fillna(0) != both.n_run.fillna(0))]
    if other.empty:
        return []
    return [f"{len(other)} rows have another protocol or n: {', '.join(other.index)}"]


def missing(one: pd.DataFrame, two: pd.DataFrame) -> list[str]:
    """Rows that one side alone has, by name."""
    held = [set(t.index[t.ours.notna()]) for t in (one, two)]
    lines = []
    for name, gone in (("the run", held[0] - held[1]), ("the reference", held[1] - held[0])):
        if gone:
            lines.append(f"{len(gone)} rows are missing in {name}: {', '.join(sorted(gone))}")
    return lines


def report(folder: Path, reference: Path = REFERENCE) -> tuple[str, pd.DataFrame]:
    """All of it as text, in Markdown to paste, and the table."""
    two, other = ledger_of(folder)
    one, mine = ledger_of(reference)
    found = table(mine, other)
    moved = found[~found.verdict_same | (found.numbers == "apart")]
    counts = found.numbers.value_counts()
    lines = [*before(one, two), *protocols(mine, other), *missing(mine, other), ""]
    lines.append(
        f"{found.verdict_same.sum()} of {len(found)} rows have the same verdict; numbers: "
        + ", ".join(f"{n} {name}" for name, n in counts.items())
    )
    lines += ["", "To paste into an issue:", "", "```", *before(one, two), "```", ""]
    lines += ["| row | reference | run | numbers |", "|---|---|---|---|"]
    lines += [
        f"| {r.id} | {_shown(r.ours, r.low, r.high)}, {r.verdict}"
        f" | {_shown(r.ours_run, r.low_run, r.high_run)}, {r.verdict_run} | {r.numbers} |"
        for r in moved.itertuples()
    ] or ["| every row | – | the same verdict | none apart |"]
    return "\n".join(lines), found


def _shown(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.4g}" + (f" [{low:.3g}, {high:.3g}]" if low < high else "")


def main(argv: list[str] | None = None) -> int:
    """Compare; 0 also where verdicts differ, 1 where there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="make compare RUN=results/other", description=__doc__)
    parser.add_argument("--run", required=True, type=Path)
    folder = parser.parse_args(argv).run
    try:
        text, found = report(folder if folder.is_absolute() else Path.cwd() / folder)
        path = folder / "compare.csv"
        paths.write_atomic(path, found.to_csv(index=False, float_format="%.6g").encode())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    print(f"\nevery row: {paths.shown(path)}")
    return 0
