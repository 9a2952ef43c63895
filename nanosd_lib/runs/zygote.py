"""The process that kernels are forked from: it has imported once what every notebook imports.

`python -m nanosd_lib.runs.zygote` reads one JSON request a line from its standard input and answers
each on its standard output: {"argv", "env", "cwd"} -> {"pid"}, {"poll": pid} -> {"code"}. It ends
when its input does, and the kernels with it. Nothing of this library but this module is imported
here, so a kernel reads the sources as they are when it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

IMPORTS = (  # what takes long; nothing of it starts a thread or draws a number
    "ipykernel.kernelapp",
    "numpy",
    "pandas",
    "scipy.linalg",
    "torch",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "PIL.Image",
    "pydantic",
    "safetensors.torch",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_tiny",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "peft",
    "pyarrow.parquet",
    "skimage.metrics",
    "IPython.core.interactiveshell",
    "ipywidgets",
    "tqdm.auto",
)
ENDED: dict[int, int] = {}  # exit code, or minus the signal, of each kernel that is gone
DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Import, then answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the runner that ends the kernels
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for name in IMPORTS:
        with contextlib.suppress(ImportError):  # then the kernel says so itself
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            reap()
            reply = {"code": ENDED.get(request["poll"])}
        else:
            reply = {"pid": fork(request, answers.fileno())}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def reap() -> None:
    """Take leave of the kernels that are gone, so that nobody waits for a zombie."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            ENDED[pid] = os.waitstatus_to_exitcode(status)


def fork(request: dict[str, Any], *files: int) -> int:
    """The pid of a new kernel; `files` stay the parent's."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        become(request, parent, files)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def become(request: dict[str, Any], parent: int, files: tuple[int, ...]) -> NoReturn:
    """In the child: what a process of its own would be, and then the kernel."""
    import random

    import numpy as np

    os.setsid()
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we could ask for that
        os._exit(1)
    for file in files:
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["env"], JPY_PARENT_PID=str(parent))
    os.chdir(request["cwd"])
    random.seed()
    np.random.seed()
    from ipykernel import kernelapp

    sys.argv = ["ipykernel_launcher", *request["argv"]]
    kernelapp.launch_new_instance()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
