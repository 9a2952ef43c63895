"""The surrogates: which are taught, on what, and what of the release stands for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from nanosd_lib.learning import fwkd
from nanosd_lib.networks import arch
from nanosd_lib.recipes import shared, trained
from nanosd_lib.recipes.trained import Kind, Member, Plain, Settings, Trained
from nanosd_lib.runs import release
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical, text_hash

# one surrogate of each stage, taught on less data as well; in two passes, since D1 takes long
FEW = {
    "less-data-a": [("E1", "RA"), ("E2", "RA"), ("E3", "RA"), ("D3", "RARA")],
    "less-data-b": [("D2", "RARA"), ("D1", "RARA")],
}


def member(stage: str, code: str, fraction: float = 1.0, e3_target: str = "D4") -> Member:
    """The surrogate of a stage; on that fraction of the data, with that target of E3."""
    what = {"stage": stage, "code": code, "e3_target": e3_target, "fraction": fraction}
    name = f"surrogates/{stage}-{code}"
    name += "-own" if e3_target == "E3" else ""
    name += f"-data{fraction:.0%}".removesuffix("%") if fraction < 1 else ""
    return Member(name, what)


class Surrogates(Kind):
    """FwKD (paper, method step 2): all members of a call share the teacher's pass."""

    def settings(self, run: Run, pipe: StableDiffusionPipeline) -> Settings:
        f = run.profile.fwkd
        data = {split: shared.split_of(run, split) for split in ("train", "heldout")}
        return Settings({"steps": f.steps, "batch": f.batch, "lr": f.lr, "seed": run.seed}, data)

    def train(
        self, run: Run, pipe, members: Sequence[Member], settings: Settings, until: int | None
    ) -> Artifact:
        (alike,) = {canonical([m.what["fraction"], m.what["e3_target"]]) for m in members}
        fraction, e3_target = [members[0].what[k] for k in ("fraction", "e3_target")]
        params = {
            "pairs": _pairs(members),
            **settings.budget,
            "fraction": fraction,
            "e3_target": e3_target,
        }
        train, inputs = shared.training(run, pipe, settings.data["train"], until)
        held: list = []
        if until is None:
            held = shared.heldout_batches(run, pipe, settings.data["heldout"])
            inputs.append(canonical(settings.data["heldout"]))
        else:
            params["until"] = until
        return run.cached(
            "fwkd",
            fwkd.teach,
            params,
            inputs,
            quiet=until is not None,
            device=pipe.device,
            teacher=pipe.unet,
            train=train,
            heldout=held,
            scheduler=pipe.scheduler,
        )

    def part(self, made: Artifact, member: Member) -> tuple[dict[str, Tensor], list[Plain]]:
        key = _key(member)
        weights = {k: v for k, v in made["weights"].items() if k.startswith(f"{key}.")}
        errors = made["curve"].query("surrogate == @key").set_index("step").relative_error
        rows: list[Plain] = [{"step": 0, "relative_error": float(errors[0])}]
        for r in made["record"]:
            row = {"step": r["step"], "seconds": r["seconds"], "loss": r[key]}
            rows.append(row | {"relative_error": float(errors[r["step"]])})
        return weights, rows

    def first(self, made: Artifact, member: Member) -> list[float]:
        return made["record"][0]["first"][_key(member)]

    def data(self, run: Run, pipe, settings: Settings) -> Plain:
        return shared.fingerprints(run, pipe, settings.data)

    def heldout(self, run: Run, pipe, some: Sequence[Trained]) -> dict[str, float]:
        error = errors(run, pipe, some).set_index("surrogate").relative_error
        return {t.member.name: float(error[_key(t.member)]) for t in some}


def _key(member: Member) -> str:
    return f"{member.what['stage']}:{member.what['code']}"


def _pairs(members: Sequence[Member]) -> list[list[str]]:
    return [[m.what["stage"], m.what["code"]] for m in members]


def errors(run: Run, pipe, some: Sequence[Trained]) -> pd.DataFrame:
    """surrogate, relative_error, read_error with their ends: on the held-out latents."""
    members, settings = [t.member for t in some], some[0].settings
    weights = {k: v for t in some for k, v in t.tensors.items()}
    what = settings.data["heldout"]
    return run.cached(
        "fwkd-errors",
        fwkd.judged,
        {"pairs": _pairs(members), "e3_target": members[0].what["e3_target"]},
        [run.teacher_key, canonical(what), *(t.key for t in some)],
        quiet=True,
        device=pipe.device,
        teacher=pipe.unet,
        nets=Later(lambda: fwkd.load(pipe.unet, _pairs(members), weights)),
        heldout=Later(lambda: shared.heldout_batches(run, pipe, what)),
    )["errors"]


