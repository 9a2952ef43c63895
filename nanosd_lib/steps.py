"""Steps that several notebooks share: which stage, with which numbers of the profile, on which
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from nanosd_lib import arch, cost, data, distill, evaluate, paper, quality, search, surgery
from nanosd_lib.provenance import canonical, text_hash
from nanosd_lib.store import Artifact, Run


def teacher(run: Run) -> StableDiffusionPipeline:
    """The profile's teacher on the run's device."""
    return quality.load_teacher(run.teacher, run.profile.dtype, run.device.type, run.variant)


def sampling(run: Run, draw: int = 0) -> dict:
    """How images are made and looked at; each `draw` has prompts and noise of its own."""
    s = run.profile.samples
    how = {"steps": s.steps, "guidance": s.guidance, "batch": s.batch}
    return how | {"seed": run.seed + 10_000 * draw, "features": s.features}


def split_of(run: Run, split: str) -> dict:
    """What a split holds: scenes, and an eighth (held out: a quarter) as many crops."""
    f = run.profile.fwkd
    scenes, crops = (f.scenes, f.scenes // 8) if split == "train" else (f.heldout, f.heldout // 4)
    return {"split": split, "scenes": scenes, "crops": crops, "seed": run.seed}


def latents(run: Run, pipe: StableDiffusionPipeline, split: str) -> Artifact:
    """Latents and text embeddings of a split."""
    what = split_of(run, split)
    return run.stage(
        f"latents-{split}", data.latents, what, [run.teacher_key], quiet=True, pipe=pipe
    )


def heldout_batches(run: Run, pipe: StableDiffusionPipeline) -> list[dict[str, Tensor]]:
    """Fixed noisy batches of the held-out latents."""
    z = data.of(latents(run, pipe, "heldout"))
    return evaluate.heldout_batches(z, pipe, run.profile.fwkd.heldout)


def fwkd(
    run: Run,
    pipe: StableDiffusionPipeline,
    pairs: Sequence[tuple[str, str]] | None = None,
    fraction: float = 1.0,
    e3_target: str = "D4",
    name: str = "fwkd",
) -> Artifact:
    """Surrogates taught in one shared teacher pass a step: all thirty, or those in `pairs`."""
    f = run.profile.fwkd
    train, held = latents(run, pipe, "train"), latents(run, pipe, "heldout")
    params = {
        "pairs": [list(p) for p in (pairs or arch.alternatives())],
        "steps": f.steps,
        "batch": f.batch,
        "lr": f.lr,
        "seed": run.seed,
        "fraction": fraction,
        "e3_target": e3_target,
    }
    return run.stage(
        name,
        distill.teach,
        params,
        [run.teacher_key, train, held],
        teacher=pipe.unet,
        train=data.of(train),
        heldout=heldout_batches(run, pipe),
        scheduler=pipe.scheduler,
    )


def surrogates(pipe: StableDiffusionPipeline, *taught: Artifact) -> nn.ModuleDict:
    """All thirty with the weights of one FwKD stage, or of several, the later ones winning."""
    weights = {k: v for artifact in taught for k, v in artifact["weights"].items()}
    return distill.load(pipe.unet, list(arch.alternatives()), weights)


def reference(run: Run, pipe: StableDiffusionPipeline, images: int, draw: int = 0) -> Artifact:
    """The teacher's side of tAFID for that many images."""
    params = {"images": images, **sampling(run, draw)}
    return run.stage("reference", evaluate.reference, params, [run.teacher_key], pipe=pipe)


def score(
    run: Run,
    pipe: StableDiffusionPipeline,
    text: str,
    nets: nn.ModuleDict,
    against: Artifact,
    taught: Sequence[Artifact],
    draw: int = 0,
) -> Artifact:
    """tAFID and images of the network assembled from those surrogates, without training."""
    return run.stage(
        "score",
        evaluate.score_arch,
        {"arch": text, **sampling(run, draw)},
        [run.teacher_key, against, *taught],
        quiet=True,
        pipe=pipe,
        surrogates=nets,
        teacher_features=against["features"]["teacher"],
    )


