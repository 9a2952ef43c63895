"""engine: plain papermill with `--engine nanosd` tells the truth about every way to end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import nbformat
import papermill
import psutil
import pytest

from nanosd_lib import paths
from nanosd_lib.engine import arguments, endstate, engine, kernels, resident
from nanosd_lib.views import explorers

PARAMETERS = "profile = 'smoke'\nseed = 0\nrate = 0.5\noverrides = {}"


def notebook(path, *cells, parameters=PARAMETERS):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    nbformat.write(book, path)
    return path


def run(tmp_path, *cells, deadline=120, **parameters):
    """State, error and the executed notebook; a kernel that falls silent fails its test."""
    source, out = notebook(tmp_path / "in.ipynb", *cells), tmp_path / "out.ipynb"
    outcome = kernels.execute(source, out, parameters, {}, deadline)
    return outcome, nbformat.read(out, as_version=4)


def test_papermills_own_command_finds_the_engine(tmp_path):
    source, out = notebook(tmp_path / "in.ipynb", "print(seed)", "1 / 0"), tmp_path / "out.ipynb"
    words = ["papermill", str(source), str(out), "--engine", "nanosd", "-p", "seed", "7"]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "Error: code error: code cell 4 of 4: ZeroDivisionError: division by zero"
    book = nbformat.read(out, as_version=4)
    assert book.metadata.nanosd.state == "code error"
    assert "This run failed (code error).** code cell 4 of 4: ZeroDivision" in book.cells[0].source
    assert book.cells[3].outputs[0].text == "7\n"


@pytest.fixture
def kernelspecs(tmp_path, monkeypatch):
    """Two kernels more: one whose program is gone, one whose program is none."""
    for name, program in (("gone", "/no/such/python"), ("bare", "nosuchprogram")):
        folder = tmp_path / "jupyter" / "kernels" / name
        folder.mkdir(parents=True)
        spec = {"argv": [program, "-f", "{connection_file}"], "display_name": name}
        (folder / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))


def renamed(source, kernel):
    """The notebook, made for another kernel; None: for none."""
    book = nbformat.read(source, as_version=4)
    if kernel is None:
        del book.metadata["kernelspec"]
    else:
        book.metadata.kernelspec.name = kernel
    nbformat.write(book, source)


@pytest.mark.parametrize(
    "asked, made_for, words",
    [
        ("nokernel", "python3", "no such kernel: 'nokernel'; use -k "),
        (None, "ir", "no such kernel: 'ir'; use -k "),
        (None, None, "the notebook names no kernel; use -k "),
        ("no/kernel", "python3", "no such kernel: 'no/kernel'; use -k "),
        ("gone", "python3", "kernel 'gone' does not start: there is no /no/such/python; use -k "),
    ],
)
def test_a_kernel_that_is_not_there_is_refused_before_a_page(
    tmp_path, kernelspecs, asked, made_for, words
):
    source, out = notebook(tmp_path / "in.ipynb", "1"), tmp_path / "out.ipynb"
    renamed(source, made_for)
    out.write_text("an older page")
    with pytest.raises(endstate.NotebookFailed) as error:
        papermill.execute_notebook(source, out, engine_name="nanosd", kernel_name=asked)
    assert error.value.state == "no kernel" and error.value.message.startswith(words)
    assert out.read_text() == "an older page"


def test_a_kernel_that_cannot_be_launched_has_its_name(tmp_path, kernelspecs, monkeypatch):
    monkeypatch.setattr(kernels, "kernel_name", lambda: "bare")
    outcome, book = run(tmp_path, "1")
    assert outcome.state == book.metadata.nanosd.state == "no kernel"
    assert "kernel 'bare' does not start: [Errno 2] No such file" in outcome.error
    monkeypatch.setattr(kernels, "kernel_name", lambda: "nokernel")
    outcome = kernels.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {}, {})
    assert outcome.state == "no kernel" and "no such kernel" in outcome.error


def test_the_name_of_what_to_use_instead(monkeypatch):
    for installed, words in (
        (["nanosd", "python3"], "use -k nanosd"),
        (["ir", "python3"], "use -k ir or -k python3"),
        ([], "run `make env`"),
    ):
        specs = dict.fromkeys(installed, "folder")
        monkeypatch.setattr(endstate.KernelSpecManager, "find_kernel_specs", lambda _, s=specs: s)
        assert endstate._another("nokernel") == words


@pytest.mark.parametrize(
    "words, line",
    [
        (["-k", "nokernel"], "Error: no kernel: no such kernel: 'nokernel'; use -k "),
        (["-p", "sed", "3"], "Error: in.ipynb has no parameter 'sed': it declares profile, seed"),
        (["-p", "profile", "smok"], "Error: profile 'smok' "),
    ],
)
def test_papermills_own_command_refuses_in_one_line(tmp_path, words, line):
    notebook(tmp_path / "in.ipynb", "1")
    command = [sys.executable, "-m", "papermill", "--engine", "nanosd", "--log-level", "ERROR"]
    done = subprocess.run(
        [*command, "in.ipynb", "out.ipynb", *words], cwd=tmp_path, capture_output=True, text=True
    )
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and said.startswith(line)
    assert not (tmp_path / "out.ipynb").exists()


def test_papermills_own_command_leaves_the_users_settings_out(tmp_path):
    start = tmp_path / ".ipython/profile_default/startup/00.py"
    start.parent.mkdir(parents=True)
    start.write_text("import builtins; builtins.intruder = 1")
    source = notebook(
        tmp_path / "in.ipynb", "import builtins; print(hasattr(builtins, 'intruder'))"
    )
    words = ["papermill", str(source), str(tmp_path / "out.ipynb"), "--engine", "nanosd"]
    gone = ("IPYTHONDIR", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in gone} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", *words], env=env, check=True, capture_output=True)
    book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert book.cells[-1].outputs[0].text == "False\n"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ONE = "import sys, pathlib; from nanosd_lib.engine import kernels\n"
ONE += "source, out = map(pathlib.Path, sys.argv[1:])\nprint(kernels.execute(source, out, {}, {}))"


def test_a_locale_of_ascii(tmp_path):
    """Letters in cells, outputs, files and the folder's name, where nobody set a locale."""
    folder = tmp_path / "r\u00e9sultats"
    folder.mkdir()
    cell = "open('\u00e9.txt', 'w').write('\u00e9')\nprint(open('\u00e9.txt').read())"
    source, out = notebook(folder / "in.ipynb", cell), folder / "out.ipynb"
    env = os.environ | ASCII | {"PYTHONPATH": str(paths.ROOT)}
    words = [sys.executable, "-c", ONE, str(source), str(out)]
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert "state='ok'" in done.stdout, done.stdout + done.stderr
    assert nbformat.read(out, as_version=4).cells[-1].outputs[0].text == "\u00e9\n"
    assert (folder / "\u00e9.txt").read_bytes() == "\u00e9".encode()


