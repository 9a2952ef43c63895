"""The search itself: evaluate, ask `ehvi.suggest`, evaluate; and random search beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.networks import arch
from nanosd_lib.search import ehvi
from nanosd_lib.search.ehvi import POOL, Point, Sizes

SMALLEST = 1e-6  # Frechet distances below are rounding of the matrix root


def log_distance(distance: float) -> float:
    """Natural logarithm of a Frechet distance: finite, since what lies below SMALLEST is rounding.

    ValueError for NaN.
    """
    if np.isnan(distance):
        raise ValueError("log_distance: the distance is NaN")
    return float(np.log(max(distance, SMALLEST)))


def search(
    evaluate: Callable[[int], float],
    candidates: Tensor,
    known: Tensor,
    sizes: Sizes,
    initial: Sequence[int],
    evaluations: int,
    ref_point: Point,
    seed: int,
    acquisition: str = "exact",
    encoding: str = "hamming",
    on_step: Callable[[dict], None] | None = None,
) -> pd.DataFrame:
    """Paper, search step: evaluate the rows `initial`, then `evaluations` more that EHVI picks.

    evaluate(row) measures quality, on_step sees each trial; candidates (N, D), known (N,). Columns:
    index (row of candidates), order, known, quality, hypervolume (so far), phase ("initial", then
    "ehvi" or "random"). Deterministic: a stopped search replays if `evaluate` remembers.
    ValueError, before anything is evaluated, where the known of every candidate reaches ref_point;
    a warning where in the end no design came below it in quality.
    """
    candidates, ref = (
        ehvi.as_codes("candidates", candidates, sizes),
        ehvi.shaped("ref_point", ref_point, 2),
    )
    known, left = ehvi.shaped("known", known, len(candidates)), len(candidates) - len(initial)
    ehvi.one_of("acquisition", acquisition, POOL)
    if len(initial) == 0 or len({*initial} & {*range(len(known))}) < len(initial):
        raise ValueError(f"initial: expected distinct rows below {len(known)}, got {initial}")
    if not 0 <= evaluations <= left:
        raise ValueError(f"evaluations: expected 0 to {left} after initial, got {evaluations}")
    if not (known < ref[1]).any():
        raise ValueError(
            f"ref_point: no candidate can reach it, known is {float(known.min()):g} or more and"
            f" {float(ref[1]):g} is asked: take reference_point(Y) of designs measured"
        )
    phase = "random" if acquisition == "random" else "ehvi"
    options: dict[str, Any] = dict(encoding=encoding, acquisition=acquisition, seed=seed)
    rows, Y, trials = [*map(int, initial)], torch.empty(0, 2, dtype=torch.float64), []
    for order in tqdm(range(len(initial) + evaluations), desc=phase):
        if order == len(rows):
            rows += ehvi.suggest(
                candidates[rows], Y, candidates, known, ref, sizes, **options
            ).tolist()
        quality, cost = float(evaluate(rows[order])), float(known[rows[order]])
        if not math.isfinite(quality):
            raise ValueError(f"evaluate: quality of row {rows[order]} is {quality}, not finite")
        Y = torch.cat([Y, Y.new_tensor([[quality, cost]])])
        trial = dict(index=rows[order], order=order, known=cost, quality=quality)
        part = "initial" if order < len(initial) else phase
        trials.append(trial | dict(hypervolume=ehvi.hypervolume(Y, ref), phase=part))
        if on_step is not None:
            on_step(trials[-1])
    if trials[-1]["hypervolume"] == 0:
        at = ", ".join(f"{v:g}" for v in ref.tolist())
        warnings.warn(
            f"ref_point: none of the {len(trials)} designs evaluated lies below ({at})"
            " in both objectives, so that every hypervolume is 0",
            stacklevel=2,
        )
    return pd.DataFrame(trials)


random_search = partial(search, acquisition="random")  # not in the paper: the baseline


def run_search(
    acquisition: str,
    initial: list[int],
    evaluations: int,
    seed: int,
    networks: list[arch.Arch],
    known: np.ndarray,
    judge: Callable[..., Any],
) -> dict:
    """One search over (log tAFID, known cost): see `search`, whose table this returns.

    `judge(arch="...")["scores"]["tafid"]` is one network's tAFID.
    """
    codes, cost_of = torch.tensor([a.codes for a in networks]), torch.tensor(known)
    sizes = tuple(len(c) for c in arch.CHOICES.values())

    def quality_of(i: int) -> float:
        return log_distance(judge(arch=str(networks[i]))["scores"]["tafid"])

    first = torch.tensor(
        [[quality_of(i), float(known[i])] for i in initial], dtype=torch.float32
    ).double()
    trials = search(
        quality_of,
        candidates=codes,
        known=cost_of,
        sizes=sizes,
        initial=initial,
        evaluations=evaluations,
        ref_point=ehvi.reference_point(first),
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
    ref, g = ehvi.reference_point(Y[:initial]), torch.Generator().manual_seed(seed)
    start, pool, rows = Y[:initial], Y[initial:], []
    for _ in range(repeats):
        drawn = pool[torch.randperm(len(pool), generator=g)[:picks]]
        rows.append(
            [ehvi.hypervolume(torch.cat([start, drawn[:k]]), ref) for k in range(picks + 1)]
        )
    order = np.arange(initial - 1, initial + picks)
    mean, std = np.mean(rows, axis=0), np.std(rows, axis=0)
    return pd.DataFrame({"order": order, "random": mean, "random_std": std})
