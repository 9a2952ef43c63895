"""A study: the notebooks executed one by one, and run.json, which says how far they came.

A notebook counts as done when the engine says `ok`; the first that is not stops the study.
run.json is true at every moment: a study that was killed says `running`.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import forking, kernels, layout, registry
from nanosd_lib.runs.interrupts import Interrupted, came, cause, held, signals
from nanosd_lib.runs.provenance import git_state, lock_hash, machine, notebook_hash


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
                if number is None:
                    raise
                code = 128 + number
                self._interrupted()
        return code

    def _execute(self, notebooks: list[Path], whole: bool) -> int:
        before = _stamp(self.folder / layout.LEDGER)
        self._begin(notebooks, whole)
        with forking.ahead(notebooks):
            code = self._run_all(notebooks)
        if code == 0 and whole:
            code = self._ledger(before)
        states = {entry["state"] for entry in self.report["notebooks"].values()}
        ended = "ok" if states == {"ok"} else "partial"
        self.report["state"] = ended if code == 0 else "failed"
        self._write()
        if code == 0:
            minutes = self.report["seconds"] / 60
            print(f"done in {minutes:.1f} min; everything is in {paths.shown(self.folder)}")
        return code

    def _interrupted(self) -> None:
        """The report after a signal, wherever it struck."""
        for entry in self.report.get("notebooks", {}).values():
            if entry["state"] == "running":
                entry["state"] = "interrupted"
        if self.report:
            self.report["state"] = "interrupted"
            self._write()
        print(f"interrupted; go on with: {self.resume}", file=sys.stderr)

    def _run_all(self, notebooks: list[Path]) -> int:
        bar = tqdm(notebooks, desc="notebooks", unit="notebook", disable=None)
        for number, path in enumerate(bar, 1):
            label = f"[{number}/{len(notebooks)}] {path.stem}"
            tqdm.write(f"{label}: started")
            entry: dict[str, Any] = {"state": "running", "source": notebook_hash(path)}
            self.report["notebooks"][path.stem] = entry
            self._write()
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
                entry.update(commit=self.report["git"]["commit"], error=outcome.error)
                self._write()
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

    def _ledger(self, before: int | None) -> int:
        path = self.folder / layout.LEDGER
        if _stamp(path) in (None, before):
            print(f"error: the notebooks did not write {paths.shown(path)}", file=sys.stderr)
            return 1
        import pandas as pd

        counts = pd.read_csv(path)["verdict"].value_counts()
        print(f"{counts.sum()} claims: " + ", ".join(f"{n} {v}" for v, n in counts.items()))
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
        kept = {} if whole else _notebooks_of(self.folder / "run.json")
        fresh = {path.stem: {"state": "not run"} for path in notebooks}
        self._start = time.perf_counter()
        with held():  # a signal that is raised into torch's import ends the process from inside C++
            facts = machine()
        self.report = {
            "state": "running",
            "verb": "reproduce" if whole else "run",
            **self.parameters,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "process": {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "began": psutil.Process().create_time(),
            },
            "git": git_state(),
            "lock": lock_hash(),
            "machine": facts,
            "notebooks": dict(sorted({**kept, **fresh}.items())),
        }
        self._write()

    def _write(self) -> None:
        self.report["seconds"] = round(time.perf_counter() - self._start, 1)
        text = json.dumps(self.report, indent=1) + "\n"
        paths.write_atomic(self.folder / "run.json", text.encode())


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _notebooks_of(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["notebooks"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