def test_ok_with_seconds_and_memory_of_each_cell(tmp_path):
    outcome, book = run(
        tmp_path, "x = bytearray(300_000_000); import time; time.sleep(0.5)", "del x"
    )
    assert outcome == kernels.Outcome("ok", "", book.metadata.nanosd.peak_gb)
    facts = [c.metadata.nanosd for c in book.cells if c.cell_type == "code"]
    assert facts[1].seconds >= 0.5 and facts[1].peak_gb > facts[0].peak_gb + 0.2
    assert book.metadata.nanosd.peak_gb == max(f.peak_gb for f in facts)


@pytest.mark.parametrize(
    "cell, state, words",
    [
        ("1 / 0", "code error", "ZeroDivisionError: division by zero"),
        ("raise MemoryError('too much')", "out of memory", "MemoryError: too much"),
        ("import numpy; numpy.empty(10**15)", "out of memory", "Unable to allocate"),
        (
            "from nanosd_lib.paths import Missing\nraise Missing('run 02')",
            "missing artifact",
            "02",
        ),
        ("import os; os.kill(os.getpid(), 9)", "killed", "the kernel died of SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "killed", "the kernel died of SIGSEGV"),
        ("import os; os._exit(3)", "killed", "the kernel left with exit code 3"),
        ("import sys; sys.exit(1)", "code error", "SystemExit: 1"),
        ("import sys; sys.exit('no data')", "code error", "SystemExit: no data"),
        ("%nosuchmagic 1", "code error", "UsageError: Line magic function `%nosuchmagic` not"),
        ("%%nosuchmagic\n1", "code error", "UsageError: Cell magic `%%nosuchmagic` not found"),
        ("x = (", "code error", "SyntaxError"),
    ],
)
def test_every_end_has_its_name(tmp_path, cell, state, words):
    outcome, book = run(tmp_path, "before = 1", cell, "after = 1")
    assert outcome.state == state and words in outcome.error
    assert outcome.error.startswith("code cell ") and "\n" not in outcome.error
    code = [c for c in book.cells if c.cell_type == "code"]
    assert [c.metadata.papermill.status for c in code[-3:]] == ["completed", "failed", "pending"]
    assert code[-1].execution_count is None
    assert book.cells[0].source.startswith(f"**This run failed ({state}).**")


@pytest.mark.parametrize("cell", ["import sys; sys.exit(0)", "raise SystemExit"])
def test_a_notebook_may_end_itself(tmp_path, cell):
    """papermill's rule: an exit code of zero is no error, and nothing below is run."""
    outcome, book = run(tmp_path, "before = 1", cell, "1 / 0")
    assert (outcome.state, outcome.error) == ("ok", "")
    states = [c.metadata.papermill.status for c in book.cells]
    assert states[-3:] == ["completed", "completed", "pending"]


def tagged(tmp_path, tag, *cells):
    """A notebook whose second cell carries a tag, run by papermill itself."""
    book = nbformat.read(notebook(tmp_path / "in.ipynb", *cells), as_version=4)
    book.cells[1].metadata["tags"] = [tag]
    nbformat.write(book, tmp_path / "in.ipynb")
    outcome = kernels.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {}, {})
    return outcome, nbformat.read(tmp_path / "out.ipynb", as_version=4)


