"""drift: every number of two ledgers gets one of three labels."""

from __future__ import annotations

import math

import nbformat
import pandas as pd
import pytest

from nanosd_lib.paths import ROOT
from nanosd_lib.studies import drift


@pytest.mark.parametrize(
    "a, b, name",
    [
        (1.0, 1.0, "bit-equal"),
        (math.nan, math.nan, "bit-equal"),
        (0.0, 0.0, "bit-equal"),
        (1.0, 1.0 + 1e-9, "within tolerance"),
        (1.0, 1.0009, "within tolerance"),
        (1.0, 1.1, "statistical only"),
        (0.0, 1e-9, "statistical only"),
        (1.0, math.nan, "statistical only"),
    ],
)
def test_labels(a, b, name):
    assert drift.label(a, b)[0] == drift.label(b, a)[0] == name


def folder(path, values, verdicts=("reproduced", "trend holds")):
    (path / "tables").mkdir(parents=True)
    table = pd.DataFrame({"id": ["a", "b"], "ours": values, "verdict": verdicts})
    table.to_csv(path / "claims.csv", index=False)
    return path


def test_two_ledgers(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    one = folder(tmp_path / "one", [1.0, 2.0])
    two = folder(tmp_path / "two", [1.0, 2.5], ("reproduced", "trend fails"))
    table = drift.ledgers(one, two).set_index("id")
    assert table.label.to_dict() == {"a": "bit-equal", "b": "statistical only"}
    assert table.verdicts["b"] == "trend holds / trend fails"
    assert table.drift["b"] == pytest.approx(0.2)
    assert drift.main([str(one), str(two)]) == 0
    assert "1 bit-equal, 1 statistical only" in capsys.readouterr().out
    assert (tmp_path / "results/drift/drift.csv").exists()
    (two / "claims.csv").write_text("id,ours,verdict\nc,1,x\n")
    assert drift.main([str(one), str(two)]) == 2
    assert "do not hold the same claims" in capsys.readouterr().err


def test_tables_are_compared_by_their_bytes(tmp_path):
    one, two = folder(tmp_path / "one", [1, 2]), folder(tmp_path / "two", [1, 2])
    for where, text in ((one, "a\n1\n"), (two, "a\n1\n")):
        (where / "tables/same.csv").write_text(text)
    (one / "tables/other.csv").write_text("a\n1\n")
    (two / "tables/other.csv").write_text("a\n2\n")
    (one / "tables/alone.csv").write_text("a\n1\n")
    assert drift.tables(one, two) == {"alone.csv": False, "other.csv": False, "same.csv": True}


def test_notebooks_are_compared_without_times_and_progress(tmp_path):
    def book(path, seconds, value):
        lines = f"cached x: computed in {seconds} s\nvalue {value}\n"
        out = [
            nbformat.v4.new_output("stream", name="stdout", text=lines),
            nbformat.v4.new_output("stream", name="stderr", text=f"10%| {seconds}"),
        ]
        cell = nbformat.v4.new_code_cell("run", outputs=out, execution_count=1)
        cell.metadata["papermill"] = {"duration": seconds}
        path.mkdir(parents=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path / "00.ipynb")

    for name, seconds, value in (("one", 1, "a"), ("two", 2, "a"), ("three", 1, "b")):
        book(tmp_path / name / "notebooks", seconds, value)
    assert drift.notebooks(tmp_path / "one", tmp_path / "two") == {"00.ipynb": True}
    assert drift.notebooks(tmp_path / "one", tmp_path / "three") == {"00.ipynb": False}


def test_the_last_report_labels_every_number_and_moves_no_verdict():
    """`make drift` leaves it: the ledger with one thread beside the ledger with two."""
    table = pd.read_csv(ROOT / "results" / "reference" / "drift.csv")
    measured = table[table.one.notna() | table.two.notna()]
    assert len(measured) > 50 and set(measured.label) == set(drift.LABELS)
    equal = measured.label == "bit-equal"
    assert measured.one[equal].equals(measured.two[equal]) and equal.mean() > 0.5
    assert not table.verdicts.str.contains(" / ", na=False).any()
