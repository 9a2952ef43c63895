"""overview: what a run will do, and the page that it leaves."""

from __future__ import annotations

import html
import json
import shutil

import pandas as pd

from nanosd_lib.paths import ROOT
from nanosd_lib.runs import captions
from nanosd_lib.studies import overview

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
REFERENCE = ROOT / "results" / "reference"


def test_the_plan_names_every_page_and_what_is_known_of_its_time(tmp_path):
    lines = overview.plan(NOTEBOOKS, "mini", tmp_path)
    assert len(lines) == len(NOTEBOOKS) + 3 and "in the reference run" in lines[-2]
    assert any("05  Which of the 32,768 networks" in line and " min" in line for line in lines)
    assert "min" not in "".join(overview.plan(NOTEBOOKS, "smoke", tmp_path)[:-1])
    own = {"05_bayesian_search": {"state": "ok", "seconds": 30.0, "computed_seconds": 90.0}}
    own["03_fwkd"] = {"state": "failed", "seconds": 9.0}
    (tmp_path / "run.json").write_text(json.dumps({"notebooks": own}))
    again = overview.plan(NOTEBOOKS, "mini", tmp_path)
    assert "1.5 min  05" in "\n".join(again) and "as here before" in again[-2]


def test_a_run_leaves_a_page_that_links_all_it_made(tmp_path):
    for name in ("notebooks", "tables", "figures"):
        shutil.copytree(REFERENCE / name, tmp_path / name)
    shutil.copy(REFERENCE / "claims.csv", tmp_path)
    report = json.loads((REFERENCE / "run.json").read_text())
    report["notebooks"]["99_absent"] = {"state": "not run"}
    page = overview.write(tmp_path, report).read_text()
    assert "99_absent: not run" in page and "http" not in page
    for folder, ending in (("notebooks", "ipynb"), ("figures", "png"), ("tables", "csv")):
        for path in (tmp_path / folder).glob(f"*.{ending}"):
            assert f'"{folder}/{path.name}"' in page
    assert html.escape(captions.captions()["05_pareto"]) in page
    for sentence in overview.sentences(tmp_path):
        assert "**" not in sentence
    assert len(overview.sentences(tmp_path)) == len(pd.read_csv(tmp_path / "tables/sentences.csv"))
    assert "<b>" in page and "**" not in page
