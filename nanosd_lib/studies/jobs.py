"""Jobs: independent pure functions of a JSON description, run here, in a pool, or on a cluster.

A job's result is an artifact of the store, so what is finished is never computed again, whoever
computes it: `run` looks there first, and a killed or preempted job starts again where its own
computations stopped.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from nanosd_lib import paths
from nanosd_lib.engine.interrupts import Interrupted, came, held
from nanosd_lib.runs import cache
from nanosd_lib.runs.artifacts import Artifact

if TYPE_CHECKING:
    import torch
HOW = ("here", "pool", "slurm")
GONE = 20  # seconds without a sign of a cluster job before it counts as killed


@dataclass(frozen=True)
class Job:
    """A function of this library ("module:function"), what it is called with, and its store."""

    function: str
    description: dict[str, Any]
    store: str

    def __call__(self) -> str:
        """Compute or find the artifact; returns its folder."""
        return str(self.artifact().path)

    def artifact(self) -> Artifact:
        fn, device = self._function()
        store, name = Path(self.store), fn.__name__
        return cache.cached(store, device, name, fn, self.description, [], {}, quiet=True)

    def finished(self) -> Artifact | None:
        """The artifact where it is whole already."""
        fn, device = self._function()
        return cache.find(Path(self.store), device, fn.__name__, fn, self.description)

    def _function(self) -> tuple[Callable[..., dict], torch.device]:
        import torch

        module, _, name = self.function.partition(":")
        fn = getattr(importlib.import_module(module), name)
        return fn, torch.device("cpu")  # what a job computes on is its own affair

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """What a preempted cluster job asks for: the same again (what is finished is kept)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Ended:
    """How a job ended: its artifact, or one line of error."""

    job: Job
    artifact: Path | None
    error: str


def run(
    jobs: Sequence[Job],
    how: str = "here",
    workers: int = 1,
    logs: Path | None = None,
    cluster: dict[str, Any] | None = None,
    each: Callable[[Ended], None] | None = None,
) -> list[Ended]:
    """Run them all, a failure does not stop the others; in the order given.

    how: "here" (this process, one by one), "pool" (`workers` processes), "slurm" (a job array of at
    most `workers` at once, through submitit; `logs` on a disk that all nodes see; `cluster` holds
    parameters of submitit's, such as slurm_partition, gpus_per_node, timeout_min). ValueError for
    anything else. `each` is called, in this process, as a job ends.
    """
    if how not in HOW:
        raise ValueError(f"jobs: {how!r} does not exist: use one of {', '.join(HOW)}")
    if workers < 1:
        raise ValueError(f"jobs: workers = {workers} must be at least 1")
    slurm = functools.partial(_slurm, cluster=cluster or {})
    ways: dict[str, Callable[..., Any]] = {"here": _here, "pool": _pool, "slurm": slurm}
    ended = {}
    for index, outcome in tqdm(ways[how](jobs, workers, logs), total=len(jobs), desc="jobs"):
        ended[index] = outcome
        if each is not None:
            each(outcome)
    return [ended[i] for i in range(len(jobs))]


def _ended(job: Job, call: Callable[[], str]) -> Ended:
    try:
        return Ended(job, Path(call()), "")
    except Exception as error:
        if (number := came()) is not None:  # whatever fails after a signal failed of it
            raise Interrupted(number) from None
        lines = str(error).strip().splitlines() or [""]
        return Ended(job, None, f"{type(error).__name__}: {lines[-1]}")


def _here(jobs: Sequence[Job], workers: int, logs: Path | None) -> Iterator[tuple[int, Ended]]:
    for index, job in enumerate(jobs):
        yield index, _ended(job, job)


def _pool(jobs: Sequence[Job], workers: int, logs: Path | None) -> Iterator[tuple[int, Ended]]:
    """Spawned, not forked: torch's threads do not survive a fork. A worker that is killed breaks
    the pool; the jobs that were not done start again, where their finished computations left them.
    """
    context = multiprocessing.get_context("spawn")
    left = dict(enumerate(jobs))
    while left:
        pool = ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1)
        with pool, _told(pool):
            futures = {pool.submit(_shared, job, i, workers): i for i, job in left.items()}
            for future in as_completed(futures):
                outcome = _ended(left[futures[future]], future.result)
                if "BrokenProcessPool" not in outcome.error:
                    yield futures[future], outcome
                    left.pop(futures[future])
        if left:  # a worker died and broke the pool: who it was shows when each runs alone
            index = min(left)
            yield index, _alone(left.pop(index), context)


@contextlib.contextmanager
def _told(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Whoever leaves early, as after a signal, ends the workers: the pool would wait for them."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        with held():
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
        raise


def _shared(job: Job, index: int, workers: int) -> str:
    """A job in a worker: its share of the cores, and a GPU of its own where there are several."""
    import torch

    os.environ["NANOSD_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    given = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    gpus = given or [str(k) for k in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return job()


def _alone(job: Job, context: Any) -> Ended:
    with ProcessPoolExecutor(1, mp_context=context) as pool, _told(pool):
        return _ended(job, pool.submit(job).result)


def _slurm(
    jobs: Sequence[Job], workers: int, logs: Path | None, cluster: dict[str, Any]
) -> Iterator[tuple[int, Ended]]:
    import torch

    submitit = _submitit()
    folder = Path(logs or Path(jobs[0].store).parent / "slurm")
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    asked = {"name": "nanosd", "timeout_min": 24 * 60, "cpus_per_task": torch.get_num_threads()}
    try:
        executor.update_parameters(**asked | {"slurm_array_parallelism": workers} | cluster)
    except NameError as error:  # submitit's own word for a parameter that it does not know
        raise ValueError(f"jobs: slurm: {' '.join(str(error).split())}") from None
    with executor.batch():
        sent = [executor.submit(job) for job in jobs]
    print(
        f"slurm job array {sent[0].job_id.split('_')[0]}: {len(sent)} jobs, logs in"
        f" {paths.shown(folder)}"
    )
    left = dict(enumerate(sent))
    unseen: dict[int, int] = {}
    while left:
        queued = _queued()
        for index, job in list(left.items()):
            gone = queued is not None and job.job_id not in queued
            unseen[index] = unseen.get(index, 0) + 1 if gone else 0
            if done := jobs[index].finished():  # nothing that submitit pickled is read here
                yield index, Ended(jobs[index], done.path, "")
            elif unseen[index] > GONE:
                yield index, Ended(jobs[index], None, _last_words(job.paths.stderr))
            else:
                continue
            left.pop(index)
        time.sleep(1)


def _queued() -> set[str] | None:
    """Ids of the jobs that the cluster still knows as waiting or running, None where it does not
    answer; asked of squeue, since a small cluster keeps no accounts.
    """
    words = ["squeue", "--noheader", "--array", "--format=%i", "--states=PD,R,CG,CF,S,RQ,SO,RS"]
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        )
    except subprocess.TimeoutExpired:
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


def _last_words(log: Path) -> str:
    """The error in a cluster job's log, else that it was killed."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    errors = [s for s in lines if re.match(r"\w*(Error|Exception|Interrupt)\b", s)]
    return errors[-1] if errors else f"killed on the cluster: see {paths.shown(log)}"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "jobs: submitit is not installed: run `make env` (it is the extra 'slurm')"
        ) from None
    return submitit
