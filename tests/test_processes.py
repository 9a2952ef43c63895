"""processes: who still lives, whatever clocks, pids and containers do; one writer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from nanosd_lib.paths import ROOT
from nanosd_lib.runs import processes

SAY = "import json; from nanosd_lib.runs import processes as p; print(json.dumps(p.me()))"


@pytest.fixture
def other():
    """A process that lives until it is asked to end, and what it said of itself."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-uc", f"{SAY}; input()"], env=env, **pipes)
    yield process, json.loads(process.stdout.readline())
    process.kill()
    process.communicate()


def test_a_process_lives_until_it_ends(other):
    process, said = other
    assert processes.lives(said) is True and processes.lives(processes.me()) is True
    process.kill()
    deadline = time.time() + 10
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.time() < deadline
        time.sleep(0.01)
    assert processes.lives(said) is False  # nobody has waited for it yet
    process.wait()
    assert processes.lives(said) is False


@pytest.mark.parametrize("step", [2.0, -3600.0, 10**8])
def test_a_clock_that_is_set_kills_nobody(other, monkeypatch, step):
    """Linux computes the time a process began at from the clock: psutil then tells another one."""
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + step)
    assert processes.lives(other[1]) is True


def test_a_system_that_counts_no_ticks_keeps_the_time(other, monkeypatch):
    monkeypatch.setattr(processes, "_ticks", lambda pid: None)
    said = {**other[1], "ticks": None}
    assert processes.lives(said) is True
    assert processes.lives(said | {"began": said["began"] - 2}) is True
    assert processes.lives(said | {"began": said["began"] - 7200}) is False


@pytest.mark.parametrize(
    "change, lives",
    [
        ({"ticks": 1}, False),  # its pid was given to another
        ({"boot": "another"}, False),
        ({"boot": "another", "space": "pid:[1]"}, None),
        ({"space": "pid:[1]"}, None),  # another container: the pid means nothing here
        ({"host": "elsewhere"}, None),
        ({"pid": 2**22 + 1}, False),
        ({"pid": -1}, False),
        ({"pid": "x"}, False),
        ({"pid": None}, False),
    ],
)
def test_what_is_known_of_others(change, lives):
    assert processes.lives(processes.me() | change) is lives


def test_a_report_of_an_earlier_version_is_understood():
    old = {key: processes.me()[key] for key in ("host", "pid", "began")}
    assert processes.lives(old) is True
    assert processes.lives(old | {"began": 1.0}) is False
    assert processes.lives({}) is None and processes.lives({"host": old["host"]}) is False


def test_a_name_with_brackets_and_spaces_hides_no_ticks(tmp_path):
    """The second field of `stat` is the program's name, whatever is in it."""
    if processes._ticks(os.getpid()) is None:
        pytest.skip("this system counts no ticks")
    odd = tmp_path / "a) S 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([odd, "30"])
    try:
        deadline = time.time() + 10
        while psutil.Process(process.pid).exe() == psutil.Process().exe():
            assert time.time() < deadline
        begun = processes._ticks(process.pid)
        assert abs(begun - processes._ticks(os.getpid())) < 10**7 and begun > 1000
    finally:
        process.kill()
        process.wait()


def test_another_container_is_not_judged(other):
    """The same machine and name, another space of pids."""
    words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    code = f"from nanosd_lib.runs import processes as p; print(p.lives({other[1]!r}))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*words, code], env=env, capture_output=True, text=True)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no other space of pids here: {done.stderr.strip()}")
    assert done.stdout == "None\n", done.stderr


def test_a_lock_is_waited_for_no_longer_than_said(tmp_path, capsys):
    holding, done = threading.Event(), threading.Event()

    def hold():
        with processes.locked(tmp_path / "lock"):
            holding.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    began = time.monotonic()
    with processes.locked(tmp_path / "lock", "waiting", patience=0.3):
        assert 0.2 < time.monotonic() - began < 10
    done.set()
    thread.join()
    with processes.locked(tmp_path / "lock", "never said"):
        pass
    assert capsys.readouterr().out == "waiting\n"