def test_a_cell_that_should_fail_is_no_failure(tmp_path):
    outcome, book = tagged(tmp_path, "raises-exception", "1 / 0", "print('after')")
    assert (outcome.state, outcome.error) == ("ok", "")
    assert "ZeroDivisionError" in book.cells[1].outputs[0].text
    assert book.cells[2].outputs[0].text == "after\n"


def test_the_cell_that_failed_is_named(tmp_path):
    """Not the one that should fail, not the last that ran, and not by its outputs alone."""
    outcome, book = tagged(tmp_path, "raises-exception", "1 / 0", "%nosuchmagic", "3")
    assert outcome.error.startswith("code cell 3 of 4: UsageError")
    shown = "try:\n    {}['a']\nexcept KeyError:\n    get_ipython().showtraceback()"
    outcome, book = run(tmp_path, shown, "2")
    assert (outcome.state, outcome.error) == ("code error", "code cell 2 of 3: KeyError: 'a'")
    states = [c.metadata.papermill.status for c in book.cells[1:]]
    assert states == ["completed", "failed", "completed"]


def test_a_cell_may_be_left_out(tmp_path):
    outcome, book = tagged(tmp_path, "skip-execution", "1 / 0", "print('after')")
    assert outcome.state == "ok" and book.cells[1].metadata.papermill.status == "pending"


IPYTHON = [
    "x = 1\n%matplotlib inline\ny = 2",
    "!python --version",
    "len?",
    "%%time\nz = 3",
    "%%bash\necho shell",
    "files = !ls\nassert x + y + z == 6 and files",
    "import asyncio\nawait asyncio.sleep(0)",
    "async with asyncio.timeout(9):\n    pass",
    "cd .",
]


def test_cells_may_be_ipython(tmp_path):
    parameters = "%matplotlib inline\n" + PARAMETERS
    source = notebook(tmp_path / "in.ipynb", *IPYTHON, "print(seed)", parameters=parameters)
    outcome = kernels.execute(source, tmp_path / "out.ipynb", {"seed": 4}, {})
    assert outcome.state == "ok", outcome.error
    book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert book.cells[-1].outputs[0].text == "4\n"


def test_the_systems_memory_killer_is_told_from_other_kills():
    assert endstate.dead(-9, True)[0] == "out of memory"
    assert endstate.dead(-9, False) == ("killed", "the kernel died of SIGKILL")
    assert endstate.dead(-15, True)[0] == "killed"
    assert resident.memory_kills() >= 0


def test_a_deadline_for_the_whole_notebook(tmp_path):
    began = time.monotonic()
    cells = ["import time; time.sleep(2)"] * 9
    outcome, book = run(tmp_path, *cells, deadline=5)
    assert outcome.state == "timeout" and "was not done after 5 s" in outcome.error
    assert time.monotonic() - began < 20
    done = [c for c in book.cells if c.get("execution_count")]
    assert 1 < len(done) < 9 and book.metadata.nanosd.state == "timeout"


def test_errors_in_widgets_are_errors(tmp_path):
    live = """
import ipywidgets
def call(x):
    raise ValueError(f"no {x}")
ipywidgets.interactive(call, x=3)
"""
    outcome, _ = run(tmp_path, live, deadline=20)  # its end is sometimes lost on the way
    assert outcome.state == "widget error" and "ValueError: no 3" in outcome.error


