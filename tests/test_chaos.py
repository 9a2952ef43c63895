"""The reduced form of `make chaos`: a stage broken in every way, in seconds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import chaos
import pandas as pd
import pytest

from nanosd_lib import paths
from nanosd_lib.runs import artifacts, cache, layout, notebook
from nanosd_lib.studies import sweep

WRITER = """
import sys
from pathlib import Path
from nanosd_lib.runs import artifacts
for k in range(200):
    folder = Path({store!r}) / f"a-{{k}}"
    if not folder.exists():
        artifacts.write(folder, f"k{{k}}", {{"value": [k] * 3000}}, {{}})
    print(k, flush=True)
"""


def test_kill_9_at_random_moments_leaves_whole_artifacts_or_none(tmp_path):
    """Four writers killed somewhere in the middle: what is there is whole, nothing is lost."""
    g, whole = random.Random(0), set()
    code = textwrap.dedent(WRITER.format(store=str(tmp_path)))
    env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
        writer.stdout.readline()  # it has begun to write
        time.sleep(g.uniform(0, 0.4))
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        now = set()
        for folder in tmp_path.glob("a-*"):
            k = folder.name[2:]
            assert artifacts.read(folder, f"k{k}")["value"] == [int(k)] * 3000
            now.add(k)
        assert whole <= now
        whole = now
    artifacts.sweep(tmp_path)
    assert whole and not list(tmp_path.glob(".tmp-*"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    return tmp_path


def squares(folder, n: int = 3):
    return cache.cached(
        folder, notebook.torch.device("cpu"), "echo", sweep.echo, {"value": n}, [], {}
    )


def test_a_full_disk_keeps_what_was_finished(place):
    with mounted(0.2) as folder:
        first = squares(folder, 1)
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"x" * 10**6)
        with pytest.raises(OSError, match="No space left"):
            cache.cached(
                folder, notebook.torch.device("cpu"), "echo", sweep.echo,
                {"value": ["x" * 1000] * 500}, [], {},
            )  # fmt: skip
        assert artifacts.read(first.path, first.key)["value"] == 1
        assert [p.name for p in folder.glob(".tmp*")] == []
        filler.unlink()
        assert squares(folder, 2)["value"] == 2


def mounted(megabytes):
    """A small file system, or a skip."""
    manager = chaos.small_disk(megabytes)
    try:
        folder = manager.__enter__()
    except chaos.Untried as error:
        pytest.skip(f"no file system can be mounted here: {error}")

    class Mounted:
        def __enter__(self):
            return folder

        def __exit__(self, *problem):
            return manager.__exit__(*problem)

    return Mounted()


def test_a_read_only_store_loads_and_refuses_in_one_line(place):
    with mounted(4) as folder:
        squares(folder, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        assert squares(folder, 1)["value"] == 1
        with pytest.raises(OSError, match="Read-only"):
            squares(folder, 2)


def test_clocks_do_not_matter(place):
    folder = place / "store"
    first = squares(folder)
    for when in (0, 2**32):
        for path in (first.path, *first.path.iterdir()):
            os.utime(path, (when, when))
        assert squares(folder)["value"] == 3


def test_another_lock_is_another_result(place, monkeypatch):
    folder = place / "store"
    one = squares(folder)
    monkeypatch.setattr(cache, "lock_hash", lambda: "another")
    two = squares(folder)
    assert one.path != two.path and one.path.exists()


def test_measurements_live_with_the_machine(place, monkeypatch):
    run = notebook.open_run("02_toy", "smoke")
    kept = run.cached("echo", sweep.echo, {"value": 1}, measured=True)
    assert kept.path.parent == paths.device_root() != run.store
    monkeypatch.setenv("NANOSD_DEVICE", str(place / "elsewhere"))
    assert (
        run.cached("echo", sweep.echo, {"value": 1}, measured=True).path.parent
        == place / "elsewhere"
    )


def test_studies_side_by_side_share_the_cores(monkeypatch):
    assert layout.threads(2) == 2
    monkeypatch.setenv("NANOSD_THREADS", "1")
    assert layout.threads(2) == 1
    monkeypatch.setenv("NANOSD_THREADS", "8")
    assert layout.threads(2) == 2
    monkeypatch.setenv("NANOSD_THREADS", "none")
    assert layout.threads(2) == 2


def test_the_table_of_the_last_full_attack():
    """`make chaos` leaves it; the committed one has nothing lost and everything survived."""
    table = pd.read_csv(paths.ROOT / "results" / "reference" / "chaos.csv")
    assert list(table.columns) == chaos.COLUMNS and len(table) >= 6
    assert table.lost.eq(0).all() and table.survived.eq(table.tried).all()
    assert table.tried.sum() >= 40
