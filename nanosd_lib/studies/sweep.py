"""Sweeps: many studies over seeds or any grid of parameters, each in its own folder, and one table
of mean, spread and interval for each row of the ledger.

    make sweep SEEDS="0 1 2" PROFILE=mini WORKERS=2
    make sweep GRID=grid.yaml        # {profile: [mini], seed: [0, 1], fwkd.steps: [80, 160]}
    make sweep SEEDS="0 1 2" WORKERS=3 SLURM="slurm_partition=gpu gpus_per_node=1"
"""

from __future__ import annotations

import argparse
import html
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from nanosd_lib import paper, paths
from nanosd_lib.engine.interrupts import Interrupted, came, cause, say, signals
from nanosd_lib.paths import PACKAGE, ROOT
from nanosd_lib.runs import layout, processes, profiles
from nanosd_lib.runs.provenance import canonical, file_hash, text_hash
from nanosd_lib.studies import jobs, runner
from nanosd_lib.studies.study import Study, read

COLOURS = {"ok": "#d7f0d9", "running": "#fbf3c8", "not started": "#eeeeee"}
BAD = "#f8d3cf"


# -------------------------------------------------------------------------------------------- jobs
def study(profile: str, seed: int, overrides: dict[str, Any], results: str, code: str) -> dict:
    """One whole study, in the folder `results` decides; its ledger and its run.json.

    RuntimeError names the notebook that failed. `code` is the hash of notebooks and library: other
    code, another job.
    """
    os.environ["NANOSD_RESULTS"] = results
    words = [f"make reproduce PROFILE={profile} SEED={seed}"]
    words += [f"SET='{' '.join(f'{k}={json.dumps(v)}' for k, v in overrides.items())}'"]
    one = Study(profile, seed, overrides, " ".join(words[: 2 if overrides else 1]))
    status = one.execute(runner.choose(ROOT / "notebooks"), whole=True)
    if status >= 128:
        raise Interrupted(status - 128)
    if status:
        books = one.report["notebooks"].items()
        failed = [f"{k}: {v.get('error')}" for k, v in books if v["state"] not in ("ok", "not run")]
        raise RuntimeError("; ".join(failed) or f"the study ended with code {status}")
    return {"claims": pd.read_csv(one.folder / layout.LEDGER), "run": one.report}


def echo(value: Any, fail: str = "", die: int = 0) -> dict[str, Any]:
    """A job that costs nothing: it hands its value back, raises, or dies of a signal; for trying a
    pool or a cluster out before a night's work is given to it.
    """
    if die:
        os.kill(os.getpid(), die)
    if fail:
        raise RuntimeError(fail)
    return {"value": value}


def grid(profile: str, seeds: list[int], path: Path | None) -> list[dict[str, Any]]:
    """Every combination as {profile, seed, overrides}, checked; ValueError names what is wrong."""
    axes: dict[str, list] = {"profile": [profile], "seed": seeds}
    if path is not None:
        try:
            extra = profiles.read_yaml(path)
        except ValueError as error:
            raise ValueError(f"grid {error}") from None
        if not isinstance(extra, dict) or not all(isinstance(v, list) for v in extra.values()):
            raise ValueError(f"grid {path}: lists by parameter are wanted: 'seed: [0, 1]'")
        axes |= extra
    found = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        one = {"profile": point.pop("profile"), "seed": point.pop("seed"), "overrides": point}
        layout.check_run(**one)
        found.append(one)
    if not found:
        raise ValueError("the sweep is empty: give at least one seed")
    return found


def jobs_of(points: list[dict[str, Any]]) -> list[jobs.Job]:
    """One job for each point, in this store, under this code."""
    found = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / PACKAGE).rglob("*.py")]
    found += [*(ROOT / PACKAGE).rglob("*.yaml"), *(ROOT / "data").rglob("*.safetensors")]
    found += [ROOT / "data" / "paper" / "claims.yaml"]
    code = text_hash(canonical([[paths.shown(p), file_hash(p)] for p in sorted(found)]))
    results, store = str(paths.results_root()), str(paths.store_root())
    more = {"results": results, "code": code}
    return [jobs.Job(f"{PACKAGE}.studies.sweep:study", point | more, store) for point in points]


# ---------------------------------------------------------------------------------------- the state
def state(point: dict[str, Any]) -> dict[str, Any]:
    """What a study's folder says, checked: `running` only while its process lives, `ok` only with
    every notebook ok and a ledger with a verdict in each row.
    """
    folder = layout.results_folder(point["profile"], point["seed"], point["overrides"])
    row = {
        "study": folder.name,
        "state": "not started",
        "notebooks": "",
        "minutes": 0.0,
        "error": "",
    }
    try:
        report = read(folder)
    except FileNotFoundError:
        return row
    except (ValueError, OSError):
        return row | {"state": "damaged", "error": "run.json cannot be read"}
    books = report["notebooks"]
    fine = sum(entry.get("state") == "ok" for entry in books.values())
    row |= {"notebooks": f"{fine}/{len(books)}", "minutes": round(report["seconds"] / 60, 1)}
    errors = [f"{k}: {v['state']}: {v['error']}" for k, v in books.items() if v.get("error")]
    row |= {"state": report["state"], "error": "; ".join(errors)[:200]}
    if report["state"] == "running":
        row |= _alive(report)
    if report["state"] == "ok":
        row |= _whole(folder, books)
    return row


def _alive(report: dict[str, Any]) -> dict[str, str]:
    """{} where a process of this report lives: its last writer's, or that of a running notebook."""
    entries = report["notebooks"].values()
    last = report.get("process", {})
    found = [last, *(entry["process"] for entry in entries if "process" in entry)]
    alive = [processes.lives(process) for process in found]
    if True in alive:
        return {}
    if None in alive:
        process = found[alive.index(None)]
        return {"state": f"running on {process.get('host')}, not checked"}
    return {"state": "dead", "error": "its process is gone: run the sweep again to go on"}


