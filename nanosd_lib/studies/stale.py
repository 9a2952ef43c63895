"""Stale: which executed pages the code has outgrown since they were made (`make stale`).

A run keeps, for each page, the hash of all that decided it: its cells, the library code they reach,
the sections of the profile they read, the data that code names, the claims it answers. Compared
with what lies here now, that needs no history and computes nothing.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from nanosd_lib import paper, paths
from nanosd_lib.paths import PACKAGE, ROOT
from nanosd_lib.runs import profiles, release
from nanosd_lib.runs.provenance import (
    canonical,
    code_cells,
    commits_since,
    data_read,
    file_hash,
    made_of,
    source_of,
    text_hash,
)

REFERENCE = ROOT / "results" / "reference"
DIGITS = 16  # of a hash: enough to tell two files apart
RELEASED = {  # the recipe that asks for it: kind of member
    f"{PACKAGE}.recipes.surrogates": "surrogates",
    f"{PACKAGE}.recipes.restoring": "adapters",
    f"{PACKAGE}.recipes.members": "aligned",
    f"{PACKAGE}.recipes.slimming": "vae",
}
UNREAD = ("name", "device", "threads", "notebook_minutes", "teacher")  # decide no number, or `data`


def ingredients(path: Path, profile: profiles.Profile) -> dict[str, str]:
    """Everything that decides a notebook's results under a profile, name -> the start of its hash.

    Raises SyntaxError where a cell does not parse.
    """
    code = made_of(path)
    modules = [source for name in code if name != "cells" and (source := source_of(name))]
    text = "\n".join([*code_cells(path), *(m.read_text(encoding="utf-8") for m in modules)])
    found = {**code, **_budgets(text, profile), **_data(list(code), profile)}
    found["claims"] = _claims(path.stem)
    return {name: value[:DIGITS] for name, value in sorted(found.items())}


def _budgets(text: str, profile: profiles.Profile) -> dict[str, str]:
    """The sections of the profile that a text reads."""
    values = profile.model_dump(mode="json", exclude=set(UNREAD))
    read = set(re.findall(r"\bprofile\.(\w+)", text)) | {"dtype"}
    return {f"budget {k}": text_hash(canonical(v)) for k, v in values.items() if k in read}


def _data(modules: list[str], profile: profiles.Profile) -> dict[str, str]:
    """What of `data/` those modules read: judges, photographs, what the sources print; the teacher,
    where a recipe can load it; and the kinds of released members that a recipe asks for.
    """
    found = {f"data/{name}": value for name, value in data_read(modules).items()}
    found["data/paper"] = _folder(ROOT / "data" / "paper", ".csv")
    local = ROOT / profile.teacher.path
    if any(m.startswith(f"{PACKAGE}.recipes.") for m in modules) and local.is_dir():
        found[profile.teacher.path] = _folder(local)
    kinds = [kind for module, kind in RELEASED.items() if module in modules and profile.release]
    return found | {f"data/nanosd-mini/{k}": text_hash(canonical(release.keys(k))) for k in kinds}


@cache
def _folder(path: Path, ending: str = "") -> str:
    files = [p for p in sorted(path.rglob(f"*{ending}")) if p.is_file()]
    return text_hash(canonical([[p.relative_to(path).as_posix(), file_hash(p)] for p in files]))


def _claims(page: str) -> str:
    """The claims that a page answers; the last page prints them all."""
    own = [c for c in paper.claims() if c.notebook == page or page.startswith("11_")]
    return text_hash(repr(own))


def pages(folder: Path = REFERENCE) -> dict[str, list[str]]:
    """Page -> what of it is another now, for each page of the run that the code has outgrown.

    A notebook that the run does not hold is outgrown too ("a new notebook"), and so is a page that
    read another table of an earlier one than is there now. FileNotFoundError where no run is.
    """
    if not (folder / "run.json").exists():
        raise FileNotFoundError(f"{paths.shown(folder)} holds no run: nothing can be outgrown")
    report = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    found, books = {}, {p.stem: p for p in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    for name in sorted(books.keys() | report["notebooks"].keys()):
        changed = _changed(name, books.get(name), report, folder)
        if changed:
            found[name] = changed
    return found


def _changed(page: str, path: Path | None, report: dict[str, Any], folder: Path) -> list[str]:
    entry = report["notebooks"].get(page)
    if path is None:
        return ["the notebook is gone"]
    if entry is None:
        return ["a new notebook"]
    if "made_of" not in entry:
        return ["the run does not say what it was made of"]
    profile = profiles.load(report["profile"], report.get("overrides"))
    then, now = entry["made_of"], ingredients(path, profile)
    changed = [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]
    read = entry.get("read", {})
    return changed + [k for k, v in read_by(page, folder).items() if read.get(k, v) != v]


def read_by(page: str, folder: Path) -> dict[str, str]:
    """The files of other pages that a page read, each with the start of its hash."""
    path = folder / "io" / f"{page}.json"
    names = json.loads(path.read_text(encoding="utf-8"))["reads"] if path.exists() else []
    there = [name for name in sorted(names) if (folder / name).exists()]
    return {name: file_hash(folder / name)[:DIGITS] for name in there}


def age(entry: dict[str, Any]) -> str:
    """How far the code is ahead of the commit a page was made at, or why that cannot be told."""
    count, reason = commits_since(entry.get("commit"))
    at = f"made at {commit_of(entry)}"
    return f"{at}, {count} commits ago" if count is not None else f"{at}; how long ago: {reason}"


def commit_of(entry: dict[str, Any]) -> str:
    """The commit a page was made at, as it is shown."""
    commit = (entry.get("commit") or "no commit")[:12]
    return f"{commit} with changes" if entry.get("dirty") else commit


def lines(folder: Path = REFERENCE, without: str = "") -> list[str]:
    """What `make stale` prints: a line for each outgrown page, or one that says there is none.

    `without` is the page that asks: it is of this code.
    """
    where = paths.shown(folder) if folder == REFERENCE else "this run"
    try:
        outgrown = pages(folder)
    except FileNotFoundError as error:
        return [str(error) if folder == REFERENCE else "this page was run alone, outside a study"]
    outgrown.pop(without, None)
    if not outgrown:
        return [f"every page of {where} is of this code"]
    entries = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notebooks"]
    shown = [f"{p}: {_short(why)} ({age(entries.get(p, {}))})" for p, why in outgrown.items()]
    return [f"{len(outgrown)} pages of {where} are older than the code:", *shown]


def _short(changed: list[str], most: int = 4) -> str:
    names = [name.removeprefix(f"{PACKAGE}.") for name in changed]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def main(argv: list[str] | None = None) -> int:
    """Print the outgrown pages of the reference run; 0 whether or not there are any."""
    if argv:
        raise SystemExit(f"error: stale takes no words, got {argv[0]!r}")
    try:
        print("\n".join(lines()))
    except (OSError, ValueError, SyntaxError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
