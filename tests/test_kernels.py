"""kernels: those forked from one warm process are kernels like all others, to the last exit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import psutil
import pytest

from nanosd_lib import paths
from nanosd_lib.engine import forking, kernels, variables

pytestmark = pytest.mark.skipif(bool(forking.unfit()), reason=f"no forks here: {forking.unfit()}")


def notebook(path, *cells):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(book, path)
    return path


def run(folder, *cells, deadline=None, **env):
    """The outcome, and what the cells have printed."""
    source, out = notebook(folder / "in.ipynb", *cells), folder / "out.ipynb"
    outcome = kernels.execute(source, out, {}, env, deadline)
    outputs = [o for c in nbformat.read(out, as_version=4).cells for o in c.get("outputs", [])]
    return outcome, "".join(o.text for o in outputs if o.output_type == "stream")


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """Two notebooks that need numpy, pandas, matplotlib and bars of progress: seconds to load."""
    folder = tmp_path_factory.mktemp("books")
    cell = "import numpy, pandas, matplotlib.pyplot, ipywidgets\nfrom tqdm.auto import tqdm"
    return [notebook(folder / f"{n}.ipynb", cell) for n in (1, 2)]


@pytest.fixture(scope="module")
def warm(books):
    """A zygote that lives as long as the module's tests."""
    with forking.ahead(books):
        yield forking.AHEAD[-1]


def only_forked(ahead):
    assert ahead.refused == "" and ahead.zygote is not None and not ahead.zygote.gone


SEEN = """
import os, sys, json, random, numpy, tqdm.auto
print(json.dumps({
    "modules": sorted(m for m in sys.modules if m.split(".")[0] == "nanosd_lib"),
    "path": sys.path, "argv": [a for a in sys.argv if not a.endswith(".json")],
    "flags": str(sys.flags), "warnings": sys.warnoptions, "cwd": os.getcwd(),
    "hash": hash("a text"), "main": sys.modules["__main__"].__name__,
    "env": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
    "bar": tqdm.auto.tqdm.__mro__[1].__name__,
    "leads": os.getpid() == os.getsid(0) == os.getpgid(0),
    "columns": __import__("pandas").get_option("display.max_columns"),
}))
"""
PERSONAL = {
    ".ipython/profile_default/startup/00.py": "import builtins; builtins.intruder = 1",
    ".ipython/profile_default/ipython_kernel_config.py": "c.InlineBackend.figure_formats = {'svg'}",
    ".config/matplotlib/matplotlibrc": "figure.figsize: 3, 2",
    ".config/matplotlib/stylelib/own.mplstyle": "figure.figsize: 3, 2",
    "rc/matplotlibrc": "figure.figsize: 3, 2",
    "start.py": "import builtins; builtins.intruder = 2",
}
PICTURE = """
import builtins, os, matplotlib as m, matplotlib.pyplot as plt
print(hasattr(builtins, "intruder"), plt.rcParams["figure.figsize"], "own" in plt.style.available)
print(os.environ["IPYTHONDIR"], m.get_configdir())
plt.plot([1, 2]); None
"""


