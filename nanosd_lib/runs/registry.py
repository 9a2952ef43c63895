"""The registry of published weights: where they are, under which licence, and what their files hash
to.

`fetch` takes them from the hub's cache or downloads them, with the hub's own client: resumed,
https, `HF_HOME` and `HF_HUB_OFFLINE` respected, a token only from the environment (`HF_TOKEN`).
Every file is verified before anything reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated

import yaml
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tqdm.auto import tqdm

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs.provenance import canonical, file_hash, text_hash

REGISTRY = ROOT / "data" / "weights.yaml"
LOCK = ROOT / "data" / "weights.lock.json"
Repository = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class Weights(BaseModel):
    """One entry of `data/weights.yaml`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    key: str
    repository: Repository
    mirrors: list[Repository]
    revision: Annotated[str, Field(min_length=1)]
    variant: str | None
    licence: Annotated[str, Field(min_length=1)]
    link: Annotated[str, Field(pattern=r"^https://")]
    files: Annotated[list[str], Field(min_length=1)]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: list[str]) -> list[str]:
        for name in files:
            parts = Path(name).parts
            if Path(name).is_absolute() or ".." in parts or "\\" in name:
                raise ValueError(f"{name!r} leaves the folder of the weights")
            if Path(name).suffix not in (".json", ".txt", ".safetensors"):
                raise ValueError(f"{name!r} is neither safetensors nor plain data")
        return files


def entry(key: str, path: Path = REGISTRY) -> Weights:
    """The entry of that name; ValueError, in one line, where it does not exist or is not valid."""
    known = yaml.safe_load(path.read_text(encoding="utf-8"))
    if key not in known:
        raise ValueError(f"weights {key!r} are not in {path.name}: use one of {', '.join(known)}")
    try:
        return Weights(key=key, **known[key])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path.name}: {key}.{field}: {first['msg']}") from None


def fetch(weights: Weights, lock: Path = LOCK) -> Path:
    """The folder of the verified files, downloaded where they are not cached.

    OSError where they cannot be had (offline, no space, no such repository), ValueError where a
    file is not what the hub states or what was recorded; one line each, with the fix.
    """
    address = constants.ENDPOINT
    if not address.startswith("https://") and "//127.0.0.1" not in address:
        raise ValueError(f"HF_ENDPOINT = {address!r} is refused: https only")
    recorded = _recorded(lock).get(weights.key, {})
    tried: dict[str, str] = {}
    for repository in _order(weights, recorded):
        own = repository == recorded.get("repository")
        revision = recorded["revision"] if own else weights.revision
        try:
            paths = _download(weights, repository, revision)
        except Exception as error:
            if "no disk space" in str(error) or not _expected(error):
                raise
            tried[repository] = _why(error)
            continue
        facts = {name: _verified(weights, name, path) for name, path in paths.items()}
        _compare(weights, facts, recorded.get("files"), lock)
        folder = Path(paths[weights.files[0]])
        for _ in Path(weights.files[0]).parts:
            folder = folder.parent
        if set(facts) - set(recorded.get("files", {})):
            _record(weights, repository, folder.name, facts, lock)
        return folder
    reasons = "; ".join(f"{name}: {why}" for name, why in tried.items())
    raise OSError(f"weights {weights.key!r} cannot be had ({reasons})")


def fingerprint(key: str, lock: Path = LOCK) -> str:
    """What keys take for published weights: the recorded hashes, or the entry itself."""
    recorded = _recorded(lock).get(key)
    return text_hash(canonical(recorded["files"] if recorded else entry(key)))


def _order(weights: Weights, recorded: dict) -> list[str]:
    """Repositories to try: the one of the first download before the others."""
    first = [recorded["repository"]] if recorded else []
    return list(dict.fromkeys([*first, weights.repository, *weights.mirrors]))


def _token() -> str | bool:
    """From the environment or none: a token that lies on the disk is not used, and none is kept."""
    return os.environ.get("HF_TOKEN") or False


