"""Provenance: hashes of files, of library code and of the lock; what machine and commit this is."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

import nanosd_lib
from nanosd_lib.paths import PACKAGE, ROOT

# what runs and keeps the stages without deciding what is in them
MACHINERY = ("store", "stages", "artifacts", "layout", "provenance", "registry", "explorers")


def canonical(value: Any) -> str:
    """One JSON text per value: keys sorted, no NaN. TypeError for anything but plain data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not plain data")


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """sha256 of a file, or of a folder: the names and hashes of every file below it, hidden ones
    (editors, version control) left out."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
        seen = [name for name in files if not any(part.startswith(".") for part in name.parts)]
        return text_hash(canonical([[name.as_posix(), file_hash(path / name)] for name in seen]))
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def code_hash(path: Path) -> str:
    """sha256 of a module's code: docstrings, blank lines and lines of comment do not count."""
    text = path.read_text()
    lines: list[str | None] = list(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines[first.lineno - 1 : first.end_lineno] = [None] * (
                first.end_lineno - first.lineno + 1
            )
    kept = [s.rstrip() for s in lines if s and s.strip() and not s.lstrip().startswith("#")]
    return text_hash("\n".join(kept))


def notebook_hash(path: Path) -> str:
    """sha256 of what decides a notebook's results: its code cells and the library code they reach,
    the machinery (`MACHINERY`) left out.
    """
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    tree = ast.parse("\n".join(s for s in code if not s.lstrip().startswith("%")))
    closure = source_closure(_imported(tree))
    reached = {m: h for m, h in closure.items() if m.split(".")[1] not in MACHINERY}
    return text_hash(canonical([code, reached]))


def teacher_hash(path: str | Path) -> str:
    """sha256 of all files in a teacher's folder; NotADirectoryError where there is none."""
    if not Path(path).is_dir():
        raise NotADirectoryError(f"{path} is not the folder of a teacher")
    return file_hash(path)


def lock_hash() -> str | None:
    lock = ROOT / "requirements.lock"
    return file_hash(lock) if lock.exists() else None


def imports(module: str) -> set[str]:
    """Modules of this library that the module's source imports, anywhere in it."""
    return _imported(ast.parse(_source(module).read_bytes()), module)


def _imported(tree: ast.AST, module: str = "__main__") -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    names = {".".join(name.split(".")[:2]) for name in found}  # the library is flat
    return {name for name in names if name.startswith(PACKAGE + ".") and _source(name)}


def source_closure(modules: set[str]) -> dict[str, str]:
    """Module name -> hash of its code, for the modules and all they import of this library.

    `nanosd_lib/__init__.py` does not count: it holds the version and nothing else.
    RuntimeError when a source is no longer the one this process started with.
    """
    todo, closure = sorted(modules), {}
    while todo:
        module = todo.pop()
        if module not in closure:
            closure[module] = digest = code_hash(_source(module))
            if AT_START.setdefault(module, digest) != digest:
                raise RuntimeError(f"{module} was edited after this kernel started: restart it")
            todo += sorted(imports(module))
    return dict(sorted(closure.items()))


def _source(module: str) -> Path | None:
    """The file of a module of this library, found without importing it; None where none is."""
    files = (Path(folder) / f"{module.split('.')[-1]}.py" for folder in nanosd_lib.__path__)
    return next((file for file in files if file.is_file()), None)


AT_START = {f"{PACKAGE}.{p.stem}": code_hash(p) for p in Path(__file__).parent.glob("*.py")}


def git_state() -> dict[str, Any]:
    """{"commit": str or None, "dirty": bool or None}; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def machine() -> dict[str, Any]:
    """Platform, processor, cores, memory, GPU and the versions that decide numbers."""
    import torch

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in ("torch", "diffusers", "botorch")},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
