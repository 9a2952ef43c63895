"""Provenance: hashes of files, of library code and of the lock; what machine and commit this is."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

import nanosd_lib
from nanosd_lib.paths import PACKAGE, ROOT

# what runs and keeps computations without deciding what is in them
ROOMS = tuple(f"{PACKAGE}.{room}." for room in ("runs", "engine", "studies"))
MACHINERY = (*ROOMS, f"{PACKAGE}.views.explorers", f"{PACKAGE}.paths")


# the folders of data/ that a module reads by itself, whoever calls it
READS = {
    f"{PACKAGE}.quality.extractors": ("mini-clip",),
    f"{PACKAGE}.quality.judges": ("mini-attributes",),
    f"{PACKAGE}.data.photographs": ("photographs",),
}


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


def content_hash(path: Path) -> str:
    """sha256 of what a file says: names, types, shapes and values of safetensors (not their order
    or header), the value of JSON, the lines of text. Of a folder, of every file that is not hidden.
    What a checkout does to line ends and a writer to the order of a file changes nothing.
    """
    if path.is_dir():
        files = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
        seen = [name for name in files if not any(part.startswith(".") for part in name.parts)]
        return text_hash(canonical([[n.as_posix(), content_hash(path / n)] for n in seen]))
    if path.suffix == ".safetensors":
        return _tensors_hash(path)
    if path.suffix == ".json":
        return text_hash(canonical(json.loads(path.read_text(encoding="utf-8"))))
    if path.suffix in (".txt", ".md", ".csv", ".yaml"):
        return text_hash("\n".join(path.read_text(encoding="utf-8").splitlines()))
    return file_hash(path)


def _tensors_hash(path: Path) -> str:
    """ValueError for what is no safetensors file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        try:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(min(size, 100_000_000)))
            header.pop("__metadata__", None)
            for name, found in sorted(header.items()):
                first, end = found["data_offsets"]
                digest.update(canonical([name, found["dtype"], found["shape"]]).encode())
                handle.seek(8 + size + first)
                digest.update(handle.read(end - first))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path.name} is no safetensors file") from None
    return digest.hexdigest()


def code_hash(path: Path) -> str:
    """sha256 of a module's code: docstrings, blank lines and lines of comment do not count."""
    return _code_hash(path.read_text(encoding="utf-8"))


@cache
def _code_hash(text: str) -> str:
    lines: list[str | None] = list(text.splitlines())
    for node in _statements(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            last = first.end_lineno or first.lineno  # both are there after `ast.parse`
            lines[first.lineno - 1 : last] = [None] * (last - first.lineno + 1)
    kept = [s.rstrip() for s in lines if s and s.strip() and not s.lstrip().startswith("#")]
    return text_hash("\n".join(kept))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree and every statement in it: a tenth of its nodes, and neither docstrings nor imports
    stand anywhere else.
    """
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            todo += inner if isinstance(inner, list) else []


def made_of(path: Path) -> dict[str, str]:
    """What decides a notebook's results, each with its hash: its code "cells" and the modules of
    the library that they reach, the machinery (`MACHINERY`) left out. SyntaxError where a cell does
    not parse.
    """
    from nanosd_lib.runs import cells  # IPython comes with it: only who reads notebooks needs it

    code = code_cells(path)
    tree = ast.Module([node for source in code for node in cells.cell_tree(source).body], [])
    closure = source_closure(_imported(tree))
    reached = {m: h for m, h in closure.items() if not m.startswith(MACHINERY)}
    return {"cells": text_hash(canonical(code)), **reached}


def code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]


def data_read(modules: Iterable[str]) -> dict[str, str]:
    """The folders of `data/` that those modules read by themselves, each with its hash: judges and
    photographs decide a result as code does.
    """
    names = sorted({name for m in modules for name in READS.get(m, ())})
    folders = {name: ROOT / "data" / name for name in names}
    return {name: _folder_hash(path, _stamps(path)) for name, path in folders.items()}


def _stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Every file below a folder with size and time of change: another one is hashed again."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file()]
    return tuple((p.name, (stat := p.stat()).st_size, stat.st_mtime_ns) for p in files)


@cache
def _folder_hash(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return file_hash(path) if stamps else "missing"


def teacher_hash(path: str | Path) -> str:
    """`content_hash` of a teacher: its index, and the folders of its parts (what else lies there,
    such as the record of its training, decides nothing). NotADirectoryError where there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} is not the folder of a teacher")
    parts = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    seen = [p for p in (folder / "model_index.json", *parts) if p.exists()]
    return text_hash(canonical([[p.name, content_hash(p)] for p in seen]))


