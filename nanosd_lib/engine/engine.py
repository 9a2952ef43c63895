"""The engine: papermill, with the truth about how a notebook ended.

papermill writes `completed` into every cell of a notebook whose kernel was killed, only warns of
unknown parameters, ignores errors in widgets, rewrites the file at each cell, and collides on TCP
ports when many run at once. This engine is registered as `nanosd`
(`papermill --engine nanosd in.ipynb out.ipynb`), and every make target uses it:

- parameters, name and type, and the kernel's name are checked before a kernel starts;
- the kernel listens on sockets in a folder of its own, not on ports, and takes no settings of the
  user's (IPython's start-up files, a matplotlibrc);
- `execution_timeout` is a deadline for the whole notebook;
- a notebook is `ok` when every cell was executed and the kernel's replies and outputs hold no
  error, or when a cell ended it with `sys.exit()` or `sys.exit(0)`, as in papermill (the cells
  below stay pending; another exit code is a code error); a cell tagged raises-exception may fail,
  one tagged skip-execution is left out. The end state stands in the notebook's metadata
  (`nanosd.state`, one of `STATES`), with seconds and peak memory of each cell;
- the file is written whole or not at all, also on a signal (`interrupts`), and its size is capped;
  a device or a pipe gets one notebook, at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.iorw import papermill_io
from papermill.log import logger

from nanosd_lib import paths
from nanosd_lib.engine import arguments, endstate, forking, resident, variables
from nanosd_lib.engine.endstate import NotebookFailed
from nanosd_lib.engine.interrupts import Interrupted, came, held, signals
from nanosd_lib.engine.resident import Watch

OUTPUT_CAP = 8_000_000  # bytes of one notebook's outputs
SAVE_EVERY = 10.0  # seconds between two writes of the file
CHECK = "import sys; m = sys.modules.get('nanosd_lib.views.explorers'); m and m.check()"


class Manager(NotebookExecutionManager):
    """papermill's bookkeeping, but true, and a file written whole and not at each cell."""

    last_save_time: datetime.datetime
    where: Any = None  # the cell that is running, or that the notebook failed in

    def save(self, force: bool = False, **kwargs: Any) -> None:
        due = (self.now() - self.last_save_time).total_seconds() >= SAVE_EVERY
        if not force and not due:
            return
        if self.output_path and "://" not in str(self.output_path) and self.output_path != "-":
            self._write(self._path())
        elif self.output_path:
            super().save()
        self.last_save_time = self.now()

    def _write(self, path: Path) -> None:
        """What streams gets the notebook once, at its end; papermill itself writes one that is ok,
        and one that was interrupted waits for no reader.
        """
        state = self.nb.metadata.get("nanosd", {}).get("state")
        if paths.streams(path) and (self.end_time is None or state in ("ok", "interrupted")):
            return
        text = nbformat.writes(nbformat.from_dict(self.nb)) + "\n"
        paths.write_atomic(path, text.encode(errors="backslashreplace"))  # as JSON spells it

    def _path(self) -> Path:
        """A relative path means the folder papermill was started in, not the notebook's."""
        base = getattr(papermill_io.get_handler(str(self.output_path)), "_cwd", None)
        return Path(base or ".") / str(self.output_path)

    def autosave_cell(self) -> None:
        self.save()

    def notebook_complete(self, **kwargs: Any) -> None:
        """End times; cells that never ran stay `pending`."""
        self.end_time = self.now()
        facts = self.nb.metadata.papermill
        facts["end_time"] = self.end_time.isoformat()
        facts["duration"] = (self.end_time - self.start_time).total_seconds()
        self.cleanup_pbar()
        self.save(force=True)


class IPCKernelManager(AsyncKernelManager):
    """A kernel behind files instead of TCP ports, which collide when many run at once."""

    folder = ""  # where this execution's sockets lie

    def __init__(self, **kwargs: Any) -> None:
        short = len(self.folder) < 90  # a socket's path holds about 100 characters
        if os.name == "posix" and short and self.folder:
            kwargs |= {"transport": "ipc", "ip": f"{self.folder}/k"}
        super().__init__(**kwargs)
        forking.offer(self)

    async def _async_interrupt_kernel(self) -> None:
        """Not on the way to its end: it would complain in our words' place, and is killed next."""
        if not getattr(self, "shutting_down", False):
            await super()._async_interrupt_kernel()


