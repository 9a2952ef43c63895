"""Where this project keeps its files, and how they are written: whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nanosd_lib"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Missing(FileNotFoundError):
    """A file that another notebook or verb makes is not there; the message says which one."""


def check_name(kind: str, name: Any) -> str:
    """A plain file name: no folders, no hidden files. ValueError otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{kind} {name!r} is refused: letters, digits, '_', '-' and '.' only")
    return name


def plain(name: str) -> str:
    """The name as a file name: everything but letters, digits, '.', '_' and '-' becomes '_'."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def check_space(folder: Path, wanted: float, what: str) -> None:
    """OSError, in one line, unless the disk of `folder` has `wanted` bytes free."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < wanted:
        raise OSError(
            f"no disk space for {what}: {wanted / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free"
            f" on the disk of {there}"
        )


def results_root() -> Path:
    return Path(os.environ.get("NANOSD_RESULTS") or ROOT / "results").resolve()


def store_root() -> Path:
    return Path(os.environ.get("NANOSD_STORE") or results_root() / "store").resolve()


def device_root() -> Path:
    """Where measurements of this machine are kept: they outlive a run, and two runs from scratch
    share them, as the paper's searches share one profile of its phone.
    """
    return Path(os.environ.get("NANOSD_DEVICE") or results_root() / "device").resolve()


def shown(path: Path) -> str:
    """The path as a reader would type it: relative to the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or the old one: a temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
