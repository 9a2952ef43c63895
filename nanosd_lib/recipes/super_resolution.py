"""The comparisons of notebook 07: what each restoration makes of held-out pictures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from nanosd_lib.data import splits
from nanosd_lib.hardware import photo_tiles, tile
from nanosd_lib.networks import counting, pipeline, sd15
from nanosd_lib.networks.arch import NANOSD, Arch
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import uncertainty
from nanosd_lib.quality.uncertainty import Interval
from nanosd_lib.recipes import (
    drawn,
    photographed,
    restoring,
    shared,
    slimming,
    surrogates,
    trained,
)
from nanosd_lib.recipes.restoring import Backbone
from nanosd_lib.recipes.surrogates import Taught
from nanosd_lib.recipes.trained import Trained
from nanosd_lib.restoration import judging
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.runs import provenance
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical, text_hash

FAMILIES = ("mild", "strong")  # of damage: nothing was trained on the second
FIXES = ["none", "wavelet"]
FIX = "wavelet"  # of comparisons: the published tools fix colours by default


@dataclass(frozen=True)
class Case:
    """A restoration as a table shows it: "bicubic", "VAE alone", "untrained", "OSEDiff", "S3Diff";
    with the adapters of every seed, where it has some.
    """

    system: str
    backbone: Backbone | None = None
    adapters: tuple[Trained, ...] = ()
    t: int | None = None

    @property
    def label(self) -> str:
        b = self.backbone
        if b is None or self.system == "VAE alone":
            return self.system + ("" if b is None else f", {b.vae}")
        vae = "" if b.autoencoder is None else ", slim VAE"
        return f"{self.system} on {b.name}{vae}, t = {self.t}"


def cases(run: Run, pipe, taught: Taught) -> dict[str, Case]:
    """Bicubic, what the two VAEs keep, the bare backbones, and every system that is trained: of
    further seeds those that the release holds, where the run takes from it.
    """
    t = int(restoring.damage(run, pipe).t.iloc[-1])
    backbones: dict[tuple[str, bool], Backbone] = {}
    for _, name, slim, _, _ in restoring.COMPARED:
        if (name, slim) not in backbones:
            backbones[name, slim] = restoring.backbone(run, pipe, name, taught, slim)
    found = [Case("bicubic")]
    found += [Case("VAE alone", backbones[key]) for key in (("teacher", False), ("N2", True))]
    found += [Case("untrained", backbones[name, False], (), t) for name in ("teacher", "N2")]
    for system, name, slim, timestep, seeds in restoring.COMPARED:
        b = backbones[name, slim]
        some = range(min(seeds, run.profile.restoration.seeds))
        kinds = [restoring.Restoration(b, timestep, k, system) for k in some]
        if trained.asked(run):
            kinds = kinds[:1] + [k for k in kinds[1:] if trained.there(run, k.member(run))]
        mine = tuple(restoring.system(run, pipe, b, timestep, k.seed, system) for k in kinds)
        found.append(Case(restoring.NAMES[system], b, mine, mine[0].settings.budget["t"]))
    return {case.label: case for case in found}


def judged(run: Run, pipe, case: Case, family: str = restoring.TRAINED_ON) -> list[Artifact]:
    """What held-out pictures become and how near they are to what they were: of each seed; of the
    first alone in a family that nothing was trained on.
    """
    r, (keys, mine) = run.profile.restoration, shared.photographs(run, pipe)
    sampled = shared.sampling(run)
    how: dict = {"n": r.heldout, "judge": r.judge, **sampled}
    b, context = case.backbone, {"quiet": True, "pipe": pipe, "mine": mine}
    if case.system == "VAE alone":
        assert b is not None
        net = Later(functools.partial(b.vae_of, pipe))
        keys = [*keys, *([b.autoencoder.key] if b.autoencoder else [])]
        return [run.cached("restoration-ceiling", judging.ceiling, how, keys, net=net, **context)]
    made = []
    seeds = case.adapters if family == restoring.TRAINED_ON else case.adapters[:1]
    for t in seeds or (None,):
        restore, parts = None, []
        if b is not None:
            restore = Later(functools.partial(restoring.again, pipe, b, t, case.t or 0))
            parts = [*b.of.values(), *([t.key] if t else [])]
        name = f"restored-{family}"
        seen = drawn.known(run, name, sampled["how"], r.heldout, parts, judge=r.judge)
        labels = [f"{case.label}: {kind}" for kind in splits.KINDS]
        params = how | {"family": family, "fixes": FIXES if b else FIXES[:1], "said": case.label}
        inputs = [*keys, _code(case), *parts, *seen.keys(*labels)]
        context |= {"restore": restore, "known": seen.features}
        made.append(run.cached(name, judging.judged, params, inputs, **context))
    return made


def everything(run: Run, pipe, family: str) -> list[Artifact]:
    """`judged` of every case that restores."""
    some = cases(run, pipe, surrogates.taught(run, pipe)).values()
    made = [judged(run, pipe, case, family) for case in some if case.system != "VAE alone"]
    return [one for each in made for one in each]


def _code(case: Case) -> str:
    """The code that makes a case's restorer, as far as judging does not reach it by itself."""
    names = {v: k for k, v in restoring.NAMES.items()}
    module = restoring.SYSTEMS[names.get(case.system, "osediff")].__name__
    return text_hash(canonical(provenance.source_closure({module})))


