"""The notebooks as committed: clean, in a valid order, true to the results."""

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
from nanosd_lib.runs import captions

PATHS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
TABLES = ROOT / "results" / "reference" / "tables"


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
    lines = sorted("".join(c["source"]).count("\n") + 1 for c in code)
    assert lines[-1] <= 25 and lines[len(lines) // 2] <= 6
    assert not re.findall(r"[\"'(](/home|/tmp|/root|/Users|[A-Z]:\\)", path.read_text())
    assert f'open_run("{path.stem}"' in "".join(code[1]["source"])


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_notebook_becomes_a_script(path):
    """`jupyter nbconvert --to script`: Python under a name that Python reads."""
    text, resources = ScriptExporter().from_filename(str(path))
    assert resources["output_extension"] == ".py" and len(ast.parse(text).body) > 3
    spoken = json.loads(path.read_text(encoding="utf-8"))["metadata"]["language_info"]
    assert spoken["name"] == "python" and spoken["mimetype"] == "text/x-python"


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


def test_every_notebook_has_claims():
    assert {c.notebook for c in paper.claims()} >= {p.stem for p in PATHS} - {"11_results_tables"}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_page_teaches(path):
    """A question on top, an answer that is computed, an equation, readings of what is shown."""
    text, code = cells(path, "markdown"), "\n".join(cells(path, "code"))
    assert text[0].split("\n")[0].endswith("?") and text[0].startswith("# ")
    assert ".is_(" in code or "readings.sentences" in code
    assert any("$$" in x for x in text)
    assert code.count("pages.reading(") >= min(5, code.count("run.figure(")) - 1
    assert not re.search(r"^\*\*Reading\.\*\*", "\n".join(text), re.M)  # nobody types one


def test_every_figure_has_a_caption():
    """And every caption its figure; no caption says what came out."""
    asked = set()
    for path in PATHS:
        code = "\n".join(cells(path, "code"))
        asked |= set(re.findall(r'run\.figure\(\s*f?"([^"]+)"', code))
    known = captions.captions()
    used = {k for a in asked for k in known if re.fullmatch(re.sub(r"\{.*\}", r"\\w+", a), k)}
    assert used == set(known), "a caption without a figure"
    for name in asked:
        assert any(re.fullmatch(re.sub(r"\{.*\}", r"\\w+", name), k) for k in known), name
    for name, text in known.items():
        assert text.endswith(".") and "\n" not in text, name
        assert not re.findall(
            r"\d", re.sub(r"SD 1\.5|95 %|Diffusion 1\.5|[NED]\d|NanoSD \d|int8", "", text)
        )
