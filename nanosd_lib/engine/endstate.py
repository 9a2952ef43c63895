"""How a notebook ended: one of `STATES`, with a line that says where and why."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click  # papermill's
import nbformat
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient.exceptions import CellExecutionError

from nanosd_lib.paths import ROOT

STATES = (
    "ok",
    "code error",
    "widget error",
    "out of memory",
    "no kernel",
    "timeout",
    "killed",
    "missing artifact",
    "interrupted",
)
ERROR_TAG = "papermill-error-cell-tag"  # papermill's own, so that it takes the cell out again
VIEW = "application/vnd.jupyter.widget-view+json"
HELD = re.compile(r'(?:IPY_MODEL_|"model_id": ")(\w+)')  # one widget in another's state
NO_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|out of memory")


class NotebookFailed(click.ClickException):
    """A notebook that did not end well: `state` is one of STATES, the text says where and why.

    papermill's command line is click's, which shows such an error as one line.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state

    def format_message(self) -> str:
        return f"{self.state}: {self.message}"

    __str__ = format_message


class Refused(click.ClickException, ValueError):
    """What cannot run, said before there is a kernel or a page."""


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """One-line errors inside are Refused."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise Refused(str(error)) from None


def check_kernel(name: str) -> None:
    """NotebookFailed where there is no kernel of that name, or its program is gone."""
    if not name:
        raise NotebookFailed("no kernel", f"the notebook names no kernel; {_another(None)}")
    try:
        program = Path(*KernelSpecManager().get_kernel_spec(name).argv[:1])
    except NoSuchKernel:
        problem = f"no such kernel: {name!r}; {_another(name)}"
        raise NotebookFailed("no kernel", problem) from None
    if program.is_absolute() and not program.exists():
        raise NotebookFailed(*unlaunched(name, f"there is no {program}"))


def unlaunched(name: str, why: Any) -> tuple[str, str]:
    """State and words for a kernel whose program does not start."""
    return "no kernel", f"kernel {name!r} does not start: {why}; {_another(name)}"


def _another(name: str | None) -> str:
    """What to do instead."""
    names = KernelSpecManager().find_kernel_specs().keys() - {name}
    if not names:
        return "run `make env`"
    return f"use -k {'nanosd' if 'nanosd' in names else ' or -k '.join(sorted(names))}"


def dead(code: int | None, memory: bool) -> tuple[str, str]:
    """State and words for a kernel that is gone, from its exit code."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        if memory and -code == signal.SIGKILL:
            return "out of memory", f"the system killed the kernel for memory ({name})"
        return "killed", f"the kernel died of {name}"
    return "killed", f"the kernel left with exit code {code}"


def judge(
    notebook: Any, reply: CellExecutionError | None, explorers: str
) -> tuple[str, str, Any | None]:
    """State, words and the cell they are about, for a notebook whose kernel lived to the end.

    reply: the error that ended it, from the kernel itself, since not every error leaves an output.
    """
    for cell in _code(notebook):
        ended = cell.metadata.get("papermill", {}).get("exception")  # papermill's own mark
        if reply is not None and ended:
            return ("ok", "", None) if left(reply) else (*named(reply), cell)
        if errors := [] if _may_fail(cell) else _errors(cell):
            return (*named(errors[0]), cell)
        if cell.execution_count is None and not _tagged(cell, "skip-execution"):
            return "killed", "it did not run", cell
    if explorers:
        return "widget error", explorers, None
    for model in notebook.metadata.get("widgets", {}).values():
        for widget in model.get("state", {}).values():
            for output in widget.get("state", {}).get("outputs", []):
                if output.get("output_type") == "error":
                    error = f"{output.get('ename')}: {output.get('evalue')}"
                    return "widget error", error, None
    return "ok", "", None


def named(error: Any) -> tuple[str, str]:
    """State and words for an error of a cell: nbclient's exception, or an output."""
    what = f"{error.ename}: {error.evalue}"
    if NO_MEMORY.search(what):
        return "out of memory", what
    return ("missing artifact" if error.ename == "Missing" else "code error"), what


def left(error: Any) -> bool:
    """Whether the cell ended the notebook in peace: papermill's rule for `sys.exit()`."""
    return error.ename == "SystemExit" and error.evalue in ("", "0")


def _tagged(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _may_fail(cell: Any) -> bool:
    return _tagged(cell, "raises-exception")


def _errors(cell: Any) -> list[Any]:
    return [o for o in cell.outputs if o.output_type == "error"]


def _forget_unseen(notebook: Any) -> None:
    """Leave the states of those widgets alone that an output shows, or that these hold: a progress
    bar that is done and gone would otherwise stay with eight states, a search with megabytes.
    """
    shown = [o.get("data", {}).get(VIEW, {}) for c in _code(notebook) for o in c.outputs]
    for model in notebook.metadata.get("widgets", {}).values():
        states, kept = model.get("state", {}), {}
        todo = [view["model_id"] for view in shown if "model_id" in view]
        while todo:
            name = todo.pop()
            if name in states and name not in kept:
                kept[name] = states[name]
                todo += HELD.findall(json.dumps(kept[name]))
        model["state"] = kept
    if not any(m.get("state") for m in notebook.metadata.get("widgets", {}).values()):
        notebook.metadata.pop("widgets", None)


def tidy(notebook: Any, state: str, error: str, where: Any | None) -> str:
    """True states in the cells' metadata, the error on top, no path of this machine; returns the
    error in one line, with the cell it stands in (`where`).
    """
    notebook.cells = [c for c in notebook.cells if ERROR_TAG not in c.metadata.get("tags", [])]
    code = _code(notebook)
    for cell in code:
        cell.outputs = [_anonymous(o) for o in cell.outputs if not _finished_bar(o)]
        if _may_fail(cell):
            cell.outputs = [_as_text(o) for o in cell.outputs]
    _forget_unseen(notebook)
    where = where if any(cell is where for cell in code) else None
    for cell in notebook.cells:
        facts = cell.metadata.setdefault("papermill", {})
        if cell is where:
            facts["status"] = "failed"
        elif cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            facts["status"] = "pending"
        elif facts.get("start_time"):
            facts["status"] = "completed"
    numbers = [i for i, cell in enumerate(code, 1) if cell is where]
    place = f"code cell {numbers[0]} of {len(code)}: " if numbers else ""
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


def _as_text(output: Any) -> Any:
    """An error that was expected, as text: papermill fails on every output that is an error."""
    if output.output_type != "error":
        return output
    text = "\n".join(output.traceback) + "\n"
    return nbformat.v4.new_output("stream", name="stderr", text=text)


def _code(notebook: Any) -> list[Any]:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def _finished_bar(output: Any) -> bool:
    """A progress bar: it has told its reader what it had to while the run went on."""
    widget = VIEW in output.get("data", {})
    return widget and "%|" in output["data"].get("text/plain", "")


def _anonymous(output: Any) -> Any:
    """The output without this machine's folders, which warnings like to name."""
    if output.output_type == "stream":
        text = output.text.replace(f"{ROOT}/", "").replace(f"{sys.prefix}/", "")
        # only where a word begins: a long line without spaces would take its length squared
        output.text = re.sub(r"(?<!\S)\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    return output
