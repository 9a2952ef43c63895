"""What several notebooks share: which cached computation, with which numbers of the profile, on
which inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib import paper
from nanosd_lib.data import folder, splits
from nanosd_lib.networks import pipeline
from nanosd_lib.quality import tafid
from nanosd_lib.quality.uncertainty import Interval
from nanosd_lib.recipes import drawn
from nanosd_lib.runs import layout, provenance
from nanosd_lib.runs.cache import Later, Repeated
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical


def teacher(run: Run) -> StableDiffusionPipeline:
    """The profile's teacher on the run's device."""
    return pipeline.load_teacher(run.teacher, run.profile.dtype, run.device.type, run.variant)


def sampling(run: Run, draw: int = 0) -> dict[str, pipeline.Sampling]:
    """{"how": ...}: how images are drawn and looked at; each `draw` has prompts and noise of its
    own.
    """
    seed = run.seed + 10_000 * draw
    return {"how": pipeline.Sampling(seed=seed, **run.profile.samples.model_dump())}


def photographs(
    run: Run, pipe: StableDiffusionPipeline
) -> tuple[list[Artifact | str], folder.Photographs | None]:
    """The user's own photographs, which the profile names and a scan found usable, and before them
    what the keys of computations over pictures begin with. None where the profile names none: their
    pictures are miniworld's then, and scikit-image's.
    """
    where = layout.photographs(run.profile.photographs)
    if where is None:
        return [run.teacher_key], None
    how = {"smallest": max(pipeline.side(pipe), run.profile.vae.size)}
    found = run.cached("photographs", folder.scan, how, [_content(where)], quiet=True, folder=where)
    _told(found["said"])
    return [run.teacher_key, found], folder.Photographs.of(where, found["pictures"])


@functools.cache
def _content(where: Path) -> str:
    """The hash of a folder, taken once a notebook: it may be large."""
    try:
        return provenance.file_hash(where)
    except OSError as error:
        raise ValueError(f"photographs: {error.filename}: {error.strerror}") from None


@functools.cache
def _told(said: str) -> None:
    print(said)


def split_of(run: Run, split: str) -> dict:
    """What a split holds: scenes, and an eighth (held out: a quarter) as many crops."""
    f = run.profile.fwkd
    scenes, crops = (f.scenes, f.scenes // 8) if split == "train" else (f.heldout, f.heldout // 4)
    return {"split": split, "scenes": scenes, "crops": crops, "seed": run.seed}


def latents(
    run: Run, pipe: StableDiffusionPipeline, split: str, what: dict | None = None
) -> Artifact:
    """Latents and text embeddings of a split: the profile's, or that many scenes and crops."""
    keys, mine = photographs(run, pipe)
    return run.cached(
        f"latents-{split}",
        splits.latents,
        what or split_of(run, split),
        keys,
        quiet=True,
        device=pipe.device,
        pipe=pipe,
        mine=mine,
    )


def training(
    run: Run, pipe: StableDiffusionPipeline, what: dict, until: int | None
) -> tuple[Later, list]:
    """Latents of a training split, all of them or (of a replay) on demand, and what a key must hold
    of them.
    """
    if until is None:
        made = latents(run, pipe, "train", what)
        return Later(lambda: splits.of(made)), [run.teacher_key, made]
    return Later(lambda: splits.on_demand(pipe, **what)), [run.teacher_key, canonical(what)]


def fingerprints(run: Run, pipe: StableDiffusionPipeline, data: dict[str, dict]) -> dict:
    """`splits.fingerprint` of each split, its rows made anew."""
    found: dict[str, float] = {}
    for split, what in data.items():
        made = run.cached(
            "fingerprint", splits.fingerprint, what, [run.teacher_key], quiet=True,
            device=pipe.device, pipe=pipe,
        )  # fmt: skip
        found |= {f"{split}.{k}": v for k, v in made["found"].items()}
    return found


def heldout_batches(
    run: Run, pipe: StableDiffusionPipeline, what: dict | None = None
) -> list[dict[str, Tensor]]:
    """Fixed noisy batches of the held-out latents."""
    what = what or split_of(run, "heldout")
    z = splits.of(latents(run, pipe, "heldout", what))
    return splits.heldout_batches(z, pipe, what["scenes"], what["seed"])


def reference(run: Run, pipe: StableDiffusionPipeline, images: int, draw: int = 0) -> Artifact:
    """The teacher's side of tAFID for that many images."""
    how = sampling(run, draw)
    seen = drawn.known(run, "reference", how["how"], images)
    keys = [run.teacher_key, *seen.keys("teacher", "other")]
    return run.cached(
        "reference", tafid.reference, {"images": images, **how}, keys, quiet=True, pipe=pipe,
        known=seen.features,
    )  # fmt: skip


def judge(
    run: Run,
    pipe: StableDiffusionPipeline,
    nets: Later,
    against: Artifact,
    taught: Sequence[str],
    draw: int = 0,
    keep: int | None = None,
) -> Repeated:
    """judge(arch="R RA RA | RARA RARA RR"): tAFID and images of the network assembled from those
    surrogates (whose keys are `taught`), without training. keep: so many of its pictures, which is
    how many are drawn again where the features of all are shipped.
    """
    how, n = sampling(run, draw), images(against)
    seen = drawn.known(run, "score", how["how"], n, taught)
    return run.repeated(
        "score",
        tafid.score_arch,
        how | ({} if keep is None else {"keep": keep}),
        [run.teacher_key, against, *taught],
        lambda arch: seen.keys(arch),
        known=seen.features,
        pipe=pipe,
        surrogates=nets,
        teacher_features=against["features"]["teacher"],
    )


def verdicts(run: Run) -> pd.DataFrame:
    """The ledger's rows of this notebook, as far as the run has come."""
    mine = {k: r for k, r in run.records().items() if r["notebook"] == run.notebook}
    table = paper.ledger({k: paper.Record(**v) for k, v in mine.items()})
    return table.loc[table.notebook == run.notebook]


def images(against: Artifact) -> int:
    """Of how many pictures a `reference` is."""
    return len(against["features"]["teacher"])


def features(made: Artifact, against: Artifact) -> Tensor:
    """The features of a network's pictures (N, D), as `tafid.score` keeps them: row k is of the
    prompt and noise that row k of the `reference` is of. ValueError where one was drawn otherwise.
    """
    found = made["features"]["features"]
    mine, theirs = (
        _drawn(x) | {"images": len(y)} for x, y in ((made, found), (against, against["prompts"]))
    )
    if mine != theirs:
        other = [f"{k} {mine[k]}, {theirs[k]}" for k in mine if mine[k] != theirs.get(k)]
        raise ValueError(f"pictures that do not pair: {'; '.join(other)}")
    return found


def _drawn(made: Artifact) -> dict[str, Any]:
    """How its pictures were drawn; a batch decides none."""
    how = made.manifest["parts"]["params"]["how"]
    return {k: v for k, v in how.items() if k != "batch"}


def counted(found: Sequence[Interval], good: Callable[[float], bool]) -> Interval:
    """How many intervals satisfy `good`: by their values, between surely and possibly."""
    value = sum(good(x.value) for x in found)
    sure = sum(good(x.low) and good(x.high) for x in found)
    maybe = sum(good(x.low) or good(x.high) for x in found)
    return Interval(value, sure, maybe)
