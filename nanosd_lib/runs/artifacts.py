"""Artifacts: a folder of files with a manifest, written whole or not at all, verified when read.

Tables are Parquet, tensors safetensors, pictures PNG, everything else JSON. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pandas as pd
import psutil
from filelock import lock_descriptor
from PIL import Image

from nanosd_lib.paths import check_name
from nanosd_lib.runs.provenance import canonical, file_hash, text_hash

MANIFEST = "manifest.json"
DAY = 86_400.0  # seconds


class Damaged(Exception):
    """The folder is not the artifact it should be; the message says which file and why."""


class Artifact:
    """What a computation left: `artifact["table"]` is the value of that name, read once."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.key, self.manifest = Path(path), manifest["key"], manifest
        self._values: dict[str, Any] = {}
        self.loaded = False  # whether it was there already

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(Path(file).stem for file in self.manifest["files"]))

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            files = [file for file in self.manifest["files"] if Path(file).stem == name]
            if not files:
                raise KeyError(f"{self.path.name} has no {name!r}: it has {', '.join(self.names)}")
            self._values[name] = _read(self.path / files[0])
        return self._values[name]

    def __repr__(self) -> str:
        return f"Artifact({self.path.name}: {', '.join(self.names)})"


def write(folder: Path, key: str, values: dict[str, Any], facts: dict[str, Any]) -> Artifact:
    """Make `folder` appear, whole: temporary name, fsync of each file, the manifest last, rename.

    Where another process was faster, its artifact stays and is returned. TypeError names a value
    that no format takes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(folder.parent) as (temporary, handle):
        names = [_write(temporary, name, value) for name, value in values.items()]
        files = {
            name: {
                "sha256": file_hash(temporary / name),
                "bytes": (temporary / name).stat().st_size,
            }
            for name in sorted(names)
        }
        for name in files:
            _sync(temporary / name)
        body = {"key": key, "files": files, **facts}
        manifest = {**body, "digest": text_hash(canonical(body))}
        handle.write((json.dumps(manifest, indent=1) + "\n").encode())
        handle.flush()
        os.fsync(handle.fileno())
        _sync(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
            return read(folder, key)  # somebody finished the same first
        _sync(folder.parent)
        return Artifact(folder, manifest)


def remove(folder: Path) -> None:
    """Take an artifact away, at once for whoever looks; what another user owns of it is left to
    them under a name that `sweep` knows.
    """
    aside = _unused(folder.parent)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _unused(store: Path) -> Path:
    return store / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"


@contextlib.contextmanager
def _temporary(store: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new folder and its manifest, empty and locked: what `sweep` leaves alone in any container.
    Nothing of that name is left afterwards.
    """
    while True:
        folder = _unused(store)
        folder.mkdir()
        try:
            handle = _claimed(folder / MANIFEST)
            if handle is not None:  # else it was swept before it could be locked
                with handle:
                    yield folder, handle
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _claimed(path: Path) -> BinaryIO | None:
    """The file, made and locked; None where another process was faster to lock or remove it."""
    with contextlib.suppress(FileNotFoundError):
        handle = path.open("ab")
        if _lock(handle) is not False and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
            return handle
        handle.close()
    return None


def _lock(handle: BinaryIO) -> bool | None:
    """Whether it is this process's now, until it is closed; None on a file system without locks."""
    try:
        return lock_descriptor(handle.fileno(), blocking=False)
    except OSError:
        return None


def read(folder: Path, key: str) -> Artifact:
    """The artifact, every file checked against the manifest; Damaged where it is not whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not isinstance(manifest, dict):
            raise ValueError("not a manifest")
        body = {name: value for name, value in manifest.items() if name != "digest"}
        if manifest["digest"] != text_hash(canonical(body)) or manifest["key"] != key:
            raise Damaged(f"{MANIFEST} does not match its own digest")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} is not readable ({type(error).__name__})") from None
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).name != name:
            raise Damaged(f"{name} leaves its folder")
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if file_hash(path) != entry["sha256"]:
            raise Damaged(f"{name} does not match its sha256")
    return Artifact(folder, manifest)


def sweep(store: Path) -> None:
    """Remove the temporary folders that killed processes of this machine left behind.

    A pid that does not exist may be another container's: what is locked is being written. Where
    nothing can be locked, what is a day old is not.
    """
    for folder in store.glob(f".tmp-{socket.gethostname()}-*"):
        pid = folder.name.rsplit("-", 2)[1]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        with contextlib.suppress(OSError), (folder / MANIFEST).open("ab") as handle:
            free = _lock(handle)
            if free or (free is None and time.time() - folder.stat().st_mtime > DAY):
                shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, name: str, value: Any) -> str:
    check_name("value", name)
    if "." in name or name == "manifest":
        raise ValueError(f"value {name!r} is refused: no dots, and not 'manifest'")
    if isinstance(value, pd.DataFrame):
        value.to_parquet(folder / f"{name}.parquet")
        return f"{name}.parquet"
    if isinstance(value, dict) and value and all(map(_tensor, value.values())):
        from safetensors.torch import save_file

        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in value.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        return f"{name}.safetensors"
    if isinstance(value, Image.Image):
        value.save(folder / f"{name}.png")
        return f"{name}.png"
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"value {name!r} ({type(value).__name__}) cannot be stored ({error}): use a DataFrame,"
            " a dict of tensors, a PIL image or plain JSON data"
        ) from None
    (folder / f"{name}.json").write_text(text)
    return f"{name}.json"


def _tensor(value: Any) -> bool:
    """Whether it is a tensor: there are none where nothing has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.is_tensor(value)


def _read(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.copy()
    return json.loads(path.read_text())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
