"""The engine: papermill, with the truth about how a notebook ended.

papermill writes `completed` into every cell of a notebook whose kernel was killed, only warns of
unknown parameters, ignores errors in widgets, rewrites the file at each cell, and collides on TCP
ports when many run at once. This engine is registered as `nanosd`
(`papermill --engine nanosd in.ipynb out.ipynb`), and every make target uses it:

- parameters are checked, name and type, before a kernel starts;
- the kernel listens on sockets in a folder of its own, not on ports;
- `execution_timeout` is a deadline for the whole notebook;
- a cell has run when it has an execution count and no error; the end state stands in the
  notebook's metadata (`nanosd.state`, one of `STATES`), with seconds and peak memory of each cell;
- the file is written whole or not at all, also on SIGTERM and SIGINT, and its size is capped.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager
from papermill.iorw import papermill_io
from papermill.log import logger

from nanosd_lib import layout
from nanosd_lib.provenance import ROOT

STATES = (
    "ok",
    "code error",
    "widget error",
    "out of memory",
    "timeout",
    "killed",
    "missing artifact",
    "interrupted",
)
ERROR_TAG = "papermill-error-cell-tag"  # papermill's own, so that it takes the cell out again
OUTPUT_CAP = 8_000_000  # bytes of one notebook's outputs
SAVE_EVERY = 10.0  # seconds between two writes of the file
NO_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|out of memory")
CHECK = "import sys; m = sys.modules.get('nanosd_lib.explorers'); m and m.check()"


class NotebookFailed(Exception):
    """A notebook that did not end well: `state` is one of STATES, the text says where and why."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{state}: {message}")
        self.state, self.message = state, message


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; the argument is its number."""


# --------------------------------------------------------------------------------------- parameters


def check_parameters(notebook: Any, given: dict[str, Any], name: str = "the notebook") -> None:
    """ValueError, in one line, unless the `parameters` cell declares each of them with that type.

    A notebook that declares profile, seed and overrides also gets them checked as a run.
    """
    declared = _declared(notebook)
    for key, value in given.items():
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise ValueError(f"{name} has no parameter {key!r}: it declares {known}")
        wanted = type(declared[key])
        if declared[key] is not None and type(value) is not wanted:
            if not (wanted is float and type(value) is int):
                raise ValueError(
                    f"{name}: parameter {key} = {value!r} ({type(value).__name__}) is refused:"
                    f" {wanted.__name__} is wanted"
                )
    run = declared | given
    if {"profile", "seed", "overrides"} <= declared.keys():
        layout.check_run(run["profile"], run["seed"], run["overrides"])


def _declared(notebook: Any) -> dict[str, Any]:
    """Names and literal defaults of the cell tagged `parameters`."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    with contextlib.suppress(ValueError):
                        found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


# ------------------------------------------------------------------------------------------- memory


class Watch:
    """Largest resident memory of a process and its children, as a whole and since `mark`."""

    def __init__(self, every: float = 0.1) -> None:
        self.process: psutil.Process | None = None
        self.peak = self.since = 0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(every,), daemon=True)
        self._thread.start()

    def mark(self) -> int:
        """The largest since the last mark, in bytes."""
        self._look()
        with self._lock:
            last, self.since = self.since, 0
        return last

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self, every: float) -> None:
        while not self._done.wait(every):
            self._look()

    def _look(self) -> None:
        used = sum(_resident(p) for p in family(self.process))
        with self._lock:
            self.peak, self.since = max(self.peak, used), max(self.since, used)


def family(process: psutil.Process | None) -> list[psutil.Process]:
    """A process and all below it; those that are gone are left out."""
    with contextlib.suppress(psutil.Error):
        if process is not None:
            return [process, *process.children(recursive=True)]
    return []


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def memory_kills() -> int:
    """How many processes the system has killed for memory so far; 0 where it does not say."""
    total = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            found = re.search(r"^oom_kill (\d+)", Path(path).read_text(), re.M)
            total += int(found[1]) if found else 0
    return total


# ----------------------------------------------------------------------------------------- the file


class Manager(NotebookExecutionManager):
    """papermill's bookkeeping, but true, and a file written whole and not at each cell."""

    def save(self, force: bool = False, **kwargs: Any) -> None:
        due = (self.now() - self.last_save_time).total_seconds() >= SAVE_EVERY
        if not force and not due:
            return
        if self.output_path and "://" not in str(self.output_path) and self.output_path != "-":
            text = nbformat.writes(nbformat.from_dict(self.nb)) + "\n"
            layout.write_atomic(self._path(), text.encode())
        elif self.output_path:
            super().save()
        self.last_save_time = self.now()

    def _path(self) -> Path:
        """A relative path means the folder papermill was started in, not the notebook's."""
        base = getattr(papermill_io.get_handler(str(self.output_path)), "_cwd", None)
        return Path(base or ".") / str(self.output_path)

    def autosave_cell(self) -> None:
        self.save()

    def notebook_complete(self, **kwargs: Any) -> None:
        """End times; cells that never ran stay `pending`."""
        self.end_time = self.now()
        facts = self.nb.metadata.papermill
        facts["end_time"] = self.end_time.isoformat()
        facts["duration"] = (self.end_time - self.start_time).total_seconds()
        self.cleanup_pbar()
        self.save(force=True)


