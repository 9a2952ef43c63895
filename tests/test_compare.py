"""compare: a run beside the reference; what differs is said before any number."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest

from nanosd_lib.studies import compare

PAGES = [p.stem for p in compare._notebooks()]
ROWS = {  # id: ours, low, high, n, verdict
    "equal": (1.0, 0.9, 1.1, 96, "holds"),
    "near": (1.0, 0.9, 1.1, 96, "holds"),
    "apart": (1.0, 0.9, 1.1, 96, "holds"),
    "point": (3.0, None, None, None, "undecided"),
    "never": (None, None, None, None, "not run"),
}


def run_in(folder, rows=ROWS, profile="mini", states=(), protocol="96 pictures"):
    folder.mkdir(parents=True)
    books = {k: {"state": "ok"} for k in PAGES} | dict(states)
    report = {"profile": profile, "seed": 0, "overrides": {}, "notebooks": books}
    report |= {"git": {"commit": "f" * 40}, "process": {"host": "h", "pid": os.getpid()}}
    versions = {"torch": "2.15.0"}
    report["machine"] = {"cpu": "a CPU", "cores": 2, "gpu": None, "python": "3.11"}
    report["machine"]["versions"] = versions
    (folder / "run.json").write_text(json.dumps(report))
    table = pd.DataFrame.from_dict(rows, "index", columns=compare.HELD).rename_axis("id")
    table.assign(evidence="trained", protocol=protocol).to_csv(folder / "claims.csv")
    return folder


@pytest.fixture
def reference(tmp_path):
    return run_in(tmp_path / "reference")


def test_claim_by_claim(tmp_path, reference):
    other = {
        "equal": ROWS["equal"],
        "near": (1.05, 0.95, 1.2, 96, "holds"),
        "apart": (2.0, 1.8, 2.2, 96, "fails"),
        "point": (4.0, None, None, None, "undecided"),
        "never": ROWS["never"],
    }
    text, found = compare.report(run_in(tmp_path / "run", other), reference)
    lie = found.set_index("id").numbers.to_dict()
    assert lie == {"equal": "equal", "near": "overlap", "apart": "apart", "point": "no interval"}
    assert "3 of 4 rows have the same verdict" in text
    pasted = text[text.index("To paste into an issue") :]
    assert "| apart | 1 [0.9, 1.1], holds | 2 [1.8, 2.2], fails | apart |" in pasted
    assert "| near |" not in pasted and "torch 2.15.0" in pasted


def test_the_same_run_has_nothing_apart(reference):
    text, found = compare.report(reference, reference)
    assert found.verdict_same.all() and "| every row |" in text


def test_what_differs_is_said_before_any_number(tmp_path, reference):
    rows = {k: v for k, v in ROWS.items() if k != "near"} | {"new": (1.0, 0, 2, 8, "undecided")}
    other = run_in(tmp_path / "run", rows, profile="smoke", protocol="8 pictures")
    text, _ = compare.report(other, reference)
    first = text.index("rows have the same verdict")
    for words in (
        "Another profile",
        "3 rows have another protocol or n: equal, apart, point",
        "1 rows are missing in the run: near",
        "1 rows are missing in the reference: new",
    ):
        assert 0 <= text.index(words) < first


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"state": "failed"}, "is not whole (03_fwkd is failed)"),
        ({"state": "running"}, "is still running (03_fwkd): wait"),
        ({"state": "not run"}, "is not whole (03_fwkd is not run)"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(tmp_path, reference, state, words, monkeypatch):
    monkeypatch.setattr(compare.study.processes, "lives", lambda process: True)
    other = run_in(tmp_path / "run", states={"03_fwkd": state})
    with pytest.raises(ValueError) as error:
        compare.report(other, reference)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_nothing_and_half_of_something_are_refused(tmp_path, reference, capsys):
    assert compare.main(["--run", str(tmp_path / "none")]) == 1
    assert "holds no run: give a folder that `make reproduce` wrote" in capsys.readouterr().err
    lacking = run_in(tmp_path / "run")
    (lacking / "claims.csv").unlink()
    with pytest.raises(ValueError, match=r"has no claims.csv: run notebook 11"):
        compare.report(lacking, reference)
    old = run_in(tmp_path / "old")
    (old / "claims.csv").write_text("id,ours,verdict\na,1,x\n")
    with pytest.raises(ValueError, match="has no column 'protocol': it is of an older ledger"):
        compare.report(old, reference)
    empty = run_in(tmp_path / "empty", {"never": ROWS["never"]})
    with pytest.raises(ValueError, match="holds no number"):
        compare.report(empty, reference)
    fewer = run_in(tmp_path / "fewer")
    report = json.loads((fewer / "run.json").read_text())
    del report["notebooks"]["05_bayesian_search"]
    (fewer / "run.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="05_bayesian_search is missing"):
        compare.report(fewer, reference)
