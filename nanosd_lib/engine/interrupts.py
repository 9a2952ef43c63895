"""The signals that ask a run to end as one exception, and what must not be cut short by it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# Ctrl-C; `kill`, a shutdown; a terminal that is closed; warnings of a cluster before its limits.
# SIGQUIT is none of them: it ends what does not listen.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ENDS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
ASKED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; the argument is its number."""


class Handler:
    """One of ENDS: raises Interrupted once, at the end of a `held` block where one runs.

    `timeout` and `make` send their signal twice, and the second must not stop the tidying up; one
    that comes AGAIN seconds later means that the first was lost on its way.
    """

    AGAIN = 15.0

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal that has come
        self.at, self.holds, self.waits = -self.AGAIN, 0, False

    def __call__(self, number: int, frame: Any) -> None:
        if time.monotonic() - self.at >= self.AGAIN:
            self.number, self.at, self.waits = number, time.monotonic(), self.holds > 0
            if not self.waits:
                raise Interrupted(number)

    def release(self) -> None:
        self.holds -= 1
        if self.waits and not self.holds:
            self.waits = False
            raise Interrupted(self.number)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """What must not be cut short: a signal that `signals` handles waits until it is over."""
    here = threading.current_thread() is threading.main_thread()
    handlers = {signal.getsignal(number) for number in ENDS if here}
    with contextlib.ExitStack() as stack:
        for handler in handlers:
            if isinstance(handler, Handler):
                handler.holds += 1
                stack.callback(handler.release)
        yield


def came() -> int | None:
    """The number of the signal that has come, where `signals` handles it.

    Interrupted may strike in the middle of other people's code, which catches it, or trips over
    what it left undone: whatever fails after the signal failed of it.
    """
    for number in ENDS:
        handler = signal.getsignal(number)
        if isinstance(handler, Handler) and handler.number is not None:
            return handler.number
    return None


def cause(problem: BaseException) -> int | None:
    """The number of the signal that an exception comes from; None where it comes from no signal."""
    return problem.args[0] if isinstance(problem, Interrupted) else came()


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """The signals of ENDS raise Interrupted inside, unless the caller handles them itself.

    One that is ignored stays so, as SIGHUP under nohup; but a shell's background jobs ignore
    SIGINT, and whoever sends it here means it all the same.
    """
    old, handler = {}, Handler()
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            ours = [signal.SIG_DFL, signal.default_int_handler]
            if signal.getsignal(number) in ours + [signal.SIG_IGN] * (number in ASKED):
                old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def say(text: str) -> None:
    """A line on stderr; the terminal that it stood for may be gone."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def leave(code: int) -> None:
    """sys.exit; after an interruption, a signal that is sent twice changes nothing any more."""
    if code >= 128:
        for number in ENDS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
