"""The variables that kernels are started with: a user's own settings enter no run."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

# settings, start-up code and the kind of figures, each named by a variable
DROPPED = ("MATPLOTLIBRC", "MPLBACKEND", "PYTHONSTARTUP")


def neutral(given: Mapping[str, str]) -> dict[str, str]:
    """The variables, but IPython and matplotlib find their defaults in place of the user's settings
    (start-up files, a matplotlibrc), which no key and no report would tell of; text is UTF-8
    whatever the locale.
    """
    kept = {name: value for name, value in given.items() if name not in DROPPED}
    folder = _folder(given.get("XDG_CACHE_HOME", ""), given.get("HOME", ""))
    own = {"IPYTHONDIR": f"{folder}/ipython", "MPLCONFIGDIR": f"{folder}/matplotlib"}
    return kept | own | {"PYTHONUTF8": "1"}


@functools.cache
def _folder(cache: str, home: str) -> Path:
    """Kept between runs, since matplotlib's list of fonts takes seconds to make; this process' own
    where the user's cache cannot be written.
    """
    try:
        base = Path(cache) if Path(cache).is_absolute() else Path(home or Path.home(), ".cache")
        folder = base.absolute() / "nanosd-notebooks"
        for name in ("ipython", "matplotlib"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            if not os.access(folder / name, os.W_OK | os.X_OK):
                raise PermissionError(folder)
    except (OSError, RuntimeError):  # a home that is read-only, or none at all
        return Path(_temporary().name)
    return folder


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory("nanosd", ignore_cleanup_errors=True)