@pytest.fixture
def personal(tmp_path, monkeypatch):
    """A home with settings of IPython and matplotlib."""
    home = tmp_path / "home"
    for name, text in PERSONAL.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    for name in ("IPYTHONDIR", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.mark.parametrize("named", [False, True], ids=["by its place", "by variables"])
def test_a_users_settings_enter_no_kernel(tmp_path, books, personal, monkeypatch, named):
    """Forked or not; and the list of fonts is made once."""
    ours = personal / ".cache/nanosd-notebooks"
    env = {"HOME": str(personal)}
    if named:
        env |= {"IPYTHONDIR": f"{personal}/.ipython", "MPLBACKEND": "svg"}
        env |= {"MPLCONFIGDIR": f"{personal}/.config/matplotlib", "MATPLOTLIBRC": f"{personal}/rc"}
        env |= {"PYTHONSTARTUP": f"{personal}/start.py"}
    made = []
    for ahead in (forking.ahead(books), contextlib.nullcontext()):
        with ahead:
            outcome, printed = run(tmp_path, PICTURE, **env)
            assert outcome.state == "ok" and printed.splitlines() == [
                "False [6.4, 4.8] False",
                f"{ours}/ipython {ours}/matplotlib",
            ]
            book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
            assert "image/png" in book.cells[0].outputs[-1].data
            only_forked(forking.AHEAD[-1]) if forking.AHEAD else None
        made.append([p.stat().st_mtime_ns for p in (ours / "matplotlib").glob("fontlist*")])
    assert made[0] == made[1] and len(made[0]) == 1


@pytest.mark.parametrize("given", [{"HOME": "/proc/no"}, {"XDG_CACHE_HOME": "/dev/null"}])
def test_settings_have_a_place_where_no_cache_can_be_written(given):
    """The same for each kernel of a process: a forked one would not be another's sister."""
    found = variables.neutral(given)
    assert os.access(os.path.dirname(found["MPLCONFIGDIR"]), os.W_OK)
    assert variables.neutral(given) == found


RANDOM = "import random, numpy; print(random.random(), numpy.random.rand())"


def test_a_forked_kernel_sees_what_an_ordinary_one_sees(tmp_path, warm, monkeypatch):
    _, forked = run(tmp_path, SEEN, PYTHONHASHSEED="0", NANOSD_RESULTS="elsewhere")
    only_forked(warm)
    monkeypatch.setattr(forking, "AHEAD", [])
    _, ordinary = run(tmp_path, SEEN, PYTHONHASHSEED="0", NANOSD_RESULTS="elsewhere")
    forked, ordinary = json.loads(forked), json.loads(ordinary)
    assert forked == ordinary
    assert forked["modules"] == [] and forked["leads"] and forked["bar"] == "tqdm_notebook"
    assert forked["env"]["NANOSD_RESULTS"] == "elsewhere"


def test_what_is_drawn_and_computed_is_the_same(tmp_path, warm, monkeypatch):
    cells = [
        "import numpy as np, matplotlib.pyplot as plt; plt.plot([1, 2]); None",
        "x = np.random.default_rng(0).normal(size=(600, 600)); print(repr((x @ x).sum()))",
        "import logging; logging.getLogger('one').warning('seen')",
    ]
    seen = []
    for ahead in ([warm], []):
        monkeypatch.setattr(forking, "AHEAD", ahead)
        run(tmp_path, *cells)
        book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
        seen.append([[dict(o) for o in cell.outputs] for cell in book.cells])
    assert seen[0] == seen[1] and "image/png" in seen[0][0][0]["data"]


def test_random_states_are_each_kernels_own(tmp_path, warm):
    one, two = run(tmp_path, RANDOM)[1].split(), run(tmp_path, RANDOM)[1].split()
    only_forked(warm)
    assert not set(one) & set(two)


@pytest.mark.parametrize(
    "cell, state, words",
    [
        ("1 / 0", "code error", "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "the kernel died of SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "killed", "the kernel died of SIGSEGV"),
        ("import os; os._exit(3)", "killed", "the kernel left with exit code 3"),
    ],
)
def test_every_end_has_its_name(tmp_path, warm, cell, state, words):
    outcome, _ = run(tmp_path, cell)
    assert outcome.state == state and words in outcome.error
    only_forked(warm)


def test_deadline_memory_and_nothing_left(tmp_path, warm):
    child = "import subprocess, os; subprocess.Popen(['sleep', '500']); print(os.getpid())"
    cells = [child, "x = b'1' * 400_000_000", "import time; time.sleep(60)"]
    outcome, printed = run(tmp_path, *cells, deadline=12)
    assert outcome.state == "timeout" and outcome.peak_gb > 0.4
    only_forked(warm)
    assert not psutil.pid_exists(int(printed))
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "500"]
    ]


def test_other_variables_are_another_zygote(tmp_path, warm):
    cell = "import os; print(os.environ['NANOSD_X'], hash('a'))"
    a = [
        run(tmp_path, cell, NANOSD_X=x, PYTHONHASHSEED=h)[1].split() for x, h in ("a1", "b1", "c2")
    ]
    assert [x for x, _ in a] == ["a", "b", "c"] and a[0][1] == a[1][1] != a[2][1]
    only_forked(warm)


