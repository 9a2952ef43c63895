"""`make slurm-test`: a real one-node Slurm from Debian's packages, a small sweep on it, one job
killed, and everything that was started torn down again.

Where it cannot be installed it says why and ends with 0 (skipped). Nothing outside a temporary
folder is configured; the packages stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = """
ClusterName=nanosd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Skipped(Exception):
    """Slurm cannot be had here; the text says why."""


def install() -> None:
    """Debian's packages, their services not started; Skipped where that cannot be."""
    if os.geteuid() != 0:
        raise Skipped("installing and starting Slurm wants root")
    if shutil.which("sbatch") and shutil.which("munged"):
        return
    if not shutil.which("apt-get"):
        raise Skipped("there is no apt-get here")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    try:
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (
            ["update"],
            ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"],
        ):
            done = subprocess.run(
                ["apt-get", "-qq", *words], env=env, capture_output=True, text=True
            )
            if done.returncode:
                raise Skipped(f"apt-get {words[0]}: {done.stderr.strip().splitlines()[-1]}")
    finally:
        if ours:
            policy.unlink(missing_ok=True)


def _ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


@contextlib.contextmanager
def cluster(folder: Path, cores: int) -> Iterator[None]:
    """One node, its daemons in `folder`; SLURM_CONF points there inside, all is ended after."""
    munge, host = folder / "munge", socket.gethostname().split(".")[0]
    for part in (munge, folder / "state", folder / "spool"):
        part.mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    shutil.chown(munge, "munge", "munge"), shutil.chown(munge / "key", "munge", "munge")
    munge.chmod(0o755), folder.chmod(0o755)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, ports=_ports(2), folder=folder, cores=cores))
    old = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    files = [f"--{k}-file={munge}/{k}" for k in ("key", "pid", "log", "seed")]
    commands = [
        ["runuser", "-u", "munge", "--", "munged", "-F", f"--socket={munge}/socket", *files],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", host],
    ]
    daemons = []
    try:
        for words in commands:
            daemons.append(
                subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            time.sleep(1)
        _until(
            lambda: "idle" in _said("sinfo", "--noheader", "--format=%T"), 60, "the node is idle"
        )
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        time.sleep(2)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
        os.environ.pop("SLURM_CONF")
        if old is not None:
            os.environ["SLURM_CONF"] = old


def _said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True).stdout


def _until(true, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.5)


def trial(folder: Path) -> None:
    """Jobs, a job that dies, and a sweep of two studies whose first job is killed and resumed."""
    from nanosd_lib import paths
    from nanosd_lib.studies import jobs, sweep

    echo = [
        jobs.Job("nanosd_lib.studies.sweep:echo", {"value": k}, str(folder / "store"))
        for k in range(4)
    ]
    echo.append(
        jobs.Job("nanosd_lib.studies.sweep:echo", {"value": 9, "die": 9}, str(folder / "store"))
    )
    ended = jobs.run(echo, "slurm", 2, folder / "logs")
    assert [e.artifact is None for e in ended] == [False] * 4 + [True], ended
    print(f"a job array of {len(echo)}: four artifacts, and {ended[-1].error}", flush=True)

    with contextlib.suppress(ValueError):
        jobs.run(echo, "slurm", 2, folder / "logs", {"gpu": 1})
        raise AssertionError("a parameter that submitit does not know must be refused")

    os.environ |= {"NANOSD_RESULTS": str(folder / "results"), "HF_HUB_OFFLINE": "1"}
    words = ["--profile", "smoke", "--seeds", "0 1", "--workers", "2"]
    words += ["--slurm", "slurm_partition=main"]
    killer = threading.Thread(target=_kill_one, args=(folder / "results",), daemon=True)
    killer.start()
    code = sweep.main(words)
    table = (folder / "results/sweep/status.csv").read_text()
    print(table, flush=True)
    assert code == 1 and table.count(",ok,") == 1, "the killed job must not look well"
    assert sweep.main(words) == 0
    claims = paths.results_root() / "sweep" / "claims.csv"
    assert claims.exists() and (folder / "results/sweep/status.csv").read_text().count(",ok,") == 2
    print("the next sweep went on and ended well", flush=True)


def _kill_one(results: Path) -> None:
    """Kill the job of seed 0 when its study has come to notebook 02."""
    run = results / "smoke" / "run.json"
    _until(
        lambda: run.exists() and '"01_tiling_analysis": {\n   "state": "ok"' in run.read_text(),
        600,
        "01",
    )
    job = sorted(_said("squeue", "--noheader", "--array", "--states=R", "--format=%i").split())[0]
    subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
    print(f"killed job {job}", flush=True)


def main() -> int:
    try:
        install()
    except Skipped as reason:
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="nanosd-slurm-") as name:
        folder = Path(name)
        with cluster(folder, os.cpu_count() or 1):
            trial(folder)
    print("slurm-test: ok; its daemons are gone")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
