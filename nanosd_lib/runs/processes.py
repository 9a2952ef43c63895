"""Processes side by side: which one this is, whether another still lives, and one at a time.

A pid says little by itself: it is given again, and in another container it is another process. With
it count the boot, the space of pids, and the tick of that boot in which the process began: a clock
that is set moves none of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout


def me() -> dict[str, Any]:
    """This process, for `lives`: host, boot, space, pid, ticks (None where nothing counts them) and
    began (seconds since 1970)."""
    here = {"host": socket.gethostname(), **_spot(), "pid": os.getpid()}
    return here | {"ticks": _ticks("self"), "began": psutil.Process().create_time()}


def lives(process: dict[str, Any]) -> bool | None:
    """Whether the process that `me` has described still runs; None where nobody here can tell: on
    another machine, in another container, under another user.
    """
    here = _spot()
    if process.get("host") != socket.gethostname():
        return None
    if process.get("space", here["space"]) != here["space"]:
        return None
    if process.get("boot", here["boot"]) != here["boot"]:
        return False
    try:
        one = psutil.Process(int(process["pid"]))
        if one.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.get("ticks") is not None:
            return process["ticks"] == _ticks(one.pid)
        # a pid comes round later than in a minute; a clock may be set by seconds
        return abs(one.create_time() - process["began"]) < 60
    except psutil.AccessDenied:
        return None
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


@contextlib.contextmanager
def locked(path: Path, waiting: str = "", patience: float = -1) -> Iterator[None]:
    """One process at a time; the lock of a killed process is free again.

    `waiting` is printed where another has it; after `patience` seconds (-1: never) it goes on
    without, as on a file system that has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(OSError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting:
                print(waiting)
            lock.acquire(timeout=patience)
    try:
        yield
    finally:
        lock.release()


def _spot() -> dict[str, str]:
    """The boot of this machine and the space of its pids; '' where the system has no such word."""
    boot = space = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        space = os.readlink("/proc/self/ns/pid")
    return {"boot": boot, "space": space}


def _ticks(pid: int | str) -> int | None:
    """The clock tick after the boot in which a process began: field 22 of its `stat`."""
    try:
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError, ValueError):
        return None
