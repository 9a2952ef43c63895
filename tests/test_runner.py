"""runner: a notebook that did not run to its end can never look as if it had."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from nanosd_lib.engine import interrupts, kernels
from nanosd_lib.paths import ROOT
from nanosd_lib.studies import runner, study

PARAMETERS = "profile = 'mini'\nseed = 0\noverrides = {}"
LEDGER = """
from nanosd_lib.runs import layout
folder = layout.results_folder(profile, seed, overrides)
rows = "id,evidence,verdict\\na,counted,reproduced\\nb,timed,fails\\nc,trained,not run\\n"
_ = (folder / "claims.csv").write_text(rows)
"""


def notebook(path, *cells, parameters=PARAMETERS):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def books(tmp_path, monkeypatch):
    """An empty folder of notebooks, and a teacher that is there."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model_index.json").write_text("{}")
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    (tmp_path / "books").mkdir()
    return tmp_path / "books"


def run(books, verb="reproduce", *more):
    teacher = f"teacher.path={books.parent / 'teacher'}"
    code = runner.main([verb, "--profile", "smoke", "--set", teacher, *more], books)
    reports = list((books.parent / "results").glob("smoke*/run.json"))
    return code, json.loads(reports[0].read_text()) if reports else None


def test_a_study_that_runs_through(books, capfd):
    notebook(books / "02_b.ipynb", "import os; print(os.environ['HF_HUB_OFFLINE'], seed)")
    notebook(books / "11_c.ipynb", LEDGER)
    code, report = run(books)
    assert code == 0 and report["state"] == "ok"
    assert [(n, e["state"]) for n, e in report["notebooks"].items()] == [
        ("02_b", "ok"),
        ("11_c", "ok"),
    ]
    assert report["notebooks"]["02_b"]["seconds"] > 0
    assert 0.01 < report["notebooks"]["02_b"]["peak_gb"] < 4
    assert {"platform", "cpu", "cores", "ram_gb", "versions"} <= report["machine"].keys()
    assert report["profile"] == "smoke" and report["lock"] and "commit" in report["git"]
    out = capfd.readouterr().out
    assert "the ledger: 3 rows. timed: 1 fails; counted: 1 reproduced; not run: 1" in out
    assert "everything is in" in out
    saved = next((books.parent / "results").glob("smoke*/notebooks/02_b.ipynb"))
    book = nbformat.read(saved, as_version=4)
    assert book.cells[-1].outputs[0].text == "1 0\n"
    assert book.metadata.papermill.input_path == "02_b.ipynb"
    assert book.metadata.papermill.output_path == "02_b.ipynb"


def test_a_raising_cell_stops_the_study(books, capfd):
    notebook(books / "02_b.ipynb", "1 / 0", "print('never')")
    notebook(books / "03_c.ipynb", LEDGER)
    code, report = run(books)
    assert code == 1 and report["state"] == "failed"
    assert report["notebooks"]["02_b"]["state"] == "code error"
    assert report["notebooks"]["02_b"]["error"].startswith("code cell 3 of 4: ZeroDivisionError")
    assert report["notebooks"]["03_c"] == {"state": "not run"}
    err = capfd.readouterr().err
    assert "02_b failed: code cell 3 of 4: ZeroDivisionError: division by zero" in err
    assert "notebooks/02_b.ipynb" in err and "make reproduce PROFILE=smoke SEED=0" in err


@pytest.mark.parametrize(
    "cell, words",
    [
        ("import os; os.kill(os.getpid(), 9)", "the kernel died of SIGKILL"),
        ("import os; os._exit(0)", "the kernel left with exit code 0"),
    ],
)
def test_a_dead_kernel_is_a_failure(books, cell, words, capfd):
    notebook(books / "02_b.ipynb", "print('before')", cell, "print('after')")
    notebook(books / "03_c.ipynb", LEDGER)
    code, report = run(books)
    assert code == 1 and report["state"] == "failed"
    assert report["notebooks"]["02_b"]["state"] == "killed"
    assert report["notebooks"]["02_b"]["error"] == f"code cell 4 of 5: {words}"
    assert report["notebooks"]["03_c"] == {"state": "not run"}
    saved = next((books.parent / "results").glob("smoke*/notebooks/02_b.ipynb"))
    book = nbformat.read(saved, as_version=4)
    states = [cell.metadata.papermill.status for cell in book.cells if cell.cell_type == "code"]
    assert states[-2:] == ["failed", "pending"] and "This run failed" in book.cells[0].source