def run_search(
    acquisition: str,
    initial: list[int],
    evaluations: int,
    seed: int,
    networks: list[arch.Arch],
    known: np.ndarray,
    judge: Callable[[str], Artifact],
) -> dict:
    """One search over (log tAFID, known cost): see `search.search`, whose table this returns."""
    codes, cost_of = torch.tensor([a.codes for a in networks]), torch.tensor(known)
    sizes = tuple(len(c) for c in arch.CHOICES.values())

    def quality_of(i: int) -> float:
        return float(np.log(judge(str(networks[i]))["scores"]["tafid"]))

    first = torch.tensor([[quality_of(i), float(known[i])] for i in initial]).double()
    trials = search.search(
        quality_of,
        candidates=codes,
        known=cost_of,
        sizes=sizes,
        initial=initial,
        evaluations=evaluations,
        ref_point=search.reference_point(first),
        seed=seed,
        acquisition=acquisition,
    )
    return {"trials": trials}


def random_volume(trials: pd.DataFrame, initial: int, picks: int, repeats: int, seed: int):
    """Hypervolume of random search: mean and spread over `repeats` random orders of its pool.

    trials: a random search's table (more networks than `picks`); returns columns order, random,
    random_std for orders initial - 1 ... initial + picks - 1.
    """
    Y = torch.tensor(trials[["quality", "known"]].to_numpy().copy())
    ref, g = search.reference_point(Y[:initial]), torch.Generator().manual_seed(seed)
    start, pool, rows = Y[:initial], Y[initial:], []
    for _ in range(repeats):
        drawn = pool[torch.randperm(len(pool), generator=g)[:picks]]
        rows.append(
            [search.hypervolume(torch.cat([start, drawn[:k]]), ref) for k in range(picks + 1)]
        )
    order = np.arange(initial - 1, initial + picks)
    mean, std = np.mean(rows, axis=0), np.std(rows, axis=0)
    return pd.DataFrame({"order": order, "random": mean, "random_std": std})


def searched(
    run: Run,
    acquisition: str,
    initial: list[int],
    networks: list[arch.Arch],
    known: np.ndarray,
    judge: Callable[[str], Artifact],
    inputs: Sequence[Artifact],
) -> pd.DataFrame:
    """The trials of one search, each network judged a stage of its own, the whole kept as well."""
    b = run.profile.search
    evaluations = b.evaluations * (2 if acquisition == "random" else 1)  # a pool to draw from
    table = text_hash(canonical([[str(a) for a in networks], [float(v) for v in known]]))
    how = {"acquisition": acquisition, "initial": initial, "evaluations": evaluations}
    return run.stage(
        "search",
        run_search,
        how | {"seed": run.seed},
        [*inputs, table],
        quiet=True,
        networks=networks,
        known=known,
        judge=judge,
    )["trials"]


def trials(found: dict[tuple[str, str], pd.DataFrame], networks: list, known: dict) -> pd.DataFrame:
    """The searches as one table: a row for each network judged, in the order of judging."""
    rows = []
    for (direction, how), table in found.items():
        for r in table.itertuples():
            costs = known["params"][r.index], known["latency"][r.index]
            name, tafid = str(networks[r.index]), float(np.exp(r.quality))
            rows.append((name, *costs, tafid, direction, how, r.order, r.phase, r.hypervolume))
    columns = ["arch", "params", "latency", "tafid", "direction", "search"]
    return pd.DataFrame(rows, columns=[*columns, "order", "phase", "hypervolume"])