Judged = dict[tuple[str, str], list[Artifact]]  # by (label of the case, family)


def table(run: Run, some: dict[str, Case], made: Judged) -> pd.DataFrame:
    """sr.csv: a row for each case, seed, family, kind of pictures and colour fix."""
    r, rows = run.profile.restoration, []
    said = f"LPIPS over {r.judge} (losses over {r.loss}), Frechet over"
    said += f" {run.profile.samples.features}, x4"
    for (label, family), each in made.items():
        case = some[label]
        b, none = case.backbone, case.system == "VAE alone"
        for k, found in enumerate(each):
            t = case.adapters[k] if case.adapters else None
            first = {"system": case.system, "timestep": None if none else case.t}
            first |= {"backbone": None if b is None or none else b.name}
            first |= {"vae": None if b is None else b.vae}
            last = {"protocol": said + (f", {t.how}" if t else "")}
            for row in found["table"].to_dict("records"):
                where = {"data": row.pop("data"), "fix": row.pop("fix")}
                where |= {"degradation": None if none else family}
                where |= {"seed": None if t is None else t.settings.budget["seed"]}
                rows.append(first | where | row | last)
    return pd.DataFrame(rows)


def sets(
    made: Sequence[Artifact], data: str, measure: str, fix: str = FIX, of: str = "sets"
) -> Tensor:
    """One number for each scene or photograph (or of their "crops", for each), the mean over
    seeds.
    """
    names = [f"{data}, {f}, {measure}" for f in (fix, "none")]  # bicubic needs no fix
    each = [a[of][names[0]] if names[0] in a[of] else a[of][names[1]] for a in made]
    return torch.stack(each).mean(0)


def differences(
    some: dict[str, Case],
    made: Judged,
    family: str = restoring.TRAINED_ON,
    against: str = "bicubic",
    fix: str = FIX,
) -> pd.DataFrame:
    """case, trained (how; nothing for what was not), steps, data, measure, difference to another
    case with its ends, n, seeds: paired by scene or by photograph; over_seeds, the same mean with
    the ends that other seeds of the training leave open (seed k of either case in pairs).
    """
    rows, base = [], made[against, family]
    for (label, degraded), each in made.items():
        if degraded != family or label in (against, "VAE alone, teacher", "VAE alone, slim"):
            continue
        for data in splits.KINDS:
            for measure in judging.MEASURES:
                off = sets(each, data, measure, fix) - sets(base, data, measure, fix)
                means = [
                    float((sets([a], data, measure, fix) - sets(b, data, measure, fix)).mean())
                    for a, b in _in_pairs(each, base)
                ]
                t = next(iter(some[label].adapters), None)
                row = {"case": label, "trained": t.how if t else "", "steps": t.steps if t else 0}
                row |= {"data": data, "measure": measure, "n": len(off), "seeds": len(each)}
                row |= uncertainty.mean(off).named("difference")
                rows.append(row | uncertainty.over_seeds(means).named("over_seeds"))
    return pd.DataFrame(rows)


