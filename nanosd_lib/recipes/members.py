"""The members of the family: assembled, aligned, and laid beside what the paper prints."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib import paper
from nanosd_lib.data import splits
from nanosd_lib.hardware import timing
from nanosd_lib.learning import align
from nanosd_lib.networks import arch, counting, pipeline, surgery, vae
from nanosd_lib.quality import following, prior, tafid, uncertainty
from nanosd_lib.recipes import drawn, shared, standin, surrogates, trained
from nanosd_lib.recipes.surrogates import Taught
from nanosd_lib.recipes.trained import Kind, Member, Plain, Settings, Trained
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical

NAMES = {str(a): name for name, a in arch.NANOSD.items() if not a.deep}
TOGETHER = 3  # networks that share a teacher's pass: more would not be done in forty minutes


def member(text: str, taught: Taught, slim: Trained | None = None) -> Member:
    """The network of that arch, aligned, made of those surrogates; or on the latents of that slim
    VAE.
    """
    name = f"aligned/{NAMES.get(text) or '-'.join(text.replace('|', ' ').split())}"
    name += "" if slim is None else f"-{slim.member.name.split('/')[1]}"
    of = {t.member.name: t.key for t in taught.used(text)}
    of |= {} if slim is None else {slim.member.name: slim.key}
    return Member(name, {"arch": text, "latents": "teacher" if slim is None else "slim"}, of)


@dataclass(frozen=True)
class Aligned(Kind):
    """Alignment (paper, method step 5) of networks made of those surrogates."""

    taught: Taught
    slim: Trained | None = None  # the autoencoder whose latents a student reads

    def settings(self, run: Run, pipe: StableDiffusionPipeline) -> Settings:
        g = run.profile.family
        data = {split: shared.split_of(run, split) for split in ("train", "heldout")}
        numbers = {"steps": g.align_steps, "batch": g.align_batch, "lr": g.align_lr}
        return Settings(numbers | {"seed": run.seed}, data)

    def train(
        self, run: Run, pipe, members: Sequence[Member], settings: Settings, until: int | None
    ) -> Artifact:
        train, inputs = shared.training(run, pipe, settings.data["train"], until)
        made_of = sorted({key for m in members for key in m.of.values()})
        if self.slim is not None:
            own, more = _own_latents(run, pipe, self.slim, settings.data["train"], until)
            plain = train
            train = Later(lambda: replace(plain.value(), own=own.value()))
            inputs += more
        return run.cached(
            "align",
            align.align_archs,
            {"archs": [m.what["arch"] for m in members], **settings.budget}
            | ({} if until is None else {"until": until}),
            [*inputs, *made_of],
            quiet=until is not None,
            device=pipe.device,
            pipe=pipe,
            surrogates=surrogates.later(pipe, self.taught),
            latents=train,
        )

    def part(self, made: Artifact, member: Member) -> tuple[dict[str, Tensor], list[Plain]]:
        head = f"{member.what['arch']}."
        weights = {
            k.removeprefix(head): v for k, v in made["weights"].items() if k.startswith(head)
        }
        rows: list[Plain] = []
        for r in made["record"]:
            row = {k: r[k] for k in ("step", "seconds")}
            rows.append(row | {"loss": r[member.what["arch"]]})
        return weights, rows

    def first(self, made: Artifact, member: Member) -> list[float]:
        return made["record"][0]["first"][member.what["arch"]]

    def data(self, run: Run, pipe, settings: Settings) -> Plain:
        return shared.fingerprints(run, pipe, settings.data)

    def heldout(self, run: Run, pipe, some: Sequence[Trained]) -> dict[str, float]:
        what = some[0].settings.data["heldout"]
        archs = [t.member.what["arch"] for t in some]
        errors = run.cached(
            "denoised",
            tafid.denoised,
            {"archs": archs},
            [run.teacher_key, canonical(what), *(t.key for t in some)],
            quiet=True,
            device=pipe.device,
            pipe=pipe,
            nets=Later(lambda: {t.member.what["arch"]: network(pipe, t) for t in some}),
            heldout=Later(functools.partial(self._batches, run, pipe, what)),
        )["errors"]
        return {t.member.name: errors[t.member.what["arch"]]["eps_error"] for t in some}

    def _batches(self, run: Run, pipe, what: Plain) -> list[dict[str, Tensor]]:
        """Held-out batches, with the slim VAE's latents where a student reads those."""
        z = splits.of(shared.latents(run, pipe, "heldout", what))
        if self.slim is not None:
            z = replace(z, own=_own_latents(run, pipe, self.slim, what, None)[0].value())
        return splits.heldout_batches(z, pipe, what["scenes"], what["seed"])

    def config(self, run: Run, pipe, member: Member) -> Plain:
        return dict(surgery.student(member.what["arch"], pipe.unet).config)