def test_the_next_run_is_green_again(books):
    notebook(books / "02_b.ipynb", "1 / 0")
    notebook(books / "03_c.ipynb", LEDGER)
    assert run(books)[0] == 1
    notebook(books / "02_b.ipynb", "1 / 1")
    code, report = run(books, "run", "--nb", "2")
    assert code == 0 and report["notebooks"]["02_b"]["state"] == "ok"
    assert report["notebooks"]["03_c"]["state"] == "not run"  # kept from the study before
    assert run(books)[0] == 0


COMMAND = """
import sys; from pathlib import Path; from nanosd_lib.studies import runner
from nanosd_lib.engine.interrupts import leave; print(flush=True)
leave(runner.main(sys.argv[1:], Path({books!r})))
"""


def started(books, *words, **how):
    """A runner of these notebooks in a process of its own, once its imports are done."""
    teacher = f"teacher.path={books.parent / 'teacher'}"
    code = COMMAND.format(books=str(books))
    command = [sys.executable, "-c", code, *words, "--profile", "smoke", "--set", teacher]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=env, **pipes | how)
    process.stdout.readline()
    return process


def until(there, process, seconds=60):
    """Wait for a file with something in it, while the process lives."""
    deadline = time.time() + seconds
    while not (there.exists() and there.read_text()):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    return there.read_text()


def reported(books):
    (path,) = (books.parent / "results").glob("smoke*/run.json")
    return json.loads(path.read_text())


def waits(folder, name):
    """A cell that says where it is, and goes on when it is told."""
    ready, go = folder / f"{name}.ready", folder / f"{name}.go"
    cell = f"""
import os, pathlib, time
pathlib.Path({str(ready)!r}).write_text(str(os.getpid()))
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)
"""
    return ready, go, cell


def test_two_runs_of_one_folder_end_in_one_report(books):
    """The long one began first and ends last; what the short one did in between stays."""
    ready, go, cell = waits(books.parent, "a")
    notebook(books / "01_a.ipynb", cell)
    notebook(books / "02_b.ipynb", "1")
    notebook(books / "03_c.ipynb", "1 / 0")
    long = started(books, "run", "--nb", "1")
    until(ready, long)
    assert run(books, "run", "--nb", "2")[0] == 0
    report = reported(books)
    states = {name: entry["state"] for name, entry in report["notebooks"].items()}
    assert states == {"01_a": "running", "02_b": "ok"} and report["state"] == "running"
    assert run(books, "run", "--nb", "3")[0] == 1 and reported(books)["state"] == "running"
    notebook(books / "03_c.ipynb", "1")
    assert run(books, "run", "--nb", "3")[0] == 0
    go.touch()
    assert long.wait(60) == 0, long.communicate()
    report = reported(books)
    assert {entry["state"] for entry in report["notebooks"].values()} == {"ok"}
    assert len(report["notebooks"]) == 3 and report["state"] == "ok"
    assert not any("process" in entry for entry in report["notebooks"].values())


def test_a_study_that_was_killed_is_not_running(books):
    ready, _, cell = waits(books.parent, "a")
    notebook(books / "01_a.ipynb", cell)
    notebook(books / "02_b.ipynb", "1")
    first = started(books, "run", "--nb", "1")
    kernel = int(until(ready, first))
    first.kill()
    first.communicate()
    os.kill(kernel, signal.SIGKILL)
    assert reported(books)["state"] == "running"
    assert run(books, "run", "--nb", "2")[0] == 0
    report = reported(books)
    assert report["notebooks"]["01_a"]["state"] == "killed" and report["state"] == "partial"
    assert report["notebooks"]["01_a"]["error"] == "its process is gone"


def test_a_whole_study_forgets_all_but_what_runs_elsewhere(books):
    ready, go, cell = waits(books.parent, "b")
    notebook(books / "01_a.ipynb", "1")
    notebook(books / "02_b.ipynb", cell)
    assert run(books, "run", "--nb", "1")[0] == 0
    (books / "01_a.ipynb").unlink()
    notebook(books / "03_c.ipynb", "1 / 0")
    other = started(books, "run", "--nb", "2")
    until(ready, other)
    assert run(books, "run", "--nb", "3")[0] == 1
    notebook(books / "01_x.ipynb", "1 / 0")
    assert run(books)[0] == 1
    books_of = reported(books)["notebooks"]
    assert {name: entry["state"] for name, entry in books_of.items()} == {
        "01_x": "code error",
        "02_b": "running",
        "03_c": "not run",
    }
    go.touch()
    assert other.wait(60) == 0, other.communicate()
    assert reported(books)["notebooks"]["02_b"]["state"] == "ok"


