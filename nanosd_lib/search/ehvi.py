"""Step 3 of the paper: Bayesian search over networks for two objectives, both minimised.

This module knows numbers only. A design is one of the distinct rows of `candidates` (N, D): D
categorical decisions, decision d with codes 0 .. sizes[d] - 1 (the paper: N = 32,768, sizes
4 4 4 8 8 8). The objectives stand in this column order everywhere: (quality, known). Quality,
tAFID or its logarithm, costs an evaluation; known, latency or parameters, is a tensor (N,) with a
value for every candidate. Tensors of floats are used in float64, on the CPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # BoTorch takes seconds to import: only who fits a model waits for it
    from botorch.models.model import Model

POOL = {"exact": None, "qlogehvi": 4096, "random": None}  # candidates scored per suggestion
SAMPLES = 128  # quasi-Monte Carlo samples of qLogEHVI
CHUNK = 2048  # candidates scored at once
Point: TypeAlias = Sequence[float] | Tensor
Sizes: TypeAlias = Sequence[int]


def pareto_mask(Y: Tensor) -> Tensor:
    """Rows of Y (N, M) that no row dominates, minimising; of equal rows the first only. (N,)"""
    from botorch.utils.multi_objective import is_non_dominated

    return is_non_dominated(shaped("Y", Y, None, None), maximize=False, deduplicate=True)


def hypervolume(Y: Tensor, ref_point: Point) -> float:
    """Volume between the rows of Y (N, M) and ref_point (M,) that they dominate, minimising."""
    from botorch.utils.multi_objective import Hypervolume

    Y = shaped("Y", Y, None, None)
    ref = shaped("ref_point", ref_point, Y.shape[1])
    return float(Hypervolume(-ref).compute(-Y[pareto_mask(Y)]))


def reference_point(Y: Tensor, margin: float = 0.1) -> Tensor:
    """The worst value in each column of Y (N, M), plus margin times the column's range. (M,)

    Not in the paper: our choice. Take it from a table known before the search and keep it fixed.
    A column without range gets margin times its size (or 1), or else no row would lie below.
    """
    Y = shaped("Y", Y, None, None)
    worst, spread = Y.amax(0), Y.amax(0) - Y.amin(0)
    size = torch.where(worst == 0, 1, worst.abs())
    return worst + margin * torch.where(spread > 0, spread, size)


def initial_design(choices: Tensor, n: int, seed: int) -> list[int]:
    """n distinct rows of choices (N, D) in which the levels of each decision are equally frequent.

    Not in the paper: our choice, a Latin hypercube of codes. Greedy: the next row is the one whose
    levels were used least so far, ties drawn by seed. ValueError when n is not in 1 .. N.
    """
    choices = shaped("choices", choices, None, None).long()
    if not 1 <= n <= len(choices):
        raise ValueError(f"n: expected 1 to {len(choices)} (the rows of choices), got {n}")
    used = torch.zeros(choices.shape[1], int(choices.max()) + 1, dtype=torch.float64)
    columns, rng = torch.arange(choices.shape[1]), np.random.default_rng(seed)
    rows: list[int] = []
    for _ in range(n):
        score = used[columns, choices].sum(1) + torch.from_numpy(rng.random(len(choices)))
        score[rows] = torch.inf
        rows.append(int(score.argmin()))
        used[columns, choices[rows[-1]]] += 1
    return rows


def fit_quality(
    X: Tensor, y: Tensor, sizes: Sizes, y_var: Tensor | None = None, encoding: str = "hamming"
) -> Model:
    """Paper, search step: Gaussian process of quality y (n,), standardised, given codes X (n, D).

    encoding "ordinal" is the paper's [0, 1]^D; "hamming", a categorical kernel with a length scale
    per decision, is our choice, since codes have no order. y_var (n,) is the variance of each y.
    The model takes codes, as floats, under either encoding. ValueError when n < 2.
    """
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import MixedSingleTaskGP, SingleTaskGP
    from botorch.models.transforms import Normalize
    from botorch.utils.sampling import manual_seed
    from gpytorch.mlls import ExactMarginalLogLikelihood

    one_of("encoding", encoding, ("hamming", "ordinal"))
    X = as_codes("X", X, sizes).double()
    if len(X) < 2:
        raise ValueError(f"X: a surrogate model needs at least 2 evaluated designs, got {len(X)}")
    y = shaped("y", y, len(X))[:, None]
    var = None if y_var is None else shaped("y_var", y_var, len(X))[:, None]
    if encoding == "hamming":
        model = MixedSingleTaskGP(X, y, cat_dims=list(range(len(sizes))), train_Yvar=var)
    else:
        last = X.new_tensor(sizes).clamp_min(2) - 1
        unit = Normalize(len(sizes), bounds=torch.stack([0 * last, last]))
        model = SingleTaskGP(X, y, train_Yvar=var, input_transform=unit)
    with manual_seed(0):  # a fit that has to start again draws from the global generator
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


@torch.no_grad()
def marginals(model: Model, X: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation, each (N,), at codes X (N, D), each row by itself."""
    posteriors = [model.posterior(chunk[:, None]) for chunk in X.double().split(CHUNK)]
    mu = torch.cat([p.mean.flatten() for p in posteriors])
    return mu, torch.cat([p.variance.flatten() for p in posteriors]).clamp_min(0).sqrt()


