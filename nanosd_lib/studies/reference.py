"""The committed reference run: copied from a finished `mini` run, and shown in the README.

`make reference` does both, `make reference NB=00` for one finished page; a test holds the README to
what the copy says.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from nanosd_lib import paper, paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout
from nanosd_lib.studies import heads, stale
from nanosd_lib.studies.stale import REFERENCE

BEGIN, END = "<!-- reference: begin -->", "<!-- reference: end -->"


def copy(run: Path) -> str:
    """Replace results/reference by a finished run; its name. ValueError for one that did not end
    well.
    """
    report = _report(run)
    if report["state"] != "ok" or report["verb"] != "reproduce":
        state = report["state"] if report["verb"] == "reproduce" else "partial"
        raise ValueError(
            f"{paths.shown(run)} ended as {state!r}: only a whole run is a reference"
            " (one page of it: make reference NB=00)"
        )
    for name in ("notebooks", "tables", "figures", "io", "records"):
        shutil.rmtree(REFERENCE / name, ignore_errors=True)
        shutil.copytree(run / name, REFERENCE / name)
    for name in (layout.LEDGER, "run.json"):
        shutil.copy(run / name, REFERENCE / name)
    copy_measured(run.parent)
    return paths.shown(run)


def copy_page(run: Path, number: str) -> str:
    """Take over one finished page: notebook, what it wrote, and its entry of run.json; its name.

    What its older form wrote and this one does not goes away. ValueError where the page is not
    there, did not end well, or was run under another profile or seed than the reference.
    """
    report, kept = _report(run), _report(REFERENCE)
    page = next((name for name in report["notebooks"] if name[:2] == number.zfill(2)), None)
    if page is None:
        raise ValueError(f"{paths.shown(run)} has no page {number!r}: make run NB={number} first")
    entry = report["notebooks"][page]
    if entry["state"] != "ok":
        raise ValueError(f"{page} ended as {entry['state']!r}: make run NB={number} first")
    for what in ("profile", "seed", "overrides"):
        if report[what] != kept[what]:
            raise ValueError(f"{page} has {what} {report[what]!r}, the reference {kept[what]!r}")
    others = {n for other in kept["notebooks"] if other != page for n in _written(REFERENCE, other)}
    for name in set(_written(REFERENCE, page)) - others:  # a table may have moved to another page
        (REFERENCE / name).unlink(missing_ok=True)
    for name in [*_written(run, page), f"io/{page}.json", f"notebooks/{page}.ipynb"]:
        (REFERENCE / name).parent.mkdir(exist_ok=True)
        shutil.copy(run / name, REFERENCE / name)
    kept["notebooks"] = dict(sorted({**kept["notebooks"], page: entry}.items()))
    paths.write_atomic(REFERENCE / "run.json", (json.dumps(kept, indent=1) + "\n").encode())
    return page


def _report(run: Path) -> dict[str, Any]:
    if not (run / "run.json").exists():
        raise ValueError(f"{paths.shown(run)} holds no run: make reproduce comes first")
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def _written(run: Path, page: str) -> list[str]:
    path = run / "io" / f"{page}.json"
    return json.loads(path.read_text(encoding="utf-8"))["writes"] if path.exists() else []


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


def made_at(entries: dict[str, Any]) -> str:
    """The commit of the pages, or each commit with its pages where they are of several."""
    commits: dict[str, list[str]] = {}
    for name, entry in entries.items():
        commits.setdefault(stale.commit_of(entry), []).append(name[:2])
    if len(commits) == 1:
        return f"commit {next(iter(commits))}"
    said = lambda which: f"page{'s' if len(which) > 1 else ''} {', '.join(which)}"  # noqa: E731
    return "; ".join(f"{said(which)} at commit {c}" for c, which in commits.items())


def card() -> str:
    """results/reference/README.md: what these files are, and of which code."""
    run = _report(REFERENCE)
    minutes = lambda seconds: "–" if seconds is None else f"{seconds / 60:.1f}"  # noqa: E731
    rows = [
        f"| {name} | {stale.commit_of(e)} | {e.get('machine', run['machine']['cpu'])}"
        f" | {minutes(e.get('computed_seconds'))} | {minutes(e['seconds'])} |"
        for name, e in run["notebooks"].items()
    ]
    return "\n".join(
        [
            "# The reference run",
            "",
            f"Profile `{run['profile']}`, seed {run['seed']}. The code may be ahead of it:"
            " `make stale` lists the pages it has outgrown, and why.",
            "",
            "| page | made at | machine | minutes from an empty store | minutes when cached |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def block() -> str:
    """The README's lines about the reference run: minutes, teacher, verdicts."""
    run = json.loads((REFERENCE / "run.json").read_text(encoding="utf-8"))
    ledger = pd.read_csv(REFERENCE / layout.LEDGER)
    sentences = pd.read_csv(REFERENCE / "tables" / "sentences.csv")
    teacher = pd.read_csv(REFERENCE / "tables" / "teacher.csv").set_index(["check", "kind"])
    machine = run["machine"]
    commands = pd.read_csv(REFERENCE / "commands.csv")  # measured by hand, from fresh clones
    psnr = [teacher.loc["VAE PSNR (dB)", f"held-out {k}"] for k in ("scenes", "photographs")]
    both = [teacher.loc["prompts, both", k] for k in ("one object", "two objects, new caption")]
    lines = [
        "| command | minutes | how |",
        "|---|---|---|",
        *(f"| `{c.command}` | {c.minutes:.1f} | {c.how} |" for c in commands.itertuples()),
        "",
        f"The reference run (`results/reference`): profile `{run['profile']}`, seed {run['seed']},"
        f" {machine['cores']} cores ({machine['cpu']}), torch {machine['versions']['torch']},"
        f" {made_at(run['notebooks'])}. `make stale` lists the pages that the code has outgrown"
        " since.",
        "",
        *(f"- **{s.step}.** {s.sentence}" for s in sentences.itertuples()),
        "",
        f"**The ledger:** {paper.summary_line(ledger)}. [All of it](results/reference/claims.csv).",
        "",
        f"**The teacher:** VAE {psnr[0].value:.1f} dB on held-out scenes, {psnr[1].value:.1f} dB on"
        f" held-out photographs (bicubic of a quarter: {psnr[1].beside:.1f}); shape and colour of"
        f" the prompt recognised in {both[0].value:.0%} of one-object and {both[1].value:.0%} of"
        " two-object samples.",
    ]
    return "\n".join(lines)


