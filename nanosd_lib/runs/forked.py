"""Kernels that start quickly: forked from a process that has imported once (`zygote`).

A study starts many kernels, and each would import the same for ten seconds. `with running(): ...`
keeps such a process beside the study; the engine asks it for kernels there and starts them itself
everywhere else, and wherever the process cannot be had (no fork on this system, another
environment, it died). A forked kernel is a process like any other: a session of its own, its exit
code and its memory known, killed with the study.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

from nanosd_lib.paths import PACKAGE

# what differs between two kernels of one study and decides nothing while modules are imported
OWN = ("JPY_PARENT_PID", "JPY_SESSION_NAME", "MPLBACKEND", "NANOSD_RESULTS", "NANOSD_STORE")
_zygotes: list[Zygote] = []  # the one that runs, if any


class Gone(Exception):
    """The zygote does not answer any more."""


class Zygote:
    """The process, and how to ask it."""

    def __init__(self, env: dict[str, str], flags: Sequence[str] = ()) -> None:
        self.env = _decisive(env)
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-m", f"{PACKAGE}.runs.zygote"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ready = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer; Gone where it gives none."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        try:
            if not self.ready:
                self.ready = stdout.readline() == "ready\n"
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())
        except (OSError, ValueError) as error:
            raise Gone(str(error)) from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Kernel:
    """A forked kernel, as `subprocess.Popen` would show it."""

    stdin = stdout = stderr = None

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.zygote, self.pid = zygote, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self.zygote.ask({"poll": self.pid})["code"]
            except Gone:  # and the kernel with it
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("kernel", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Provisioner(LocalProvisioner):
    """Starts kernels by the zygote that runs, or as jupyter_client does."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        env = dict(kwargs.get("env") or os.environ)
        kernel = fork(cmd, env, str(kwargs.get("cwd") or Path.cwd()))
        if kernel is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process: Any = kernel
        self.pid = self.pgid = kernel.pid
        self.cwd = kwargs.get("cwd", Path.cwd())
        return self.connection_info


def fork(cmd: list[str], env: dict[str, str], cwd: str) -> Kernel | None:
    """A kernel of this Python with that environment; None where none can be forked."""
    if not _zygotes or not ours(cmd) or _decisive(env) != _zygotes[0].env:
        return None
    zygote = _zygotes[0]
    argv = cmd[cmd.index("ipykernel_launcher") + 1 :]
    try:
        return Kernel(zygote, zygote.ask({"argv": argv, "env": env, "cwd": cwd})["pid"])
    except Gone:
        print("kernels are not forked any more: what they came from is gone", file=sys.stderr)
        _zygotes.clear()
        return None


def ours(cmd: list[str]) -> bool:
    """Whether a command starts IPython's kernel under this very Python."""
    return Path(cmd[0]) == Path(sys.executable) and "ipykernel_launcher" in cmd


def _decisive(env: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in env.items() if k not in OWN}


@contextlib.contextmanager
def running(env: dict[str, str], flags: Sequence[str] = ()) -> Iterator[None]:
    """A zygote with that environment while the block runs; none where the system cannot fork."""
    if not sys.platform.startswith("linux") or os.environ.get("NANOSD_FORK") == "0":
        yield
        return
    zygote = Zygote(env, flags)
    _zygotes[:] = [zygote]
    try:
        yield
    finally:
        _zygotes.clear()
        zygote.close()