def log_ehvi_exact(
    mu: Tensor, sigma: Tensor, known: Tensor, front: Tensor, ref_point: Point
) -> Tensor:
    """log EHVI (N,), closed form: quality ~ N(mu, sigma^2), the other objective known, all (N,).

    Not in the paper: our choice. front (K, 2): evaluated (quality, known), dominated or not.
    EHVI = sum_k A_k [psi(b_k) - psi(b_{k-1})]: b_k are the front's qualities in rising order, then
    the reference; A_k is the length in `known` that a candidate adds when its quality lies between
    b_{k-1} and b_k; psi(b) = E[max(b - quality, 0)]. A_k never rises with k, so summing by parts,
    sum_k (A_k - A_{k+1}) psi(b_k), has no negative term and nothing cancels in its logarithm.
    """
    mu = shaped("mu", mu, None)
    sigma, known = shaped("sigma", sigma, len(mu)), shaped("known", known, len(mu))
    front, ref = shaped("front", front, None, 2), shaped("ref_point", ref_point, 2)
    front = front[(front < ref).all(1) & pareto_mask(front)]
    front = front[front[:, 0].argsort()]
    b = torch.cat([front[:, 0], ref[:1]])
    limit = torch.cat([ref[1:], front[:, 1]]).cummin(0).values
    A = (limit - known[:, None]).clamp_min(0)  # (N, K + 1)
    steps = A - torch.nn.functional.pad(A[:, 1:], (0, 1))
    sigma = sigma[:, None].clamp_min(1e-12)
    return torch.logsumexp(steps.log() + sigma.log() + _log_h((b - mu[:, None]) / sigma), dim=1)


def ehvi_exact(mu: Tensor, sigma: Tensor, known: Tensor, front: Tensor, ref_point: Point) -> Tensor:
    """EHVI itself (N,): the exponential of `log_ehvi_exact`."""
    return log_ehvi_exact(mu, sigma, known, front, ref_point).exp()


def _log_h(z: Tensor) -> Tensor:
    """log(phi(z) + z Phi(z)), stable far into the left tail, where it nears log(phi(z) / z^2)."""
    near, far = z.clamp_min(-1), z.clamp(-1e5, -1)
    phi = torch.exp(-near.square() / 2) / math.sqrt(2 * math.pi)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(-far / math.sqrt(2))
    tail = -z.square() / 2 - math.log(2 * math.pi) / 2 + torch.log1p(far * mills)
    return torch.where(z > -1, torch.log(phi + near * torch.special.ndtr(near)), tail)


