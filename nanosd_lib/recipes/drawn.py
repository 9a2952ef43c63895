"""Pictures that were drawn and looked at once: their features are shipped, and a run draws the
first few of each network again in the place of all of them.

A set of the release holds features (or what else was seen in each picture) by label (a network's
arch, what was done to the teacher, a kind of prompt) and what each was made of. They are not
believed: what is drawn again must look as they say, or the computation stops
(`extractors.witnessed`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from torch import Tensor

from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.recipes import trained
from nanosd_lib.runs import artifacts, provenance, release
from nanosd_lib.runs.artifacts import Artifact, Damaged
from nanosd_lib.runs.notebook import Run
from nanosd_lib.runs.provenance import canonical, text_hash

HOME = "drawn"
OWN = {"seed", "batch"}  # of a sampling: not the profile's, or without effect


@dataclass(frozen=True)
class Set:
    """Where features of a cached computation belong, behind how many of its inputs the keys of
    what its networks were made of begin, and which more of its parameters decide the pictures.
    """

    name: str
    inputs: int
    more: tuple[str, ...] = ()


SETS = {  # the cached computations that draw and keep features
    "reference": Set("teacher", 1),
    "check-frechet": Set("untrained", 2),
    "prompts": Set("prompts", 1),
    "errors-removed": Set("errors-removed", 2),
    "errors-one-R": Set("errors-one-R", 2),
    "sensitivity-removed": Set("removed", 3),
    "sensitivity-one-R": Set("one-R", 3),
    "score": Set("assembled", 2),
    "score-aligned": Set("aligned", 2),
    "codesign": Set("codesign", 2),
    "resemblance": Set("resemblance", 1, ("judge",)),
    "diversity": Set("diversity", 1, ("samples",)),
    "path": Set("paths", 1, ("frames",)),
    "restored-mild": Set("restored-mild", 2, ("judge",)),
    "restored-strong": Set("restored-strong", 2, ("judge",)),
}


@dataclass(frozen=True)
class Known:
    """Shipped features (N, D) of networks that were made of the same things, by label."""

    features: dict[str, Tensor]

    def keys(self, *labels: str) -> list[str]:
        """What the key of a computation over these labels holds: nothing of the others."""
        return [self._keys[x] for x in labels if x in self._keys]

    @cached_property
    def _keys(self) -> dict[str, str]:
        byte = {k: v.contiguous().numpy().tobytes() for k, v in self.features.items()}
        return {k: hashlib.sha256(v).hexdigest() for k, v in byte.items()}


def known(
    run: Run, name: str, how: Sampling, images: int, made_of: Iterable[str] = (), **more
) -> Known:
    """Shipped features of that many pictures, of all networks of the cached computation `name` that
    are made of just these keys, by label; `more` are the further parameters that its set names.
    None where the run takes nothing from the release or no such set lies there; `release.Refused`
    for a damaged one.
    """
    try:
        there = release.read(_set(name, how, images)) if trained.asked(run) else None
    except release.Absent:
        there = None
    if there is None or not _same(there, run, _asked(how, images) | more):
        return Known({})
    of, mine = there.recipe.of, _made_of(made_of)
    end = _label("", mine)
    found = {k.removesuffix(end): v for k, v in there.tensors.items() if of.get(k) == mine}
    return Known({k: v.double() for k, v in found.items()})


def _set(name: str, how: Sampling, images: int) -> str:
    return f"{HOME}/{SETS[name].name}-{how.seed}-{images}"


def _asked(how: Sampling, images: int) -> dict:
    return {"images": images, **how.model_dump(exclude={"batch"})}  # a batch changes no picture


def _same(there: release.Released, run: Run, asked: dict) -> bool:
    return there.recipe.asked == asked and there.recipe.teacher == run.teacher_key


def _made_of(keys: Iterable[str]) -> str:
    return text_hash(canonical(list(keys)))


def _label(label: str, made_of: str) -> str:
    return f"{label} @{made_of[:8]}"


# --------------------------------------------------------------------------------------- publishing
@dataclass(frozen=True)
class _Drawn:
    """Features of one network in the store."""

    label: str
    made_of: str
    features: Tensor
    made: Artifact
    asked: dict


def publish(run: Run, made_of: set[str], commit: str | None) -> list[str]:
    """Ship what lies in this run's store, drawn whole by the code as it is now, of networks that
    are made of nothing but `made_of`: the names of the sets that grew. What a set holds
    stays.
    """
    sets: dict[str, list[_Drawn]] = {}
    asked: dict[str, dict] = {}
    for name, how, drawn in _drawn(run, made_of):
        where = _set(name, how, len(drawn.features))
        if how.model_dump(exclude=OWN) != run.profile.samples.model_dump(exclude=OWN):
            continue  # another profile's, in the same store
        sets.setdefault(where, []).append(drawn)
        asked[where] = drawn.asked
    grown = []
    for where, some in sorted(sets.items()):
        if (before := _before(where, run, asked[where])) is None:
            continue  # a set of another teacher or sampling stays what it is
        of, tensors = before
        new = [d for d in some if of.get(_label(d.label, d.made_of)) != d.made_of]
        if new:
            of |= {_label(d.label, d.made_of): d.made_of for d in new}
            tensors |= {_label(d.label, d.made_of): d.features for d in new}
            recipe = {"asked": asked[where], "budget": {}, "data": {}, "teacher": run.teacher_key}
            made = _made(run, new, commit)
            release.publish(where, tensors, None, recipe | {"of": of, "made": made})
            grown.append(where)
    return grown


def _before(where: str, run: Run, asked: dict) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """What a set holds already; None where that is of another kind."""
    try:
        found = release.read(where)
    except release.Absent:
        return {}, {}
    return (dict(found.recipe.of), dict(found.tensors)) if _same(found, run, asked) else None


def _made(run: Run, new: list[_Drawn], commit: str | None) -> dict:
    m, seconds = provenance.machine(), {d.made.key: d.made.manifest["seconds"] for d in new}
    return {
        "commit": commit,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": m["cpu"],
        "gpu": m["gpu"] if run.device.type == "cuda" else None,
        "threads": run.profile.threads,
        "seconds": round(sum(seconds.values()), 1),
        "versions": m["versions"],
        "code": new[0].made.manifest["parts"]["source"],
        "record": [],
    }


def _drawn(run: Run, made_of: set[str]) -> Iterator[tuple[str, Sampling, _Drawn]]:
    """All that was drawn by the code as it is now, of the finished artifacts of the store. Inputs
    of each are the teacher, what its features were compared with (which decides no picture), and
    keys of what the networks were made of; one that was itself made of shipped features has more,
    and nobody's.
    """
    for path in sorted(run.store.glob(f"*/{artifacts.MANIFEST}")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            parts = manifest["parts"]
            if parts["name"] not in SETS or parts["inputs"][0] != run.teacher_key:
                continue
            made = artifacts.read(path.parent, manifest["key"])
        except (Damaged, OSError, ValueError, KeyError, IndexError):
            continue
        if any(provenance.hash_of(m) != digest for m, digest in parts["source"].items()):
            continue
        name, params = parts["name"], parts["params"]
        how, keys = Sampling(**params["how"]), parts["inputs"][SETS[name].inputs :]
        if not set(keys) <= made_of:
            continue
        more = {k: params[k] for k in SETS[name].more}
        for label, x in made["features"].items():
            label = params["arch"] if label == "features" else label  # a network has its name
            asked = _asked(how, len(x)) | more
            yield name, how, _Drawn(label, _made_of(keys), x, made, asked)
