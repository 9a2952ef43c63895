"""Kernels: execute one notebook with the engine, and find out how it ended."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from nanosd_lib import paths
from nanosd_lib.engine import (
    arguments,
    endstate,
    engine,  # noqa: F401  registers `nanosd`, also where this library is not installed
)
from nanosd_lib.paths import shown


@dataclass(frozen=True)
class Outcome:
    """How a notebook ended: one of `endstate.STATES`, a line of error, its kernel's peak memory."""

    state: str
    error: str
    peak_gb: float


def kernel_name() -> str:
    """`nanosd` where it is registered for this very Python, else `python3`."""
    with contextlib.suppress(NoSuchKernel):
        argv = KernelSpecManager().get_kernel_spec("nanosd").argv
        if argv and Path(argv[0]) == Path(sys.executable):
            return "nanosd"
    return "python3"


def check_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """ValueError unless the notebook's `parameters` cell declares every one, with that type."""
    arguments.check_parameters(nbformat.read(path, as_version=4), parameters, shown(path))


def execute(
    path: Path,
    out: Path,
    parameters: dict[str, Any],
    environment: dict[str, str],
    deadline: float | None = None,
) -> Outcome:
    """Execute `path` into `out`, which is kept whatever happens; `deadline` in seconds.

    ValueError for a parameter that is refused, before a kernel starts.
    """
    check_parameters(path, parameters)
    with _environ(environment), _aside(out) as part:
        try:
            papermill.execute_notebook(
                path,
                part,
                parameters=parameters,
                engine_name="nanosd",
                kernel_name=kernel_name(),
                progress_bar=False,
                execution_timeout=deadline,
                cwd=path.parent,
            )
        except endstate.NotebookFailed as failed:
            return Outcome(failed.state, failed.message, _peak(part) if part.exists() else 0.0)
        except Exception as problem:  # papermill itself, the disk
            return Outcome("killed", f"{type(problem).__name__}: {problem}", 0.0)
        return Outcome("ok", "", _peak(part))


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A name to write to, since papermill itself writes in place: not where readers look. They find
    `out` at the end, behind the link and with the mode that it had, and no older page meanwhile.
    """
    streams = paths.streams(out)
    home = out if streams else Path(os.path.realpath(out))
    part, mode = home.with_name(f".{home.name}"), None
    part.unlink(missing_ok=True)
    if home.exists() and not streams:
        mode = home.stat().st_mode
        home.unlink()
    try:
        yield part
    finally:
        if part.exists() and streams:
            home.write_bytes(part.read_bytes())
            part.unlink()
        elif part.exists():
            part.chmod(mode or part.stat().st_mode)
            os.replace(part, home)


def _peak(out: Path) -> float:
    """Gigabytes, from the executed notebook's own record."""
    return nbformat.read(out, as_version=4).metadata.get("nanosd", {}).get("peak_gb", 0.0)


@contextlib.contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
