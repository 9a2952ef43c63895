"""Safety: nothing executes on load, names cannot leave their folder, no network is asked."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.restoration import tiling
from nanosd_lib.runs import artifacts, registry

SOURCES = sorted([*(ROOT / "nanosd_lib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_nothing_that_executes_what_it_reads(path):
    tree = ast.parse(path.read_text())
    names = {
        a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
    }
    names |= {
        n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module
    }
    assert not names & FORBIDDEN
    for node, name in calls(path):
        words = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in CALLS, f"{path.name}:{node.lineno}: {name}"
        assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path.name
        assert words.get("shell") in (None, "False"), f"{path.name}:{node.lineno}: shell"
        assert name != "torch.load" or words.get("weights_only") == "True", path.name
        assert name not in ("yaml.load", "yaml.unsafe_load", "pd.read_pickle"), path.name
        assert words.get("allow_pickle") in (None, "False"), path.name
        assert words.get("trust_remote_code") in (None, "False"), path.name


def test_the_scan_sees_what_it_looks_for(tmp_path):
    bad = tmp_path / "bad.py"
    for line in ("import pickle", "eval('1')", "import os; os.system('x')", "f(shell=True)",
                 "import torch; torch.load('x')", "import yaml; yaml.load('x')"):  # fmt: skip
        bad.write_text(line)
        with pytest.raises(AssertionError):
            test_nothing_that_executes_what_it_reads(bad)


def test_only_plain_data_is_committed():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    endings = {Path(name).suffix for name in done.stdout.split()}
    assert not endings & {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npy", ".npz", ".h5", ".onnx"}


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        tiling.read_picture(tmp_path / "x.npy")


def test_tables_of_objects_do_not_become_pickles(tmp_path):
    with pytest.raises(Exception, match="(?i)convert|object|type"):
        artifacts.write(tmp_path / "a", "k", {"t": pd.DataFrame({"x": [object()]})}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\x00b", "a b"]
)
def test_names_cannot_leave_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="is refused"):
        paths.check_name("value", name)
    with pytest.raises(ValueError):
        artifacts.write(tmp_path / "a", "k", {name: 1}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_cannot_point_outside(tmp_path):
    """A forged manifest with a right digest: files that are not plain names are refused."""
    good = artifacts.write(tmp_path / "a", "k", {"x": 1}, {})
    (tmp_path / "secret.json").write_text("2")
    body = {k: v for k, v in good.manifest.items() if k != "digest"}
    entry = {"sha256": artifacts.file_hash(tmp_path / "secret.json"), "bytes": 1}
    body["files"] = {"../secret.json": entry}
    forged = {**body, "digest": artifacts.text_hash(artifacts.canonical(body))}
    (tmp_path / "a/manifest.json").write_text(artifacts.json.dumps(forged))
    with pytest.raises(artifacts.Damaged, match="leaves its folder"):
        artifacts.read(tmp_path / "a", "k")


def test_addresses_are_https():
    text = "".join(p.read_text() for p in [*SOURCES, registry.REGISTRY])
    assert not re.findall(r"http://(?!127\.0\.0\.1|localhost)\S+", text)


BLOCKED = """
import socket, sys
def refuse(*a, **k):
    raise OSError("the network was asked")
real = socket.socket.connect
def connect(self, address):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
        return real(self, address)
    refuse()
socket.socket.connect = connect
socket.getaddrinfo = socket.create_connection = refuse
"""


def test_the_block_blocks(tmp_path):
    """What the end-to-end run is made under: a runner and kernels that cannot reach a network."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    check = "import socket; socket.create_connection(('192.0.2.1', 80))"
    tried = subprocess.run([sys.executable, "-c", check], env=env, capture_output=True, text=True)
    assert "the network was asked" in tried.stderr


OTHERS = ("os.open", "Image.open", "tarfile.open")  # these open no text


def unnamed(code: str) -> list[str]:
    """The calls that read or write text in whatever encoding the machine's locale has."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and (call := ast.unparse(node.func)) not in OTHERS:
            words = {k.arg: ast.unparse(k.value) for k in node.keywords}
            given = [*map(ast.unparse, node.args), *words.values()]
            binary = any(re.fullmatch(r"'[rwxa+]*b[rwxa+]*'", value) for value in given)
            name = call.rpartition(".")[2]
            text = name in ("read_text", "write_text") or (
                name in ("open", "fdopen") and not binary
            )
            decoded = "True" in (words.get("text"), words.get("universal_newlines"))
            if (text or decoded) and "encoding" not in words:
                found.append(ast.unparse(node))
    return found


def code_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def test_every_text_names_its_encoding():
    """Else a locale of ASCII ends a run in the middle of a notebook's name."""
    kinds = {"nanosd_lib": "*.py", "benchmarks": "*.py", "notebooks": "*.ipynb"}
    files = [p for folder, kind in kinds.items() for p in (ROOT / folder).rglob(kind)]
    assert len(files) > 90
    assert [(p.name, call) for p in files for call in unnamed(code_of(p))] == []


@pytest.mark.parametrize(
    "bad, good",
    [
        ("p.read_text()", "p.read_text(encoding='utf-8')"),
        ("p.write_text(x)", "p.write_text(x, encoding='ascii')"),
        ("open(p)", "open(p, 'rb')"),
        ("p.open('a')", "p.open(mode='wb')"),
        ("run(x, text=True)", "run(x, encoding='utf-8')"),
    ],
)
def test_the_scan_for_encodings_sees_what_it_looks_for(bad, good):
    assert len(unnamed(bad)) == 1 and unnamed(good) == []