def test_a_study_without_a_ledger_is_not_green(books, capfd):
    notebook(books / "02_b.ipynb")
    code, report = run(books)
    assert code == 1 and report["state"] == "failed"
    assert "did not write" in capfd.readouterr().err


def refused(books, capfd, *argv, verb="reproduce"):
    teacher = ["--set", f"teacher.path={books.parent / 'teacher'}"]
    assert runner.main([verb, *teacher, *argv], books) == 2
    assert not (books.parent / "results").exists()
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_what_cannot_run_is_refused_in_one_line(books, capfd):
    assert "holds no numbered notebook" in refused(books, capfd)
    notebook(books / "02_b.ipynb", LEDGER)
    assert "did you mean 'mini'?" in refused(books, capfd, "--profile", "mni")
    for seed in (
        "-1",
        "two",
        "99999999999",
        "2147483648",
        "1.5",
        "",
        "00",
        "0x1",
        "-x",
        "9" * 5000,
    ):
        said = refused(books, capfd, f"--seed={seed}")
        assert "is refused: an integer from 0 to 2147483647 is wanted" in said
    assert "did you mean 'fwkd.steps'" in refused(books, capfd, "--set", "fwkd.step=3")
    assert "fwkd.steps = 'x' (str)" in refused(books, capfd, "--set", "fwkd.steps=x")
    assert "key=value is wanted" in refused(books, capfd, "--set", "fwkd.steps")
    assert "make teacher" in refused(books, capfd, "--set", "teacher.path=data/nowhere")
    assert "use one of 02" in refused(books, capfd, "--nb", "13", verb="run")
    assert "use one of 02" in refused(books, capfd, verb="run")


def test_unknown_parameters_are_refused_before_a_kernel_starts(books, tmp_path, capfd):
    path = notebook(books / "02_b.ipynb", "1", parameters="profile = 'mini'\nseed = 0")
    assert "has no parameter 'overrides': it declares profile, seed" in refused(books, capfd)
    with pytest.raises(ValueError, match="has no parameter 'profil'"):
        kernels.execute(path, tmp_path / "out.ipynb", {"profil": "mini"}, {})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_a_signal_stops_kernel_and_study(books, name):
    ready, _, cell = waits(books.parent, "b")
    notebook(books / "02_b.ipynb", cell)
    process = started(books, "reproduce")
    kernel = int(until(ready, process))
    number = getattr(signal, name)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "interrupted; go on with: make reproduce PROFILE=smoke" in err
    assert not psutil.pid_exists(kernel)
    report = reported(books)
    assert report["state"] == report["notebooks"]["02_b"]["state"] == "interrupted"
    assert "process" not in report["notebooks"]["02_b"]
    (page,) = (books.parent / "results").glob("smoke*/notebooks/02_b.ipynb")
    assert nbformat.read(page, as_version=4).metadata.nanosd.state == "interrupted"


def test_a_terminal_that_is_closed_interrupts_the_study(books):
    """Nothing can be written to it any more, and the report is written all the same."""
    ready, _, cell = waits(books.parent, "b")
    notebook(books / "02_b.ipynb", cell)
    ours, its = pty.openpty()
    process = started(books, "run", "--nb", "2", stderr=its, stdin=its)
    os.close(its)
    until(ready, process)
    os.close(ours)
    process.send_signal(signal.SIGHUP)  # as the shell does for its jobs
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    report = reported(books)
    assert report["state"] == report["notebooks"]["02_b"]["state"] == "interrupted"


@pytest.mark.parametrize(
    "ignored, sent, ends",
    [
        ("SIGHUP", "SIGHUP", False),  # nohup
        ("SIGUSR1", "SIGUSR1", False),
        ("SIGHUP", "SIGTERM", True),
        ("SIGINT", "SIGINT", True),  # a job in a shell's background
    ],
)
def test_a_signal_that_is_ignored_stays_so(ignored, sent, ends):
    before = signal.signal(getattr(signal, ignored), signal.SIG_IGN)
    try:
        with contextlib.ExitStack() as stack:
            if ends:
                stack.enter_context(pytest.raises(interrupts.Interrupted))
            with interrupts.signals():
                os.kill(os.getpid(), getattr(signal, sent))
                time.sleep(0.01)
        assert signal.getsignal(getattr(signal, ignored)) == signal.SIG_IGN
    finally:
        signal.signal(getattr(signal, ignored), before)