# --------------------------------------------------------------------------------------- the client


class IPCKernelManager(AsyncKernelManager):
    """A kernel behind files instead of TCP ports, which collide when many run at once."""

    folder = ""  # where this execution's sockets lie

    def __init__(self, **kwargs: Any) -> None:
        short = len(self.folder) < 90  # a socket's path holds about 100 characters
        if os.name == "posix" and short and self.folder:
            kwargs |= {"transport": "ipc", "ip": f"{self.folder}/k"}
        super().__init__(**kwargs)


class Client(PapermillNotebookClient):
    """One deadline for all cells, seconds and peak memory of each, outputs up to a size."""

    def __init__(
        self, nb_man: Manager, deadline: float | None, watch: Watch, **kwargs: Any
    ) -> None:
        self.deadline = time.monotonic() + deadline if deadline else None
        self.watch, self.written, self.popen, self.explorers = watch, 0, None, ""
        super().__init__(nb_man, timeout_func=self._left, iopub_timeout=60, **kwargs)

    def _left(self, cell: Any = None) -> float | None:
        """Seconds until the deadline: nbclient asks before each cell."""
        return None if self.deadline is None else max(0.01, self.deadline - time.monotonic())

    async def async_start_new_kernel(self, **kwargs: Any) -> None:
        await super().async_start_new_kernel(**kwargs)
        self.popen = getattr(self.km.provisioner, "process", None)
        if self.popen is not None:
            with contextlib.suppress(psutil.Error):
                self.watch.process = psutil.Process(self.popen.pid)

    start_new_kernel = run_sync(async_start_new_kernel)  # nbclient binds both forms as well

    def papermill_execute_cells(self) -> None:
        """The cells, and then every explorer's function over its grid."""
        super().papermill_execute_cells()
        if not self.nb.metadata.papermill.get("exception"):
            self.explorers = self.check_explorers()

    async def async_execute_cell(self, cell: Any, index: int, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        self.watch.mark()
        try:
            return await super().async_execute_cell(cell, index, *args, **kwargs)
        finally:
            if cell.cell_type == "code":
                seconds = round(time.monotonic() - began, 2)
                peak = round(self.watch.mark() / 2**30, 2)
                cell.metadata["nanosd"] = {"seconds": seconds, "peak_gb": peak}

    execute_cell = run_sync(async_execute_cell)

    def process_message(self, msg: dict, cell: Any, index: int) -> Any:
        kinds = ("stream", "display_data", "execute_result", "update_display_data")
        if msg["msg_type"] in kinds:
            self.written += len(str(msg["content"]))
            if self.written > OUTPUT_CAP:
                self._say_capped(cell)
                return None
        return super().process_message(msg, cell, index)

    def _say_capped(self, cell: Any) -> None:
        text = f"[outputs beyond {OUTPUT_CAP / 1e6:.0f} MB are left out]\n"
        if not any(o.get("text") == text for o in cell.outputs):
            cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text=text))

    def check_explorers(self) -> str:
        """'' or the error of an explorer's function, called over its grid in the kernel."""
        asked = self.kc.execute(CHECK, silent=True, store_history=False)
        reply = self.wait_for_reply(asked, nbformat.v4.new_code_cell())  # under the deadline too
        content = reply["content"] if reply else {}
        if content.get("status") != "error":
            return ""
        return f"{content['ename']}: {content['evalue']}"


# --------------------------------------------------------------------------------------- the engine


class NanoSDEngine(NBClientEngine):
    """See the module's docstring; papermill finds it through the entry point `nanosd`."""

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: bool | dict = True,
        log_output: bool = False,
        autosave_cell_every: int = 30,
        **kwargs: Any,
    ) -> Any:
        given = json.loads(json.dumps(nb.metadata.get("papermill", {}).get("parameters", {})))
        check_parameters(nb, given, Path(kwargs.get("input_path") or "the notebook").name)
        manager = Manager(nb, output_path, log_output, progress_bar, autosave_cell_every)
        manager.notebook_start()
        manager.save(force=True)
        state, error = "killed", "the engine was stopped"
        watch = Watch()
        try:
            state, error = cls._execute(manager, watch, kernel_name, log_output, **kwargs)
        except Interrupted:
            state, error = "interrupted", "a signal stopped it"
            raise
        except KeyboardInterrupt:
            state, error = "interrupted", "it was interrupted"
            raise
        finally:
            watch.stop()
            stop(watch.process)
            peak = round(watch.peak / 2**30, 2)
            error = tidy(manager.nb, state, error)
            manager.nb.metadata["nanosd"] = {"state": state, "error": error, "peak_gb": peak}
            manager.notebook_complete()
        if state != "ok":
            raise NotebookFailed(state, error)
        return manager.nb

    @classmethod
    def _execute(
        cls,
        manager: Manager,
        watch: Watch,
        kernel_name: str,
        log_output: bool,
        start_timeout: int = 60,
        execution_timeout: float | None = None,
        stdout_file: Any = None,
        stderr_file: Any = None,
        **kwargs: Any,
    ) -> tuple[str, str]:
        """(state, error) of one execution."""
        kills, client = memory_kills(), None
        with tempfile.TemporaryDirectory("nanosd") as sockets, signals():
            client = Client(
                manager,
                execution_timeout,
                watch,
                kernel_name=kernel_name,
                kernel_manager_class=type("Sockets", (IPCKernelManager,), {"folder": sockets}),
                startup_timeout=start_timeout,
                log=logger,
                log_output=log_output,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
            )
            try:
                client.execute()
            except (CellTimeoutError, TimeoutError) as problem:
                if client.deadline is None or time.monotonic() < client.deadline:
                    return "killed", f"the kernel fell silent: {' '.join(str(problem).split())}"
                return "timeout", f"the notebook was not done after {execution_timeout:g} s"
            except DeadKernelError:
                code = client.popen.poll() if client.popen else None
                return dead(code, memory_kills() > kills)
            except RuntimeError as problem:  # the kernel did not start, or its sockets closed
                return "killed", " ".join(str(problem).split())
        return judge(manager.nb, client.explorers)


