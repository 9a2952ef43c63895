"""workshop: every answer passes its check, a student copy stops at "your turn", nothing leaks."""

from __future__ import annotations

import ast
import time

import nbformat
import pytest

from nanosd_lib import paper
from nanosd_lib.data import splits
from nanosd_lib.networks import pipeline
from nanosd_lib.paths import ROOT
from nanosd_lib.recipes import shared
from nanosd_lib.restoration import one_step
from nanosd_lib.runs import notebook
from nanosd_lib.studies import workshop

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = {p.stem: nbformat.read(p, as_version=4) for p in NOTEBOOKS}
EXERCISES = [(k, i) for k, nb in PAGES.items() for i, _ in enumerate(workshop.exercises(nb))]


@pytest.fixture(scope="module")
def pipe():
    return pipeline.load_teacher("data/sd-mini")


def imports(nb) -> dict:
    """What the imports of a page's cells bring."""
    names: dict = {}
    for cell in nb.cells:
        if cell.cell_type == "code":
            found = [
                n for n in ast.parse(cell.source).body if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            for node in found:
                exec(compile(ast.Module([node], []), "imports", "exec"), names)
    return names


def given(name: str, pipe, tmp_path, monkeypatch) -> dict:
    """What a page has computed before its exercises, as far as they use it."""
    made: dict = {"pipe": pipe}
    if name.startswith("03"):
        monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
        monkeypatch.setenv("NANOSD_STORE", str(tmp_path / "store"))
        run = notebook.open_run("toy", "smoke", 0, {"fwkd.heldout": 4})
        made["b"] = shared.heldout_batches(run, pipe)[0]
    if name.startswith("06"):
        made["printed"] = paper.family().dropna(subset=["htp_ms", "tafid"]).set_index("model")
    if name.startswith("07"):
        made |= {"good": splits.pictures("heldout", 4, 4, 0)[0], "abar": one_step.alphas(pipe)}
    return made


@pytest.mark.parametrize("name", PAGES)
def test_only_the_instructors_copy_has_the_notes_of_its_page(name):
    note = workshop.notes()[name]
    for word in ("Ask", "Listen for", "Board", "Short of time", "End"):
        assert note.count(f"**{word}.**") == 1, (name, word)
    for kind in workshop.EDITIONS:
        cells = workshop.edition(PAGES[name], kind, note=note).cells
        found = [i for i, c in enumerate(cells) if note.strip() in c.source]
        assert found == ([1] if kind == "instructor" else [])
    assert set(workshop.notes()) == set(PAGES)


@pytest.mark.parametrize("name, which", EXERCISES)
def test_the_answer_passes_its_check_and_no_answer_does_not(
    name, which, pipe, tmp_path, monkeypatch
):
    """The exercises before it included, since one may use another's names; within ten seconds."""
    nb = PAGES[name]
    names = imports(nb) | given(name, pipe, tmp_path, monkeypatch)
    cells = list(workshop.exercises(nb))
    for answer, check in cells[:which]:
        exec(answer.source, names)
        exec(check.source, names)
    answer, check = cells[which]
    began = time.perf_counter()
    exec(answer.source, names)
    exec(check.source, names)
    assert time.perf_counter() - began < 60  # ten on a quiet machine
    student = workshop.SOLUTION.sub(rf"\g<indent>{workshop.TURN}\n", answer.source)
    with pytest.raises(NotImplementedError, match="your turn"):
        exec(student, names)
        exec(check.source, names)


WRONG = {
    ("00_start_here", 0): "def chance():\n    return 0.3, 0.3, 0.3",
    ("00_start_here", 1): "def guided(prompt, w):\n    return guess(prompt)",
    ("01_tiling_analysis", 0): "def tiles(w, h, t, o):\n    return w // (t - o) * h // (t - o)",
    ("03_fwkd", 0): "def best():\n    return 3, 1.0",
    ("04_vae_slimming", 2): "def orders():\n    return [1, 2, 3, 0], [1, 2, 3, 0]",
    ("05_bayesian_search", 0): "def area():\n    return 16",
    ("06_family", 0): "def fronts():\n    return {2}, {1}",
    ("06_family", 1): "def aligned_for(net, x, t, c, steps):\n    pass",
    ("07_super_resolution", 0): "def timestep(rms):\n    return 500",
    ("11_results_tables", 0): 'def verdicts_of():\n    return "holds", "holds", "fails"',
    ("11_results_tables", 1): "def needed(n, value, low, bound):\n    return 2 * n",
}


@pytest.mark.parametrize("name, which", WRONG)
def test_a_wrong_answer_is_told_where_to_look(name, which, pipe, tmp_path, monkeypatch):
    names = imports(PAGES[name]) | given(name, pipe, tmp_path, monkeypatch)
    cells = list(workshop.exercises(PAGES[name]))
    for answer, _ in cells[: which + 1]:
        exec(answer.source, names)
    exec(WRONG[name, which], names)
    with pytest.raises(AssertionError):
        exec(cells[which][1].source, names)


def test_most_pages_have_exercises():
    assert len({name for name, _ in EXERCISES}) >= 9 and len(EXERCISES) >= 24


@pytest.mark.parametrize("name", PAGES)
def test_no_answer_leaks_into_a_students_copy(name):
    copy = workshop.edition(PAGES[name], "student")
    text = "\n".join(c.source for c in copy.cells)
    for answer, _ in workshop.exercises(PAGES[name]):
        for body in workshop.solutions(answer):
            lines = [line.strip() for line in body.splitlines() if len(line.strip()) > 12]
            assert lines and not any(line in text for line in lines)
    assert "SOLUTION" not in text
    turns = sum(c.source.count(workshop.TURN) for c in copy.cells)
    assert turns == len(list(workshop.exercises(PAGES[name])))
    assert not any(c.get("outputs") for c in copy.cells)
    assert any('profile: str = "smoke"' in c.source for c in copy.cells)
    for c in copy.cells:
        if c.cell_type == "code":
            ast.parse(c.source)


@pytest.mark.parametrize("name", PAGES)
def test_the_solution_copy_is_the_source_without_markers(name):
    copy = workshop.edition(PAGES[name], "solution")
    for mine, source in zip(copy.cells, PAGES[name].cells, strict=True):
        if "hint" in source.metadata.get("tags", []):
            assert mine.source.startswith("<details><summary>Hint</summary>")
        elif mine.cell_type == "code" and "parameters" not in source.metadata.get("tags", []):
            kept = [x for x in source.source.splitlines() if "SOLUTION" not in x]
            assert mine.source.splitlines() == kept


def cells(*sources):
    made = [nbformat.v4.new_code_cell(s) for s in sources]
    return nbformat.v4.new_notebook(cells=made)


@pytest.mark.parametrize("nb, said", [
    (cells("### BEGIN SOLUTION\nx = 1", "assert x"), "do not pair"),
    (cells("### BEGIN SOLUTION\nx = 1\n### END SOLUTION"), "no check behind the answer"),
])  # fmt: skip
def test_an_exercise_that_is_none_is_refused(nb, said):
    with pytest.raises(ValueError, match=said):
        workshop.edition(nb, "student")


def test_other_editions_are_refused():
    with pytest.raises(ValueError, match="edition 'exam': use one of student, solution"):
        workshop.edition(cells("x = 1"), "exam")


def test_the_verb_writes_all_copies_and_the_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    assert workshop.main([]) == 0
    for kind in workshop.EDITIONS:
        there = {p.stem for p in (tmp_path / "workshop" / kind).glob("*.ipynb")}
        assert there == set(PAGES)
    assert "| 0-6 | 00 |" in (tmp_path / "workshop" / "instructor" / "plan.md").read_text()
    assert "00_start_here: 3 exercises" in capsys.readouterr().out
