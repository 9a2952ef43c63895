"""jobs and sweep: independent jobs here and in a pool; a status that cannot flatter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from nanosd_lib import paper
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout, processes
from nanosd_lib.studies import jobs, sweep


def job(tmp_path, **description) -> jobs.Job:
    return jobs.Job("nanosd_lib.studies.sweep:echo", description, str(tmp_path / "store"))


@pytest.mark.parametrize("how, workers", [("here", 1), ("pool", 2)])
def test_jobs_end_in_artifacts_in_the_order_given(tmp_path, how, workers):
    ended = jobs.run([job(tmp_path, value=k) for k in (3, 1, 2)], how, workers)
    values = [json.loads((e.artifact / "value.json").read_text()) for e in ended]
    assert values == [3, 1, 2] and not any(e.error for e in ended)


def test_a_finished_job_is_not_computed_again(tmp_path):
    one = job(tmp_path, value=7)
    (first,) = jobs.run([one])
    stamp = (first.artifact / "manifest.json").stat().st_mtime_ns
    (again,) = jobs.run([one], "pool", 2)
    assert again.artifact == first.artifact
    assert (again.artifact / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("how", ["here", "pool"])
def test_a_failure_does_not_stop_the_others(tmp_path, how):
    asked = [job(tmp_path, value=1), job(tmp_path, value=2, fail="no"), job(tmp_path, value=3)]
    ended = jobs.run(asked, how, 2)
    assert [e.artifact is None for e in ended] == [False, True, False]
    assert ended[1].error == "RuntimeError: no"


def test_a_killed_worker_takes_only_its_own_job_with_it(tmp_path):
    asked = [job(tmp_path, value=1), job(tmp_path, value=2, die=9), job(tmp_path, value=3)]
    ended = jobs.run(asked, "pool", 2)
    assert [e.artifact is None for e in ended] == [False, True, False]
    assert "BrokenProcessPool" in ended[1].error


@pytest.mark.parametrize(
    "how, workers, words", [("cloud", 1, "'cloud' does not exist: use one of here, pool, slurm"),
                            ("pool", 0, "workers = 0 must be at least 1")]
)  # fmt: skip
def test_bad_choices(tmp_path, how, workers, words):
    with pytest.raises(ValueError, match=words):
        jobs.run([job(tmp_path, value=1)], how, workers)


# ------------------------------------------------------------------------------------------- sweeps


def test_a_grid_is_every_combination(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("seed: [0, 1]\nfwkd.steps: [2, 4]\n")
    points = sweep.grid("smoke", [5], path)
    assert len(points) == 4
    assert points[1] == {"profile": "smoke", "seed": 0, "overrides": {"fwkd.steps": 4}}
    assert sweep.grid("mini", [0, 1, 2], None)[2]["seed"] == 2


@pytest.mark.parametrize(
    "text, words",
    [
        ("seed: 3", "lists by parameter are wanted"),
        ("fwkd.step: [3]", "did you mean 'fwkd.steps'"),
        ("seed: [-1]", "an integer from 0 to 2147483647"),
        ("seed: [99999999999]", "an integer from 0 to 2147483647"),
        ("[", "grid .*grid.yaml cannot be read"),
        ("seed: [0]\nseed: [1]", "grid .*grid.yaml cannot be read: the key 'seed' is given twice"),
        ("", "grid .*grid.yaml is empty"),
        ("# nothing", "grid .*grid.yaml is empty"),
        ("- seed", "grid .*grid.yaml: lists by parameter"),
        ("\x00\x01", "grid .*grid.yaml cannot be read"),
        ("fwkd.lr: ['1e-3']", r"fwkd.lr = '1e-3' \(str\)"),
        ("seed: []", "the sweep is empty"),
    ],
)
def test_a_bad_grid_is_one_line(tmp_path, capsys, text, words):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    assert sweep.main(["--profile", "smoke", "--grid", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(ValueError, match=words):
        sweep.grid("smoke", [0], path)


def test_a_grid_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(ValueError, match=f"^grid {tmp_path}: "):
        sweep.grid("smoke", [0], tmp_path)
    with pytest.raises(ValueError, match=f"^grid {path}: No such file"):
        sweep.grid("smoke", [0], path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ValueError, match=f"^grid {path} cannot be read: ") as error:
        sweep.grid("smoke", [0], path)
    assert "\n" not in str(error.value)


def test_numbers_of_a_grid(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("fwkd.lr: [1e-3, 1E-3, .5e-3, 0.01]\nfwkd.steps: [1_000, 010]\n")
    found = [list(p["overrides"].values()) for p in sweep.grid("smoke", [0], path)]
    assert found == [[lr, n] for lr in (0.001, 0.001, 0.0005, 0.01) for n in (1000, 10)]


@pytest.mark.parametrize("seeds", ["99999999999", "-1", "0 1.5", "abc", "0,1", "00", ""])
def test_seeds_of_a_sweep(seeds, capsys):
    assert sweep.main(["--profile", "smoke", f"--seeds={seeds}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("from 0 to 2147483647 is wanted" if seeds else "give at least one seed") in line


BOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
POINT = {"profile": "smoke", "seed": 0, "overrides": {}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished study: run.json and a ledger."""
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    folder = layout.results_folder("smoke", 0)
    folder.mkdir()
    report = {
        "state": "ok",
        "seconds": 60.0,
        "notebooks": {name: {"state": "ok"} for name in BOOKS},
        "process": processes.me(),
    }
    (folder / "run.json").write_text(json.dumps(report))
    paper.ledger({}).to_csv(folder / "claims.csv", index=False)
    return folder