def refreshed(text: str) -> str:
    """A README with the block between its two markers brought in line with the reference run."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{block()}\n{END}{tail}"


def main(argv: list[str] | None = None) -> int:
    """Copy results/mini, or one page of it (`--nb 00`), and refresh README and heads; with
    `--refresh`, the latter alone.
    """
    parser = argparse.ArgumentParser(prog="make reference")
    parser.add_argument("--nb", default="", help="number of the one page to take over")
    parser.add_argument("--refresh", action="store_true", help="take over nothing")
    args = parser.parse_args(argv)
    number, run = args.nb, layout.results_folder("mini", 0)
    try:
        taken = "what it holds" if args.refresh else copy_page(run, number) if number else copy(run)
        refresh()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"results/reference and README.md are in line with {taken}")
    print("\n".join(stale.lines()))
    return 0


def refresh() -> None:
    """README.md, the card of results/reference and the pages' heads, from what it holds."""
    readme = ROOT / "README.md"
    text = refreshed(readme.read_text(encoding="utf-8"))
    paths.write_atomic(readme, text.encode())
    paths.write_atomic(REFERENCE / "README.md", card().encode())
    for folder in (ROOT, REFERENCE):
        heads.refresh(folder / "notebooks", _report(REFERENCE)["notebooks"])