def dead(code: int | None, memory: bool) -> tuple[str, str]:
    """State and words for a kernel that is gone, from its exit code."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        if memory and -code == signal.SIGKILL:
            return "out of memory", f"the system killed the kernel for memory ({name})"
        return "killed", f"the kernel died of {name}"
    return "killed", f"the kernel left with exit code {code}"


def judge(notebook: Any, explorers: str) -> tuple[str, str]:
    """State and words for a notebook whose kernel lived to the end."""
    for cell in _code(notebook):
        errors = [o for o in cell.outputs if o.output_type == "error"]
        if errors:
            what = f"{errors[0].ename}: {errors[0].evalue}"
            if NO_MEMORY.search(what):
                return "out of memory", what
            return ("missing artifact" if errors[0].ename == "Missing" else "code error"), what
        if cell.execution_count is None:
            return "killed", "it did not run"
    if explorers:
        return "widget error", explorers
    for model in notebook.metadata.get("widgets", {}).values():
        for widget in model.get("state", {}).values():
            for output in widget.get("state", {}).get("outputs", []):
                if output.get("output_type") == "error":
                    return "widget error", f"{output.get('ename')}: {output.get('evalue')}"
    return "ok", ""


def tidy(notebook: Any, state: str, error: str) -> str:
    """True states in the cells' metadata, the error on top, no path of this machine; returns the
    error in one line, with the cell it stands in.
    """
    notebook.cells = [c for c in notebook.cells if ERROR_TAG not in c.metadata.get("tags", [])]
    code, where = _code(notebook), None
    for cell in code:
        cell.outputs = [_anonymous(o) for o in cell.outputs if not _finished_bar(o)]
    if state not in ("ok", "widget error"):
        began = [c for c in code if c.metadata.get("papermill", {}).get("start_time")]
        where = began[-1] if began else None
    for cell in notebook.cells:
        facts = cell.metadata.setdefault("papermill", {})
        if cell is where:
            facts["status"] = "failed"
        elif cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            facts["status"] = "pending"
        elif facts.get("start_time"):
            facts["status"] = "completed"
    place = f"code cell {code.index(where) + 1} of {len(code)}: " if where is not None else ""
    line = place + " ".join(error.split()) if state != "ok" else ""
    if state != "ok":
        text = f"**This run failed ({state}).** {line}"
        note = nbformat.v4.new_markdown_cell(text, id="run-failed")
        note.metadata["tags"] = [ERROR_TAG]
        note.metadata["papermill"] = {}
        notebook.cells.insert(0, note)
    facts = notebook.metadata.get("papermill", {})
    for name in ("input_path", "output_path"):
        if facts.get(name):
            facts[name] = Path(facts[name]).name.removeprefix(".")  # `kernels` writes beside
    return line


def _code(notebook: Any) -> list[Any]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def _finished_bar(output: Any) -> bool:
    """A progress bar: it has told its reader what it had to while the run went on."""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget and "%|" in output["data"].get("text/plain", "")


def _anonymous(output: Any) -> Any:
    """The output without this machine's folders, which warnings like to name."""
    if output.output_type == "stream":
        text = output.text.replace(f"{ROOT}/", "").replace(f"{sys.prefix}/", "")
        # only where a word begins: a long line without spaces would take its length squared
        output.text = re.sub(r"(?<!\S)\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    return output


def stop(process: psutil.Process | None) -> None:
    """End a kernel and what it left running: it leads a session of its own."""
    if process is not None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    tree = family(process)
    for one in tree:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(tree, timeout=5)


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted inside, unless the caller handles them itself."""

    def raised(number: int, frame: Any) -> None:
        raise Interrupted(number)

    old = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # a shell's background jobs ignore SIGINT: whoever sends it here means it all the same
            ours = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
            if signal.getsignal(number) in ours:
                old[number] = signal.signal(number, raised)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
