"""Chaos: break a smoke run in every way we know, and count what is lost (`make chaos`).

Each fault is tried for real: processes are killed, files damaged, a small file system filled. A
fault is survived when the next run ends with the undisturbed run's own claims and tables, or says
in one line what is wrong; an artifact is lost when it was finished before and is gone after.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
from tqdm.auto import tqdm

ROOT = Path(__file__).parents[1]
COLUMNS = ["fault", "tried", "survived", "lost", "what was seen"]


class Untried(Exception):
    """A fault that cannot be made here; the text says why."""


@dataclass
class Place:
    """Where a study keeps its results, its store, and the machine's measurements."""

    results: Path
    store: Path
    device: Path
    root: Path = ROOT

    def start(self, *words: str) -> subprocess.Popen:
        env = os.environ | {
            "NANOSD_RESULTS": str(self.results),
            "NANOSD_STORE": str(self.store),
            "NANOSD_DEVICE": str(self.device),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(self.root),
        }
        command = [sys.executable, "-m", "nanosd_lib.cli", *words, "--profile", "smoke"]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command, cwd=self.root, env=env, start_new_session=True, **how)

    def run(self, *words: str) -> tuple[int, str]:
        return _ended(self.start(*words))

    @property
    def finished(self) -> set[str]:
        return {p.parent.name for p in self.store.glob("*/manifest.json")}

    def outcome(self) -> dict[str, bytes]:
        """claims.csv and every table, as bytes."""
        folder = self.results / "smoke"
        files = [folder / "claims.csv", *sorted((folder / "tables").glob("*.csv"))]
        return {p.name: p.read_bytes() for p in files if p.exists()}


