"""stale: what makes a page older than the code, and what the verb says where it cannot know."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout, profiles, provenance, release
from nanosd_lib.studies import reference, stale

PAGES = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture
def run(tmp_path):
    """A run of every notebook of this code, as `run.json` tells it."""
    profile = profiles.load("mini")
    books = {
        path.stem: {
            "state": "ok",
            "seconds": 1.0,
            "computed_seconds": 60.0,
            "commit": "0" * 40,
            "dirty": False,
            "finished": f"2026-01-01T00:00:{k:02}+00:00",
            "made_of": stale.ingredients(path, profile),
        }
        for k, path in enumerate(PAGES)
    }
    report = {"state": "ok", "verb": "reproduce", "profile": "mini", "seed": 0, "overrides": {}}
    for name in layout.SUBFOLDERS:
        (tmp_path / name).mkdir()
    for path in PAGES:
        shutil.copy(path, tmp_path / "notebooks")
        (tmp_path / "io" / f"{path.stem}.json").write_text('{"reads": [], "writes": []}')
    write(tmp_path, {**report, "machine": {"cpu": "a CPU"}, "notebooks": books})
    return tmp_path


def read(folder):
    return json.loads((folder / "run.json").read_text())


def write(folder, report):
    (folder / "run.json").write_text(json.dumps(report))


def changed(run, page, **entry):
    report = read(run)
    report["notebooks"][page].update(entry)
    write(run, report)


def test_nothing_is_stale_when_a_version_stands_on_top_of_the_changelog():
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert top == "Unreleased" or stale.pages() == {}, "make reproduce and make reference first"


def test_a_run_of_this_code_is_of_this_code(run):
    assert stale.pages(run) == {}
    assert stale.lines(run) == ["every page of this run is of this code"]


@pytest.mark.parametrize(
    "what",
    [
        "cells",
        "claims",
        "budget fwkd",
        "data/sd-mini",
        "data/mini-clip",
        "data/paper",
        "nanosd_lib.learning.fwkd",
    ],
)
def test_each_ingredient_that_is_another_now_is_named(run, what):
    made_of = read(run)["notebooks"]["03_fwkd"]["made_of"]
    assert what in made_of
    changed(run, "03_fwkd", made_of={**made_of, what: "another"})
    assert stale.pages(run) == {"03_fwkd": [what]}


def test_a_budget_that_a_page_does_not_read_leaves_it_alone():
    path = next(p for p in PAGES if p.stem.startswith("01"))
    one, two = (profiles.load("mini", o) for o in ({}, {"search.images": 4, "threads": 1}))
    assert stale.ingredients(path, one) == stale.ingredients(path, two)
    other = profiles.load("mini", {"search.images": 4})
    five = next(p for p in PAGES if p.stem.startswith("05"))
    assert stale.ingredients(five, one) != stale.ingredients(five, other)


def test_a_published_member_ages_the_pages_that_ask_for_its_kind(run, monkeypatch):
    real = release.keys
    monkeypatch.setattr(release, "keys", lambda kind: real(kind) | {f"{kind}/new": "0"})
    found = stale.pages(run)
    kinds = {page: [why.rpartition("/")[2] for why in whys] for page, whys in found.items()}
    assert kinds["03_fwkd"] == ["surrogates"]
    assert kinds["04_vae_slimming"] == ["aligned", "surrogates", "vae"]
    assert kinds["06_family"] == ["aligned", "surrogates"] and "02_block_surgery" not in kinds


def test_notebooks_that_came_or_went_count_as_outgrown_not_as_errors(run):
    report = read(run)
    report["notebooks"]["09_gone"] = report["notebooks"].pop("03_fwkd")
    write(run, report)
    assert stale.pages(run) == {"03_fwkd": ["a new notebook"], "09_gone": ["the notebook is gone"]}


def test_a_page_is_older_than_what_it_read(run):
    """Another table of an earlier page, not merely a page that was run again."""
    reads = {"reads": ["tables/surrogates.csv"], "writes": []}
    (run / "io" / "05_bayesian_search.json").write_text(json.dumps(reads))
    (run / "tables" / "surrogates.csv").write_text("a\n1\n")
    changed(run, "05_bayesian_search", read=stale.read_by("05_bayesian_search", run))
    changed(run, "03_fwkd", finished="2026-01-02T00:00:00+00:00")
    assert stale.pages(run) == {}
    (run / "tables" / "surrogates.csv").write_text("a\n2\n")
    assert stale.pages(run) == {"05_bayesian_search": ["tables/surrogates.csv"]}


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        stale.pages(tmp_path)
    assert stale.lines(tmp_path) == ["this page was run alone, outside a study"]


def test_how_long_ago_is_told_or_why_not(tmp_path, monkeypatch):
    """A repository of two commits, a clone of depth 1, a folder without history."""
    git = lambda *words, at: subprocess.run(  # noqa: E731
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=at, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    whole, shallow, plain = (tmp_path / name for name in ("whole", "shallow", "plain"))
    whole.mkdir()
    git("init", "-q", at=whole)
    for _ in range(2):
        git("commit", "-q", "--allow-empty", "-m", "x", at=whole)
    first = git("rev-parse", "HEAD~1", at=whole)
    git("clone", "-q", "--depth", "1", f"file://{whole}", str(shallow), at=tmp_path)
    plain.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    said = {}
    for folder in (whole, shallow, plain):
        monkeypatch.setattr(provenance, "ROOT", folder)
        said[folder] = stale.age({"commit": first, "dirty": False})
    assert said[whole] == f"made at {first[:12]}, 1 commits ago"
    assert "git fetch --unshallow" in said[shallow] and "no git checkout" in said[plain]
    monkeypatch.setattr(provenance, "ROOT", whole)
    assert "does not hold that commit" in stale.age({"commit": "f" * 40, "dirty": True})
    assert "outside a git checkout" in stale.age({"commit": None})


# taking over one page
@pytest.fixture
def copied(run, tmp_path_factory, monkeypatch):
    """A reference of that run, and the run with another page 03."""
    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(run, folder, dirs_exist_ok=True)
    monkeypatch.setattr(reference, "REFERENCE", folder)
    (folder / "tables" / "dropped.csv").write_text("a\n1\n")
    (folder / "io" / "03_fwkd.json").write_text('{"reads": [], "writes": ["tables/dropped.csv"]}')
    (run / "tables" / "new.csv").write_text("a\n2\n")
    (run / "io" / "03_fwkd.json").write_text('{"reads": [], "writes": ["tables/new.csv"]}')
    changed(run, "03_fwkd", commit="1" * 40)
    return folder


def test_one_page_is_taken_over_with_what_it_wrote(run, copied):
    assert reference.copy_page(run, "3") == "03_fwkd"
    assert (copied / "tables" / "new.csv").exists()
    assert not (copied / "tables" / "dropped.csv").exists()
    commits = {name: e["commit"][:1] for name, e in read(copied)["notebooks"].items()}
    assert commits.pop("03_fwkd") == "1" and set(commits.values()) == {"0"}
    assert "page 03 at commit 111" in reference.made_at(read(copied)["notebooks"])
    assert "| 03_fwkd | 111111111111 | a CPU | 1.0 | 0.0 |" in reference.card()


def test_a_table_that_moved_to_another_page_stays(run, copied):
    for page, names in (("00_start_here", "tables/dropped.csv"), ("03_fwkd", "tables/new.csv")):
        (run / "io" / f"{page}.json").write_text(f'{{"reads": [], "writes": ["{names}"]}}')
    (run / "tables" / "dropped.csv").write_text("a\n3\n")
    for page in ("00", "03"):
        reference.copy_page(run, page)
    assert (copied / "tables" / "dropped.csv").read_text() == "a\n3\n"


def test_a_page_that_is_not_whole_or_of_another_study_is_refused(run, copied):
    before = read(copied)
    with pytest.raises(ValueError, match="no page '09'"):
        reference.copy_page(run, "09")
    changed(run, "03_fwkd", state="killed")
    with pytest.raises(ValueError, match="ended as 'killed'"):
        reference.copy_page(run, "03")
    write(run, {**read(run), "seed": 1})
    with pytest.raises(ValueError, match="has seed 1, the reference 0"):
        reference.copy_page(run, "00")
    assert read(copied) == before and (copied / "tables" / "dropped.csv").exists()


def test_a_partial_run_is_no_reference(run, copied):
    write(run, {**read(run), "verb": "run"})
    with pytest.raises(ValueError, match="make reference NB=00"):
        reference.copy(run)