def _whole(folder: Path, books: dict[str, Any]) -> dict[str, str]:
    wanted: dict[str, Any] = {path.stem: {} for path in runner.choose(ROOT / "notebooks")}
    late = [name for name, entry in (wanted | books).items() if entry.get("state") != "ok"]
    if late:
        return {"state": "damaged", "error": f"{late[0]} is not ok"}
    try:
        ledger = pd.read_csv(folder / layout.LEDGER)
        if len(ledger) and set(ledger.verdict) <= set(paper.VERDICTS):
            return {}
    except (OSError, ValueError, AttributeError):
        pass
    return {"state": "damaged", "error": f"{layout.LEDGER} is missing or not whole"}


def page(table: pd.DataFrame) -> str:
    """The status table in HTML: green for what is certainly well, red for everything unknown."""
    rows = []
    for entry in table.to_dict("records"):
        colour = COLOURS.get(entry["state"], BAD)
        cells = "".join(f"<td>{html.escape(str(v))}</td>" for v in entry.values())
        rows.append(f'<tr style="background:{colour}">{cells}</tr>')
    head = "".join(f"<th>{html.escape(c)}</th>" for c in table.columns)
    return (
        f"<!doctype html><meta charset=utf-8><title>sweep</title><table><tr>{head}</tr>"
        + "".join(rows)
        + "</table>\n"
    )


# ---------------------------------------------------------------------------------------- the table
def summary(ledgers: list[tuple[dict[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """profile, overrides, id, statement, paper, n, mean, std, low, high, verdicts: each row of the
    ledger over the seeds of one setting.

    low, high: 95 % interval of the mean (Student's t); empty for fewer than two values.
    """
    from scipy import stats

    table = []
    frames = [
        ledger.assign(profile=p["profile"], overrides=json.dumps(p["overrides"], sort_keys=True))
        for p, ledger in ledgers
    ]
    for key, rows in pd.concat(frames).groupby(["profile", "overrides", "id"], sort=False):
        values = rows.ours.dropna()
        n, mean, std = len(values), values.mean(), values.std(ddof=1)
        half = stats.t.ppf(0.975, n - 1) * std / n**0.5 if n > 1 else float("nan")
        counts = rows.verdict.value_counts()
        verdicts = ", ".join(f"{k} {v}" for v, k in counts.items())
        first = rows.iloc[0]
        numbers = (n, mean, std, mean - half, mean + half)
        table.append((*key, first.statement, first.paper, *numbers, verdicts))
    columns = ["profile", "overrides", "id", "statement", "paper", "n", "mean", "std"]
    return pd.DataFrame(table, columns=[*columns, "low", "high", "verdicts"])


def show(points: list[dict[str, Any]], errors: dict[int, str] | None = None) -> pd.DataFrame:
    """The status of every study now, written to sweep/status.csv and status.html."""
    table = pd.DataFrame([state(p) for p in points])
    for i, error in (errors or {}).items():
        table.loc[i, "error"] = table.error[i] or error
        if table.state[i] == "ok":  # its folder is whole, its job is not
            table.loc[i, "state"] = "failed"
    folder = paths.results_root() / "sweep"
    paths.write_atomic(folder / "status.csv", table.to_csv(index=False).encode())
    paths.write_atomic(folder / "status.html", page(table).encode())
    return table


def write(points: list[dict[str, Any]], ended: list[jobs.Ended]) -> pd.DataFrame:
    """Status and the sweep's claims.csv, from the studies that are whole; returns the status."""
    status = show(points, {i: e.error for i, e in enumerate(ended) if e.artifact is None})
    whole = [
        (point, pd.read_parquet(end.artifact / "claims.parquet"))
        for point, end in zip(points, ended, strict=True)
        if end.artifact is not None
    ]
    if whole:
        text = summary(whole).to_csv(index=False, float_format="%.6g")
        paths.write_atomic(paths.results_root() / "sweep" / layout.LEDGER, text.encode())
    return status


def _parameters(text: str) -> dict[str, Any]:
    """'1' -> {}; 'gpus_per_node=1 slurm_partition=gpu' -> what submitit is told."""
    return dict(runner.assignment(word) for word in text.split() if word != "1")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make sweep", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=("run", "status"), default="run")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slurm", nargs="?", const="1", help="'slurm_partition=gpu ...', or 1")
    options = parser.parse_args(argv)
    with signals():
        try:
            return _main(options)
        except BaseException as problem:
            plain = signal.SIGINT if isinstance(problem, KeyboardInterrupt) else None
            if (number := cause(problem) or plain) is None:
                raise
            say("interrupted; the same command goes on")
            return 128 + number


def _main(options: argparse.Namespace) -> int:
    points = []
    try:
        seeds = [runner.seed(text) for text in options.seeds.split()]
        points = grid(options.profile, seeds, options.grid)
        status = show(points)
        if options.verb == "status":
            print(status.to_string(index=False))
            return 0
        how = "slurm" if options.slurm else "pool" if options.workers > 1 else "here"
        cluster = _parameters(options.slurm or "")
        ended = jobs.run(jobs_of(points), how, options.workers, cluster=cluster)
        status = write(points, ended)
    except (ValueError, OSError, RuntimeError) as error:
        if came() is not None:  # it failed of the signal
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if points:
            show(points)
        raise
    print(status.to_string(index=False))
    print(f"tables of the sweep: {paths.shown(paths.results_root() / 'sweep')}")
    return 0 if (status.state == "ok").all() else 1
