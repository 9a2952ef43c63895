"""Where this project keeps its files, and how they are written: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nanosd_lib"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
FIXED = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)  # of a file that stays where it is


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
    return _named("NANOSD_RESULTS") or (ROOT / "results").resolve()


def store_root() -> Path:
    return _named("NANOSD_STORE") or (results_root() / "store").resolve()


def device_root() -> Path:
    """Where measurements of this machine are kept: they outlive a run, and two runs from scratch
    share them, as the paper's searches share one profile of its phone.
    """
    return _named("NANOSD_DEVICE") or (results_root() / "device").resolve()


def _named(variable: str) -> Path | None:
    """The folder that the variable names, as a shell would read it: "~" and "$NAME" mean a folder
    wherever the variable was set. None where it is empty; ValueError for a user or a name that
    nobody knows.
    """
    text = os.environ.get(variable, "")
    found = os.path.expanduser(os.path.expandvars(text))
    if found.startswith("~") or re.match(r"\$\{?[A-Za-z_]", found):
        raise ValueError(
            f"{variable}={text!r} is refused: {found!r} is unknown; write the folder out"
        )
    return Path(found).resolve() if found else None


def shown(path: Path) -> str:
    """The path as a reader would type it: relative to the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def streams(path: Path) -> bool:
    """Whether something is there, by any link, that a rename would replace instead of writing to
    it: a device, a pipe, what another process holds open (/dev/stdout).
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _descriptor(path)


def _descriptor(path: Path) -> bool:
    """Whether its links, which lead somewhere, pass the system's list of open files."""
    while path.is_symlink():
        if re.fullmatch(r"/proc/.*/fd", os.path.realpath(path.parent)):
            return True
        path = path.parent / os.readlink(path)
    return False


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or the old one: a temporary name, fsync, rename.

    A link stays, and the file behind it is written; a file keeps its mode and owner. Written
    straight into is what `streams`, and a file that cannot be replaced: one that is a mount of its
    own (as containers make), or whose folder takes no new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if streams(path):
        path.write_bytes(data)
        return
    home = Path(os.path.realpath(path))
    try:
        _replace(home, data)
    except OSError as problem:
        if problem.errno not in FIXED or not home.is_file():
            raise
        home.write_bytes(data)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            _take_after(path, handle.fileno())
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it is gone, or was never made
            temporary.unlink()


def _take_after(path: Path, new: int) -> None:
    """Owner and mode of the file that is there, as far as this user may give them."""
    if path.is_file():
        old = path.stat()
        with contextlib.suppress(OSError):
            os.fchown(new, old.st_uid, old.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(new, stat.S_IMODE(old.st_mode))
