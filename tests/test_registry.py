"""registry: weights from a hub of our own on this machine, verified, recorded, refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import yaml

from nanosd_lib import paths
from nanosd_lib.runs import notebook, registry

COMMIT, BIG, SMALL = "c0ffee" + "0" * 34, b"weights" * 99, b'{"a": 1}\n'
TOY = {
    "repository": "someone/toy",
    "mirrors": ["other/toy"],
    "revision": "main",
    "variant": None,
    "licence": "Apache-2.0",
    "link": "https://example.org/toy",
    "files": ["unet/model.safetensors", "model_index.json"],
}


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """What the published hub answers: commit, hash and bytes of a file."""

    files: dict[str, bytes]
    seen: list[tuple[str, str | None]]

    def do_HEAD(self, body: bool = False) -> None:
        self.seen.append((self.path, self.headers.get("authorization")))
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        else:
            large = self.path.endswith(".safetensors")
            etag = hashlib.sha256(data).hexdigest() if large else git_hash(data)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.do_HEAD(body=True)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A hub with the toy's files in its first repository, and an empty cache."""
    files = {
        f"/someone/toy/resolve/{revision}/{name}": data
        for revision in ("main", COMMIT)
        for name, data in (("unet/model.safetensors", BIG), ("model_index.json", SMALL))
    }
    handler = type("Handler", (Hub,), {"files": files, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "ENDPOINT", address)
    monkeypatch.setattr(
        hub, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield handler
    server.shutdown()


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "weights.yaml"
    path.write_text(yaml.safe_dump({"toy": TOY}))
    return registry.entry("toy", path)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "weights.lock.json"


def test_the_first_download_is_verified_and_recorded(online, toy, lock):
    folder = registry.fetch(toy, lock)
    assert (folder / "unet/model.safetensors").read_bytes() == BIG
    recorded = json.loads(lock.read_text())["toy"]
    assert recorded["repository"] == "someone/toy" and recorded["revision"] == COMMIT
    fact = recorded["files"]["unet/model.safetensors"]
    assert fact == {"sha256": hashlib.sha256(BIG).hexdigest(), "bytes": len(BIG)}
    assert registry.fingerprint("toy", lock) == registry.text_hash(
        registry.canonical(recorded["files"])
    )


def test_the_cache_and_offline_are_respected(online, toy, lock, monkeypatch):
    folder = registry.fetch(toy, lock)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    online.seen.clear()
    assert registry.fetch(toy, lock) == folder and online.seen == []


def test_offline_and_not_cached_is_one_line(online, toy, lock, monkeypatch):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="not in the cache and HF_HUB_OFFLINE is set.*HF_HOME") as err:
        registry.fetch(toy, lock)
    assert "\n" not in str(err.value) and online.seen == [] and not lock.exists()


def test_a_mirror_stands_in(online, toy, lock):
    for path in list(online.files):
        online.files[path.replace("someone", "other")] = online.files.pop(path)
    assert registry.fetch(toy, lock).name == COMMIT
    assert json.loads(lock.read_text())["toy"]["repository"] == "other/toy"


def test_no_repository_at_all_is_one_line(online, toy, lock):
    online.files.clear()
    with pytest.raises(OSError, match="someone/toy: no such repository.*other/toy") as err:
        registry.fetch(toy, lock)
    assert "\n" not in str(err.value)


def test_a_changed_hash_is_refused(online, toy, lock):
    registry.fetch(toy, lock)
    recorded = json.loads(lock.read_text())
    recorded["toy"]["files"]["unet/model.safetensors"]["sha256"] = "0" * 64
    lock.write_text(json.dumps(recorded))
    with pytest.raises(
        ValueError, match="unet/model.safetensors has sha256 .* was recorded"
    ) as err:
        registry.fetch(toy, lock)
    assert "\n" not in str(err.value) and "weights.lock.json" in str(err.value)
    assert json.loads(lock.read_text()) == recorded


def test_a_damaged_file_in_the_cache_is_refused(online, toy, lock):
    folder = registry.fetch(toy, lock)
    for name, word in (("unet/model.safetensors", "damaged"), ("model_index.json", "damaged")):
        blob = (folder / name).resolve()
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-1] + b"!")
        with pytest.raises(ValueError, match=f"{name} is {word}.*remove"):
            registry.fetch(toy, lock)
        blob.write_bytes(whole)
    assert registry.fetch(toy, lock) == folder


def test_no_space_is_said_before_the_download(online, toy, lock, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(paths.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="no disk space for weights 'toy': .* wanted, .* free") as err:
        registry.fetch(toy, lock)
    assert "\n" not in str(err.value)
    assert not any((Path(hub.HF_HUB_CACHE)).rglob("*.safetensors"))


def test_a_token_comes_from_the_environment_alone(online, toy, lock, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("hf_on_disk")
    registry.fetch(toy, lock)
    assert {header for _, header in online.seen} == {None}
    online.seen.clear()
    shutil.rmtree(hub.HF_HUB_CACHE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    registry.fetch(toy, lock)
    assert {header for _, header in online.seen} == {"Bearer hf_secret"}
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]
    assert kept == []


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("files", ["../x.safetensors"], "leaves the folder"),
        ("files", ["/etc/x.json"], "leaves the folder"),
        ("files", ["unet/model.bin"], "neither safetensors nor plain data"),
        ("files", [], "at least 1"),
        ("repository", "no-owner", "pattern"),
        ("link", "http://example.org", "pattern"),
        ("extra", 1, "not permitted"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path, field, value, message):
    path = tmp_path / "weights.yaml"
    path.write_text(yaml.safe_dump({"toy": TOY | {field: value}}))
    with pytest.raises(ValueError, match=f"weights.yaml: toy.{field}.*: .*{message}") as err:
        registry.entry("toy", path)
    assert "\n" not in str(err.value)


def test_a_cache_that_cannot_be_verified_is_refused(online, toy, lock):
    """Copied without its links: no hash that the hub stated is left."""
    folder = registry.fetch(toy, lock)
    lock.unlink()
    blob = (folder / "model_index.json").resolve()
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_bytes(blob.read_bytes())
    with pytest.raises(ValueError, match="does not say what model_index.json should hash to"):
        registry.fetch(toy, lock)
    assert not lock.exists()


def test_an_address_that_is_not_https_is_refused(online, toy, lock, monkeypatch):
    monkeypatch.setattr(hub, "ENDPOINT", "http://mirror.example.org")
    with pytest.raises(ValueError, match="HF_ENDPOINT = .* is refused: https only"):
        registry.fetch(toy, lock)


def test_no_connection_is_one_line(online, toy, lock, monkeypatch):
    monkeypatch.setattr(hub, "ENDPOINT", "https://127.0.0.1:9")
    where = "https://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", where)
    with pytest.raises(OSError, match="weights 'toy' cannot be had") as err:
        registry.fetch(toy, lock)
    assert "\n" not in str(err.value)


def test_the_committed_registry_is_valid():
    for key in yaml.safe_load(registry.REGISTRY.read_text()):
        assert registry.entry(key).key == key
    with pytest.raises(ValueError, match="weights 'sd16' are not in weights.yaml: use one of sd15"):
        registry.entry("sd16")


def test_profile_sd15_without_its_weights_is_one_line(online, monkeypatch, tmp_path):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    run = notebook.open_run("00_start_here", "sd15", 0, {"device": "cpu"})
    assert run.variant == "fp16"
    with pytest.raises(OSError, match="weights 'sd15' cannot be had"):
        _ = run.teacher
