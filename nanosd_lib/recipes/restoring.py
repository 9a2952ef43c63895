"""Restorations: which are trained, with which numbers, on what, and what of the release stands for
them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from nanosd_lib.networks import pipeline, work
from nanosd_lib.networks.arch import BASE, NANOSD
from nanosd_lib.networks.arch import taught as taught_codes
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import uncertainty
from nanosd_lib.recipes import members, shared, slimming, surrogates, trained
from nanosd_lib.recipes.surrogates import Taught
from nanosd_lib.recipes.trained import Kind, Member, Plain, Settings, Trained
from nanosd_lib.restoration import one_step, osediff, pairs, s3diff, scratch
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.pairs import Pairs
from nanosd_lib.runs import release
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical

TRAINED_ON = "mild"
WITNESSED = 16  # held-out scenes, and crops, of which a release tells an adapter's error
MEASURED = 256  # training scenes, and crops, at most, between which damage is measured
MATCHED = "matched"
LATER = 1e-3  # see `Restoration.later`


@dataclass(frozen=True)
class Backbone:
    """A U-Net and a VAE that a restoration is built around: "teacher" or a network's arch, aligned;
    "teacher" or "slim".
    """

    name: str = "teacher"  # as tables show it
    net: Trained | None = None
    autoencoder: Trained | None = None

    @property
    def of(self) -> dict[str, str]:
        """Keys of what it is made of, beside the teacher."""
        return {t.member.name: t.key for t in (self.net, self.autoencoder) if t is not None}

    @property
    def vae(self) -> str:
        return "teacher" if self.autoencoder is None else "slim"

    def unet(self, pipe: StableDiffusionPipeline) -> UNet2DConditionModel:
        return pipe.unet if self.net is None else members.network(pipe, self.net)

    def vae_of(self, pipe: StableDiffusionPipeline) -> Autoencoder:
        return pipe.vae if self.autoencoder is None else slimming.network(pipe, self.autoencoder)


def backbone(run: Run, pipe, name: str, taught: Taught, slim: bool = False) -> Backbone:
    """The teacher, or a published network as the family has it: assembled and aligned."""
    net = None
    if name != "teacher":
        text = next(text for text, known in members.NAMES.items() if known == name)
        net = members.aligned(run, pipe, [text], taught)[text]
    return Backbone(
        name, net, slimming.student(run, pipe, slimming.seeds(run)[0]) if slim else None
    )


def damage(run: Run, pipe: StableDiffusionPipeline) -> pd.DataFrame:
    """data, rms (with its interval), t: how far the latents of damaged and clean training pictures
    lie apart (the root of the mean square of each picture, its mean over pictures), and the
    timestep whose gain that is; its last row is of all.
    """
    r = run.profile.restoration
    n = min(MEASURED, r.scenes, r.crops)
    what = {"scenes": n, "crops": n, "seed": run.seed, "family": TRAINED_ON}
    apart = run.cached(
        "damage", pairs.distances, what, [run.teacher_key], quiet=True, device=trained.CPU,
        pipe=Later(lambda: trained.on_cpu(run, pipe)),
    )["apart"]  # fmt: skip
    kinds = {"scenes": apart["apart"][:n], "crops of photographs": apart["apart"][n:]}
    rows, abar = [], one_step.alphas(pipe)
    for name, x in (kinds | {"both": apart["apart"]}).items():
        rms = uncertainty.mean(x)
        t = one_step.matched(abar, rms.value)
        rows.append({"data": name, "n": len(x), **rms.named("rms"), "t": t})
    return pd.DataFrame(rows)


PLAIN = "osediff-without-vsd"  # what variational score distillation adds is what this one lacks
LONGER = "osediff-twice"  # twice as many steps: whether the budget is what is short
SYSTEMS: dict[str, Any] = {
    "osediff": osediff,
    "s3diff": s3diff,
    "scratch": scratch,
    PLAIN: osediff,
    LONGER: osediff,
}
NAMES = {"osediff": "OSEDiff", "s3diff": "S3Diff", "scratch": "from scratch"}
NAMES |= {PLAIN: "OSEDiff without VSD", LONGER: "OSEDiff, twice as long"}


@dataclass(frozen=True)
class Restoration(Kind):
    """A published one-step system on a backbone (paper, super-resolution), at the "matched" or a
    published timestep.
    """

    backbone: Backbone
    timestep: str = MATCHED
    seed: int = 0
    system: str = "osediff"

    # AdamW's first step is nearly the sign of the gradient, and where gradients are almost zero
    # (adversarial and distilled terms, a network from nothing) rounding decides it: without AVX the
    # second loss moves by up to 4.5e-4 (benchmarks/replay.csv), with another seed by 0.23 or more
    later = LATER

    def member(self, run: Run) -> Member:
        r, b = run.profile.restoration, self.backbone
        name = f"adapters/{self.system}-{b.name}{'-slim' if b.autoencoder else ''}"
        asked = run.profile.samples.guidance  # of VSD; S3Diff's is the test's
        guidance = s3diff.GUIDANCE if self.system == "s3diff" else asked
        what = {
            "system": self.system,
            "backbone": "teacher" if b.net is None else b.net.member.what["arch"],
            "vae": b.vae,
            "timestep": self.timestep,
            "family": TRAINED_ON,
            "rank": r.rank,
            "weights": SYSTEMS[self.system].WEIGHTS
            | ({"vsd": 0.0} if self.system == PLAIN else {}),
            "guidance": guidance,
            "loss": r.loss,
        }
        return Member(f"{name}-{self.timestep}-{self.seed}", what, b.of)

    def settings(self, run: Run, pipe: StableDiffusionPipeline) -> Settings:
        r = run.profile.restoration
        t = damage(run, pipe).t.iloc[-1] if self.timestep == MATCHED else int(self.timestep)
        steps = equal_steps(run, pipe) if self.system == "scratch" else r.steps
        steps *= 2 if self.system == LONGER else 1
        numbers = {"steps": steps, "batch": r.batch, "lr": r.lr, "seed": self.seed, "t": int(t)}
        train = {"scenes": r.scenes, "crops": r.crops, "seed": run.seed}
        return Settings(numbers, {"train": train, "heldout": {"n": WITNESSED, "seed": run.seed}})

    def train(
        self, run: Run, pipe, members: Sequence[Member], settings: Settings, until: int | None
    ) -> Artifact:
        (m,), what = members, settings.data["train"]
        inputs: list = [run.teacher_key, canonical([what, m.what["family"]]), *m.of.values()]
        seen: Pairs | Later = Later(lambda: pairs.on_demand(pipe, **what, family=TRAINED_ON))
        if until is None:
            made = run.cached(
                "restoration-pictures", pairs.pictures, what, [run.teacher_key],
                quiet=True, device=pipe.device, pipe=pipe,
            )  # fmt: skip
            seen, inputs = Pairs(*_both(made), TRAINED_ON, pipeline.side(pipe)), [*inputs, made]
        params = {**settings.budget}
        params |= {k: m.what[k] for k in ("rank", "weights", "guidance", "loss")}
        params |= {} if until is None else {"until": until}
        how = {"quiet": until is not None, "device": pipe.device, "pipe": pipe, "pairs": seen}
        how |= {"unet": Later(functools.partial(self.backbone.unet, pipe))}
        how |= {"net": Later(functools.partial(self.backbone.vae_of, pipe))}
        if self.system == "s3diff":
            return run.cached("s3diff", s3diff.train, params, inputs, **how)
        if self.system == "scratch":
            return run.cached("scratch", scratch.train, params, inputs, **how)
        return run.cached("osediff", osediff.train, params, inputs, **how)

    def part(self, made: Artifact, member: Member) -> tuple[dict[str, Tensor], list[Plain]]:
        rows = [{k: v for k, v in r.items() if k != "first"} for r in made["training"]["record"]]
        return made["weights"], rows

    def first(self, made: Artifact, member: Member) -> list[float]:
        return made["training"]["record"][0]["first"]["loss"]

    def data(self, run: Run, pipe, settings: Settings) -> Plain:
        return shared.fingerprints(
            run, pipe, {"train": settings.data["train"] | {"split": "train"}}
        )

    def heldout(self, run: Run, pipe, some: Sequence[Trained]) -> dict[str, float]:
        return {t.member.name: self._error(run, pipe, t) for t in some}

    def _error(self, run: Run, pipe, t: Trained) -> float:
        how = t.settings.data["heldout"] | {"family": TRAINED_ON}
        found = run.cached(
            "restoration-error", pairs.errors, how, [run.teacher_key, t.key], quiet=True,
            device=pipe.device, pipe=pipe,
            restore=Later(functools.partial(restorer, pipe, self.backbone, t)),
        )["errors"]  # fmt: skip
        return sum(found.values()) / len(found)


def released(run: Run, name: str, slim: bool = False) -> Backbone | None:
    """A backbone as it lies in the release, not confirmed; None where a part is absent."""
    try:
        net = auto = None
        if name != "teacher":
            text = next((text for text, known in members.NAMES.items() if known == name), None)
            taught = surrogates.released(run)
            if taught is None or text is None:
                return None
            net = trained.found(run, members.member(text, taught))
        if slim:
            auto = trained.found(run, slimming.Student("slim", slimming.seeds(run)[0]).member(run))
    except (release.Absent, release.Refused):
        return None
    return Backbone(name, net, auto)


# system, backbone, slim VAE or not, timestep, seeds: what the release holds
COMPARED = [
    ("osediff", "teacher", False, MATCHED, 3),
    ("osediff", "N2", False, MATCHED, 3),
    ("osediff", "TinySD", False, MATCHED, 1),
    ("osediff", "N2", True, MATCHED, 1),
    (PLAIN, "N2", False, MATCHED, 1),
    (LONGER, "N2", False, MATCHED, 1),
    ("osediff", "teacher", False, str(one_step.PUBLISHED), 1),
    ("osediff", "N2", False, str(one_step.PUBLISHED), 1),
    ("s3diff", "teacher", False, MATCHED, 1),
    ("s3diff", "N2", False, MATCHED, 1),
    ("scratch", "N2", False, MATCHED, 1),
]


def equal_steps(run: Run, pipe: StableDiffusionPipeline) -> int:
    """Steps of a network of N2's size from nothing that cost as many multiply-adds as N2's share of
    FwKD (its own surrogates, and as much of the teacher's pass), its alignment and its adapter.
    """
    p, of = run.profile, [run.teacher_key]
    w = work.Work(**run.cached("work", work.counted, {}, of, quiet=True, pipe=pipe)["work"])
    f, g, r = p.fwkd, p.family, p.restoration
    own = [s for s, c in NANOSD["N2"].stages.items() if c != BASE[s]]
    share = len(own) / len(taught_codes())
    taught = f.steps * f.batch * (share * w.unet + 3 * share * w.students)
    aligned = g.align_steps * g.align_batch * (w.unet / members.TOGETHER + 3 * w.n2)
    both = w.encode + w.decode
    adapted = r.steps * r.batch * (2 * (w.n2 + w.unet + both) + 3 * w.unet)
    return round((taught + aligned + adapted) / (r.batch * (3 * w.n2 + 2 * both)))


def kinds(run: Run) -> list[Restoration]:
    """All whose backbones lie in the release."""
    found = []
    for system, name, slim, timestep, seeds in COMPARED:
        b = released(run, name, slim)
        found += [Restoration(b, timestep, k, system) for k in range(seeds) if b is not None]
    return found


def _both(made: Artifact) -> tuple[Tensor, Tensor]:
    return made["pictures"]["pixels"], made["pictures"]["text"]


def restorer(
    pipe: StableDiffusionPipeline, b: Backbone, t: Trained | None, step: int = 0
) -> OneStep:
    """damaged -> restored by trained adapters; without them, at that timestep, by the bare
    backbone.
    """
    if t is None:
        return osediff.restorer(pipe, b.unet(pipe), b.vae_of(pipe), step, None)
    make = SYSTEMS[t.member.what["system"]].restorer
    return make(pipe, b.unet(pipe), b.vae_of(pipe), t.settings.budget["t"], t.tensors)


_LAST: dict[tuple, tuple] = {}  # of `again`: a network, and the pipeline that it belongs to


def again(pipe: StableDiffusionPipeline, b: Backbone, t: Trained | None, step: int = 0) -> OneStep:
    """`restorer`, built once where the same is asked for one family after the other."""
    key = (id(pipe), *sorted(b.of.values()), t.key if t else None, step)
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = (pipe, restorer(pipe, b, t, step))
    return _LAST[key][1]


def system(
    run: Run, pipe, b: Backbone, timestep: str = MATCHED, seed: int = 0, name: str = "osediff"
) -> Trained:
    """The adapters of a system on a backbone, from the release or trained here."""
    kind = Restoration(b, timestep, seed, name)
    m = kind.member(run)
    return trained.load(run, pipe, kind, [m])[m.name]