def _ended(process: subprocess.Popen) -> tuple[int, str]:
    text = process.communicate()[0]
    return process.returncode, text


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the runner, its kernel and all below, at once: nobody gets to tidy up."""
    with contextlib.suppress(psutil.Error):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.Error):
                one.send_signal(signal.SIGKILL)
    process.communicate()


# ------------------------------------------------------------------------------------------- faults


def resumed(place: Place, want: dict[str, bytes], harms: list[tuple]) -> list[tuple]:
    """Rows of the table: the harms (fault, tried, artifacts lost, those that must be there again,
    what was seen, whether it went as it must) were done, one run mends them all, and only the
    undisturbed run's own outcome counts as survived.
    """
    code, text = place.run("reproduce")
    same = code == 0 and place.outcome() == want
    rows = []
    for fault, tried, lost, had, seen, right in harms:
        lost += len(had - place.finished)
        said = "; ".join(filter(None, [seen, _said(code, text)]))
        rows.append((fault, tried, tried if same and right else 0, lost, said))
    return rows


def killed(place: Place, moments: int, longest: float, g: random.Random) -> tuple:
    """kill -9 of everything at random moments, each time of a run that goes on from the last."""
    lost = tried = 0
    with tqdm(total=moments, desc="kill -9") as bar:
        for _ in range(3 * moments):
            if tried == moments:
                break
            process, before = place.start("reproduce"), place.finished
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(g.uniform(1, longest))
            alive = process.poll() is None
            kill(process)
            if not alive:  # it was done before the kill: begin again from nothing
                shutil.rmtree(place.store, ignore_errors=True)
                continue
            tried += 1
            bar.update()
            lost += len(before - place.finished)
    return f"kill -9 at {moments} random moments", tried, lost, set(), "", True


def damaged(place: Place, g: random.Random) -> tuple:
    """Truncate, flip a bit in, or delete a file of each kind, all at once."""
    tried, had = 0, place.finished
    for ending in ("parquet", "safetensors", "png", "json"):
        files = sorted(p for p in place.store.glob(f"*/*.{ending}") if p.name != "manifest.json")
        files += sorted(place.store.glob("*/manifest.json")) if ending == "json" else []
        for harm in (_truncate, _flip, os.remove):
            if files:
                harm(files.pop(g.randrange(len(files))))
                tried += 1
    return "files truncated, flipped, deleted", tried, 0, had, "", True


def wrong_clock(place: Place) -> tuple:
    """Files from 1980 and from 2090, as after a clock was set: nothing depends on the order."""
    had = place.finished
    for k, path in enumerate(sorted(place.store.rglob("*"))):
        when = (315532800, 3786912000)[k % 2]
        os.utime(path, (when, when))
    return "clock set back and forth", 1, 0, had, "", True


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@contextlib.contextmanager
def small_disk(megabytes: float) -> Iterator[Path]:
    """A file system of that size; Untried where this user cannot mount one."""
    folder = Path(tempfile.mkdtemp())
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        folder.rmdir()
        raise Untried(done.stderr.strip() or "mount failed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        folder.rmdir()


def full_disk(device: Path, want: dict[str, bytes], sizes: tuple[float, ...]):
    """A disk that is full after a few megabytes: one line, and the finished stages stay whole; then
    room is made and the run goes on.
    """
    survived, lost, said = 0, 0, ""
    with small_disk(sizes[0]) as folder:
        place = Place(folder / "results", folder / "store", device)
        for size in sizes:
            remount = ["mount", "-o", f"remount,size={int(size * 1024)}k", str(folder)]
            subprocess.run(remount, check=True)
            before = place.finished
            code, text = place.run("run", "--nb", "02")
            said = _said(code, text)
            lost += len(before - place.finished)
            ours = place.outcome()
            right = code == 0 and ours and all(want[k] == v for k, v in ours.items())
            one_line = code != 0 and "No space left" in text and "Traceback" not in text
            survived += bool(right) or one_line
    return len(sizes), survived, lost, said


def read_only(place: Place, want: dict[str, bytes]):
    """Results that cannot be written: one line, nothing lost."""
    with small_disk(64) as folder:
        inside = Place(folder / "results", place.store, place.device)
        inside.results.mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        before = place.finished
        code, text = inside.run("run", "--nb", "02")
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    one_line = code != 0 and "Read-only" in text and "Traceback" not in text
    return 1, int(one_line), len(before - place.finished), _said(code, text)


def together(place: Place, want: dict[str, bytes], temporary: Path, n: int, at_once: int):
    """n runs of notebook 02, `at_once` at a time, each with its own results, on one empty store."""
    places = [Place(temporary / f"r{k}", temporary / "shared", place.device) for k in range(n)]
    with ThreadPoolExecutor(at_once) as pool:
        ended = list(pool.map(lambda p: p.run("run", "--nb", "02"), places))
    right = [
        code == 0 and bool(p.outcome()) and all(want[k] == v for k, v in p.outcome().items())
        for p, (code, _) in zip(places, ended, strict=True)
    ]
    bad = [_said(*e) for e, fine in zip(ended, right, strict=True) if not fine]
    return n, sum(right), 0, (bad or [_said(*ended[-1])])[0]


@contextlib.contextmanager
def memory_limit(megabytes: int) -> Iterator[Path]:
    """A memory control group; Untried where this user cannot make one. Whoever writes its pid into
    the yielded file is bound by the limit, and so are its children.
    """
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    old = (v1 / "cgroup.procs").exists()
    group = (v1 if old else v2) / f"nanosd-chaos-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Untried(str(error)) from None
    try:
        limit = group / ("memory.limit_in_bytes" if old else "memory.max")
        limit.write_text(str(megabytes * 2**20))
        yield group / "cgroup.procs"
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def other_code(place: Place, want: dict[str, bytes], temporary: Path):
    """A changed line of library code, then another lock, in a copy of the project on the same
    store: the stages they decide are computed again, and the old ones stay for the old code.
    """
    before, survived, said = place.finished, 0, ""
    for k, (file, text) in enumerate(
        (("nanosd_lib/quality/checks.py", "CHANGED = 1\n"), ("requirements.lock", "# changed\n"))
    ):
        copy = temporary / f"copy{k}"
        words = ["git", "clone", "--quiet", str(ROOT), str(copy)]
        subprocess.run(words, check=True, capture_output=True)
        with (copy / file).open("a") as handle:
            handle.write(text)
        other = Place(temporary / f"copy{k}-results", place.store, place.device, copy)
        (temporary / f"copy{k}-results").mkdir()
        code, out = other.run("run", "--nb", "00")
        book = other.results / "smoke" / "notebooks" / "00_start_here.ipynb"
        survived += code == 0 and "cached check-vae: computed in" in book.read_text()
        said = _said(code, out)
    return 2, survived, len(before - place.finished), said


def memory_kill(place: Place) -> tuple:
    """Notebook 03 under a memory limit that it cannot meet: the system kills its kernel. The run
    and the status table say so; the next run, without the limit, goes on.
    """
    from nanosd_lib.studies import sweep

    fault, report = "kernel of 03 killed for memory", place.results / "smoke" / "run.json"
    for folder in place.store.glob("fwkd-*"):
        shutil.rmtree(folder)
    before = place.finished
    try:
        with memory_limit(900) as procs:
            process = place.start("run", "--nb", "03")
            procs.write_text(str(process.pid))
            code, _ = _ended(process)
    except Untried as reason:
        return fault, 0, 0, set(), f"not tried here: {reason}", True
    entry = json.loads(report.read_text())["notebooks"]["03_fwkd"]
    os.environ["NANOSD_RESULTS"] = str(place.results)
    row = sweep.state({"profile": "smoke", "seed": 0, "overrides": {}})
    os.environ.pop("NANOSD_RESULTS")
    seen = f"{entry['state']}: {entry.get('error')}"
    seen += f"; status table: {row['state']}, {row['error'][:60]}"
    right = code == 1 and entry["state"] == "out of memory" and row["state"] != "ok"
    right = right and "out of memory" in row["error"]
    return fault, 1, 0, before, seen, right


def _said(code: int, text: str) -> str:
    lines = [s for s in text.strip().splitlines() if s and "it/s" not in s]
    errors = [s for s in lines if "failed" in s or s.startswith("error")]
    said = (errors or lines or [""])[-1].split("; everything is in")[0]
    return f"exit {code}: {re.sub(tempfile.gettempdir() + r'/[^/ ]+/', '', said)[:140]}"


# --------------------------------------------------------------------------------------------- all


def every(moments: int, longest: float, runs: int, seed: int = 0) -> pd.DataFrame:
    """All faults, one row each."""
    g, rows = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="nanosd-chaos-") as name:
        temporary = Path(name)
        calm = Place(temporary / "calm", temporary / "calm-store", temporary / "device")
        code, text = calm.run("reproduce")
        if code:
            raise SystemExit(f"the undisturbed run failed: {text[-2000:]}")
        want = calm.outcome()
        place = Place(temporary / "results", temporary / "store", calm.device)
        print("chaos: kills, damage", flush=True)
        rows += resumed(place, want, [killed(place, moments, longest, g), memory_kill(place)])
        rows += resumed(place, want, [damaged(place, g), wrong_clock(place)])
        faults: dict[str, Callable] = {
            f"{runs} runs of 02 on one store, 8 at a time": lambda: together(
                place, want, temporary, runs, 8
            ),
            "another line of code, another lock": lambda: other_code(place, want, temporary),
            "disk full": lambda: full_disk(calm.device, want, (0.05, 0.3, 1, 2, 64)),
            "results read-only": lambda: read_only(place, want),
        }
        for fault, attempt in faults.items():
            print(f"chaos: {fault}", flush=True)
            try:
                rows.append((fault, *attempt()))
            except Untried as reason:
                rows.append((fault, 0, 0, 0, f"not tried here: {reason}"))
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                rows.append((fault, 1, 0, 0, f"the attack itself failed: {error}"))
    return pd.DataFrame(rows, columns=COLUMNS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument(
        "--longest", type=float, default=12.0, help="seconds before a kill, at most"
    )
    parser.add_argument("--runs", type=int, default=24, help="runs of notebook 02 on one store")
    options = parser.parse_args()
    table = every(options.moments, options.longest, options.runs)
    print(table.to_string(index=False))
    table.to_csv(ROOT / "results" / "chaos.csv", index=False)
    bad = table[(table.survived < table.tried) | (table.lost > 0)]
    return 1 if len(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