@torch.no_grad()
def log_ehvi_sampled(
    model: Model, X: Tensor, known: Tensor, front: Tensor, ref_point: Point, sizes: Sizes, seed: int
) -> Tensor:
    """Paper, search step: log EHVI (N,) of codes X (N, D) by BoTorch's qLogEHVI at q = 1.

    known (N,), front (K, 2). Inside, both objectives are scaled to 1 between the best value of
    the front and ref_point (2,), because qLogEHVI smooths in fixed units.
    """
    from botorch.acquisition.multi_objective import logei
    from botorch.acquisition.multi_objective.objective import WeightedMCMultiOutputObjective
    from botorch.models import GenericDeterministicModel, ModelList
    from botorch.sampling.get_sampler import get_sampler
    from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning

    # BoTorch would compile a C++ kernel at first use: it needs a compiler, its last digits depend
    # on the processor, and a killed build makes the next one wait for ever. Its own Python path
    # gives the same.
    logei._load_attempted = True

    X, known = as_codes("X", X, sizes), shaped("known", known, len(X))
    front, ref = shaped("front", front, None, 2), shaped("ref_point", ref_point, 2)
    unit = (ref - front.amin(0)).abs().clamp_min(1e-12)
    table = known.new_zeros(math.prod(sizes)).index_put((_key(X, sizes),), known)
    analytic = GenericDeterministicModel(lambda Z: table[_key(Z.long(), sizes)][..., None])
    both, X = ModelList(model, analytic), X.double()
    acquisition = logei.qLogExpectedHypervolumeImprovement(
        both,
        ref_point=-ref / unit,
        partitioning=FastNondominatedPartitioning(-ref / unit, Y=-front / unit),
        sampler=get_sampler(both.posterior(X[:1]), torch.Size([SAMPLES]), seed=seed),
        objective=WeightedMCMultiOutputObjective(-1 / unit),
    )
    return torch.cat([acquisition(chunk[:, None]) for chunk in X.split(CHUNK)]) + unit.log().sum()


def score(
    model: Model,
    X: Tensor,
    known: Tensor,
    Y_obs: Tensor,
    ref_point: Point,
    sizes: Sizes,
    acquisition: str = "exact",
    seed: int = 0,
) -> Tensor:
    """What each of the codes X (N, D), whose other objective is known (N,), promises: log EHVI
    (N,), "exact" or by BoTorch ("qlogehvi"). Where none can come below ref_point, a warning says
    so, and the scores rank them by how near they are (`_nearest`).
    """
    mu, sigma = marginals(model, X)
    if acquisition == "exact":
        found = log_ehvi_exact(mu, sigma, known, Y_obs, ref_point)
    else:
        found = log_ehvi_sampled(model, X, known, Y_obs, ref_point, sizes, seed)
    ref = shaped("ref_point", ref_point, 2)
    if not (found.isneginf() | (known >= ref[1])).all():
        return found
    warnings.warn(
        "ref_point: no candidate left can come below it in both objectives:"
        " the nearest to it are taken instead",
        stacklevel=3,
    )
    return _nearest(mu, known, ref)