class Client(PapermillNotebookClient):
    """One deadline for all cells, seconds and peak memory of each, outputs up to a size."""

    def __init__(
        self, nb_man: Manager, deadline: float | None, watch: Watch, **kwargs: Any
    ) -> None:
        self.deadline = time.monotonic() + deadline if deadline else None
        self.watch, self.written, self.popen, self.explorers = watch, 0, None, ""
        self.error: CellExecutionError | None = None  # the kernel's reply that ended the notebook
        self.others: set[asyncio.Task] = set()  # tasks of the loop that are not this client's
        super().__init__(nb_man, timeout_func=self._left, iopub_timeout=60, **kwargs)

    def _left(self, cell: Any = None) -> float | None:
        """Seconds until the deadline: nbclient asks before each cell."""
        return None if self.deadline is None else max(0.01, self.deadline - time.monotonic())

    async def async_start_new_kernel(self, **kwargs: Any) -> None:
        self.others = asyncio.all_tasks()
        kwargs["env"] = variables.neutral(kwargs.get("env", os.environ))
        with held():  # a kernel that nobody knows of would stay for ever
            await super().async_start_new_kernel(**kwargs)
            self.popen = getattr(self.km.provisioner, "process", None)
            if self.popen is not None:
                with contextlib.suppress(psutil.Error):
                    self.watch.process = psutil.Process(self.popen.pid)

    start_new_kernel = run_sync(async_start_new_kernel)  # nbclient binds both forms as well

    def papermill_execute_cells(self) -> None:
        """The cells, and then every explorer's function over its grid."""
        try:
            super().papermill_execute_cells()
            if self.error is None or endstate.left(self.error):
                self.explorers = self.check_explorers()
        except KeyboardInterrupt:
            self.shutdown_kernel = "immediate"
            raise

    async def _async_cleanup_kernel(self) -> None:
        """nbclient's, once the tasks are gone that an interruption left waiting for the kernel:
        its end would be an error to them, which nobody awaits any more.
        """
        stale = asyncio.all_tasks() - self.others - {asyncio.current_task()}
        for task in stale:
            task.cancel()
        await asyncio.gather(*stale, return_exceptions=True)
        await super()._async_cleanup_kernel()

    _cleanup_kernel = run_sync(_async_cleanup_kernel)

    def close(self) -> None:
        """What is left of a kernel that did not come to its first cell."""
        if self.km is not None:
            self.shutdown_kernel = "immediate"
            self._cleanup_kernel()

    async def async_execute_cell(self, cell: Any, index: int, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        self.watch.mark()
        self.nb_man.where = cell
        try:
            done = await super().async_execute_cell(cell, index, *args, **kwargs)
            self.nb_man.where = None
            return done
        except CellExecutionError as error:
            self.error = error
            raise
        finally:
            if cell.cell_type == "code":
                seconds = round(time.monotonic() - began, 2)
                peak = round(self.watch.mark() / 2**30, 2)
                cell.metadata["nanosd"] = {"seconds": seconds, "peak_gb": peak}

    execute_cell = run_sync(async_execute_cell)

    def process_message(self, msg: dict, cell: Any, index: int) -> Any:
        kinds = ("stream", "display_data", "execute_result", "update_display_data")
        if msg["msg_type"] in kinds:
            self.written += len(str(msg["content"]))
            if self.written > OUTPUT_CAP:
                self._say_capped(cell)
                return None
        return super().process_message(msg, cell, index)

    def _say_capped(self, cell: Any) -> None:
        text = f"[outputs beyond {OUTPUT_CAP / 1e6:.0f} MB are left out]\n"
        if not any(o.get("text") == text for o in cell.outputs):
            cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text=text))

    def check_explorers(self) -> str:
        """'' or the error of an explorer's function, called over its grid in the kernel."""
        asked = self.kc.execute(CHECK, silent=True, store_history=False)
        reply = self.wait_for_reply(asked, nbformat.v4.new_code_cell())  # under the deadline too
        content = reply["content"] if reply else {}
        if content.get("status") != "error":
            return ""
        return f"{content['ename']}: {content['evalue']}"


