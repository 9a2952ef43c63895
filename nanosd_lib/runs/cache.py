"""The cache of computations: what is expensive in a notebook is computed once and kept.

A cached computation is a function of this library whose result lies under a key made of everything
that decides it: its parameters, its inputs, the code it reaches, the lock file and the device.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from nanosd_lib import paths
from nanosd_lib.paths import PACKAGE
from nanosd_lib.runs import artifacts, processes
from nanosd_lib.runs.artifacts import Artifact, Damaged
from nanosd_lib.runs.provenance import canonical, data_read, lock_hash, source_closure, text_hash

if TYPE_CHECKING:
    import torch  # three seconds that who only looks into a store need not spend


_inner: list[float] = []  # of each computation under way, what others took inside of it


def cached(
    store: Path,
    device: torch.device,
    name: str,
    fn: Callable[..., dict[str, Any]],
    params: dict[str, Any],
    inputs: Sequence[Artifact | str],
    context: dict[str, Any],
    quiet: bool = False,
    page: str = "",
) -> Artifact:
    """The artifact of fn(**params, **context): loaded where it is whole, computed otherwise.

    `params` is plain data and part of the key; `inputs` (artifacts, or strings such as
    `run.teacher_key`) are part of the key alone; `context` (networks, devices) is not, but the
    library code behind its values is. fn returns a dict of DataFrames, dicts of tensors, PIL
    images and plain data. A fn with an argument `scratch` gets a folder for checkpoints that
    outlives a killed run. Random generators are seeded from name and params for fn, and put back
    after it. ValueError unless fn, and every function in context, lives in this library. The
    artifact remembers the `page` that computed it, and its seconds without those of others that
    were computed for it.
    """
    paths.check_name("computation", name)
    parts = _parts(device, name, fn, params, inputs, context)
    key = text_hash(canonical(parts))
    folder = store / f"{name}-{key[:16]}"
    say = _nothing if quiet else print
    waiting = f"cached {name}: another process is computing it; waiting"
    with _permitted(store, name):
        with contextlib.suppress(Damaged):
            return _load(name, folder, key, say)
        with processes.locked(store / ".locks" / folder.name, waiting):
            try:
                return _load(name, folder, key, say)
            except Damaged as error:
                if folder.exists():
                    print(
                        f"cached {name}: {folder.name} is damaged ({error}); it is computed again"
                    )
                    artifacts.remove(folder)
            scratch = store / ".scratch" / folder.name
            start = time.perf_counter()
            _inner.append(0.0)
            try:
                values = _call(name, fn, params, context, device, scratch)
            finally:
                seconds = time.perf_counter() - start
                own = seconds - _inner.pop()
                if _inner:
                    _inner[-1] += seconds
            facts = {"parts": parts, "seconds": round(own, 3), "page": page}
            artifact = artifacts.write(folder, key, values, facts)
            shutil.rmtree(scratch, ignore_errors=True)
            say(f"cached {name}: computed in {seconds:.1f} s")
            return artifact


@contextlib.contextmanager
def _permitted(store: Path, name: str) -> Iterator[None]:
    """Where files of another user in the store refuse this one: a line that says the way out."""
    try:
        yield
    except PermissionError as error:
        path = Path(str(error.filename))
        if not path.is_relative_to(store):
            raise
        device = store == paths.device_root()
        raise PermissionError(
            f"cached {name}: {paths.shown(path)} is closed to this user: ask {_owner(path)} for"
            f" `chmod -R a+rwX {paths.shown(store)}`, or set"
            f" {'NANOSD_DEVICE' if device else 'NANOSD_STORE'} to a folder of your own"
        ) from None


def _owner(path: Path) -> str:
    """Whose it is, or the folder that hides it."""
    for there in (path, *path.parents):
        with contextlib.suppress(OSError):
            number = there.stat().st_uid
            with contextlib.suppress(KeyError):  # a container has a list of users of its own
                return there.owner()
            return f"user {number}"
    return "its owner"


class Later:
    """Context that takes long to make: it is made once, when something must be computed with it,
    and never where everything is loaded. Nothing of it is part of the key, so `make` may return
    what is made of inputs and of code that the computation reaches anyway.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.value = functools.cache(make)