def _own_latents(run: Run, pipe, t: Trained, what: Plain, until: int | None) -> tuple[Later, list]:
    """Latents of a split by that slim VAE, all of them or (of a replay) on demand, and what a key
    must hold of them beside the VAE's own.
    """
    other = pipeline.with_parts(pipe, vae=vae.load(t.member.what["kind"], pipe.vae, t.tensors))
    if until is not None:
        return Later(lambda: splits.on_demand(other, **what).z), []
    keys, mine = shared.photographs(run, pipe)
    seen = {"pipe": other, "mine": mine}
    made = run.cached(
        "latents-slim", splits.latents_alone, what, [*keys, t.key], quiet=True, **seen
    )
    return Later(lambda: made["latents"]["z"]), [made]


def network(pipe: StableDiffusionPipeline, t: Trained) -> surgery.NanoUNet:
    """An aligned network, frozen."""
    return align.load(t.member.what["arch"], pipe.unet, t.tensors)


def aligned(run: Run, pipe, archs: Iterable[str], taught: Taught) -> dict[str, Trained]:
    """The networks of those archs, assembled from surrogates and aligned: from the release, else
    aligned here, a few at a time in one teacher pass a step; by arch.
    """
    wanted = [member(text, taught) for text in archs]
    found: dict[str, Trained] = {}
    for i in range(0, len(wanted), TOGETHER):
        found |= trained.load(run, pipe, Aligned(taught), wanted[i : i + TOGETHER])
    return {t.member.what["arch"]: t for t in found.values()}


def released(run: Run, name: str) -> Trained:
    """A published network ("N2") as it lies in the release, whose other surrogates need not be
    there; `release.Absent` where it does not.
    """
    return trained.found(run, member(str(arch.NANOSD[name]), released_parts(run, name)))


def released_parts(run: Run, name: str) -> Taught:
    """The surrogates that it is made of; `release.Absent` where one is missing."""
    changed = [(s, c) for s, c in arch.NANOSD[name].stages.items() if c != arch.BASE[s]]
    parts = [trained.found(run, surrogates.member(s, c)) for s, c in changed]
    by = {f"{s}:{c}": t for (s, c), t in zip(changed, parts, strict=True)}
    return Taught(by, pd.DataFrame())


def judged(run: Run, pipe, t: Trained, against: Artifact, draw: int = 0) -> Artifact:
    """tAFID, cosine, features and pictures of an aligned network."""
    text, how, images = t.member.what["arch"], shared.sampling(run, draw), shared.images(against)
    seen = drawn.known(run, "score-aligned", how["how"], images, [t.key])
    return run.cached(
        "score-aligned",
        tafid.score_net,
        {"arch": text, **how},
        [run.teacher_key, against, t.key, *seen.keys(text)],
        known=seen.features,
        quiet=True,
        pipe=pipe,
        net=Later(lambda: network(pipe, t)),
        teacher_features=against["features"]["teacher"],
    )


