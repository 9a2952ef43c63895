"""Kernels: execute one notebook through papermill, and find out how it really ended.

papermill writes `completed` into every cell of a notebook whose kernel was killed, and only warns
of unknown parameters. Here a cell has run when it has an execution count and no error.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from papermill.exceptions import PapermillException

from nanosd_lib.layout import shown
from nanosd_lib.provenance import ROOT

ERROR_TAG = "papermill-error-cell-tag"  # papermill's own, so that it takes the cell out again


@dataclass(frozen=True)
class Outcome:
    """How a notebook ended: `ok` or `failed`, one line of error, peak memory of its kernel."""

    state: str
    error: str
    peak_gb: float


class IPCKernelManager(AsyncKernelManager):
    """A kernel behind files instead of TCP ports, which collide when many run at once."""

    folder = ""  # where this execution's sockets lie

    def __init__(self, **kwargs: Any):
        short = len(self.folder) < 90  # a socket's path holds about 100 characters
        if os.name == "posix" and short and self.folder:
            kwargs |= {"transport": "ipc", "ip": f"{self.folder}/k"}
        super().__init__(**kwargs)


def kernel_name() -> str:
    """`nanosd` where it is registered for this very Python, else `python3`."""
    with contextlib.suppress(NoSuchKernel):
        argv = KernelSpecManager().get_kernel_spec("nanosd").argv
        if argv and Path(argv[0]) == Path(sys.executable):
            return "nanosd"
    return "python3"


def check_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """ValueError unless the notebook's `parameters` cell declares every one of them."""
    known = papermill.inspect_notebook(path)
    for name in parameters:
        if name not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"{shown(path)} has no parameter {name!r}: it declares {has}")


def execute(
    path: Path, out: Path, parameters: dict[str, Any], environment: dict[str, str]
) -> Outcome:
    """Execute `path` into `out` (kept whatever happens) and judge it. ValueError for an unknown
    parameter, before a kernel starts."""
    check_parameters(path, parameters)
    out.unlink(missing_ok=True)
    error = ""
    with _environ(environment), _peak() as peak, tempfile.TemporaryDirectory("nanosd") as sockets:
        manager = type("Manager", (IPCKernelManager,), {"folder": sockets})
        try:
            papermill.execute_notebook(
                path,
                out,
                parameters=parameters,
                kernel_name=kernel_name(),
                kernel_manager_class=manager,
                progress_bar=False,
                cwd=path.parent,
            )
        except PapermillException:
            pass  # a cell's own error: the verdict below reads it from the notebook
        except Exception as problem:  # the kernel died, did not start, or papermill failed
            error = f"{type(problem).__name__}: {problem}"
        except KeyboardInterrupt:
            error = "interrupted"
            raise
        finally:
            _stop_children()
            verdict = _judge(out, error)
    return Outcome("failed" if verdict else "ok", verdict, round(peak[0] / 2**30, 2))


def _judge(out: Path, error: str) -> str:
    """One line that says what is wrong with an executed notebook, '' if nothing; tidies the file:
    true states in the cells' metadata, the error on top, no path of this machine."""
    if not out.exists():
        return error or "papermill wrote no notebook"
    notebook = nbformat.read(out, as_version=4)
    cells = [cell for cell in notebook.cells if ERROR_TAG not in cell.metadata.get("tags", [])]
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code:
        cell.outputs = [_anonymous(o) for o in cell.outputs if not _finished_bar(o)]
    began = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    broken = began[-1] if error and began else None  # where the kernel, not the code, failed
    verdict = ""
    for number, cell in enumerate(code, 1):
        errors = [o for o in cell.outputs if o.output_type == "error"]
        if verdict:
            cell.metadata.setdefault("papermill", {})["status"] = "pending"
        elif errors or cell.execution_count is None or cell is broken:
            cell.metadata.setdefault("papermill", {})["status"] = "failed"
            what = f"{errors[0].ename}: {errors[0].evalue}" if errors else error or "it did not run"
            verdict = f"code cell {number} of {len(code)}: {' '.join(what.split())}"
    verdict = verdict or " ".join(error.split())
    if verdict and len(cells) == len(notebook.cells):  # papermill shows a cell's own error itself
        note = nbformat.v4.new_markdown_cell(f"**This run failed.** {verdict}", id="run-failed")
        note.metadata["tags"] = [ERROR_TAG]
        notebook.cells.insert(0, note)
    facts = notebook.metadata.get("papermill", {})
    for name in ("input_path", "output_path"):
        if facts.get(name):
            facts[name] = Path(facts[name]).name
    nbformat.write(notebook, out)
    return verdict


def _finished_bar(output: Any) -> bool:
    """A progress bar: it has told its reader what it had to while the run went on."""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget and "%|" in output["data"].get("text/plain", "")


def _anonymous(output: Any) -> Any:
    """The output without this machine's folders, which warnings like to name."""
    if output.output_type == "stream":
        text = output.text.replace(f"{ROOT}/", "").replace(f"{sys.prefix}/", "")
        output.text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    return output


def _stop_children() -> None:
    """End what the notebook left running: its kernel and the kernel's own processes."""
    children = psutil.Process().children(recursive=True)
    kernels = [p for p in children if _is_kernel(p)]
    tree = kernels + [child for p in kernels for child in _family(p)]
    for process in tree:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(tree, timeout=5)


def _is_kernel(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "ipykernel_launcher" in process.cmdline()
    return False


def _family(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


@contextlib.contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _peak(every: float = 0.25) -> Iterator[list[int]]:
    """[bytes]: the largest resident memory of all child processes together, sampled."""
    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(every):
            total = 0
            for process in _family(me):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
