"""The members of the family: assembled, aligned, and laid beside what the paper prints."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib import paper
from nanosd_lib.data import splits
from nanosd_lib.hardware import timing
from nanosd_lib.learning import align
from nanosd_lib.networks import arch, counting, pipeline, surgery
from nanosd_lib.quality import following, prior, uncertainty
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
    sampling = shared.sampling(run, draw)
    params = {"arch": text, **how, **sampling}
    answered = answers(run, pipe, train, sampling["how"].seed)
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


def prior_of(
    run: Run, pipe, weights: Artifact, model: str
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """What an aligned student keeps of the teacher's prior: a table (measure, model, value with its
    interval, n) and a path of pictures of either. The models "ratio" and "difference" are student
    against teacher on the same prompts and noises; LPIPS and cosine are those to the teacher's own
    pictures, whose other noise is the control.
    """
    student, g = surgery.student(weights["scores"]["arch"], pipe.unet), run.profile.family
    student.load_state_dict(weights["weights"])
    how, judge = shared.sampling(run), run.profile.vae.judge
    pairs = run.cached(
        "resemblance",
        prior.resemblance,
        {"images": run.profile.search.images, "judge": judge, **how},
        [run.teacher_key, weights],
        quiet=True,
        pipe=pipe,
        student=student,
    )["pairs"]
    seen: dict[str, dict[str, Tensor]] = {}
    paths: dict[str, Tensor] = {}
    for name, net, key in (("teacher", pipe.unet, []), (model, student, [weights])):
        whole = pipeline.with_parts(pipe, unet=net)
        rest = {"inputs": [run.teacher_key, *key], "quiet": True, "pipe": whole}
        asked = standin.prompts(run, whole, following.PLAIN, key)["hits"]
        many, few = {"n": g.diversity, "samples": 4}, {"pairs": g.paths, "frames": 9}
        spread = run.cached("diversity", prior.diversity, many | how, **rest)["spread"]["spread"]
        path = run.cached("path", prior.interpolation, few | how, **rest)
        seen[name] = {k: torch.tensor(asked[k].to_numpy()) for k in asked}
        seen[name] |= {"diversity": spread, **path["gaps"]}
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