def _in_pairs(
    each: Sequence[Artifact], base: Sequence[Artifact]
) -> list[tuple[Artifact, Sequence[Artifact]]]:
    """Seed k of a case beside seed k of another, which saw the same pictures in the same order; or
    beside all of them, where they are not as many.
    """
    alike = len(each) == len(base)
    return [(a, [base[k]] if alike else base) for k, a in enumerate(each)]


def by_photograph(run: Run, pipe, some: dict[str, Case], made: Judged) -> pd.DataFrame:
    """sr_photographs.csv: case, photograph, n (crops), difference of LPIPS to bicubic with its ends
    (over crops) of every case that was trained.
    """
    _, mine = shared.photographs(run, pipe)
    names, rows = list(splits.heldout_photographs(pipe, 1, run.seed, mine)), []
    how = ("held-out photographs", "lpips", FIX, "crops")
    plain = sets(made["bicubic", restoring.TRAINED_ON], *how)
    for label in (k for k, c in some.items() if c.adapters):
        off = sets(made[label, restoring.TRAINED_ON], *how) - plain
        for name, part in zip(names, off.chunk(len(names)), strict=True):
            row = {"case": label, "photograph": name, "n": len(part)}
            rows.append(row | uncertainty.mean(part).named("difference"))
    return pd.DataFrame(rows)


def lpips_ratio(one: Sequence[Artifact], other: Sequence[Artifact], data: str) -> Interval:
    """LPIPS of one case over that of another, paired by scene or photograph."""
    a, b = (sets(x, data, "lpips") for x in (one, other))
    return uncertainty.ratio(a, b)


def costs(run: Run, pipe, text: str, slim: Autoencoder) -> pd.DataFrame:
    """sr_cost.csv: backbone, vae, params_m, gmac, ms (with quartiles) and passes of one tile at the
    size that the pipeline works at: both halves of the VAE and the U-Net as often as it is asked,
    whose prompts are fixed. Adapters are left out: OSEDiff's cost nothing when they are fused.
    """
    times = slimming.profile(run, pipe, text, {"slim": slim}, 1).set_index(["component", "model"])
    of_vae = slimming.costs(run, pipe).set_index(["model", "part"])
    meta, tokens = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length
    archs = {"teacher": NANOSD["SD1.5"], "slim": Arch.parse(text)}
    of_unet = counting.counts(archs, meta, tokens).set_index("model")
    rows = []
    ways = [("OSEDiff", "teacher", "teacher", 1), ("OSEDiff", "slim", "teacher", 1)]
    ways += [("OSEDiff", "slim", "slim", 1)]
    ways += [("S3Diff", unet, "teacher", 2) for unet in ("teacher", "slim")]
    for system, unet, vae, passes in ways:
        u = of_unet.loc[unet]
        parts = of_vae.loc[vae].loc[["encoder", "decoder"]]
        row: dict = {"system": system, "backbone": "teacher" if unet == "teacher" else "N2"}
        row |= {"vae": vae, "params_m": (u.params + parts.params.sum()) / 1e6}
        row |= {"gmac": passes * (u.gmac_linear + u.gmac_attention) + parts.gmac.sum()}
        which = [("U-Net", unet)] * passes + [("VAE encoder", vae), ("VAE decoder", vae)]
        for end in ("median", "low", "high"):
            ms = sum(float(times.loc[w, f"ms_{end}"]) for w in which)
            row["ms" if end == "median" else f"ms_{end}"] = ms
        rows.append(row | {"passes": passes})
    return pd.DataFrame(rows)


