"""A study: the notebooks executed one by one, and run.json, which says how far they came.

A notebook counts as done when the engine says `ok`; the first that is not stops the study.
run.json is true at every moment, and several studies may write it: each changes what is its own. A
study that was killed says `running`, with its process, and `read` knows better.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nanosd_lib import paths
from nanosd_lib.engine import forking, kernels
from nanosd_lib.engine.interrupts import Interrupted, came, cause, held, say, signals
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout, processes, registry
from nanosd_lib.runs.provenance import git_state, lock_hash, machine
from nanosd_lib.studies import overview, stale

REPORT = "run.json"
PATIENCE = 10.0  # seconds for the report's lock: whoever has it is writing one small file


class Study:
    """One run of the notebooks: a profile, a seed, overrides, and the folder they decide."""

    def __init__(self, profile: str, seed: int, overrides: dict[str, Any], resume: str):
        """`resume` is the command that goes on after a failure.

        Raises ValueError or FileNotFoundError where the run cannot be.
        """
        self.profile = layout.check_run(profile, seed, overrides)
        if not self.profile.teacher.local:
            registry.entry(self.profile.teacher.path)
        self.parameters = {"profile": profile, "seed": seed, "overrides": overrides}
        self.deadline = 60.0 * self.profile.notebook_minutes
        self.folder = layout.results_folder(profile, seed, overrides)
        self.resume = resume
        self.report: dict[str, Any] = {}

    def execute(self, notebooks: list[Path], whole: bool) -> int:
        """Run them in order; 0 when all are ok, 1 at the first failure, 128 + n at signal n."""
        with signals():
            try:
                code = self._execute(notebooks, whole)
            except BaseException as problem:
                number = cause(problem)
                if number is None and isinstance(problem, Exception):
                    raise
                self._interrupted()
                if number is None:  # whoever handles the signals has ended the process otherwise
                    raise
                code = 128 + number
        return code

    def _execute(self, notebooks: list[Path], whole: bool) -> int:
        before = _stamp(self.folder / layout.LEDGER)
        if whole:
            name = self.profile.name
            print("\n".join(overview.plan(notebooks, name, self.folder)), flush=True)
        self._begin(notebooks, whole)
        with forking.ahead(notebooks):
            code = self._run_all(notebooks)
        if code == 0 and whole:
            code = self._ledger(before)
        self.report["state"] = "ok" if code == 0 else "failed"
        self._write()
        if code == 0:
            minutes = self.report["seconds"] / 60
            for sentence in overview.sentences(self.folder) if whole else []:
                print(f"- {sentence}")
            index = overview.write(self.folder, self.report)
            print(f"done in {minutes:.1f} min; everything is in {paths.shown(self.folder)}")
            print(f"to look at: {paths.shown(index)}")
        return code

    def _interrupted(self) -> None:
        """The report after a signal, wherever it struck."""
        if self.report:
            books, process = self.report["notebooks"], self.report["process"]
            mine = [name for name, entry in books.items() if entry.get("process") == process]
            for name in mine:
                books[name]["state"] = "interrupted"
                del books[name]["process"]
            self.report["state"] = "interrupted"
            self._write(*mine)
        say(f"interrupted; go on with: {self.resume}")

    def _run_all(self, notebooks: list[Path]) -> int:
        bar = tqdm(notebooks, desc="notebooks", unit="notebook", disable=None)
        for number, path in enumerate(bar, 1):
            label = f"[{number}/{len(notebooks)}] {path.stem}"
            tqdm.write(f"{label}: started")
            made_of = stale.ingredients(path, self.profile)
            entry: dict[str, Any] = {"state": "running", "made_of": made_of}
            entry["process"] = self.report["process"]  # while it runs
            self.report["notebooks"][path.stem] = entry
            self._write(path.stem)
            out = self.folder / "notebooks" / path.name
            start = time.perf_counter()
            outcome = kernels.Outcome("interrupted", "", 0.0)
            try:
                outcome = kernels.execute(
                    path, out, self.parameters, self._environment(), self.deadline
                )
            finally:
                if came() is not None and outcome.state != "ok":
                    outcome = kernels.Outcome("interrupted", "a signal stopped it", outcome.peak_gb)
                seconds = round(time.perf_counter() - start, 1)
                entry |= {"state": outcome.state, "seconds": seconds, "peak_gb": outcome.peak_gb}
                entry["computed_seconds"] = round(seconds + self._saved(path.stem), 1)
                entry.update(self.report["git"], error=outcome.error, finished=_now())
                entry["read"] = stale.read_by(path.stem, self.folder)
                entry["machine"] = f"{self.report['machine']['cpu']}, {os.cpu_count()} cores"
                del entry["process"]
                self._write(path.stem)
            if (signalled := came()) is not None:
                bar.close()
                raise Interrupted(signalled)
            minutes = f"{seconds / 60:.1f} min, peak {outcome.peak_gb:.1f} GB"
            tqdm.write(f"{label}: {outcome.state} after {minutes}")
            if outcome.state != "ok":
                bar.close()
                print(f"{path.stem} failed: {outcome.error}", file=sys.stderr)
                print(f"  executed notebook: {paths.shown(out)}", file=sys.stderr)
                print(
                    f"  go on with: {self.resume} (finished computations are kept)", file=sys.stderr
                )
                return 1
        return 0

    def _saved(self, page: str) -> float:
        """The seconds that a page once computed what it loaded now."""
        try:
            text = (self.folder / "saved" / f"{page}.json").read_text(encoding="utf-8")
            return float(json.loads(text)["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def _ledger(self, before: int | None) -> int:
        path = self.folder / layout.LEDGER
        if _stamp(path) in (None, before):
            print(f"error: the notebooks did not write {paths.shown(path)}", file=sys.stderr)
            return 1
        import pandas as pd

        from nanosd_lib import paper

        print(f"the ledger: {paper.summary_line(pd.read_csv(path))}")
        return 0

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {"PYTHONHASHSEED": "0", "PATH": path, "PYTHONPATH": modules}
        env["NANOSD_RESULTS"] = str(paths.results_root())  # a kernel's folder is another
        env["NANOSD_STORE"] = str(paths.store_root())
        env["NANOSD_DEVICE"] = str(paths.device_root())
        return env if self.profile.name == "sd15" else {**env, "HF_HUB_OFFLINE": "1"}

    def _begin(self, notebooks: list[Path], whole: bool) -> None:
        for name in layout.SUBFOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        fresh = {path.stem: {"state": "not run"} for path in notebooks}
        self._only = set(fresh) if whole else None
        self._start = time.perf_counter()
        with held():  # a signal that is raised into torch's import ends the process from inside C++
            facts = machine()
        self.report = {
            "state": "running",
            "verb": "reproduce" if whole else "run",
            **self.parameters,
            "started": _now(),
            "seconds": 0.0,
            "process": processes.me(),
            "git": git_state(),
            "lock": lock_hash(),
            "machine": facts,
            "notebooks": fresh,
        }
        elsewhere = {name for name, entry in _books(self.folder).items() if _runs(entry)}
        self._write(*fresh.keys() - elsewhere)

    def _write(self, *names: str) -> None:
        """Bring into run.json how this study stands, and its entries of these notebooks; all others
        stay as they are there.
        """
        mine = {name: self.report["notebooks"][name] for name in names}
        process = self.report["process"]
        with processes.locked(self.folder / f".{REPORT}.lock", patience=PATIENCE):
            there = {k: e for k, e in _books(self.folder).items() if e.get("process") != process}
            books = self.report["notebooks"] | there | mine
            books = {k: books[k] for k in sorted(books) if self._only is None or k in self._only}
            if self.report["state"] == "ok" and {e["state"] for e in books.values()} != {"ok"}:
                self.report["state"] = "partial"
            seconds = round(time.perf_counter() - self._start, 1)
            self.report |= {"seconds": seconds, "notebooks": books}
            others = {"state": "running"} if any(map(_runs, books.values())) else {}
            text = json.dumps(self.report | others, indent=1) + "\n"
            paths.write_atomic(self.folder / REPORT, text.encode())


def read(folder: Path) -> dict[str, Any]:
    """The report of a results folder, where no notebook is `running` whose process is gone.

    FileNotFoundError where there is none, ValueError where it is not whole.
    """
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    try:
        for entry in report["notebooks"].values():
            by = entry.get("process", report.get("process", {}))
            if _runs(entry) and processes.lives(by) is False:
                entry.pop("process", None)
                entry |= {"state": "killed", "error": "its process is gone"}
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{paths.shown(folder / REPORT)} is not a report") from None
    return report


def _runs(entry: dict[str, Any]) -> bool:
    return entry["state"] == "running"


def _books(folder: Path) -> dict[str, Any]:
    """The entries of the report; none where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return read(folder)["notebooks"]
    return {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
