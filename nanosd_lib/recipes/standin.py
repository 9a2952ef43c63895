"""The computations of notebook 00: is the teacher good enough to stand for Stable Diffusion 1.5?"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from diffusers import StableDiffusionPipeline

from nanosd_lib.data import splits
from nanosd_lib.paths import ROOT
from nanosd_lib.quality import checks, following, sensitivity
from nanosd_lib.recipes import drawn, shared
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run

RENDERS = 256  # that the classifier itself is judged on, of each number of objects


def trained_on(run: Run) -> dict[str, int]:
    """The scenes that the teacher learned from, by number and seed; none for other teachers."""
    path = Path(run.teacher) / "training.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {k: record[k] for k in ("scenes", "seed")}


def reconstructions(run: Run, pipe: StableDiffusionPipeline) -> Artifact:
    """The VAE on held-out scenes, and on crops of every held-out photograph."""
    keys, mine = shared.photographs(run, pipe)
    how = {"n": run.profile.teacher_check.reconstructions, "seed": run.seed}
    return run.cached("check-vae", checks.check_vae, how, keys, quiet=True, pipe=pipe, mine=mine)


def prompts(
    run: Run,
    pipe: StableDiffusionPipeline,
    kinds: tuple[str, ...] = tuple(following.KINDS),
    made_of: list[str] | None = None,
    n: int | None = None,
) -> Artifact:
    """Whether the pipeline draws what prompts of each kind name; `made_of` is what its U-Net was
    made of, where it is not the teacher's.
    """
    each, sampling = n or run.profile.teacher_check.prompts, shared.sampling(run)
    how = {"n": each, "kinds": list(kinds), "trained": trained_on(run), **sampling}
    seen = drawn.known(run, "prompts", sampling["how"], each, made_of or [])
    keys = [run.teacher_key, *(made_of or []), *seen.keys(*kinds)]
    return run.cached(
        "prompts", following.check_prompts, how, keys, known=seen.features, quiet=True, pipe=pipe
    )


def classifier(run: Run) -> Artifact:
    """What the classifier that judges prompts reads in renders."""
    how = {"renders": RENDERS, "seed": run.seed}
    return run.cached("classifier", following.check_classifier, how, [], quiet=True)


def distances(run: Run, pipe: StableDiffusionPipeline, against: Artifact) -> Artifact:
    """Frechet distances of the teacher, beside renders, other noise and an untrained network."""
    features = against["features"]
    context = {"teacher_features": features["teacher"], "other_features": features["other"]}
    how = shared.sampling(run)
    seen = drawn.known(run, "check-frechet", how["how"], shared.images(against))
    context["known"] = seen.features.get("untrained")
    keys: list[Artifact | str] = [run.teacher_key, against, *seen.keys("untrained")]
    return run.cached(
        "check-frechet", checks.check_frechet, how, keys, quiet=True, pipe=pipe, **context
    )


def missed(run: Run, pipe: StableDiffusionPipeline, how: str) -> Artifact:
    """What `without` predicts otherwise than the teacher (`sensitivity.errors`)."""
    heldout, sampling = shared.latents(run, pipe, "heldout"), shared.sampling(run)
    name, pairs = f"errors-{how.replace(' ', '-')}", run.profile.sensitivity.pairs
    seen = drawn.known(run, name, sampling["how"], pairs)
    return run.cached(
        name,
        sensitivity.errors,
        {"way": how, "pairs": pairs, **sampling},
        [run.teacher_key, heldout, *seen.keys(*seen.features)],
        known=seen.features,
        quiet=True,
        pipe=pipe,
        latents=Later(lambda: splits.of(heldout)),
    )


def without(run: Run, pipe: StableDiffusionPipeline, how: str) -> Artifact:
    """Every stage in turn "removed", or shortened to "one R": notebook 00 asks for the former,
    notebook 02 for both.
    """
    apart, sampling = missed(run, pipe, how), shared.sampling(run)
    against = shared.reference(run, pipe, run.profile.sensitivity.images)
    name = f"sensitivity-{how.replace(' ', '-')}"
    seen = drawn.known(run, name, sampling["how"], shared.images(against))
    return run.cached(
        name,
        sensitivity.sensitivity,
        {"way": how, **sampling},
        [run.teacher_key, apart, against, *seen.keys(*seen.features)],
        known=seen.features,
        quiet=True,
        pipe=pipe,
        missed=apart["features"],
        teacher_features=against["features"]["teacher"],
    )


def candidates() -> pd.DataFrame:
    """The teachers that were tried before this one, as their trials were written down."""
    return pd.read_csv(ROOT / "data" / "sd-mini" / "candidates.csv")