EXPLORER = """
from nanosd_lib.views import explorers
explorers.Explorer(lambda a, b: 1 / (a - 6), a=range(0, 13, 3), b=["x", "y"])
None
"""


def test_explorers_are_called_over_their_grid(tmp_path):
    outcome, book = run(tmp_path, EXPLORER)
    assert outcome.state == "widget error"
    assert "explorer(a=6, b='x') fails: ZeroDivisionError" in outcome.error
    assert all(c.execution_count for c in book.cells if c.cell_type == "code")
    assert run(tmp_path, EXPLORER.replace("a - 6", "a + 6"))[0].state == "ok"


def test_an_explorers_grid():
    one = explorers.Explorer(lambda **k: k, a=range(0, 101, 10), b=["x", "y"], c=(1,))
    explorers.MADE.remove(one)
    assert {g["a"] for g in one.grid()} == {0, 50, 100} and one.check() == 6
    large = explorers.Explorer(lambda **k: k, a=range(9), b=[*range(7)], c=[*range(100)])
    explorers.MADE.remove(large)
    grid = large.grid()
    assert len(grid) == 100 and grid == large.grid()  # the longest list decides
    assert [{g[k] for g in grid} for k in "abc"] == [{0, 4, 8}, {*range(7)}, {*range(100)}]
    few = explorers.Explorer(lambda **k: k, a=[*range(9)], b=[*range(8)])
    explorers.MADE.remove(few)
    assert len(few.grid()) == explorers.MOST
    with pytest.raises(TypeError, match="explorer: a = 3: a range or a list is wanted"):
        explorers.Explorer(print, a=3)
    with pytest.raises(ValueError, match="explorer: a has no values"):
        explorers.Explorer(print, a=[])


@pytest.mark.parametrize(
    "given, words",
    [
        ({"sede": 1}, "has no parameter 'sede': it declares profile, seed, rate, overrides"),
        ({"seed": "1"}, "parameter seed = '1' (str) is refused: int is wanted"),
        ({"seed": True}, "parameter seed = True (bool) is refused: int is wanted"),
        ({"profile": 3}, "parameter profile = 3 (int) is refused: str is wanted"),
        ({"profile": "mni"}, "did you mean 'mini'?"),
        ({"overrides": {"fwkd.step": 1}}, "did you mean 'fwkd.steps'"),
    ],
)
def test_parameters_are_refused_before_a_kernel_starts(tmp_path, given, words):
    source, out = notebook(tmp_path / "in.ipynb", "1"), tmp_path / "out.ipynb"
    with pytest.raises(ValueError) as err:
        papermill.execute_notebook(
            source, out, given, engine_name="nanosd", kernel_name="no-such-kernel"
        )
    assert words in str(err.value) and "\n" not in str(err.value) and not out.exists()


@pytest.mark.parametrize(
    "cell, accepted, refused",
    [
        ("x: int = 5", [7, -1], [True, 0.5, "7", None]),
        ("x: float = 1", [0.5, 2], [True, "1"]),
        ("x: float | None = 1.0", [None, 0.5], []),
        ("x: list[int] = [1]", [[2]], [3, {}]),
        ("x: int", [1], ["1"]),
        ("x: 'anything' = 5", ["y", None], []),
        ("a, x = 1, 2", [3], ["3"]),
        ("(a, [x, b]), c = (1, ('s', 3)), 4", ["t"], [1]),
        ("a, *x = [1, 2, 3]", [[4], 4], []),
        ("a, x = make()", [1, "s"], []),
        ("a = x = 3", [4], ["4"]),
        ("x = (1, 2)", [[3, 4]], [3, "34"]),
        ("x = {1, 2}", [[3]], [3]),
        ("x = -1", [1, -2], [1.5]),
        ("x = -1.5", [1, -2, 0.5], ["1"]),
        ("x = 1e-3 / -1", [1, 0.5], ["1"]),
        ("x = 2 * 3  # six", [5], [0.5]),
        ("x = 2 ** 0.5", [5, 0.5], ["a"]),
        ("x = 9 ** 9 ** 9", [5, "a"], []),
        ("x = 1 / 0", [5, "a"], []),
        ("x = 1  # comment", [5], ["a"]),
        ("x = None", [1, "s", [1], None], []),
        ("x: int = None", [1, "s", None], []),
        ("x = True", [False], [1, "yes"]),
        ("x = {'a': 1}", [{}], [[1]]),
        ("x = [1]", [[]], [{}]),
        ("from pathlib import Path\nx = Path('y')", ["z", 1], []),
        ("if True:\n    x = 1", ["z", 1], []),
        ("%time x = 1", [2], ["s"]),
        ("%%time\nx = 1", [2], ["s"]),
    ],
)
def test_what_the_parameters_cell_declares(tmp_path, cell, accepted, refused):
    book = nbformat.read(notebook(tmp_path / "in.ipynb", parameters=cell), as_version=4)
    for value in accepted:
        arguments.check_parameters(book, {"x": value})
    for value in refused:
        with pytest.raises(ValueError, match="parameter x = .* is refused: .* is wanted"):
            arguments.check_parameters(book, {"x": value})
    with pytest.raises(ValueError, match="has no parameter 'y'"):
        arguments.check_parameters(book, {"y": 1})


