"""The workshop (`make workshop`): student, solution and instructor copies of the notebooks, made of
the one source.

An exercise is a few cells: its task, a code cell whose answer stands between nbgrader's markers
(`### BEGIN SOLUTION`, `### END SOLUTION`), a check that fails with a word on where to look, and a
hint (a markdown cell tagged "hint"). In the source the answer is there, so every run checks it.
Instructors find notes under the head of each page, which stand in `docs/instructor.yaml`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

from nanosd_lib import paths
from nanosd_lib.paths import ROOT

EDITIONS = ("student", "solution", "instructor")
TURN = 'raise NotImplementedError("your turn")'
SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n(?P<body>.*?)^[ \t]*### END SOLUTION[ \t]*\n?",
    re.S | re.M,
)
NOTES = ROOT / "docs" / "instructor.yaml"


def solutions(cell: Any) -> list[str]:
    """The answers between markers in a code cell."""
    return [m["body"] for m in SOLUTION.finditer(cell.source)]


def exercises(nb: Any) -> Iterator[tuple[Any, Any]]:
    """(answer, check) of each exercise: a cell with a solution and the code cell behind it.

    ValueError for markers that do not pair, and for an answer without a check.
    """
    cells = [c for c in nb.cells if c.cell_type == "code"]
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        begun, ended = (cell.source.count(f"### {w} SOLUTION") for w in ("BEGIN", "END"))
        if begun != ended or begun != len(solutions(cell)):
            raise ValueError(f"workshop: markers of a solution do not pair: {cell.source[:60]!r}")
        if begun:
            if after is None or "assert" not in after.source:
                raise ValueError(f"workshop: no check behind the answer {cell.source[:60]!r}")
            yield cell, after


def notes() -> dict[str, str]:
    """What a teacher may want to have read, by the name of the page."""
    return yaml.safe_load(NOTES.read_text(encoding="utf-8"))


def edition(nb: Any, kind: str, profile: str = "smoke", note: str = "") -> Any:
    """A copy of a notebook for students, with solutions, or for instructors, who find `note` under
    its head; without outputs, on that profile. ValueError for another kind.
    """
    if kind not in EDITIONS:
        raise ValueError(f"workshop: edition {kind!r}: use one of {', '.join(EDITIONS)}")
    nb = nbformat.from_dict(nb)
    list(exercises(nb))
    if kind == "instructor" and note:
        said = f"## For whoever teaches this page\n{note}"
        nb.cells.insert(1, nbformat.v4.new_markdown_cell(said, id="instructor"))
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            shown = rf"\g<indent>{TURN}\n" if kind == "student" else r"\g<body>"
            cell.source = SOLUTION.sub(shown, cell.source)
        if "parameters" in tags:
            cell.source = cell.source.replace('= "mini"', f'= "{profile}"')
        if "hint" in tags:
            cell.source = f"<details><summary>Hint</summary>\n\n{cell.source}\n\n</details>"
    nb.metadata["edition"] = kind
    return nb


def write(out: Path, notebooks: Sequence[Path], profile: str = "smoke") -> dict[str, int]:
    """All editions of the notebooks into folders of `out`, which is replaced; exercises of each."""
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    counted, said = {}, notes()
    for path in notebooks:
        nb = nbformat.read(path, as_version=4)
        counted[path.stem] = len(list(exercises(nb)))
        for kind in EDITIONS:
            to = new / kind / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(edition(nb, kind, profile, said.get(path.stem, "")), to)
    shutil.copy(ROOT / "docs" / "workshop.md", new / "instructor" / "plan.md")
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    return counted


def main(argv: Sequence[str]) -> int:
    """`make workshop`."""
    parser = argparse.ArgumentParser(prog="make workshop")
    parser.add_argument("--profile", default="smoke")
    args = parser.parse_args(argv)
    out = paths.results_root() / "workshop"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
        counted = write(out, notebooks, args.profile)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, n in counted.items():
        print(f"  {name}: {n} exercises" if n != 1 else f"  {name}: 1 exercise")
    print(f"{paths.shown(out)}: {', '.join(EDITIONS)}; the plan by the minute: instructor/plan.md")
    return 0