def lock_hash() -> str | None:
    lock = ROOT / "requirements.lock"
    return file_hash(lock) if lock.exists() else None


def imports(module: str) -> set[str]:
    """Modules of this library that the module's source imports, anywhere in it."""
    source = source_of(module)
    assert source is not None, f"{module} has no source"
    return set(_imports(source.read_text(encoding="utf-8"), module, tuple(nanosd_lib.__path__)))


@cache
def _imports(text: str, module: str, folders: tuple[str, ...]) -> frozenset[str]:
    return frozenset(_imported(ast.parse(text), module))


def _imported(tree: ast.AST, module: str = "__main__") -> set[str]:
    found: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _modules(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
            for alias in node.names:
                found |= _modules(f"{base}.{alias.name}") or _modules(base)
    return found


def _modules(name: str) -> set[str]:
    """The module of that name; every module of a room, since an attribute may be any of them; none
    for what is not of this library.
    """
    if not name.startswith(PACKAGE + "."):
        return set()
    if source_of(name):
        return {name}
    rooms = [Path(folder, *name.split(".")[1:]) for folder in nanosd_lib.__path__]
    return {f"{name}.{m}" for room in rooms if room.is_dir() for m in names_of(room)}


def names_of(folder: Path) -> list[str]:
    """The modules below a folder by their dotted names, packages themselves left out."""
    files = (p.relative_to(folder).with_suffix("") for p in sorted(folder.rglob("*.py")))
    return [".".join(p.parts) for p in files if p.name != "__init__"]


def source_closure(modules: set[str]) -> dict[str, str]:
    """Module name -> hash of its code, for the modules and all they import of this library.

    The `__init__.py` of the package and of its rooms do not count: they hold no code.
    RuntimeError when a source is no longer the one this process started with.
    """
    todo, closure = sorted(modules), {}
    while todo:
        module = todo.pop()
        if module not in closure:
            source = source_of(module)
            assert source is not None, f"{module} has no source"
            closure[module] = digest = code_hash(source)
            if AT_START.setdefault(module, digest) != digest:
                raise RuntimeError(f"{module} was edited after this kernel started: restart it")
            todo += sorted(imports(module))
    return dict(sorted(closure.items()))


def source_of(module: str) -> Path | None:
    """The file of a module of this library, found without importing it; None where none is."""
    parts = module.split(".")[1:]
    files = (Path(folder, *parts).with_suffix(".py") for folder in nanosd_lib.__path__)
    return next((file for file in files if parts and file.is_file()), None)


def hash_of(module: str) -> str:
    """The hash of a module's code, "" where there is no such module."""
    source = source_of(module)
    return code_hash(source) if source else ""


AT_START = {
    f"{PACKAGE}.{name}": code_hash(ROOT / PACKAGE / f"{name.replace('.', '/')}.py")
    for name in names_of(ROOT / PACKAGE)
}


def git_state() -> dict[str, Any]:
    """{"commit": str or None, "dirty": bool or None}; None outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def commits_since(commit: str | None) -> tuple[int | None, str]:
    """How many commits HEAD is ahead of `commit`; None and the reason where that cannot be told."""
    if _git("rev-parse", "HEAD") is None:
        return None, "this is no git checkout"
    if not commit:
        return None, "the run was made outside a git checkout"
    count = _git("rev-list", "--count", f"{commit}..HEAD")
    if count is not None:
        return int(count), ""
    if _git("rev-parse", "--is-shallow-repository") == "true":
        return None, "this clone is shallow: `git fetch --unshallow` brings the history"
    return None, "this history does not hold that commit"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
        )
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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
