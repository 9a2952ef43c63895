"""doctor: every check says what is wrong here and what would mend it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from nanosd_lib.runs import layout
from nanosd_lib.studies import doctor


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_this_machine_can_run_the_study(capsys):
    assert doctor.main() == 0
    out = capsys.readouterr().out
    for what in ("python", "memory", "disk", "write access", "GPU", "kernel", "sd-mini", "weights"):
        assert what in out
    assert "  mini: can run here" in out and " smoke: can run here" in out
    assert "  sd15: cannot: " in out  # no machine of a test run has the weights
    assert out.splitlines()[-1] == "ready"


def test_a_profile_that_cannot_run_says_what_is_missing(monkeypatch, capsys):
    memory = type("Memory", (), {"available": 1e9, "total": 2 * 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    findings = doctor.examine()
    assert "memory" in [f.what for f in findings if f.state == "bad"]
    assert "4 GB of memory" in doctor.verdict("mini", findings)
    assert doctor.main() == 1
    assert "not ready: memory, 4 GB of memory" in capsys.readouterr().out.splitlines()[-1]


def test_a_full_disk(monkeypatch):
    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor.disk().state == "bad" and "1.0 GB free" in doctor.disk().says
    assert "2 GB of disk" in doctor.verdict("mini", [])


def test_a_folder_that_cannot_be_written(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    finding = doctor.writing()
    assert finding.state == "bad" and "Permission denied; change its owner" in finding.says


def test_versions_that_break(monkeypatch):
    found = {"scipy": "1.19.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(doctor, "version", lambda name: found[name])
    says = {f.what: f for f in doctor.versions()}
    assert says["scipy"].state == "bad" and "clean-fid" in says["scipy"].says
    assert says["torch"].state == "bad"  # "+cpu" is the build that crashes
    monkeypatch.setattr(doctor, "BROKEN", doctor.BROKEN[1:] + (("torch", "==", "2.13.0", "x"),))
    monkeypatch.setattr(doctor, "version", lambda name: "2.14.0")
    assert [f.state for f in doctor.versions()] == ["ok"]


def test_a_missing_teacher(monkeypatch, tmp_path):
    monkeypatch.setattr(layout, "ROOT", tmp_path)
    finding = doctor.teacher()
    assert finding.state == "bad" and "make teacher" in finding.says


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def broken():
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))
    assert doctor.examine()[0] == doctor.Finding("broken", "bad", "OSError: no such device")


def test_it_is_quick_and_leaves_nothing_behind(folder):
    before = psutil.Process(os.getpid()).cpu_times().user
    doctor.examine()
    assert psutil.Process(os.getpid()).cpu_times().user - before < 5
    assert not (folder / "results").exists()


def test_judges_that_nothing_downloads_are_named_with_what_fetches_them(tmp_path, monkeypatch):
    from nanosd_lib.quality import extractors

    assert Path(doctor.JUDGES["inception-2015"]) == extractors.INCEPTION
    published = {name: file for name, (_, file) in extractors.PUBLISHED.items()}
    assert published.items() <= doctor.JUDGES.items()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(doctor.JUDGES, "inception-2015", str(tmp_path / "inception.pt"))
    missing = doctor.judges()
    assert missing.state == "note" and "inception-2015, lpips-vgg, lpips-alex not" in missing.says
    assert "build_feature_extractor" in missing.says
    assert "its judges" in doctor.verdict("sd15", [missing])
    assert "judges" not in doctor.verdict("mini", [missing])
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    for file in [*published.values(), "../../inception.pt"]:
        (tmp_path / "hub/checkpoints" / file).touch()
    assert doctor.judges().state == "ok"