def test_the_library_is_read_when_the_kernel_starts(tmp_path, warm):
    """An edit between two kernels: the second runs the new source."""
    package = tmp_path / "nanosd_lib"
    package.mkdir()
    (package / "__init__.py").write_text("")
    cell = "import nanosd_lib.toy; print(nanosd_lib.toy.x)"
    for x in (1, 22):
        (package / "toy.py").write_text(f"x = {x}")
        assert run(tmp_path, cell, PYTHONPATH=str(tmp_path))[1] == f"{x}\n"
        only_forked(warm)


def test_a_zygote_that_is_killed_is_told_and_replaced(tmp_path, books):
    with forking.ahead(books):
        assert run(tmp_path, "1")[0].state == "ok"
        first = forking.AHEAD[-1].zygote.process.pid
        outcome, _ = run(
            tmp_path, "import os; os.kill(os.getppid(), 9); import time; time.sleep(60)"
        )
        assert outcome.state == "killed" and "SIGKILL" in outcome.error
        assert run(tmp_path, "1")[0].state == "ok"
        second = forking.AHEAD[-1].zygote.process.pid
    assert first != second and not psutil.pid_exists(second)


def test_where_none_can_be_forked_one_line_says_why(tmp_path, books, monkeypatch, capfd):
    monkeypatch.setattr(forking, "wanted", lambda _: ["pandas", "no_such_package"])
    with forking.ahead(books):
        assert [run(tmp_path, "print(7)")[1] for _ in range(2)] == ["7\n", "7\n"]
    said = capfd.readouterr().err
    assert said.count("kernels start one by one: ModuleNotFoundError: No module named") == 1
    monkeypatch.setenv("NANOSD_FORK", "0")
    with forking.ahead(books):
        assert run(tmp_path, "print(7)")[1] == "7\n"
    assert "kernels start one by one: NANOSD_FORK=0" in capfd.readouterr().err


STUDY = """
import sys
from pathlib import Path
from nanosd_lib.engine import forking, kernels, variables
from nanosd_lib.engine.interrupts import signals
folder = Path(sys.argv[1])
books = [folder / "in.ipynb"] * 2
with signals(), forking.ahead(books):
    kernels.execute(books[0], folder / "out.ipynb", {}, {})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_its_runner(tmp_path, number):
    mark = tmp_path / "pids"
    cell = f"""
    import os, subprocess, time
    child = subprocess.Popen(["sleep", "600"])
    open({str(mark)!r}, "w").write(f"{{os.getppid()}} {{os.getpid()}} {{child.pid}} ")
    time.sleep(600)
    """
    notebook(tmp_path / "in.ipynb", textwrap.dedent(cell))
    env = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    runner = subprocess.Popen([sys.executable, "-c", STUDY, str(tmp_path)], env=env)
    until = time.monotonic() + 90
    while not (mark.exists() and mark.read_text().endswith(" ")):
        assert runner.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    pids = [int(pid) for pid in mark.read_text().split()]
    assert psutil.Process(pids[0]).ppid() == runner.pid
    runner.send_signal(number)
    runner.wait(30)
    until = time.monotonic() + 10
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and not zombie(pid)]:
        assert time.monotonic() < until, alive
        time.sleep(0.1)


def zombie(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def test_what_is_loaded_ahead(tmp_path):
    """Installed packages that are imported at the top, and no file that lies beside a notebook."""
    cell = """
import json, helper
from nanosd_lib.hardware import prediction
from nanosd_lib.networks import arch
import pandas as pd
"""
    (tmp_path / "helper.py").write_text("1 / 0")
    names = forking.wanted([notebook(tmp_path / "a.ipynb", "%time 1", cell)])
    assert names[0] == "pandas" and "numpy" in names
    assert not [name for name in names if name.split(".")[0] in ("json", "helper", "nanosd_lib")]
    every = forking.wanted(sorted((paths.ROOT / "notebooks").glob("*.ipynb")))
    assert {"torch", "diffusers:UNet2DConditionModel", "matplotlib.pyplot"} <= set(every)