class NanoSDEngine(NBClientEngine):
    """See the module's docstring; papermill finds it through the entry point `nanosd`."""

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: bool | dict = True,
        log_output: bool = False,
        autosave_cell_every: int = 30,
        **kwargs: Any,
    ) -> Any:
        given = json.loads(json.dumps(nb.metadata.get("papermill", {}).get("parameters", {})))
        name = Path(kwargs.get("input_path") or "the notebook").name
        with endstate.refused():
            arguments.check_parameters(nb, given, name)
        endstate.check_kernel(kernel_name)
        with signals():
            manager = Manager(nb, output_path, log_output, progress_bar, autosave_cell_every)
            manager.notebook_start()
            manager.save(force=True)
            state, error = cls._managed(manager, kernel_name, log_output, **kwargs)
        if state != "ok":
            raise NotebookFailed(state, error)
        return manager.nb

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
        """'' where nobody names one, so that it is this engine that says so."""
        return name or nb.metadata.get("kernelspec", {}).get("name") or ""

    @classmethod
    def _managed(
        cls, manager: Manager, kernel_name: str, log_output: bool, **kwargs: Any
    ) -> tuple[str, str]:
        """(state, error) of one execution, which also stand in the file, however it ends."""
        state, error = "killed", "the engine was stopped"
        watch = Watch()
        try:
            state, error = cls._execute(manager, watch, kernel_name, log_output, **kwargs)
        except Interrupted:
            state, error = "interrupted", "a signal stopped it"
            raise
        except KeyboardInterrupt:
            state, error = "interrupted", "it was interrupted"
            raise
        finally:
            with held():
                if came() is not None and state != "ok":
                    state, error = "interrupted", "a signal stopped it"
                watch.stop()
                stop(watch.process)
                peak = round(watch.peak / 2**30, 2)
                error = endstate.tidy(manager.nb, state, error, manager.where)
                manager.nb.metadata["nanosd"] = {"state": state, "error": error, "peak_gb": peak}
                manager.notebook_complete()
        return state, error

    @classmethod
    def _execute(
        cls,
        manager: Manager,
        watch: Watch,
        kernel_name: str,
        log_output: bool,
        start_timeout: int = 60,
        execution_timeout: float | None = None,
        stdout_file: Any = None,
        stderr_file: Any = None,
        **kwargs: Any,
    ) -> tuple[str, str]:
        """(state, error) of one execution."""
        kills, client = resident.memory_kills(), None
        with tempfile.TemporaryDirectory("nanosd", ignore_cleanup_errors=True) as sockets:
            client = Client(
                manager,
                execution_timeout,
                watch,
                kernel_name=kernel_name,
                kernel_manager_class=type("Sockets", (IPCKernelManager,), {"folder": sockets}),
                startup_timeout=start_timeout,
                log=logger,
                log_output=log_output,
                stdout_file=stdout_file,
                stderr_file=stderr_file,
            )
            try:
                client.execute()
            except (CellTimeoutError, TimeoutError) as problem:
                if client.deadline is None or time.monotonic() < client.deadline:
                    return "killed", f"the kernel fell silent: {' '.join(str(problem).split())}"
                return "timeout", f"the notebook was not done after {execution_timeout:g} s"
            except DeadKernelError:
                code = client.popen.poll() if client.popen else None
                return endstate.dead(code, resident.memory_kills() > kills)
            except RuntimeError as problem:  # the kernel did not start, or its sockets closed
                return "killed", " ".join(str(problem).split())
            except OSError as problem:
                if watch.process is not None:
                    raise
                return endstate.unlaunched(kernel_name, problem)
            finally:
                with held():
                    client.close()
        state, error, cell = endstate.judge(manager.nb, client.error, client.explorers)
        manager.where = cell
        return state, error


def stop(process: psutil.Process | None) -> None:
    """End a kernel and what it left running: it leads a session of its own."""
    if process is not None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    tree = resident.family(process)
    for one in tree:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(tree, timeout=5)


papermill_engines.register("nanosd", NanoSDEngine)  # also where this library is not installed