@dataclass(frozen=True)
class Many:
    """Aligned networks by name, judged on more pictures than the search could afford; or none."""

    against: Artifact | None
    networks: dict[str, Artifact]

    COLUMNS = tuple(
        f"{name}{end}" for name in ("tafid", "cosine", "floor") for end in ("", "_low", "_high")
    )

    @property
    def features(self) -> dict[str, Tensor]:
        if self.against is None:
            return {}
        return {k: shared.features(made, self.against) for k, made in self.networks.items()}

    @property
    def table(self) -> pd.DataFrame:
        """model, n, `COLUMNS`, protocol."""
        rows = []
        for name, made in self.networks.items():
            assert self.against is not None
            floor = {k.replace("tafid", "floor"): v for k, v in self.against["floor"].items()}
            row = {"model": paper.paper_name(name), "n": shared.images(self.against)}
            rows.append(row | floor | made["scores"])
        return pd.DataFrame(rows, columns=["model", "n", *self.COLUMNS, "protocol"])


def many(run: Run, pipe, some: Mapping[str, Trained], draw: int = 0, fill: bool = False) -> Many:
    """Those networks on `family.many` pictures. None of them where the profile names no number, or
    takes from a release that lacks the features of one; `fill` draws what is lacking.
    """
    images = run.profile.family.many
    if images is None:
        return Many(None, {})
    how = shared.sampling(run, draw)["how"]
    if trained.asked(run) and not fill:
        there = [bool(drawn.known(run, "reference", how, images).features)]
        for t in some.values():
            known = drawn.known(run, "score-aligned", how, images, [t.key]).features
            there.append(t.member.what["arch"] in known)
        if not all(there):
            return Many(None, {})
    against = shared.reference(run, pipe, images, draw)
    asked = tqdm(some.items(), desc=f"{images} pictures", leave=False)
    return Many(against, {name: judged(run, pipe, t, against, draw) for name, t in asked})


def family(run: Run, pipe, models: dict[str, str], before: dict, after: dict, floor: dict):
    """One row for each model: cost and tAFID here, beside what the paper prints for it."""
    c, tokens = run.profile.cost, pipe.tokenizer.model_max_length
    how = {"archs": models, "batch": c.batch, "tokens": tokens, "repeats": c.repeats}
    how["warmup"] = c.warmup
    table = run.cached(
        "profile-family",
        timing.profile_networks,
        how,
        [run.teacher_key],
        measured=True,
        teacher=pipe.unet,
    )["table"].rename(
        columns={"ms_median": "latency_ms", "ms_low": "latency_low", "ms_high": "latency_high"}
    )
    archs = {n: arch.Arch.parse(a) for n, a in models.items()}
    table.insert(1, "arch", [models[n] for n in table.name])
    table.insert(2, "params", counting.counts(archs, counting.on_meta(pipe.unet)).params.to_numpy())
    for when, scored in (("assembled", before), ("aligned", after)):
        for end in ("", "_low", "_high"):
            for of in ("tafid", "cosine"):
                seen = [scored[n]["scores"][f"{of}{end}"] for n in table.name]
                table[f"{of}_{when}{end}"] = seen
    table["floor"], table["protocol"] = floor["tafid"], floor["protocol"]
    for end in ("", "_low", "_high"):
        table[f"cosine_floor{end}"] = floor[f"cosine{end}"]
    table["model"] = [paper.paper_name(n) for n in table.name]
    printed = paper.family()[["model", "params_m", "tafid", "htp_ms", "ane_ms"]]
    printed = printed.add_suffix("_paper").rename(columns={"model_paper": "model"})
    first = ["model", *[c for c in table if c not in ("model", "name")]]
    return table[first].merge(printed, on="model", how="left")