def change(folder, **values):
    report = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(report | values))
    return sweep.state(POINT)["state"]


def test_a_whole_study_is_green(folder):
    row = sweep.state(POINT)
    assert row["state"] == "ok" and row["notebooks"] == f"{len(BOOKS)}/{len(BOOKS)}"
    assert 'style="background:#d7f0d9"' in sweep.page(pd.DataFrame([row]))


def test_nothing_else_is_green(folder, tmp_path):
    assert change(folder, state="running") == "running"
    gone = processes.me() | {"pid": 2**22 + 1}
    assert change(folder, process=gone) == "dead"
    other = processes.me() | {"ticks": 1}  # a recycled pid
    assert change(folder, process=other) == "dead"
    assert change(folder, process={}) == "running on None, not checked"
    assert "elsewhere, not checked" in change(folder, process={"host": "elsewhere"})
    assert change(folder, state="failed") == "failed"
    late = {name: {"state": "ok"} for name in BOOKS}
    late[BOOKS[-1]] = {"state": "killed", "error": "x"}
    assert change(folder, state="ok", notebooks=late) == "damaged"
    assert change(folder, notebooks={name: {"state": "ok"} for name in BOOKS}) == "ok"
    (folder / "claims.csv").write_text("id,verdict\na,perfect\n")
    assert sweep.state(POINT)["state"] == "damaged"
    (folder / "claims.csv").unlink()
    assert sweep.state(POINT)["state"] == "damaged"
    (folder / "run.json").write_text("{")
    row = sweep.state(POINT)
    assert row["state"] == "damaged" and sweep.BAD in sweep.page(pd.DataFrame([row]))
    (folder / "run.json").unlink()
    assert sweep.state(POINT)["state"] == "not started"


def test_a_study_runs_while_one_of_its_processes_does(folder):
    """The last writer may have ended: two wrote this report."""
    gone, me = processes.me() | {"ticks": 1}, processes.me()
    books = {"01_a": {"state": "running", "process": me}, "02_b": {"state": "ok"}}
    assert change(folder, state="running", process=gone, notebooks=books) == "running"
    books["01_a"]["process"] = gone
    assert change(folder, notebooks=books) == "dead"
    assert change(folder, state="partial", notebooks=books) == "partial"
    assert sweep.state(POINT)["error"] == "01_a: killed: its process is gone"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"notebooks": 3}', '{"notebooks": {"a": 3}}', "\xff"]
)
def test_a_report_of_another_kind_is_damaged(folder, text):
    (folder / "run.json").write_bytes(text.encode("latin1"))
    assert sweep.state(POINT)["state"] == "damaged"


def test_every_notebook_must_be_there(folder):
    """One notebook that is ok and an old ledger do not make a study."""
    assert change(folder, notebooks={"00_start_here": {"state": "ok"}}) == "damaged"