def test_a_run_is_checked_beside_unknown_defaults(tmp_path):
    parameters = PARAMETERS + "\nfolder = make()\n"
    book = nbformat.read(notebook(tmp_path / "in.ipynb", parameters=parameters), as_version=4)
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        arguments.check_parameters(book, {"profile": "smok"})
    parameters = parameters.replace("'smoke'", "make()")
    book = nbformat.read(notebook(tmp_path / "in.ipynb", parameters=parameters), as_version=4)
    arguments.check_parameters(book, {"seed": 3})
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        arguments.check_parameters(book, {"profile": "smok"})


def test_an_integer_is_a_number(tmp_path):
    outcome, book = run(tmp_path, "print(rate)", rate=1)
    assert outcome.state == "ok"


def test_outputs_are_capped(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "OUTPUT_CAP", 100_000)
    outcome, book = run(tmp_path, "for _ in range(1000): print('x' * 999)", "print('still')")
    assert outcome.state == "ok" and (tmp_path / "out.ipynb").stat().st_size < 200_000
    assert "outputs beyond" in book.cells[-2].outputs[-1].text


def test_long_lines_without_spaces_end():
    """Squared in their length they would take hours."""
    output = nbformat.v4.new_output("stream", name="stdout", text="x" * 5_000_000)
    assert endstate._anonymous(output).text == "x" * 5_000_000
    warning = nbformat.v4.new_output("stream", text="/a/b/ipykernel_7/12.py:3: Warning\n")
    assert endstate._anonymous(warning).text == "<cell>:3: Warning\n"