def aligned(
    run: Run,
    pipe: StableDiffusionPipeline,
    text: str,
    nets: nn.ModuleDict,
    against: Artifact,
    taught: Artifact,
    draw: int = 0,
    own: Artifact | None = None,
) -> Artifact:
    """The network assembled, aligned for the profile's few steps, and scored again; where `own` are
    the slim VAE's latents, the student learns to read those.
    """
    g, train = run.profile.family, latents(run, pipe, "train")
    read = data.of(train) if own is None else replace(data.of(train), own=own["latents"]["z"])
    how = {"align_steps": g.align_steps, "lr": g.align_lr, "train_batch": g.align_batch}
    return run.stage(
        "align",
        evaluate.align_arch,
        {"arch": text, **how, **sampling(run, draw)},
        [run.teacher_key, against, taught, train, *([own] if own else [])],
        quiet=True,
        pipe=pipe,
        surrogates=nets,
        latents=read,
        teacher_features=against["features"]["teacher"],
    )


def family(run: Run, pipe, models: dict[str, str], before: dict, after: dict, floor: dict):
    """One row for each model: cost and tAFID here, beside what the paper prints for it."""
    c, tokens = run.profile.cost, pipe.tokenizer.model_max_length
    how = {"archs": models, "batch": c.batch, "tokens": tokens, "repeats": c.repeats}
    how["warmup"] = c.warmup
    table = run.stage(
        "profile-family", cost.profile_networks, how, [run.teacher_key], teacher=pipe.unet
    )["table"].rename(
        columns={"ms_median": "latency_ms", "ms_low": "latency_low", "ms_high": "latency_high"}
    )
    archs = {n: arch.Arch.parse(a) for n, a in models.items()}
    table.insert(1, "arch", [models[n] for n in table.name])
    table.insert(2, "params", cost.counts(archs, cost.on_meta(pipe.unet)).params.to_numpy())
    table["tafid_assembled"] = [before[n]["scores"]["tafid"] for n in table.name]
    table["tafid_aligned"] = [after[n]["scores"]["tafid"] for n in table.name]
    table["cosine_aligned"] = [after[n]["scores"]["cosine"] for n in table.name]
    table["floor"], table["protocol"] = floor["tafid"], floor["protocol"]
    table["model"] = [cost.paper_name(n) for n in table.name]
    printed = paper.family()[["model", "params_m", "tafid", "htp_ms", "ane_ms"]]
    printed = printed.add_suffix("_paper").rename(columns={"model_paper": "model"})
    first = ["model", *[c for c in table if c not in ("model", "name")]]
    return table[first].merge(printed, on="model", how="left")


def prior(run: Run, pipe, weights: Artifact, model: str) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Prompt following, diversity and interpolation of the teacher and of one aligned student."""
    student = surgery.student(weights["scores"]["arch"], pipe.unet)
    student.load_state_dict(weights["weights"])
    s, n = run.profile.samples, run.profile.teacher_check.prompts // 2
    how = {"steps": s.steps, "guidance": s.guidance, "batch": s.batch, "seed": run.seed}
    rows, paths = [], {}
    for name, net, key in (("teacher", pipe.unet, []), (model, student, [weights])):
        rest = {
            "inputs": [run.teacher_key, *key],
            "quiet": True,
            "pipe": quality.with_parts(pipe, unet=net),
        }
        asked = run.stage("prompts", evaluate.check_prompts, {"n": n, **how}, **rest)
        spread = run.stage("diversity", evaluate.diversity, {"n": 16, **how}, **rest)
        path = run.stage("path", evaluate.interpolation, {"pairs": 4, "frames": 9, **how}, **rest)
        distance, gaps = spread["spread"]["distance"], path["gaps"]["largest_over_mean"]
        rows.append((name, float(asked["table"].both[0]), distance, gaps))
        paths[name] = path["pictures"]["path"]
    columns = ["model", "prompt_following", "diversity", "largest_over_mean_step"]
    return pd.DataFrame(rows, columns=columns), paths


def verdicts(run: Run) -> pd.DataFrame:
    """The ledger's rows of this notebook, as far as the run has come."""
    records = {k: paper.Record(**v) for k, v in run.records().items()}
    table = paper.ledger(records)
    return table.loc[table.notebook == run.notebook].drop(columns=["source", "notebook"])
