"""The committed reference run: copied from a finished `mini` run, and shown in the README.

`make reference` does both; a test holds the README to what the copy says.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout
from nanosd_lib.runs.provenance import notebook_hash

REFERENCE = ROOT / "results" / "reference"
BEGIN, END = "<!-- reference: begin -->", "<!-- reference: end -->"


def copy(run: Path) -> None:
    """Replace results/reference by a finished run; ValueError for one that did not end well."""
    state = json.loads((run / "run.json").read_text(encoding="utf-8"))["state"]
    if state != "ok":
        raise ValueError(f"{paths.shown(run)} ended as {state!r}: only a whole run is a reference")
    for name in ("notebooks", "tables", "figures", "io"):
        shutil.rmtree(REFERENCE / name, ignore_errors=True)
        shutil.copytree(run / name, REFERENCE / name)
    for name in (layout.LEDGER, "run.json"):
        shutil.copy(run / name, REFERENCE / name)
    copy_measured(run.parent)


def copy_measured(results: Path) -> None:
    """Take over what other verbs measured: `make hardware`'s profiles and `make dryrun`'s plan."""
    for folder in sorted((results / "hardware").glob("*")):
        shutil.copytree(folder, REFERENCE / "hardware" / folder.name, dirs_exist_ok=True)
    if (results / "chaos.csv").exists():
        shutil.copy(results / "chaos.csv", REFERENCE / "chaos.csv")
    for plan in results.glob("plan_*.csv"):
        (REFERENCE / "plans").mkdir(exist_ok=True)
        shutil.copy(plan, REFERENCE / "plans" / plan.name)
    for plan in (REFERENCE / "plans").glob("plan_*.csv"):
        shutil.copy(plan, REFERENCE / "tables" / plan.name)


def stale() -> list[str]:
    """Notebooks whose code, or the library code they reach, is not what the reference ran."""
    entries = json.loads((REFERENCE / "run.json").read_text(encoding="utf-8"))["notebooks"]
    now = {path.stem: notebook_hash(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    return [name for name, value in now.items() if entries.get(name, {}).get("source") != value]


def block() -> str:
    """The README's lines about the reference run: minutes, teacher, verdicts."""
    run = json.loads((REFERENCE / "run.json").read_text(encoding="utf-8"))
    verdicts = pd.read_csv(REFERENCE / layout.LEDGER).verdict.value_counts()
    teacher = pd.read_csv(REFERENCE / "tables" / "teacher.csv").set_index("metric").value
    machine = run["machine"]
    commands = pd.read_csv(REFERENCE / "commands.csv")  # measured by hand, from fresh clones
    psnr = [teacher[f"VAE PSNR, held-out {k} (dB)"] for k in ("scenes", "photographs")]
    lines = [
        "| command | minutes | how |",
        "|---|---|---|",
        *(f"| `{c.command}` | {c.minutes:.1f} | {c.how} |" for c in commands.itertuples()),
        "",
        f"The reference run (`results/reference`): profile `{run['profile']}`, seed {run['seed']},"
        f" {machine['cores']} cores ({machine['cpu']}), torch {machine['versions']['torch']}.",
        "",
        f"**{verdicts.sum()} claims of the three sources:** "
        + ", ".join(f"{n} {v}" for v, n in verdicts.items())
        + ". [All of them](results/reference/claims.csv).",
        "",
        f"**The teacher:** VAE {psnr[0]:.1f} dB on held-out scenes, {psnr[1]:.1f} dB on held-out"
        f" photographs; shape and colour of the prompt recognised in"
        f" {teacher['prompt following, both']:.0%} of one-object samples.",
    ]
    return "\n".join(lines)


def refreshed(text: str) -> str:
    """A README with the block between its two markers brought in line with the reference run."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{block()}\n{END}{tail}"


def main(argv: list[str] | None = None) -> int:
    """Copy results/mini and refresh the README; takes no words."""
    try:
        copy(layout.results_folder("mini", 0))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    readme = ROOT / "README.md"
    readme.write_text(refreshed(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print("results/reference and README.md are in line with results/mini")
    return 0
