"""Forked kernels: inside `ahead`, the engine's kernels are forked from one process that has
imported the notebooks' libraries (`zygote`), instead of importing them again for each notebook.

Where that cannot be (not Linux, a GPU, whose driver does not survive a fork, an import that does
not allow it, NANOSD_FORK=0), one line says so and kernels start from nothing, as they do everywhere
else.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from nanosd_lib import paths
from nanosd_lib.runs import cells

ZYGOTE = Path(__file__).with_name("zygote.py")
# neither the zygote's folder is searched for modules nor, before there is a kernel, the notebook's
START = """import sys
if sys.path[0] == "": del sys.path[0]
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")"""
LAUNCHER = ["-m", "ipykernel_launcher"]
NAME = "nanosd-forked"  # of the provisioner
PATIENCE = 180.0  # seconds for the imports
ITS_OWN = ("JPY_PARENT_PID", "JPY_SESSION_NAME")  # variables that may differ between kernels
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Refused(Exception):
    """No kernel can be forked; the message says why."""


# ------------------------------------------------------------------------------------ the processes
class Zygote:
    """The process, for one command and one environment; it ends when this object is closed."""

    def __init__(self, python: list[str], names: list[str], env: dict[str, str], cwd: str) -> None:
        self.python, self.env = python, env
        self.channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        self.told: list[dict[str, Any]] = []  # what it said and nobody has asked for yet
        self.codes: dict[int, int] = {}  # exit codes of kernels that have ended
        self.gone = False
        with other:
            self.process = subprocess.Popen(
                [*python, "-c", START, str(ZYGOTE), str(other.fileno()), *names],
                env={**env, "JPY_PARENT_PID": str(os.getpid())},
                cwd=cwd,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Refused where its imports fail or take too long."""
        said = await self._answer("ready", "refused")
        if "refused" in said:
            raise Refused(said["refused"])

    async def fork(self, argv: list[str], env: dict[str, str], cwd: str) -> Kernel:
        own = {name: env[name] for name in ITS_OWN if name in env}
        own["JPY_PARENT_PID"] = str(os.getpid())
        request = {"argv": argv, "env": own, "cwd": cwd}
        try:
            self.channel.send(json.dumps(request).encode())
        except OSError as problem:
            raise Refused(str(problem)) from None
        return Kernel(self, (await self._answer("pid"))["pid"])

    async def _answer(self, *kinds: str) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            self.listen()
            for message in self.told:
                if message.keys() & set(kinds):
                    self.told.remove(message)
                    return message
            if self.gone:
                raise Refused("the process that forks them has ended")
            await asyncio.sleep(0.02)
        raise Refused(f"nothing was ready after {PATIENCE:g} s")

    def listen(self) -> None:
        """Take in what it has said."""
        while not self.gone:
            try:
                text = self.channel.recv(65_536)
            except BlockingIOError:
                return
            except OSError:
                text = b""
            message = json.loads(text or "{}")
            if not message:
                self.gone = True
            elif "ended" in message:
                self.codes[message["ended"]] = message["code"]
            else:
                self.told.append(message)

    def close(self) -> None:
        """End it, and with it every kernel that still runs."""
        self.channel.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # within an import: its kernels follow it
            self.process.kill()
            self.process.wait()


class Kernel:
    """A forked kernel, with what `subprocess.Popen` offers of a process."""

    stdin = stdout = stderr = None

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.zygote, self.pid = zygote, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code; kernels do not outlive their zygote, which dies of nothing but SIGKILL."""
        if self.returncode is None:
            self.zygote.listen()
            lost = -signal.SIGKILL if self.zygote.gone else None
            self.returncode = self.zygote.codes.pop(self.pid, lost)
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
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# ----------------------------------------------------------------------------------- for the engine
class Ahead:
    """The zygote of one study, started with its first kernel, and again for other variables."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.refused = names, unfit()
        self.zygote: Zygote | None = None
        self._say()

    async def fork(self, cmd: list[str], env: dict[str, str], cwd: str) -> Kernel | None:
        """A kernel, or None where it must be started from nothing."""
        python, argv = split(cmd)
        if self.refused or not python:
            return None
        try:
            zygote = await self._fit(python, env, cwd)
            return await zygote.fork(argv, env, cwd)
        except (Refused, OSError) as problem:
            self.refused = str(problem)
            self._say()
            self.close()
            return None

    async def _fit(self, python: list[str], env: dict[str, str], cwd: str) -> Zygote:
        """A zygote of that very Python and with these variables."""
        zygote = self.zygote
        if zygote and (zygote.gone or (zygote.python, common(zygote.env)) != (python, common(env))):
            self.close()
        if self.zygote is None:
            self.zygote = Zygote(python, self.names, env, cwd)
            await self.zygote.ready()
        return self.zygote

    def _say(self) -> None:
        if self.refused:
            print(f"kernels start one by one: {self.refused}", file=sys.stderr)

    def close(self) -> None:
        if self.zygote:
            self.zygote.close()
        self.zygote = None


class Provisioner(LocalProvisioner):
    """jupyter_client's way to start a kernel, but forked where that is possible."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        cwd = str(kwargs.get("cwd") or Path.cwd())
        kernel = await AHEAD[-1].fork(cmd, kwargs["env"], cwd) if AHEAD else None
        if kernel is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process: Any = kernel
        self.pid, self.pgid, self.cwd = kernel.pid, kernel.pid, cwd
        return self.connection_info


AHEAD: list[Ahead] = []  # the one in use comes last


@contextlib.contextmanager
def ahead(notebooks: list[Path]) -> Iterator[None]:
    """Kernels of the engine are forked inside; a single notebook gains nothing by it."""
    if len(notebooks) < 2:
        yield
        return
    one = Ahead(wanted(notebooks))
    AHEAD.append(one)
    try:
        yield
    finally:
        AHEAD.remove(one)
        one.close()


def offer(manager: Any) -> None:
    """Have the manager's kernel started by `Provisioner`, inside `ahead`."""
    if AHEAD:
        factory = KernelProvisionerFactory.instance(parent=manager.parent)
        here = f"{__name__}:{Provisioner.__name__}"
        factory.provisioners[NAME] = EntryPoint(NAME, here, factory.GROUP_NAME)
        manager.kernel_spec.metadata["kernel_provisioner"] = {"provisioner_name": NAME}


def split(cmd: list[str]) -> tuple[list[str], list[str]]:
    """(python and its options, arguments of the kernel); both empty for another kind of kernel."""
    at = next((n for n in range(len(cmd)) if cmd[n : n + 2] == LAUNCHER), 0)
    return (cmd[:at], cmd[at + 2 :]) if at else ([], [])


def unfit() -> str:
    """Why no kernel can be forked on this machine, or ''."""
    if os.environ.get("NANOSD_FORK") == "0":
        return "NANOSD_FORK=0"
    if sys.platform != "linux":
        return f"{sys.platform} has no safe fork"
    if any(Path(path).exists() for path in DRIVERS):
        return "a GPU's driver does not survive a fork"
    return ""


def common(env: dict[str, str]) -> dict[str, str]:
    """The variables that all kernels of a zygote share."""
    return {name: value for name, value in env.items() if name not in ITS_OWN}


# ------------------------------------------------------------------------------------- what to load
def wanted(notebooks: list[Path]) -> list[str]:
    """What the notebooks, and the library's modules behind them, import of installed packages at
    their top: "module" or "module:attribute" of each.
    """
    names: dict[str, None] = {}
    todo: dict[Path, None] = dict.fromkeys(notebooks)
    for path in (queue := list(todo)):  # grows while it is read
        for name in _imports(path):
            source = _source(name)
            if source and source not in todo:
                todo[source] = None
                queue.append(source)
            elif _installed(name):
                names[name] = None
    return list(names)


def _imports(path: Path) -> Iterator[str]:
    """Absolute imports outside functions, of a module or a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        code = (c for c in json.loads(text)["cells"] if c["cell_type"] == "code")
        body = [n for cell in code for n in cells.cell_tree("".join(cell["source"])).body]
    else:
        body = ast.parse(text).body
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}:{alias.name}" for alias in node.names)


def _source(name: str) -> Path | None:
    """The file of this library that the name stands for or lies in; None for other packages."""
    package, *parts = name.replace(":", ".").split(".")
    if package != paths.PACKAGE:
        return None
    folder = paths.ROOT / package
    inner = [parts[:n] for n in range(len(parts), 0, -1)]
    files = [
        f
        for p in inner
        for f in (folder.joinpath(*p[:-1], f"{p[-1]}.py"), folder.joinpath(*p, "__init__.py"))
    ]
    return next((file for file in files if file.is_file()), None)


def _installed(name: str) -> bool:
    """Whether it belongs to an installed package: modules beside a notebook may change any time."""
    top = name.replace(":", ".").partition(".")[0]
    found = importlib.util.find_spec(top) if top not in sys.stdlib_module_names else None
    if found is None or not found.origin:
        return False
    homes = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    return any(Path(found.origin).resolve().is_relative_to(home) for home in homes)
