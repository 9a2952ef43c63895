"""The row of minutes at the head of each page: to read it, to run it, to do its exercises. Written
into the notebooks from what the reference run took, on its machine, and from what the page holds;
nobody types it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from nanosd_lib import paths
from nanosd_lib.studies import workshop

WORDS, PICTURE = 180, 0.5  # words in a minute, minutes of looking at a picture: our assumption
EXERCISE = 4  # minutes in which an exercise is done and talked about: our assumption
ROW = re.compile(r"\| minutes \|.*\|")
IN_FILE = re.compile(r'"\| minutes \|(?:[^"\\]|\\.)*"')  # that line, as JSON


def row(nb: Any, entry: Mapping[str, Any] | None) -> str:
    """The row of a notebook, of which the reference run's run.json says `entry`."""
    words = sum(len(ROW.sub("", c.source).split()) for c in nb.cells if c.cell_type == "markdown")
    pictures = sum(c.source.count("run.figure(") for c in nb.cells if c.cell_type == "code")
    parts = [f"{max(1, round(words / WORDS + PICTURE * pictures))} to read", _run(entry)]
    if exercises := len(list(workshop.exercises(nb))):
        parts.append(f"{EXERCISE * exercises} for {exercises} exercises")
    return f"| minutes | {'; '.join(parts)} |"


def _run(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "to run: not in the reference run yet"
    first, again = (_said(entry[k]) for k in ("computed_seconds", "seconds"))
    return f"{first} to run the first time, {again} again ({entry['machine']})"


def _said(seconds: float) -> str:
    return "under 1" if seconds < 60 else f"{seconds / 60:.0f}"


def rewritten(text: str, entry: Mapping[str, Any] | None) -> str:
    """The text of a notebook's file with its row, where it has one, brought in line."""
    new = row(nbformat.reads(text, as_version=4), entry)
    return IN_FILE.sub(lambda _: json.dumps(f"{new}\n", ensure_ascii=False), text, count=1)


def refresh(folder: Path, entries: Mapping[str, Any]) -> None:
    """All notebooks of a folder, by the entries of run.json."""
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        text = path.read_text(encoding="utf-8")
        new = rewritten(text, entries.get(path.stem))
        if new != text:
            paths.write_atomic(path, new.encode())