class Repeated:
    """A cached computation that another one asks for many times, each time with other params.

    Called with the params that are left, it returns the artifact; `more` says which inputs a call
    has beyond those that all have. As context of another
    computation it brings the code of its function into the key, and nothing of whoever made it.
    """

    def __init__(
        self,
        store: Path,
        device: torch.device,
        name: str,
        fn: Callable[..., dict[str, Any]],
        params: dict[str, Any],
        inputs: Sequence[Artifact | str],
        context: dict[str, Any],
        page: str = "",
        seen: Callable[[Artifact], None] = lambda artifact: None,
        more: Callable[..., Sequence[str]] = lambda **params: (),
    ) -> None:
        self._page, self._seen, self._more = page, seen, more
        self._first, self._params, self._rest = (store, device, name, fn), params, (inputs, context)
        self.homes = {_home(fn), *_homes(context.values())}

    def __call__(self, **params: Any) -> Artifact:
        asked, (inputs, context) = self._params | params, self._rest
        inputs = [*inputs, *self._more(**params)]
        artifact = cached(*self._first, asked, inputs, context, quiet=True, page=self._page)
        self._seen(artifact)
        return artifact


def find(
    store: Path, device: torch.device, name: str, fn: Callable[..., Any], params: dict[str, Any]
) -> Artifact | None:
    """What `cached` would load, without inputs and context; None where it is not whole."""
    key = text_hash(canonical(_parts(device, name, fn, params, [], {})))
    with contextlib.suppress(Damaged), _permitted(store, name):
        return artifacts.read(store / f"{name}-{key[:16]}", key)
    return None


def _nothing(text: str) -> None:
    """Where a notebook asks many times, its progress bar says enough."""


def _parts(device, name, fn, params, inputs, context) -> dict[str, Any]:
    """Everything that decides the result, as plain data."""
    try:
        plain = json.loads(canonical(params))
    except (TypeError, ValueError) as error:
        raise TypeError(f"cached {name}: params: {error}; hand it over as context") from None
    cuda, source = device.type == "cuda", source_closure({_home(fn), *_homes(context.values())})
    return {
        "name": name,
        "function": f"{_home(fn)}.{fn.__qualname__}",
        "params": plain,
        "inputs": [item.key if isinstance(item, Artifact) else _text(item) for item in inputs],
        "source": source,
        "data": data_read(source),
        "lock": lock_hash(),
        "device": _gpu_name(device) if cuda else "cpu",
    }


def _gpu_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def _load(name: str, folder: Path, key: str, say: Callable[[str], None]) -> Artifact:
    artifact = artifacts.read(folder, key)
    artifact.loaded = True
    say(f"cached {name}: loaded ({artifact.bytes / 1e6:.1f} MB)")
    return artifact


def _call(name, fn, params, context, device, scratch: Path) -> dict[str, Any]:
    if "scratch" in inspect.signature(fn).parameters:
        scratch.mkdir(parents=True, exist_ok=True)
        context = {**context, "scratch": scratch}
    context = {k: v.value() if isinstance(v, Later) else v for k, v in context.items()}
    with _seeded(canonical([name, params]), device):
        values = fn(**params, **context)
    if not isinstance(values, dict) or not values:
        raise TypeError(f"cached {name}: {fn.__qualname__} must return a dict of named values")
    return values


def _home(fn: Any) -> str:
    """The library module that a function or an object's class comes from; ValueError otherwise."""
    module = getattr(fn, "__module__", None) or ""
    if not module.startswith(PACKAGE + ".") or not re.fullmatch(r"[\w.]+", fn.__qualname__):
        raise ValueError(
            f"{getattr(fn, '__qualname__', fn)!s} of {module or 'nowhere'} cannot be cached:"
            f" its function must stand in a module of {PACKAGE}, under a name"
        )
    return module


def _homes(values: Iterable[Any]) -> set[str]:
    """Library modules behind the values handed to a computation; a notebook's own functions are
    refused, since their code would not be part of the key."""
    homes = set()
    for value in values:
        if isinstance(value, Artifact | BaseModel | Later):  # data, or what is made of it
            continue
        if isinstance(value, Repeated):
            homes |= value.homes
            continue
        value = value.func if isinstance(value, functools.partial) else value
        owner = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
        module = getattr(owner, "__module__", None) or ""
        if module == "__main__":
            _home(owner)
        if module.startswith(PACKAGE + "."):
            homes.add(module)
    return homes


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"input {value!r} is refused: an Artifact or a string is wanted")
    return value


@contextlib.contextmanager
def _seeded(text: str, device: torch.device) -> Iterator[None]:
    """Seed python, numpy and torch from a text; put their states back afterwards."""
    import torch

    seed = int(text_hash(text)[:8], 16)
    states = random.getstate(), np.random.get_state()
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
