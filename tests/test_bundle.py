"""bundle: a folder for a room without network is checked before anything is touched."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nanosd_lib.studies import bundle

LOCK = bundle.ROOT / bundle.LOCK


@pytest.fixture
def folder(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("one-1.0-py3-none-any.whl", "two-2.0-py3-none-any.whl"):
        (wheels / name).write_bytes(name.encode() * 100)
    told = bundle.listed(wheels, LOCK)
    (wheels / bundle.LIST).write_text(json.dumps(told))
    return wheels


def test_a_whole_folder_is_taken_by_a_python_that_has_nothing_installed(folder):
    script = bundle.ROOT / "nanosd_lib" / "studies" / "bundle.py"
    command = [sys.executable, "-I", "-S", str(script), "--check"]
    found = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    (folder / "one-1.0-py3-none-any.whl").unlink()
    found = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert found.returncode == 1 and "one-1.0-py3-none-any.whl is missing" in found.stderr


def cut(wheels):
    path = wheels / "two-2.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-7])


def flipped(wheels):
    path = wheels / "two-2.0-py3-none-any.whl"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def told(**changes):
    def change(wheels):
        path = wheels / bundle.LIST
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize("change, said", [
    (cut, "two-2.0-py3-none-any.whl is cut (2,393 of 2,400 bytes)"),
    (flipped, "two-2.0-py3-none-any.whl is damaged"),
    (told(lock="0"), "packed for another requirements.lock"),
    (told(system="win-amd64"), "packed for system win-amd64, and this is"),
    (told(Python="3.99"), "packed for Python 3.99, and this is"),
    (told(files=[]), "no list of wheels"),
    (lambda w: (w / bundle.LIST).unlink(), "no list of wheels (wheels.json)"),
    (lambda w: (w / bundle.LIST).write_text("{"), "no list of wheels"),
])  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_line(folder, change, said):
    change(folder)
    (line,) = bundle.wrong(folder, LOCK)
    assert said in line


def test_a_bundle_holds_a_clone_and_its_wheels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "wheels", wheel)
    out = tmp_path / "stick"
    assert bundle.main(["--out", str(out)]) == 0
    assert (
        out / "nanosd-notebooks" / "Makefile"
    ).is_file() and "1 wheels" in capsys.readouterr().out
    copied = out / "nanosd-notebooks" / bundle.LOCK
    assert bundle.wrong(out / "wheels", copied) == []
    assert "make env WHEELS=" in (out / "README.txt").read_text()
    assert bundle.main(["--out", str(out)]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err


def wheel(folder):
    folder.mkdir()
    (folder / "one-1.0-py3-none-any.whl").write_bytes(b"one")


def test_nothing_is_left_of_a_bundle_that_fails(tmp_path, monkeypatch, capsys):
    def fail(folder):
        wheel(folder)
        raise subprocess.CalledProcessError(1, ["pip"])

    monkeypatch.setattr(bundle, "wheels", fail)
    assert bundle.main(["--out", str(tmp_path / "stick")]) == 1
    assert "bundle: pip failed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert bundle.main([]) == 1 and "names no folder" in capsys.readouterr().err
