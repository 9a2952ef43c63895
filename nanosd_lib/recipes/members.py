"""The members of the family: assembled, aligned, and laid beside what the paper prints."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib import paper
from nanosd_lib.data import splits
from nanosd_lib.hardware import timing
from nanosd_lib.learning import align
from nanosd_lib.networks import arch, counting, pipeline, surgery
from nanosd_lib.quality import following, prior
from nanosd_lib.recipes import shared, standin
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run

KEPT = 256e6  # bytes of a teacher's answers


def aligned(
    run: Run,
    pipe: StableDiffusionPipeline,
    text: str,
    nets: Later,
    against: Artifact,
    taught: Artifact,
    draw: int = 0,
    own: Artifact | None = None,
) -> Artifact:
    """The network assembled, aligned for the profile's few steps, and scored again; where `own` are
    the slim VAE's latents, the student learns to read those.
    """
    g, train = run.profile.family, shared.latents(run, pipe, "train")
    read = splits.of(train) if own is None else replace(splits.of(train), own=own["latents"]["z"])
    how = {"align_steps": g.align_steps, "lr": g.align_lr, "train_batch": g.align_batch}
    params = {"arch": text, **how, **shared.sampling(run, draw)}
    answered = answers(run, pipe, train, params["seed"])
    return run.cached(
        "align",
        align.align_arch,
        params,
        [run.teacher_key, against, taught, train, *([own] if own else [])],
        quiet=True,
        pipe=pipe,
        surrogates=nets,
        latents=read,
        teacher_features=against["features"]["teacher"],
        answers=None if answered is None else answered["answers"]["want"],
    )


def answers(run: Run, pipe, train: Artifact, seed: int) -> Artifact | None:
    """What the teacher answers on the batches of an alignment, once for all networks; None where
    that is more than is kept (`KEPT`), and each alignment asks anew.
    """
    g, z = run.profile.family, train["latents"]["z"]
    if g.align_steps * g.align_batch * z[0].numel() * z.element_size() > KEPT:
        return None
    how = {"align_steps": g.align_steps, "train_batch": g.align_batch, "seed": seed}
    keys: list[Artifact | str] = [run.teacher_key, train]
    data = splits.of(train)
    return run.cached("answers", align.answers, how, keys, quiet=True, pipe=pipe, latents=data)


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
            table[f"tafid_{when}{end}"] = [scored[n]["scores"][f"tafid{end}"] for n in table.name]
    table["cosine_aligned"] = [after[n]["scores"]["cosine"] for n in table.name]
    table["floor"], table["protocol"] = floor["tafid"], floor["protocol"]
    table["model"] = [paper.paper_name(n) for n in table.name]
    printed = paper.family()[["model", "params_m", "tafid", "htp_ms", "ane_ms"]]
    printed = printed.add_suffix("_paper").rename(columns={"model_paper": "model"})
    first = ["model", *[c for c in table if c not in ("model", "name")]]
    return table[first].merge(printed, on="model", how="left")


def prior_table(
    run: Run, pipe, weights: Artifact, model: str
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Prompt following, diversity and interpolation of the teacher and of one aligned student."""
    student = surgery.student(weights["scores"]["arch"], pipe.unet)
    student.load_state_dict(weights["weights"])
    how, n = shared.sampling(run), max(8, run.profile.teacher_check.prompts // 2)
    rows, paths = [], {}
    for name, net, key in (("teacher", pipe.unet, []), (model, student, [weights])):
        whole = pipeline.with_parts(pipe, unet=net)
        rest = {"inputs": [run.teacher_key, *key], "quiet": True, "pipe": whole}
        asked = standin.prompts(run, whole, following.PLAIN, key, n)["table"]
        spread = run.cached("diversity", prior.diversity, {"n": 16, **how}, **rest)
        path = run.cached("path", prior.interpolation, {"pairs": 4, "frames": 9, **how}, **rest)
        row = {"model": name, **_followed(asked), "diversity": spread["spread"]["distance"]}
        row |= {"largest_over_mean_step": path["gaps"]["largest_over_mean"], "n": n}
        rows.append(row)
        paths[name] = path["pictures"]["path"]
    return pd.DataFrame(rows), paths


def _followed(asked: pd.DataFrame) -> dict[str, float]:
    """Shape and colour recognised, with intervals: of one object, and of two in a new caption."""
    both = asked[asked.attribute == "both"].set_index("kind")
    found: dict[str, float] = {}
    for kind, name in zip(following.PLAIN, ("one_object", "two_objects"), strict=True):
        r = both.loc[kind]
        found |= {name: r.value, f"{name}_low": r.value_low, f"{name}_high": r.value_high}
    return found
