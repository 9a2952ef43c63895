"""Layout: where a run keeps its files, and the checks that need no kernel and no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from nanosd_lib import profiles
from nanosd_lib.provenance import ROOT, canonical, text_hash

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LEDGER = "claims.csv"
RANDOM = "RANDOM_WEIGHTS.txt"  # stands in the folder of a teacher that was never trained
SUBFOLDERS = ("tables", "figures", "records", "notebooks", "io")


class Missing(FileNotFoundError):
    """A file that another notebook or verb makes is not there; the message says which one."""


def check_name(kind: str, name: Any) -> str:
    """A plain file name: no folders, no hidden files. ValueError otherwise."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{kind} {name!r} is refused: letters, digits, '_', '-' and '.' only")
    return name


def plain(name: str) -> str:
    """The name as a file name: everything but letters, digits, '.', '_' and '-' becomes '_'."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def check_space(folder: Path, wanted: float, what: str) -> None:
    """OSError, in one line, unless the disk of `folder` has `wanted` bytes free."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < wanted:
        raise OSError(
            f"no disk space for {what}: {wanted / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free"
            f" on the disk of {there}"
        )


def check_run(profile: Any, seed: Any, overrides: dict[str, Any] | None = None):
    """The Profile of a run, validated; ValueError or FileNotFoundError, in one line, otherwise.

    Cheap: called before any kernel starts, and again inside each notebook.
    """
    loaded = profiles.load(profile, overrides)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        kind = type(seed).__name__
        raise ValueError(f"seed = {seed!r} ({kind}) is refused: an integer from 0 up is wanted")
    if loaded.teacher.local:
        check_teacher(loaded.teacher.path)
    return loaded


def check_teacher(path: str) -> Path:
    """The folder of a local teacher; FileNotFoundError names what is missing and how to get it."""
    folder = ROOT / path
    missing = path
    try:
        index = json.loads((folder / "model_index.json").read_text())
        parts = [part for part, kind in index.items() if isinstance(kind, list) and any(kind)]
        absent = [part for part in parts if not (folder / part).is_dir()]
        if not absent:
            return folder
        missing = f"{path}/{absent[0]}"
    except FileNotFoundError:
        pass
    except (json.JSONDecodeError, AttributeError):
        missing = f"{path}/model_index.json is not readable, a whole teacher"
    raise FileNotFoundError(
        f"{missing} is missing: bring it back with `git checkout data/sd-mini`"
        " or train it with `make teacher`"
    )


def results_root() -> Path:
    return Path(os.environ.get("NANOSD_RESULTS") or ROOT / "results").resolve()


def store_root() -> Path:
    return Path(os.environ.get("NANOSD_STORE") or results_root() / "store").resolve()


def device_root() -> Path:
    """Where measurements of this machine are kept: they outlive a run, and two runs from scratch
    share them, as the paper's searches share one profile of its phone.
    """
    return Path(os.environ.get("NANOSD_DEVICE") or results_root() / "device").resolve()


def measures(stage: str) -> bool:
    """Whether a stage of this name measures the machine: `profile-*` and `*-ms` do."""
    return stage.startswith("profile-") or stage.endswith("-ms")


def threads(wanted: int) -> int:
    """The profile's threads, or fewer where several studies share the cores (NANOSD_THREADS)."""
    limit = os.environ.get("NANOSD_THREADS", "")
    return min(wanted, int(limit)) if limit.isdecimal() and int(limit) else wanted


def results_folder(profile: str, seed: int, overrides: dict[str, Any] | None = None) -> Path:
    """results/<profile>[-seed<k>][-<8 hex of the overrides>]; not created here."""
    name = profile if seed == 0 else f"{profile}-seed{seed}"
    if overrides:
        name += f"-{text_hash(canonical(overrides))[:8]}"
    return results_root() / name


def shown(path: Path) -> str:
    """The path as a reader would type it: relative to the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write_atomic(path: Path, data: bytes) -> None:
    """The whole file or the old one: a temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