def test_many_at_once_do_not_collide(tmp_path):
    """Four notebooks in four processes: no TCP port is used."""
    words = [sys.executable, "-m", "papermill", "--engine", "nanosd"]
    source = notebook(tmp_path / "in.ipynb", "print(2 * seed)")
    outs = [tmp_path / f"{k}.ipynb" for k in range(4)]
    running = [
        subprocess.Popen(
            [*words, str(source), str(out), "-p", "seed", str(k)], stderr=subprocess.PIPE
        )
        for k, out in enumerate(outs)
    ]
    assert [p.wait(120) for p in running] == [0] * len(outs)
    texts = [nbformat.read(out, as_version=4).cells[-1].outputs[0].text for out in outs]
    assert texts == [f"{2 * k}\n" for k in range(len(outs))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_the_notebook(tmp_path, number):
    ready = tmp_path / "ready"
    sleep = f"import os, pathlib, time\npathlib.Path({str(ready)!r}).write_text(str(os.getpid()))"
    source = notebook(tmp_path / "in.ipynb", "print('kept')", sleep + "\ntime.sleep(300)", "1")
    out = tmp_path / "out.ipynb"
    words = [sys.executable, "-m", "papermill", "--engine", "nanosd", str(source), str(out)]
    process = subprocess.Popen(words, env={**os.environ}, stderr=subprocess.PIPE)
    deadline = time.time() + 60
    while not (ready.exists() and ready.read_text()):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    try:
        assert process.wait(60) != 0
    finally:
        process.kill()
    book = nbformat.read(out, as_version=4)
    assert book.metadata.nanosd.state == "interrupted"
    assert book.cells[2].outputs[0].text == "kept\n"
    assert book.cells[-1].metadata.papermill.status == "pending"
    assert not psutil.pid_exists(int(ready.read_text()))


def test_the_file_is_whole_at_every_moment(tmp_path, monkeypatch):
    """Written by a rename: whoever reads while it runs reads a notebook."""
    monkeypatch.setattr(engine, "SAVE_EVERY", 0.0)
    seen = []
    write = engine.paths.write_atomic

    def spy(path, data):
        write(path, data)
        seen.append(len(json.loads(path.read_text())["cells"]))

    monkeypatch.setattr(engine.paths, "write_atomic", spy)
    outcome, _ = run(tmp_path, "print(1)", "print(2)")
    assert outcome.state == "ok" and len(seen) >= 3


def device(path):
    """A copy of /dev/null."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        path.write_bytes(b"x")
    except OSError as problem:
        pytest.skip(f"no device can be made here: {problem}")
    return path


def by_papermill(source, out):
    try:
        papermill.execute_notebook(source, out, engine_name="nanosd", progress_bar=False)
    except endstate.NotebookFailed as failed:
        return failed.state
    return "ok"


def by_the_runner(source, out):
    return kernels.execute(source, out, {}, {}).state


@pytest.mark.parametrize("execute", [by_papermill, by_the_runner])
def test_a_device_stays_and_so_does_a_link_to_it(tmp_path, execute):
    source, null = notebook(tmp_path / "in.ipynb", "2"), device(tmp_path / "null.ipynb")
    (tmp_path / "link.ipynb").symlink_to(null)
    assert execute(source, null) == execute(source, tmp_path / "link.ipynb") == "ok"
    assert stat.S_ISCHR(null.lstat().st_mode) and (tmp_path / "link.ipynb").is_symlink()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["in.ipynb", "link.ipynb", "null.ipynb"]


@pytest.mark.parametrize("execute", [by_papermill, by_the_runner])
def test_a_link_and_a_mode_stay(tmp_path, execute):
    source, target = notebook(tmp_path / "in.ipynb", "print(5)"), tmp_path / "far" / "page.ipynb"
    (tmp_path / "far").mkdir()
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link.ipynb").symlink_to(target)
    assert execute(source, tmp_path / "link.ipynb") == "ok"
    assert (tmp_path / "link.ipynb").is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert nbformat.read(target, as_version=4).cells[-1].outputs[0].text == "5\n"
    assert [path.name for path in target.parent.iterdir()] == ["page.ipynb"]


@pytest.mark.parametrize("execute", [by_papermill, by_the_runner])
@pytest.mark.parametrize("cell, state", [("print(5)", "ok"), ("1 / 0", "code error")])
def test_a_pipe_gets_one_notebook(tmp_path, execute, cell, state):
    """More than one would be no notebook, and wait for a reader who has left."""
    source, pipe, heard = notebook(tmp_path / "in.ipynb", cell), tmp_path / "out.ipynb", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert execute(source, pipe) == state
    reader.join(30)
    book = nbformat.reads(heard[0].decode(), as_version=4)
    assert book.metadata.nanosd.state == state and stat.S_ISFIFO(pipe.lstat().st_mode)


def test_no_older_page_stands_while_a_notebook_runs(tmp_path):
    (tmp_path / "out.ipynb").write_text("old")
    outcome, book = run(tmp_path, "import os; print(os.listdir())")
    assert outcome.state == "ok" and "'out.ipynb'" not in book.cells[-1].outputs[0].text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ipynb", "out.ipynb"]


def test_states_of_widgets_that_nobody_sees_are_forgotten():
    """A bar that is done; kept are a slider that is shown, its layout, and what an Output holds."""

    def view(name):
        data = {endstate.VIEW: {"model_id": name}, "text/plain": "a slider"}
        return nbformat.v4.new_output("display_data", data)

    inner = {"output_type": "display_data", "data": {endstate.VIEW: {"model_id": "held"}}}
    states = {
        "slider": {"state": {"layout": "IPY_MODEL_look", "children": ["IPY_MODEL_out"]}},
        "look": {"state": {}},
        "out": {"state": {"outputs": [inner]}},
        "held": {"state": {}},
        "bar": {"state": {"layout": "IPY_MODEL_other"}},
        "other": {"state": {}},
    }
    cell = nbformat.v4.new_code_cell("x", outputs=[view("slider")], execution_count=1)
    book = nbformat.v4.new_notebook(cells=[cell])
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": states}}
    endstate.tidy(book, "ok", "", None)
    (model,) = book.metadata["widgets"].values()
    assert set(model["state"]) == {"slider", "look", "out", "held"}
    cell.outputs = []
    endstate.tidy(book, "ok", "", None)
    assert "widgets" not in book.metadata