def test_what_others_do_with_a_signal_stays_theirs():
    """As in a job of submitit's, which asks for it to be queued again and leaves."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with interrupts.signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1] and interrupts.came() is None


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_a_signal_while_the_report_is_written(books, monkeypatch, moment):
    """It is written again, and nothing in it runs on."""
    notebook(books / "02_b.ipynb", "1")
    real, seen = study.paths.write_atomic, []

    def write(path, data):
        seen.append(path)
        if len(seen) == moment:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(1)
        real(path, data)

    monkeypatch.setattr(kernels, "execute", lambda *rest: kernels.Outcome("ok", "", 0.0))
    monkeypatch.setattr(study.paths, "write_atomic", write)
    code, report = run(books, "run", "--nb", "2")
    assert code == 128 + signal.SIGHUP and report["state"] == "interrupted"
    state = report["notebooks"]["02_b"]["state"]
    assert state == {1: "not run", 2: "interrupted", 3: "ok", 4: "ok"}[moment]


def test_a_study_that_is_left_was_interrupted(books, monkeypatch):
    notebook(books / "02_b.ipynb", "1")
    monkeypatch.setattr(kernels, "execute", lambda *rest: sys.exit(-1))
    with pytest.raises(SystemExit):
        run(books)
    report = reported(books)
    assert report["state"] == report["notebooks"]["02_b"]["state"] == "interrupted"


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.5, 2.0, 2.5, 3.5])
def test_a_signal_that_comes_twice_at_any_moment_is_one_line(books, seconds):
    """While the study begins, a kernel starts, cells follow each other, and during the tidying."""
    notebook(books / "02_b.ipynb", *["import time; time.sleep(0.05)"] * 20)
    notebook(books / "03_c.ipynb", "import time; time.sleep(300)")
    process = started(books, "reproduce")
    time.sleep(0.2 + seconds)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    kernels_left = psutil.Process(process.pid).children(recursive=True) if seconds else []
    _, err = process.communicate(timeout=60)
    (line,) = [text for text in err.splitlines() if text and "notebooks:" not in text]
    assert process.returncode == 128 + signal.SIGTERM
    assert line.startswith("interrupted; go on with: make reproduce PROFILE=smoke")
    assert not psutil.wait_procs(kernels_left, timeout=5)[1]
    for report in (books.parent / "results").glob("smoke*/run.json"):
        assert json.loads(report.read_text())["state"] == "interrupted"


@pytest.mark.parametrize("trips", [AssertionError, asyncio.CancelledError, None])
def test_what_fails_after_a_signal_failed_of_it(books, monkeypatch, capsys, trips):
    """The signal strikes in code that catches everything, and then trips, or goes on."""
    notebook(books / "01_a.ipynb", "1")
    notebook(books / "02_b.ipynb", "1")
    executed = []

    def execute(path, *rest):
        executed.append(path.stem)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except KeyboardInterrupt:
            pass
        if trips:
            raise trips
        return kernels.Outcome("killed", "the kernel is gone", 0.0)

    monkeypatch.setattr(kernels, "execute", execute)
    code, report = run(books)
    assert code == 128 + signal.SIGTERM and executed == ["01_a"]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("interrupted; go on with: make reproduce PROFILE=smoke")
    assert report["state"] == report["notebooks"]["01_a"]["state"] == "interrupted"


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 0.001),
        (".5e-3", 0.0005),
        ("1E-3", 0.001),
        ("1_000", 1000),
        ("[1]", [1]),
        ("x", "x"),
    ],
)
def test_values_of_set(text, value):
    key, read = runner.assignment(f"fwkd.lr={text}")
    assert (key, read) == ("fwkd.lr", value) and type(read) is type(value)


def test_a_kernel_that_dies_in_the_last_cell_is_a_failure(books):
    notebook(books / "11_c.ipynb", LEDGER + "\nimport os, time; time.sleep(0.5); os._exit(0)")
    code, report = run(books)
    assert code == 1 and report["notebooks"]["11_c"]["state"] == "killed"