def prior_of(run: Run, pipe, t: Trained, model: str) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """What an aligned student keeps of the teacher's prior: a table (measure, model, value with its
    interval, n) and a path of pictures of either. The models "ratio" and "difference" are student
    against teacher on the same prompts and noises; LPIPS and cosine are those to the teacher's own
    pictures, whose other noise is the control.
    """
    student, how = network(pipe, t), shared.sampling(run)
    images, judge = run.profile.search.images, run.profile.vae.judge
    there = drawn.known(run, "resemblance", how["how"], images, [t.key], judge=judge)
    pairs = run.cached(
        "resemblance",
        prior.resemblance,
        {"images": images, "judge": judge, **how},
        [run.teacher_key, t.key, *there.keys("pairs")],
        known=there.features.get("pairs"),
        quiet=True,
        pipe=pipe,
        student=student,
    )["pairs"]
    seen: dict[str, dict[str, Tensor]] = {}
    paths: dict[str, Tensor] = {}
    for name, net, key in (("teacher", pipe.unet, []), (model, student, [t.key])):
        whole = pipeline.with_parts(pipe, unet=net)
        kinds = following.PLAIN if key else tuple(following.KINDS)  # the teacher's: notebook 00's
        asked = standin.prompts(run, whole, kinds, key)["hits"]
        spread, path = _spread(run, whole, key), _path(run, whole, key)
        seen[name] = {k: torch.tensor(asked[k].to_numpy()) for k in following.PLAIN}
        seen[name] |= {"diversity": spread["spread"]["spread"], **path["gaps"]}
        paths[name] = path["pictures"]["path"]
    near, teacher = seen[model], seen["teacher"]
    near["detail"], teacher["detail"] = _column(pairs, "detail"), _column(pairs, "detail_teacher")
    rows = []
    for measure, ours in near.items():
        share = measure in following.PLAIN
        rows += _compared(measure, {model: ours, "teacher": teacher[measure]}, share)
    for measure, ratio in (("lpips", True), ("cosine", False)):
        x = {model: _column(pairs, f"{measure}_near")}
        x["teacher, other noise"] = _column(pairs, f"{measure}_far")
        rows += _compared(measure, x, ratio=ratio)
    return pd.DataFrame(rows), paths


def _spread(run: Run, pipe, made_of: list[str]) -> Artifact:
    """`prior.diversity` of a pipeline whose network is made of those keys."""
    of, how = {"n": run.profile.family.diversity, "samples": 4}, shared.sampling(run)
    n, more = of["n"] * of["samples"], {"samples": of["samples"]}
    there = drawn.known(run, "diversity", how["how"], n, made_of, **more)
    keys = [run.teacher_key, *made_of, *there.keys("pictures")]
    known = there.features.get("pictures")
    return run.cached(
        "diversity", prior.diversity, of | how, keys, known=known, quiet=True, pipe=pipe
    )


def _path(run: Run, pipe, made_of: list[str]) -> Artifact:
    """`prior.interpolation` of a pipeline whose network is made of those keys."""
    of, how = {"pairs": run.profile.family.paths, "frames": 9}, shared.sampling(run)
    there = drawn.known(run, "path", how["how"], of["pairs"], made_of, frames=of["frames"])
    keys = [run.teacher_key, *made_of, *there.keys("paths")]
    known = there.features.get("paths")
    return run.cached(
        "path", prior.interpolation, of | how, keys, known=known, quiet=True, pipe=pipe
    )


def _column(table: pd.DataFrame, name: str) -> Tensor:
    return torch.tensor(table[name].to_numpy())


def _compared(
    measure: str, two: dict[str, Tensor], share: bool = False, ratio: bool = True
) -> list[dict]:
    """Rows of one measure for two models and for the first against the second, in pairs."""
    (a, b), n = two.values(), len(next(iter(two.values())))
    if share:
        found = {name: uncertainty.share(int(x.sum()), n) for name, x in two.items()}
        found["ratio"] = uncertainty.share_ratio(a, b)
    else:
        found = {name: uncertainty.mean(x) for name, x in two.items()}
        how = "ratio" if ratio else "difference"
        found[how] = uncertainty.ratio(a, b) if ratio else uncertainty.mean(a - b)
    return [{"measure": measure, "model": k, **v.named("value"), "n": n} for k, v in found.items()]
