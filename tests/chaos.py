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


@dataclass
class Place:
    """Where a study keeps its results, its store, and the machine's measurements."""

    results: Path
    store: Path
    device: Path

    def start(self, *words: str) -> subprocess.Popen:
        env = os.environ | {
            "NANOSD_RESULTS": str(self.results),
            "NANOSD_STORE": str(self.store),
            "NANOSD_DEVICE": str(self.device),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "nanosd_lib.runner", *words, "--profile", "smoke"]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **how)

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


def killed(place: Place, want: dict[str, bytes], moments: int, longest: float, g: random.Random):
    """kill -9 of everything at random moments; then a run to the end."""
    lost = 0
    for _ in tqdm(range(moments), desc="kill -9"):
        process, before = place.start("reproduce"), place.finished
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(g.uniform(1, longest))
        kill(process)
        lost += len(before - place.finished)
    code, text = place.run("reproduce")
    same = code == 0 and place.outcome() == want
    return moments, moments if same else 0, lost, _said(code, text)


def damaged(place: Place, want: dict[str, bytes], g: random.Random):
    """Truncate, flip a bit in, or delete a file of each kind, all at once; then a run."""
    tried = 0
    for ending in ("parquet", "safetensors", "png", "json"):
        files = sorted(p for p in place.store.glob(f"*/*.{ending}") if p.name != "manifest.json")
        files += sorted(place.store.glob("*/manifest.json")) if ending == "json" else []
        for harm in (_truncate, _flip, os.remove):
            if files:
                harm(files.pop(g.randrange(len(files))))
                tried += 1
    code, text = place.run("reproduce")
    same = code == 0 and place.outcome() == want
    return tried, tried if same else 0, 0, _said(code, text)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@contextlib.contextmanager
def small_disk(megabytes: float) -> Iterator[Path]:
    """A file system of that size; OSError where this user cannot mount one."""
    folder = Path(tempfile.mkdtemp())
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        folder.rmdir()
        raise OSError(done.stderr.strip() or "mount failed")
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
            right = code == 0 and all(want[k] == v for k, v in ours.items())
            survived += right or (code != 0 and "No space left" in text)
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
        code == 0 and all(want[k] == v for k, v in p.outcome().items())
        for p, (code, _) in zip(places, ended, strict=True)
    ]
    bad = [_said(*e) for e, fine in zip(ended, right, strict=True) if not fine]
    return n, sum(right), 0, (bad or [_said(*ended[-1])])[0]


def wrong_clock(place: Place, want: dict[str, bytes]):
    """Files from 1980 and from 2090, as after a clock was set: nothing depends on the order."""
    for k, path in enumerate(sorted(place.store.rglob("*"))):
        when = (315532800, 3786912000)[k % 2]
        os.utime(path, (when, when))
    code, text = place.run("reproduce")
    same = code == 0 and place.outcome() == want
    return 1, int(same), 0, _said(code, text)


@contextlib.contextmanager
def memory_limit(megabytes: int) -> Iterator[Path]:
    """A memory control group; OSError where this user cannot make one. Whoever writes its pid into
    the yielded file is bound by the limit, and so are its children.
    """
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    old = (v1 / "cgroup.procs").exists()
    group = (v1 if old else v2) / f"nanosd-chaos-{os.getpid()}"
    group.mkdir()
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


def memory_kill(place: Place, want: dict[str, bytes]):
    """Notebook 03 under a memory limit that it cannot meet: the system kills its kernel. The run
    says so; the next one, without the limit, goes on.
    """
    report = place.results / "smoke" / "run.json"
    with memory_limit(900) as procs:
        process = place.start("run", "--nb", "03")
        procs.write_text(str(process.pid))
        code, text = _ended(process)
    entry = json.loads(report.read_text())["notebooks"]["03_fwkd"]
    seen = f"{entry['state']}: {entry.get('error')}"
    stopped = code == 1 and entry["state"] == "out of memory"
    code, text = place.run("reproduce")
    return (
        1,
        int(stopped and code == 0 and place.outcome() == want),
        0,
        f"{seen}; {_said(code, text)}",
    )


def _said(code: int, text: str) -> str:
    lines = [s for s in text.strip().splitlines() if s and "it/s" not in s]
    errors = [s for s in lines if "failed" in s or s.startswith("error")]
    return f"exit {code}: {(errors or lines or [''])[-1][:140]}"


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
        faults: dict[str, Callable] = {
            f"kill -9 at {moments} random moments": lambda: killed(
                place, want, moments, longest, g
            ),
            "kernel of 03 killed for memory": lambda: memory_kill(_without(place, "fwkd"), want),
            "files truncated, flipped, deleted": lambda: damaged(place, want, g),
            "clock set back and forth": lambda: wrong_clock(place, want),
            f"{runs} runs of 02 on one store, 8 at a time": lambda: together(
                place, want, temporary, runs, 8
            ),
            "disk full": lambda: full_disk(calm.device, want, (0.05, 0.3, 1, 2, 64)),
            "results read-only": lambda: read_only(place, want),
        }
        for fault, attempt in faults.items():
            print(f"chaos: {fault}", flush=True)
            try:
                rows.append((fault, *attempt()))
            except OSError as error:
                rows.append((fault, 0, 0, 0, f"not tried here: {error}"))
    return pd.DataFrame(rows, columns=COLUMNS)


def _without(place: Place, stage: str) -> Place:
    """The same place, one stage of notebook 03 not yet computed."""
    for folder in place.store.glob(f"{stage}-*"):
        shutil.rmtree(folder)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument(
        "--longest", type=float, default=25.0, help="seconds before a kill, at most"
    )
    parser.add_argument("--runs", type=int, default=24, help="runs of notebook 02 on one store")
    options = parser.parse_args()
    table = every(options.moments, options.longest, options.runs)
    print(table.to_string(index=False))
    out = ROOT / "results" / "chaos.csv"
    table.to_csv(out, index=False)
    bad = table[(table.survived < table.tried) | (table.lost > 0)]
    return 1 if len(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
