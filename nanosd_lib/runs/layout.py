"""Layout: where a run keeps its files, and the checks that need no kernel and no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import profiles
from nanosd_lib.runs.provenance import canonical, text_hash

LEDGER = "claims.csv"
LAST_SEED = 2**31 - 1
RANDOM = "RANDOM_WEIGHTS.txt"  # stands in the folder of a teacher that was never trained
SUBFOLDERS = ("tables", "figures", "records", "notebooks", "io", "saved")


def check_run(profile: Any, seed: Any, overrides: dict[str, Any] | None = None):
    """The Profile of a run, validated; ValueError or FileNotFoundError, in one line, otherwise.

    Cheap: called before any kernel starts, and again inside each notebook.
    """
    loaded = profiles.load(profile, overrides)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LAST_SEED:
        kind = type(seed).__name__
        wanted = f"an integer from 0 to {LAST_SEED} is wanted"
        raise ValueError(f"seed = {seed!r} ({kind}) is refused: {wanted}")
    if loaded.teacher.local:
        check_teacher(loaded.teacher.path)
    photographs(loaded.photographs)
    return loaded


def photographs(path: str | None) -> Path | None:
    """The folder of the user's own photographs, from the repository's root; ValueError where it is
    not there.
    """
    if path is None:
        return None
    folder = ROOT / os.path.expanduser(path)
    if not folder.is_dir():
        what = "is a file: name the folder it is in" if folder.is_file() else "is no folder here"
        raise ValueError(f"photographs = {path!r} {what} (a relative path starts at {ROOT})")
    return folder


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


def threads(wanted: int) -> int:
    """The profile's threads, or fewer where several studies share the cores (NANOSD_THREADS)."""
    limit = os.environ.get("NANOSD_THREADS", "")
    return min(wanted, int(limit)) if limit.isdecimal() and int(limit) else wanted


def results_folder(profile: str, seed: int, overrides: dict[str, Any] | None = None) -> Path:
    """results/<profile>[-seed<k>][-<8 hex of the overrides>]; not created here."""
    name = profile if seed == 0 else f"{profile}-seed{seed}"
    if overrides:
        name += f"-{text_hash(canonical(overrides))[:8]}"
    return paths.results_root() / name
