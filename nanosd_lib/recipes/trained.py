"""What was trained: taken from the release where it is there and confirmed, else trained on the
profile's own budget here. The one place that knows the switch.
"""

from __future__ import annotations

import contextlib
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.learning import fit
from nanosd_lib.networks import pipeline
from nanosd_lib.runs import provenance, release
from nanosd_lib.runs.notebook import Artifact, Run

CPU = torch.device("cpu")
STEPS = 2  # of a training, replayed before a member is trusted by a page
Plain = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How much goes into a training: numbers of the optimiser, and the data of each split."""

    budget: Plain
    data: Plain


@dataclass(frozen=True)
class Member:
    """One thing that is trained: its name in the release, what it is, keys of its own parts."""

    name: str
    what: Plain
    of: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A member's weights, and where they are from."""

    member: Member
    tensors: dict[str, Tensor]
    key: str
    how: str  # "released: 2,000 steps of batch 32, seed 0"
    settings: Settings
    record: list[Plain]  # losses and held-out errors along the way
    released: release.Released | None = None
    difference: float | None = None  # the largest of its witness, computed again

    @property
    def steps(self) -> int:
        return self.settings.budget["steps"]


class Kind(ABC):
    """How one kind of members is trained, taken apart and judged, with given numbers."""

    later = release.TOLERANCE  # of losses after the first, replayed

    @abstractmethod
    def settings(self, run: Run, pipe: StableDiffusionPipeline) -> Settings:
        """Of the run's profile."""

    @abstractmethod
    def train(
        self, run: Run, pipe, members: Sequence[Member], settings: Settings, until: int | None
    ) -> Artifact:
        """All members in one pass; with `until`, the first steps of the same training, on data made
        on demand. Each member's losses depend on no other member.
        """

    @abstractmethod
    def part(self, made: Artifact, member: Member) -> tuple[dict[str, Tensor], list[Plain]]:
        """The member's weights and its record: rows with "step" and "loss", the first with its
        "first" losses.
        """

    @abstractmethod
    def first(self, made: Artifact, member: Member) -> list[float]:
        """The member's own losses of the first steps."""

    @abstractmethod
    def data(self, run: Run, pipe, settings: Settings) -> Plain:
        """`splits.fingerprint` of each split."""

    @abstractmethod
    def heldout(self, run: Run, pipe, trained: Sequence[Trained]) -> dict[str, float]:
        """Error of each member's file, by name, on the held-out data of its settings."""

    def config(self, run: Run, pipe, member: Member) -> Plain | None:
        """config.json, where the member is a folder of diffusers."""
        return None


def load(
    run: Run, pipe, kind: Kind, members: Iterable[Member], here: bool = False
) -> dict[str, Trained]:
    """Each member by name: released and confirmed, else (all, where `here` is wanted) trained here.
    `release.Refused` where a member is damaged, edited, or not what this code makes.
    """
    wanted = {m.name: m for m in members}
    have = _released(run, wanted.values()) if asked(run) and not here else {}
    for name, said in confirm(run, pipe, kind, list(have.values()), STEPS).items():
        have[name] = replace(have[name], difference=said["difference"])
    left = [m for m in wanted.values() if m.name not in have]
    if left:
        settings = kind.settings(run, pipe)
        made = kind.train(run, pipe, left, settings, None)
        for m in left:
            have[m.name] = _here(kind, made, m, settings, asked(run) and not here)
    return {name: have[name] for name in wanted}


def origins(some: Iterable[Trained]) -> pd.DataFrame:
    """name, from (release, trained here), steps, batch, seed, difference, key of each."""
    rows: list[Plain] = []
    for t in some:
        row: Plain = {"name": t.member.name, "from": "release" if t.released else "trained here"}
        row |= {k: t.settings.budget[k] for k in ("steps", "batch", "seed")}
        rows.append(row | {"difference": t.difference, "key": t.key[:12]})
    return pd.DataFrame(rows)


def asked(run: Run) -> bool:
    """Whether this run takes from the release: the profile's switch, on pictures of our own."""
    return run.profile.release and run.profile.photographs is None


def there(run: Run, m: Member) -> bool:
    """Whether the release holds that member; `release.Refused` where it is damaged."""
    try:
        found(run, m)
    except release.Absent:
        return False
    return True


def _released(run: Run, members: Iterable[Member]) -> dict[str, Trained]:
    some = {}
    for m in members:
        with contextlib.suppress(release.Absent):
            some[m.name] = found(run, m)
    return some


