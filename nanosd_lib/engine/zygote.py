"""The zygote: a process that has imported the notebooks' libraries once and forks kernels.

`forking` runs it by its path, and nobody imports it: no module of this library may be loaded here,
so that every kernel still reads the library's source as it stands when the kernel starts.
A kernel differs from one started from nothing only in what it need not import again: it has its
own session, environment, streams, random state and parent to follow into death.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

PACKET = 65_536  # bytes of the longest message
PATIENCE = 60.0  # seconds for a forked process to show that it can compute
PR_SET_PDEATHSIG = 1


def main(descriptor: str, *names: str) -> None:
    """Import the names, say so, then fork a kernel for each request, until the runner is gone."""
    channel = socket.socket(fileno=int(descriptor))
    try:
        preload(names, channel)
        say(channel, {"ready": os.getpid()})
    except Exception as problem:
        say(channel, {"refused": f"{type(problem).__name__}: {problem}"})
        return
    kernel(serve(channel))  # only a forked process comes out of `serve`


def say(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.send(json.dumps(message).encode())


# ------------------------------------------------------------------------------------- the imports
def preload(names: tuple[str, ...], channel: socket.socket) -> None:
    """Import "module" or "module:attribute" of each; RuntimeError where a fork would not be safe.

    ipykernel comes first, and its choice of matplotlib's backend: libraries look for both when they
    are imported, and pick the bars and figures of a notebook.
    """
    if not os.environ.get("MPLBACKEND"):
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    importlib.import_module("ipykernel.kernelapp")
    for name in names:
        if hung_up(channel):
            os._exit(0)
        module, _, attribute = name.partition(":")
        found = importlib.import_module(module)
        if attribute and not hasattr(found, attribute):
            importlib.import_module(f"{module}.{attribute}")
    if any(name.partition(".")[0] == "nanosd_lib" for name in sys.modules):
        raise RuntimeError("the library itself was imported")
    if threading.active_count() > 1:
        raise RuntimeError("an import has started a thread, which a fork would lose")
    if not computes():
        raise RuntimeError("a forked process does not compute")
    gc.collect()
    gc.freeze()  # a collection in a kernel then leaves these pages shared


def hung_up(channel: socket.socket) -> bool:
    """Whether the runner is gone (it says nothing before it hears that all is ready)."""
    return bool(select.select([channel], [], [], 0)[0])


def computes() -> bool:
    """Whether a forked process can use the pools of threads of numpy and torch, found by trying."""
    pid = os.fork()
    if pid == 0:
        for name in {"numpy", "torch"} & sys.modules.keys():
            wide = sys.modules[name].ones((512, 512))
            (wide @ wide).sum()
        os._exit(0)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


# --------------------------------------------------------------------------------------- the forks
def serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for each request and tell every child's end; returns in a child, with its request."""
    parent = os.getpid()
    alive: set[int] = set()
    wake, woken = os.pipe()
    for end in (wake, woken):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it ends a `select`
    while True:
        ends: list[Any] = [channel, wake]
        ready, _, _ = select.select(ends, [], [])
        if wake in ready:
            os.read(wake, PACKET)
        if channel in ready:
            request = heard(channel)
            if request is None:
                end_all(alive)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(wake)
                os.close(woken)
                detach(parent, channel)
                return request
            alive.add(pid)
        for pid in list(alive):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                alive.remove(pid)
                say(channel, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def heard(channel: socket.socket) -> dict[str, Any] | None:
    """The next request; None when the runner is gone."""
    try:
        return json.loads(channel.recv(PACKET) or "null")
    except OSError:
        return None


def end_all(alive: set[int]) -> NoReturn:
    """The runner is gone: nothing it started may stay."""
    for pid in alive:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def detach(parent: int, channel: socket.socket) -> None:
    """In the child: a session of its own, and no life after the zygote's; then it tells its pid."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    say(channel, {"pid": os.getpid()})
    channel.close()


# -------------------------------------------------------------------------------------- the kernel
def kernel(request: dict[str, Any]) -> None:
    """What `python -m ipykernel_launcher` does, with the request's arguments, folder and variables.

    Python gives a forked process another random state by itself; numpy and torch get
    theirs here.
    """
    from ipykernel import kernelapp

    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    if "ipywidgets" in sys.modules:  # as its import does inside a kernel
        sys.modules["ipywidgets"].register_comm_target()
    if "pandas" in sys.modules:  # which takes a process without a kernel for a terminal
        sys.modules["pandas"].set_option("display.max_columns", 20)
    handlers = [h for h in early_handlers() if h.stream is sys.stderr]

    class IPKernelApp(kernelapp.IPKernelApp):  # the name that its options go by
        def init_io(self) -> None:
            """Loggers made before write to the notebook too, as if they had been made here."""
            super().init_io()
            for handler in handlers:
                handler.setStream(sys.stderr)

    launcher = importlib.util.find_spec("ipykernel_launcher")
    sys.argv = [str(launcher and launcher.origin), *request["argv"]]
    follow = f"--IPKernelApp.parent_handle={os.getppid()}"
    IPKernelApp.launch_instance(argv=[*request["argv"], follow])


def early_handlers() -> list[logging.StreamHandler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = [h for logger in loggers for h in getattr(logger, "handlers", [])]
    return [h for h in found if isinstance(h, logging.StreamHandler)]


if __name__ == "__main__":
    main(*sys.argv[1:])
