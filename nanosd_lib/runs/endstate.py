"""How a notebook ended: one of `STATES`, with a line that says where and why."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import Any

import nbformat

from nanosd_lib.paths import ROOT

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
NO_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|out of memory")


class NotebookFailed(Exception):
    """A notebook that did not end well: `state` is one of STATES, the text says where and why."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"{state}: {message}")
        self.state, self.message = state, message


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