@dataclass(frozen=True)
class Taught:
    """Surrogates by "E1:RA", and what is known of them."""

    trained: dict[str, Trained]
    errors: pd.DataFrame

    @property
    def weights(self) -> dict[str, Tensor]:
        return {k: v for t in self.trained.values() for k, v in t.tensors.items()}

    @functools.cached_property
    def key(self) -> str:
        return text_hash(canonical({k: t.key for k, t in self.trained.items()}))

    @property
    def how(self) -> str:
        """Where they are from: "released: 2,000 steps of batch 32, seed 0"."""
        ways: dict[str, int] = {}
        for t in self.trained.values():
            ways[t.how] = ways.get(t.how, 0) + 1
        if len(ways) == 1:
            return next(iter(ways))
        return "; ".join(f"{n} of {len(self.trained)} {how}" for how, n in ways.items())

    @property
    def curve(self) -> pd.DataFrame:
        """surrogate, step, share (of its steps), relative_error: held out, along the way."""
        rows = [
            {
                "surrogate": k,
                "step": r["step"],
                "share": r["step"] / t.settings.budget["steps"],
                "relative_error": r["relative_error"],
            }
            for k, t in self.trained.items()
            for r in t.record
        ]
        return pd.DataFrame(rows)

    def epochs(self, key: str) -> float:
        """How often that surrogate saw each latent."""
        t = self.trained[key]
        data, budget = t.settings.data["train"], t.settings.budget
        n = t.member.what["fraction"] * (data["scenes"] + data["crops"])
        return budget["steps"] * budget["batch"] / n

    def used(self, text: str) -> list[Trained]:
        """Those that the network of that arch is assembled of."""
        a = arch.Arch.parse(text)
        keys = [f"{s}:{getattr(a, s)}" for s in arch.STAGES]
        return [self.trained[k] for k in keys if k in self.trained]

    def among(self, pairs: Sequence[tuple[str, str]]) -> Taught:
        """Those alone."""
        keys = [f"{s}:{c}" for s, c in pairs]
        some = self.errors[self.errors.surrogate.isin(keys)].reset_index(drop=True)
        return Taught({k: self.trained[k] for k in keys}, some)


def taught(
    run: Run,
    pipe: StableDiffusionPipeline,
    pairs: Sequence[tuple[str, str]] | None = None,
    fraction: float = 1.0,
    e3_target: str = "D4",
    here: bool = False,
) -> Taught:
    """All thirty and the original E3, or those in `pairs`: from the release, else (and where
    `here` is wanted) taught here in one shared teacher pass a step.
    """
    kind = Surrogates()
    members = [member(s, c, fraction, e3_target) for s, c in (pairs or arch.taught())]
    found = trained.load(run, pipe, kind, members, here)
    tables = [errors(run, _where(run, pipe, some), some) for some in _alike(found)]
    each = pd.concat(tables, ignore_index=True)
    by_key = {_key(t.member): t for t in found.values()}
    return Taught(by_key, each.set_index("surrogate").loc[list(by_key)].reset_index())


def compared(
    run: Run, pipe, usual: Taught, pairs: Sequence[tuple[str, str]], **other: Any
) -> tuple[Taught, Taught]:
    """Those surrogates as usual and taught in another way (`fraction`, `e3_target`), on one budget:
    where the release holds not all of the other, both are taught here.
    """
    one, two = usual.among(pairs), taught(run, pipe, pairs, **other)
    if all(t.settings == two.trained[k].settings for k, t in one.trained.items()):
        return one, two
    return taught(run, pipe, pairs, here=True), taught(run, pipe, pairs, **other, here=True)


def released(run: Run) -> Taught | None:
    """All thirty-one as they lie in the release, not confirmed; None where one is absent, or
    damaged.
    """
    try:
        some = [trained.found(run, member(s, c)) for s, c in arch.taught()]
    except (release.Absent, release.Refused):
        return None
    return Taught({_key(t.member): t for t in some}, pd.DataFrame())


def there(run: Run, pipe) -> Taught:
    """What is at hand without training: the release's, where the run takes from it, else all as the
    profile teaches them.
    """
    if not trained.asked(run):
        return taught(run, pipe)
    held = release.keys("surrogates")
    pairs = [(s, c) for s, c in arch.taught() if member(s, c).name in held]
    return taught(run, pipe, pairs)


def _alike(found: dict[str, Trained]) -> list[list[Trained]]:
    """Those of the same settings and origin together."""
    groups: dict[str, list[Trained]] = {}
    for t in found.values():
        key = canonical([t.settings.budget, t.settings.data, t.released is None])
        groups.setdefault(key, []).append(t)
    return list(groups.values())


def _where(run: Run, pipe, some: Sequence[Trained]):
    """Released ones are judged where their witness is, so that it is one computation."""
    return pipe if some[0].released is None else trained.on_cpu(run, pipe)


def nets(pipe: StableDiffusionPipeline, *taught: Taught) -> nn.ModuleDict:
    """Those that were taught, with the weights of one FwKD run or of several, the later ones
    winning; of none: all thirty-one cut out of the teacher, with nothing taught.
    """
    if not taught:
        cut = fwkd.surrogates(pipe.unet, arch.taught())
        return cut.eval().requires_grad_(False)
    weights = {k: v for t in taught for k, v in t.weights.items()}
    keys = dict.fromkeys(k for t in taught for k in t.trained)
    return fwkd.load(pipe.unet, [k.split(":") for k in keys], weights)


def later(pipe: StableDiffusionPipeline, *taught: Taught) -> Later:
    """The same, made when a network must be assembled of them."""
    return Later(lambda: nets(pipe, *taught))