def tiles(
    run: Run, pipe, some: dict[str, Case], measured: pd.DataFrame, rounds: int = 3
) -> pd.DataFrame:
    """sr_tiles.csv: where, backbone, vae, tiles, seconds (with quartiles over rounds, where all of
    them were timed), ratio to the teacher's. The tiles of the paper's photograph: here, each a tile
    of this pipeline's size through a trained system; and one tile at SD 1.5's size (`measured`: the
    hardware profile's parts, random weights), multiplied.
    """
    r, side = run.profile.restoration, pipeline.side(pipe)
    asked = {"tiles": r.tiles, "batch": run.profile.cost.batch, "side": side, "rounds": rounds}
    make = lambda c: restoring.restorer(pipe, c.backbone, c.adapters[0])  # noqa: E731
    keys = [t.key for c in some.values() for t in c.adapters[:1]]
    seen = run.cached(
        "photo-tiles", photo_tiles.timed, asked, [run.teacher_key, *keys], measured=True,
        systems=Later(lambda: {k: make(c) for k, c in some.items()}),
    )["table"].set_index("name")  # fmt: skip
    rows = []
    for name, c in some.items():
        assert c.backbone is not None
        row = {"where": f"sd-mini, {side} pixels, eager, all timed", "backbone": c.backbone.name}
        ends = {"": "median", "_low": "low", "_high": "high"}
        took = {f"seconds{k}": seen.loc[name, f"ms_{v}"] / 1e3 for k, v in ends.items()}
        rows.append(row | {"vae": c.backbone.vae, "tiles": r.tiles, **took})
    for backend, parts in measured.groupby("backend", sort=False):
        whole_ = tile.whole(tile.pipeline_time(parts, "")).set_index("configuration").ms
        where = f"SD 1.5, {sd15.VAE['sample_size']} pixels, {backend}, one timed"
        for unet, vae, name in (("teacher",) * 3, ("N2", "slim", "both slim")):
            row = {"where": where, "backbone": unet, "vae": vae}
            rows.append(row | {"tiles": r.tiles, "seconds": r.tiles * whole_[name] / 1e3})
    table = pd.DataFrame(rows)
    first = table.groupby("where", sort=False).seconds.transform("first")
    return table.assign(ratio=table.seconds / first)


def estimated(run: Run, pipe, case: Case) -> pd.DataFrame:
    """`judging.estimated`: S3Diff's estimator on held-out pictures."""
    (t, *_), r = case.adapters, run.profile.restoration
    assert case.backbone is not None
    how = {"n": r.heldout, "family": restoring.TRAINED_ON, "seed": run.seed}
    return run.cached(
        "estimated", judging.estimated, how, [run.teacher_key, t.key], quiet=True, pipe=pipe,
        system=Later(functools.partial(restoring.restorer, pipe, case.backbone, t)),
    )["table"]  # fmt: skip


def adapters(pipe, some: dict[str, Case]) -> pd.DataFrame:
    """adapters.csv: name, layers, parameters, megabytes (float16), of (parameters of the U-Net and
    the VAE it belongs to), steps, from, of each file.
    """
    rows = []
    for case in some.values():
        if case.backbone is None or case.system == restoring.NAMES["scratch"]:
            continue  # a network of its own
        nets = (case.backbone.unet(pipe), case.backbone.vae_of(pipe))
        of = sum(counting.parameters(net) for net in nets)
        for t in case.adapters:
            n = sum(v.numel() for v in t.tensors.values())
            layers = sum(".lora_A." in k for k in t.tensors)
            row = {"name": t.member.name, "layers": layers, "parameters": n}
            row |= {"megabytes": 2 * n / 1e6, "of": of, "steps": t.steps}
            rows.append(row | {"from": "release" if t.released else "trained here"})
    return pd.DataFrame(rows)


def photograph(run: Run, pipe, some: Sequence[Case], megapixels: float) -> Artifact:
    """A held-out photograph damaged and restored by each case's first adapters, on this machine,
    made smaller to so many megapixels.
    """
    systems = {c.label: Later(functools.partial(_system, pipe, c)) for c in some}
    keys = [c.adapters[0].key for c in some]
    return photographed.restored(run, pipe, systems, keys, megapixels)


def _system(pipe, case: Case) -> OneStep:
    assert case.backbone is not None
    return restoring.restorer(pipe, case.backbone, case.adapters[0])