def _download(weights: Weights, repository: str, revision: str) -> dict[str, str]:
    _space(weights, repository, revision)
    paths = {}
    for name in tqdm(weights.files, desc=f"weights {weights.key}", leave=False):
        paths[name] = hf_hub_download(repository, name, revision=revision, token=_token())
    return paths


def _space(weights: Weights, repository: str, revision: str) -> None:
    """OSError unless what is not cached yet fits on the disk of the cache."""
    if constants.HF_HUB_OFFLINE:
        return
    sizes = [
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), token=_token()).size
        for name in _uncached(weights, repository, revision)
    ]
    wanted = 1.05 * sum(filter(None, sizes))
    paths.check_space(Path(constants.HF_HUB_CACHE), wanted, f"weights {weights.key!r}")


def absent(weights: Weights, lock: Path = LOCK) -> list[str]:
    """Files that no repository of the entry has in the cache; the network is not asked."""
    recorded = _recorded(lock).get(weights.key, {})
    first = recorded.get("repository")
    revision = {first: recorded.get("revision")}
    places = ((r, revision.get(r) or weights.revision) for r in _order(weights, recorded))
    return min((_uncached(weights, r, rev) for r, rev in places), key=len)


def _uncached(weights: Weights, repository: str, revision: str) -> list[str]:
    cached = lambda name: try_to_load_from_cache(repository, name, revision=revision)  # noqa: E731
    return [name for name in weights.files if not isinstance(cached(name), str)]


def _expected(error: Exception) -> bool:
    """What a network or a hub can be blamed for."""
    hub = (EntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError)
    return isinstance(error, hub) or type(error).__module__.split(".")[0].startswith("httpx")


def _why(error: Exception) -> str:
    """One line: what went wrong, and what would help."""
    if isinstance(error, GatedRepoError):
        return "access must be granted: accept the licence there and set HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no connection"
        return f"not in the cache and {offline}: go online once, or point HF_HOME to a cache"
    if isinstance(error, EntryNotFoundError):
        return "a file of the entry is not there"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository, or it wants HF_TOKEN"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _verified(weights: Weights, name: str, path: str) -> dict[str, object]:
    """sha256 and size of a file that agrees with the hash the hub stated when it was downloaded.

    The hub's cache names each blob by it: sha256 for large files, git's own hash for small ones.
    """
    stated, sha = Path(path).resolve().name, file_hash(path)
    ours = {64: lambda: sha, 40: lambda: _git_hash(path)}.get(len(stated), lambda: None)()
    if ours is None:
        raise ValueError(
            f"weights {weights.key!r}: the cache does not say what {name} should hash to (it was"
            " copied without its links): remove it from the cache and run again"
        )
    if ours != stated:
        raise ValueError(
            f"weights {weights.key!r}: {name} is damaged (hash {ours[:12]}, the hub states"
            f" {stated[:12]}): remove {paths.shown(Path(path).resolve())} and run again"
        )
    return {"sha256": sha, "bytes": Path(path).stat().st_size}


def _git_hash(path: str) -> str:
    data = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _compare(weights: Weights, facts: dict, recorded: dict | None, lock: Path) -> None:
    for name, known in (recorded or {}).items():
        if name in facts and facts[name] != known:
            raise ValueError(
                f"weights {weights.key!r}: {name} has sha256 {facts[name]['sha256'][:12]} and"
                f" {known['sha256'][:12]} was recorded at the first download: remove it from the"
                f" cache to fetch it again, or the entry from {paths.shown(lock)} to trust it"
            )


def _recorded(lock: Path) -> dict:
    if not lock.exists():
        return {}
    try:
        return json.loads(lock.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{paths.shown(lock)} is not readable JSON: {error}") from None


def _record(weights: Weights, repository: str, revision: str, facts: dict, lock: Path) -> None:
    entry_ = {"repository": repository, "revision": revision, "files": facts}
    text = json.dumps(_recorded(lock) | {weights.key: entry_}, indent=1, sort_keys=True) + "\n"
    paths.write_atomic(lock, text.encode())
