"""Memory of a process and its children, watched from outside."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path

import psutil


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
            found = re.search(r"^oom_kill (\d+)", Path(path).read_text(encoding="utf-8"), re.M)
            total += int(found[1]) if found else 0
    return total
