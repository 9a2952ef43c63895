"""The notebooks as committed: clean, in a valid order, true to the results, not stale."""

from __future__ import annotations

import ast
import json
import re

import nbformat
import pandas as pd
import pytest
from nbconvert.exporters import ScriptExporter

from nanosd_lib import paper
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import reference

PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = sorted((ROOT / "results" / "reference" / "notebooks").glob("*.ipynb"))
TABLES = ROOT / "results" / "reference" / "tables"
IO = ROOT / "results" / "reference" / "io"


def cells(path, kind: str) -> list[str]:
    book = nbformat.read(path, as_version=4)
    return [c.source for c in book.cells if c.cell_type == kind]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_clean(path):
    """Outputs stripped, a parameters cell, cells that fit a page, no machine's paths."""
    book = json.loads(path.read_text())
    code = [c for c in book["cells"] if c["cell_type"] == "code"]
    assert not any(c["outputs"] or c["execution_count"] for c in code)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1
    assert max("".join(c["source"]).count("\n") for c in code) <= 32
    assert not re.findall(r"[\"'(](/home|/tmp|/root|/Users|[A-Z]:\\)", path.read_text())
    assert f'open_run("{path.stem}"' in "".join(code[1]["source"])


@pytest.mark.parametrize("path", PATHS + PAGES, ids=lambda p: f"{p.parent.parent.name}/{p.stem}")
def test_a_notebook_becomes_a_script(path):
    """`jupyter nbconvert --to script`: Python under a name that Python reads."""
    text, resources = ScriptExporter().from_filename(str(path))
    assert resources["output_extension"] == ".py" and len(ast.parse(text).body) > 3
    spoken = json.loads(path.read_text(encoding="utf-8"))["metadata"]["language_info"]
    assert spoken["name"] == "python" and spoken["mimetype"] == "text/x-python"


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_page_says_what_it_reads_and_writes(path):
    """The head of the page names exactly the tables that the reference run saw it write, and every
    table of another notebook that it read.
    """
    head = cells(path, "markdown")[0]
    seen = json.loads((IO / f"{path.stem}.json").read_text())
    writes, reads = (re.search(rf"\| {k} \|(.*)\|", head)[1] for k in ("writes", "reads"))
    tables = {name.removeprefix("tables/") for name in seen["writes"] if name.endswith(".csv")}
    assert set(re.findall(r"(\w+\.csv)", writes)) == tables
    read = {name.removeprefix("tables/") for name in seen["reads"]}
    assert read <= set(re.findall(r"(\w+\.csv)", reads))


def test_the_numbering_is_an_order():
    """Whatever a notebook reads, a notebook of a smaller number has written."""
    written: set[str] = set()
    for path in PATHS:
        seen = json.loads((IO / f"{path.stem}.json").read_text())
        assert set(seen["reads"]) <= written, path.stem
        written |= set(seen["writes"])


def measured() -> set[str]:
    """Every number of the reference tables, as it prints with three or four digits."""
    found = set()
    for path in TABLES.glob("*.csv"):
        table = pd.read_csv(path)
        for column in table.select_dtypes("number"):
            for value in table[column].dropna():
                found |= {f"{value:.2f}", f"{value:.3f}", f"{value:.3g}", f"{value:.4g}"}
    return {f for f in found if "." in f and len(re.sub(r"[^1-9]", "", f)) > 2 and "e" not in f}


def test_no_number_is_typed_into_prose():
    """A decimal number in the text that the results hold must come from the results, unless a
    source printed it.
    """
    published = (ROOT / "data" / "paper").glob("*")
    printed = set(re.findall(r"\d+\.\d+", "".join(p.read_text() for p in published)))
    results = measured() - printed
    assert len(results) > 1000  # there is something to compare with
    for path in PATHS:
        for text in cells(path, "markdown"):
            assert not set(re.findall(r"(?<![\w.])\d+\.\d+", text)) & results, (
                f"{path.stem}: {text}"
            )


def test_the_reference_run_is_not_stale():
    """The committed results were computed by the committed code (by hashes, nothing is run)."""
    assert reference.stale() == [], "run `make reproduce` and `make reference` again"


def test_every_notebook_has_a_reference_page():
    pages = {p.stem for p in (ROOT / "results/reference/notebooks").glob("*.ipynb")}
    assert pages == {p.stem for p in PATHS}
    assert {c.notebook for c in paper.claims()} >= {p.stem for p in PATHS} - {"11_results_tables"}