def suggest(
    X_obs: Tensor,
    Y_obs: Tensor,
    candidates: Tensor,
    known: Tensor,
    ref_point: Point,
    sizes: Sizes,
    q: int = 1,
    encoding: str = "hamming",
    acquisition: str = "exact",
    seed: int = 0,
    pool: int | None = None,
    y_var: Tensor | None = None,
) -> Tensor:
    """Paper, search step: the rows (q,) of candidates (N, D) to evaluate next, none of X_obs: each
    time the one of the largest `score`.

    X_obs (n, D) has objectives Y_obs (n, 2) with variances y_var (n,) of quality; known (N,).
    acquisition: "exact" (EHVI in closed form), "qlogehvi" (BoTorch's) or "random". pool: score only
    so many candidates, drawn by seed. q > 1 is not in the paper: the Kriging believer, each choice
    is taken to have its predicted mean before the next. ValueError when fewer than q are left.
    """
    one_of("acquisition", acquisition, POOL)
    candidates, X_obs = as_codes("candidates", candidates, sizes), as_codes("X_obs", X_obs, sizes)
    known, Y_obs = shaped("known", known, len(candidates)), shaped("Y_obs", Y_obs, len(X_obs), 2)
    rows = (~torch.isin(_key(candidates, sizes), _key(X_obs, sizes))).nonzero()[:, 0]
    if not 1 <= q <= len(rows):
        raise ValueError(f"q: expected 1 to {len(rows)} (candidates not yet evaluated), got {q}")
    draw = torch.from_numpy(np.random.default_rng([seed, len(X_obs)]).permutation(len(rows)))
    if acquisition == "random":
        return rows[draw[:q]]
    rows = rows[draw[: max(q, pool or POOL[acquisition] or len(rows))].sort().values]
    model, X = fit_quality(X_obs, Y_obs[:, 0], sizes, y_var, encoding), candidates.double()
    how = (ref_point, sizes, acquisition, seed)
    chosen: list[int] = []
    for _ in range(q):
        if chosen:
            model, Y_obs = _believed(model, X[chosen[-1:]], known[chosen[-1:]], Y_obs)
            rows = rows[rows != chosen[-1]]
        chosen.append(int(rows[score(model, X[rows], known[rows], Y_obs, *how).argmax()]))
    return torch.tensor(chosen)


def _believed(model: Model, x: Tensor, known: Tensor, Y_obs: Tensor) -> tuple[Model, Tensor]:
    """As if the codes x (1, D) had been measured, and had what the model expects of them."""
    mu, _ = marginals(model, x)
    noise = model.likelihood.noise.mean().detach().reshape(1, 1)
    model = model.condition_on_observations(x, mu.reshape(1, 1), noise=noise)
    return model, torch.cat([Y_obs, torch.stack([mu, known], 1)])


def _nearest(mu: Tensor, known: Tensor, ref: Tensor) -> Tensor:
    """Scores (N,), the best first: least excess of known (N,) over ref (2,), then least predicted
    quality mu (N,).

    Not in the paper: our choice, for candidates that cannot enlarge the hypervolume.
    """
    excess = (known - ref[1]).clamp_min(0)
    order = torch.from_numpy(np.lexsort((mu.numpy(), excess.numpy())))
    return torch.empty_like(mu).index_put((order,), -torch.arange(len(mu)).to(mu))


def _key(X: Tensor, sizes: Sizes) -> Tensor:
    """One integer per row of codes X (..., D): the mixed-radix number with digits X. (...)"""
    radix = np.cumprod([1, *reversed(sizes[1:])])[::-1].copy()
    return (X * torch.from_numpy(radix)).sum(-1)


def as_codes(name: str, X: Tensor, sizes: Sizes) -> Tensor:
    """X (n, D) as integers, each column below its size; ValueError otherwise."""
    X = shaped(name, X, None, len(sizes)).long()
    if len(X) and (X.amin() < 0 or (X.amax(0) >= torch.tensor(sizes)).any()):
        raise ValueError(f"{name}: codes must lie in 0 .. size - 1 with sizes {tuple(sizes)}")
    return X


def shaped(name: str, values: Tensor | Sequence, *shape: int | None) -> Tensor:
    """values in float64 with that shape, None for any length, all finite; ValueError otherwise."""
    values = torch.as_tensor(values, dtype=torch.float64)
    got = tuple(values.shape)
    if len(got) != len(shape) or any(n not in (None, m) for n, m in zip(shape, got, strict=True)):
        raise ValueError(f"{name}: expected shape {shape} (None: any length), got {got}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: values must be finite")
    return values


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """ValueError unless value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