def found(run: Run, member: Member) -> Trained:
    """The member of the release; `release.Absent` or `release.Refused`."""
    there = release.find(member.name, member.what, run.teacher_key, member.of)
    r = there.recipe
    settings = Settings(r.budget, r.data)
    return Trained(member, there.tensors, r.key, r.how, settings, r.made.record, there)


def _here(kind: Kind, made: Artifact, m: Member, settings: Settings, missed: bool) -> Trained:
    tensors, record = kind.part(made, m)
    how = f"trained here: {settings.budget['steps']:,} steps of batch {settings.budget['batch']}"
    how += ", not in the release" if missed else ""
    key = provenance.text_hash(f"{made.key} {m.name}")
    return Trained(m, tensors, key, how, settings, record)


# ------------------------------------------------------------------------------------- verification
def on_cpu(run: Run, pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The teacher in float32 on a CPU: what witnesses are computed with, wherever a run is."""
    if pipe.device == CPU and pipe.unet.dtype == torch.float32:
        return pipe
    return pipeline.load_teacher(run.teacher, "float32", "cpu", run.variant)


def confirm(
    run: Run, pipe, kind: Kind, some: Sequence[Trained], steps: int, just: str = ""
) -> dict[str, Plain]:
    """The witness of each released member computed again (a cached computation: once for each state
    of the code), compared with what the recipe recorded; by name, the largest relative difference.
    `release.Refused` names the first that differs, of all or of `just` one.
    """
    said = {}
    for settings, alike in _groups(some):
        computed = witness(run, pipe, kind, alike, settings, steps)
        for t in alike:
            if just not in ("", t.member.name):
                continue
            assert t.released is not None
            changed = _changed(t.released.recipe.made.code)
            said[t.member.name] = {
                "steps": steps,
                "difference": release.confirm(
                    t.released, computed[t.member.name], changed, kind.later
                ),
            }
    return said


def witness(
    run: Run, pipe, kind: Kind, some: Sequence[Trained], settings: Settings, steps: int
) -> dict[str, Plain]:
    """data, first losses and held-out error of members that were trained with the same settings."""
    pipe, members = on_cpu(run, pipe), [t.member for t in some]
    data, errors = kind.data(run, pipe, settings), kind.heldout(run, pipe, some)
    replayed = kind.train(run, pipe, members, settings, steps)
    return {
        m.name: {"data": data, "first": kind.first(replayed, m), "heldout": errors[m.name]}
        for m in members
    }


def _groups(found: Sequence[Trained]) -> list[tuple[Settings, list[Trained]]]:
    """Those of the same settings together."""
    groups: dict[str, tuple[Settings, list[Trained]]] = {}
    for t in found:
        key = provenance.canonical([t.settings.budget, t.settings.data])
        groups.setdefault(key, (t.settings, []))[1].append(t)
    return list(groups.values())


def _changed(code: dict[str, str]) -> list[str]:
    """Modules that are no longer what they were when a member was made."""
    return [m for m, digest in code.items() if provenance.hash_of(m) != digest]


# --------------------------------------------------------------------------------------- publishing
def publish(
    run: Run, pipe, kind: Kind, members: Sequence[Member], made: Artifact, commit: str | None
) -> list[release.Released]:
    """Members of a finished training, each with its witness, into the release."""
    settings = kind.settings(run, pipe)
    some = [_here(kind, made, m, settings, False) for m in members]
    half = [_halved(t) for t in some]
    computed = witness(run, pipe, kind, half, settings, fit.FIRST)
    out = []
    for t in half:
        name, m = t.member.name, provenance.machine()
        recipe = {
            "asked": t.member.what,
            "budget": settings.budget,
            "data": settings.data,
            "teacher": run.teacher_key,
            "of": t.member.of,
            "witness": computed[name],
            "made": {
                "commit": commit,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "cpu": m["cpu"] or platform.processor(),
                "gpu": m["gpu"] if run.device.type == "cuda" else None,
                "threads": torch.get_num_threads(),
                "seconds": made.manifest["seconds"],
                "versions": m["versions"],
                "code": made.manifest["parts"]["source"],
                "record": t.record,
            },
        }
        out.append(release.publish(name, t.tensors, kind.config(run, pipe, t.member), recipe))
    return out


def _halved(t: Trained) -> Trained:
    """As it will lie in the release: float16."""
    half = {k: v.half() if v.is_floating_point() else v for k, v in t.tensors.items()}
    return Trained(t.member, half, t.key, t.how, t.settings, t.record)