def test_the_command_itself_runs_its_jobs(tmp_path):
    """`python -m nanosd_lib.cli sweep` names its function so that workers can import it."""
    code = (
        "import runpy, sys; from nanosd_lib.studies import jobs;"
        "ended = lambda job: print(job.function) or jobs.Ended(job, None, 'x');"
        "jobs.run = lambda asked, how, n, **more: [ended(asked[0])];"
        "sys.argv = ['nanosd', 'sweep', '--profile', 'smoke'];"
        "runpy.run_module('nanosd_lib.cli', run_name='__main__')"
    )
    env = os.environ | {"NANOSD_RESULTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "nanosd_lib.studies.sweep:study" in done.stdout and done.returncode == 1, done.stderr


def test_what_a_cluster_is_asked_for():
    assert sweep._parameters("1") == sweep._parameters("") == {}
    asked = sweep._parameters("slurm_partition=gpu gpus_per_node=1")
    assert asked == {"slurm_partition": "gpu", "gpus_per_node": 1}
    with pytest.raises(ValueError, match="'gpu' is refused: key=value is wanted"):
        sweep._parameters("gpu")


def test_a_finished_job_is_found_without_being_computed(tmp_path):
    one = job(tmp_path, value=5)
    assert one.finished() is None
    jobs.run([one])
    assert one.finished()["value"] == 5


def test_an_interrupted_study_ends_the_sweep(monkeypatch):
    monkeypatch.setattr(sweep.Study, "execute", lambda *a, **k: 143)
    with pytest.raises(KeyboardInterrupt):
        sweep.study("smoke", 0, {}, os.environ.get("NANOSD_RESULTS", "results"), "")


SLOW = """
import os, sys, time
from pathlib import Path
from nanosd_lib.studies import jobs
from nanosd_lib.engine.interrupts import signals

class Slow:
    def __init__(self, k):
        self.k = k

    def __call__(self):
        with signals():
            try:
                Path(f"{self.k}.begun").write_text("")
                time.sleep(300)
            except KeyboardInterrupt:
                Path(f"{self.k}.told").write_text("")
                raise

if __name__ == "__main__":
    with signals():
        list(jobs._pool([Slow(k) for k in range(3)], 2, None))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_jobs_of_a_pool(tmp_path, number):
    """Sent to the sweep alone: its workers are told, and what waits does not begin."""
    (tmp_path / "slow.py").write_text(SLOW)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    sweep = subprocess.Popen(
        [sys.executable, "slow.py"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    until = time.time() + 120
    while len(list(tmp_path.glob("*.begun"))) < 2:
        assert time.time() < until and sweep.poll() is None
        time.sleep(0.1)
    sweep.send_signal(number)
    assert "Interrupted" in sweep.communicate(timeout=60)[1]
    seen = {path.name for path in tmp_path.glob("[0-9].*")}
    assert seen == {"0.begun", "0.told", "1.begun", "1.told"}


def test_what_fails_after_a_signal_ends_the_sweep(tmp_path, monkeypatch, capsys):
    """The signal struck in code that catches everything: no other job begins."""
    begun = []

    def study(self):
        begun.append(self.description["seed"])
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
        raise OSError("tripped")

    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    monkeypatch.setattr(jobs.Job, "__call__", study)
    code = sweep.main(["--profile", "smoke", "--seeds", "0 1"])
    assert code == 128 + signal.SIGHUP and begun == [0]
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command goes on"


def test_the_table_of_a_sweep():
    one = pd.DataFrame({"id": ["a", "b"], "statement": ["A", "B"], "paper": [1.0, None],
                        "ours": [1.0, None], "verdict": ["trend holds", "not run"]})  # fmt: skip
    two = one.assign(ours=[3.0, None], verdict=["trend fails", "not run"])
    both = [({"profile": "mini", "overrides": {}}, t) for t in (one, two)]
    other = [({"profile": "mini", "overrides": {"fwkd.steps": 2}}, one)]
    table = sweep.summary(both + other)
    assert len(table) == 4 and table[table.overrides != "{}"].n.tolist() == [1, 0]
    table = table[table.overrides == "{}"].set_index("id")
    assert table.n.to_dict() == {"a": 2, "b": 0} and table["mean"]["a"] == 2
    assert table["std"]["a"] == pytest.approx(2**0.5)
    assert table.low["a"] == pytest.approx(2 - 12.7062 * 1.0, abs=1e-3)
    assert table.verdicts["a"] == "1 trend holds, 1 trend fails"
    assert table.verdicts["b"] == "2 not run"
