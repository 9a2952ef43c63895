"""Degradations of the Real-ESRGAN kind (Wang et al. 2021): what a good picture goes through before
a restoration sees it. Blur, resize, noise and JPEG, twice, and a ringing filter before or after the
last JPEG; everything is drawn from a seed.

    d = degradations.draw(degradations.MILD, seed=7)
    small = degradations.apply(x, d, scale=4)            # (3, H, W) in [-1, 1] -> (3, H/4, W/4)
    bad = degradations.pairs(pictures, "mild", seed=0)   # a batch, brought back to its size

Two families, as two published systems train on them: "strong" (OSEDiff's parameters) and "mild"
(S3Diff's). Numbers of one are not comparable with numbers of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from scipy.special import j1
from torch import Tensor
from torch.nn import functional as F

KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of the kinds of kernels
MODES = ("area", "bilinear", "bicubic")
FLAT = 1e-3  # detail of a picture that has none to lose
GRAY = 0.4  # share of noise that is the same in every channel
SINC = 0.1  # share of blurs that are a ringing filter
RINGING = 0.8  # share of pictures that end with one
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]


@dataclass(frozen=True)
class Pass:
    """Ranges of one of the two passes: share of pictures that are blurred, sizes of kernels, their
    deviations in pixels, exponents; shares of (larger, smaller, same) and the range of the factor;
    noise in 8-bit levels, Poisson's scale, JPEG quality.
    """

    blurred: float
    sizes: tuple[int, int]
    sigma: tuple[float, float]
    resized: tuple[float, float, float]
    factor: tuple[float, float]
    noise: tuple[float, float]
    poisson: tuple[float, float]
    jpeg: tuple[float, float]
    generalized: tuple[float, float] = (0.5, 4.0)
    plateau: tuple[float, float] = (1.0, 2.0)


@dataclass(frozen=True)
class Family:
    """A published family: its two passes, and the share of pictures that are only made smaller."""

    name: str
    first: Pass
    second: Pass
    clean: float = 0.0


_WAYS = (0.2, 0.7, 0.1), (0.3, 0.4, 0.3)
_SIGMA = (0.2, 3.0), (0.2, 1.5)
STRONG = Family(
    "strong",
    Pass(1.0, (7, 21), _SIGMA[0], _WAYS[0], (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95)),
    Pass(0.8, (7, 21), _SIGMA[1], _WAYS[1], (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
)
# second pass: factor and Poisson's scale are not in what was read of S3Diff; Real-ESRGAN's, and
# those of the first
MILD = Family(
    "mild",
    Pass(1.0, (7, 21), _SIGMA[0], _WAYS[0], (0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95)),
    Pass(0.5, (7, 11), _SIGMA[1], _WAYS[1], (0.3, 1.2), (1, 12), (0.05, 2.0), (60, 100)),
    clean=0.01,
)
FAMILIES = {f.name: f for f in (MILD, STRONG)}


@dataclass(frozen=True)
class Blur:
    """One kernel: a Gaussian and its relatives, or ("sinc") a low-pass filter that rings."""

    kind: str
    size: int
    sigma: tuple[float, float] = (0.0, 0.0)  # along two axes, pixels
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi


@dataclass(frozen=True)
class Noise:
    """Gaussian (level: deviation, of 255) or Poisson (level: scale), in each channel or in all."""

    kind: str
    level: float
    gray: bool


@dataclass(frozen=True)
class Step:
    """Blur, resize, noise, JPEG, in this order."""

    blur: Blur | None
    factor: float
    mode: str
    noise: Noise
    jpeg: int


@dataclass(frozen=True)
class Degradation:
    """All that happens to one picture. `steps` is empty where it is only made smaller."""

    seed: int  # of the noise's own draws
    steps: tuple[Step, ...]
    ringing: Blur | None
    mode: str  # how it is brought to its size
    jpeg_last: bool


# --------------------------------------------------------------------------------------- drawing it
def draw(family: Family, seed: int) -> Degradation:
    """A degradation of that family; the same seed gives the same one."""
    g = np.random.default_rng(seed)
    clean = g.random() < family.clean
    steps = tuple(_step(p, g) for p in (family.first, family.second))
    ringing = Blur("sinc", _odd(g, (7, 21)), cutoff=g.uniform(math.pi / 3, math.pi))
    ends = g.random() < RINGING, str(g.choice(MODES)), bool(g.random() < 0.5)
    if clean:
        return Degradation(seed, (), None, "bicubic", False)
    return Degradation(seed, steps, ringing if ends[0] else None, *ends[1:])


def _step(p: Pass, g: np.random.Generator) -> Step:
    blur = _blur(p, g)
    blurred = g.random() < p.blurred
    way, up, down = (
        g.choice(3, p=p.resized),
        g.uniform(1, p.factor[1]),
        g.uniform(p.factor[0], 1),
    )
    factor = (up, down, 1.0)[way]
    mode = str(g.choice(MODES))
    kind = "gaussian" if g.random() < 0.5 else "poisson"
    level = g.uniform(*(p.noise if kind == "gaussian" else p.poisson))
    noise = Noise(kind, float(level), bool(g.random() < GRAY))
    return Step(blur if blurred else None, float(factor), mode, noise, round(g.uniform(*p.jpeg)))


def _blur(p: Pass, g: np.random.Generator) -> Blur:
    size, kind = _odd(g, p.sizes), str(g.choice(KERNELS, p=SHARES))
    sigma, other, angle = g.uniform(*p.sigma), g.uniform(*p.sigma), g.uniform(-math.pi, math.pi)
    beta = g.uniform(*(p.plateau if kind.startswith("plateau") else p.generalized))
    rings, low = g.random() < SINC, math.pi / (3 if size < 13 else 5)
    cutoff = g.uniform(low, math.pi)
    if rings:
        return Blur("sinc", size, cutoff=float(cutoff))
    both = (sigma, sigma if kind.endswith("_iso") or kind == "iso" else other)
    beta = 1.0 if kind in ("iso", "aniso") else beta
    return Blur(kind, size, (float(both[0]), float(both[1])), float(angle), float(beta))


def _odd(g: np.random.Generator, sizes: tuple[int, int]) -> int:
    return int(g.choice(range(sizes[0], sizes[1] + 1, 2)))


# -------------------------------------------------------------------------------------- applying it
def kernel(b: Blur) -> Tensor:
    """(size, size) weights that add up to 1."""
    at = np.arange(b.size) - (b.size - 1) / 2
    x, y = np.meshgrid(at, at)
    if b.kind == "sinc":
        r = np.hypot(x, y)
        middle = (b.size - 1) // 2
        with np.errstate(divide="ignore", invalid="ignore"):
            w = b.cutoff * j1(b.cutoff * r) / (2 * math.pi * r)
        w[middle, middle] = b.cutoff**2 / (4 * math.pi)
    else:
        c, s = math.cos(b.angle), math.sin(b.angle)
        u, v = c * x + s * y, -s * x + c * y
        d = (u / b.sigma[0]) ** 2 + (v / b.sigma[1]) ** 2
        plateau = b.kind.startswith("plateau")
        w = 1 / (1 + d**b.beta) if plateau else np.exp(-0.5 * d**b.beta)
    return torch.from_numpy(w / w.sum()).float()


def blurred(x: Tensor, b: Blur) -> Tensor:
    """(3, H, W) filtered, the border mirrored (repeated, where it is smaller than the kernel)."""
    half = b.size // 2
    mode = "reflect" if min(x.shape[1:]) > half else "replicate"
    wide = F.pad(x[None], [half] * 4, mode=mode)[0]
    return F.conv2d(wide[:, None], kernel(b)[None, None])[:, 0]


def resized(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """(3, H, W) brought to a size; "area" means over whole pixels, the others as torch has them."""
    if x.shape[1:] == (height, width):
        return x
    how = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(x[None], (height, width), mode=mode, **how)[0]


def noisy(x: Tensor, n: Noise, g: torch.Generator) -> Tensor:
    """(3, H, W) in 0 .. 1 with noise; Poisson's counts are in 8-bit levels, as published."""
    if n.kind == "gaussian":
        shape = (1, *x.shape[1:]) if n.gray else tuple(x.shape)
        return x + torch.randn(shape, generator=g, dtype=torch.float32) * (n.level / 255)
    some = x.mean(0, keepdim=True) if n.gray else x
    some = (some * 255).round().clamp(0, 255) / 255
    levels = 2.0 ** math.ceil(math.log2(max(2, len(some.unique()))))
    return x + (torch.poisson(some * levels, generator=g) / levels - some) * n.level


def jpeg(x: Tensor, quality: int) -> Tensor:
    """(3, H, W) in 0 .. 1 through a JPEG of that quality."""
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    with BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        file.seek(0)
        back = np.asarray(Image.open(file))
    return torch.from_numpy(back.copy()).permute(2, 0, 1).float() / 255


def apply(picture: Tensor, d: Degradation, scale: int = 4, quiet: bool = False) -> Tensor:
    """A picture (3, H, W) in [-1, 1], degraded and `scale` times smaller, in levels of 8 bits;
    `quiet`: without noise and JPEG.

    ValueError for another shape, and for sides that `scale` does not divide.
    """
    if picture.ndim != 3 or len(picture) != 3 or any(side % scale for side in picture.shape[1:]):
        raise ValueError(
            f"degradations: expected a picture (3, H, W) with sides that {scale} divides, got"
            f" {tuple(picture.shape)}"
        )
    height, width = (side // scale for side in picture.shape[1:])
    g = torch.Generator().manual_seed(d.seed)
    x = (picture.float() + 1) / 2
    for i, s in enumerate(d.steps):
        if s.blur is not None:
            x = blurred(x, s.blur)
        # the first resize is of the picture, the second of what it is to become
        base = picture.shape[1:] if i == 0 else (height, width)
        of = [max(1, round(side * s.factor)) for side in base]
        x = resized(x, of[0], of[1], s.mode)
        x = (x if quiet else noisy(x, s.noise, g)).clamp(0, 1)
        if i == 0 and not quiet:
            x = jpeg(x, s.jpeg)
    last = d.steps[-1].jpeg if d.steps and not quiet else None
    if last is not None and not d.jpeg_last:
        x = jpeg(x, last)
    x = resized(x, height, width, d.mode) if d.steps else _smaller(x, height, width)
    if d.ringing is not None:
        x = blurred(x, d.ringing)
    if last is not None and d.jpeg_last:
        x = jpeg(x, last)
    return (x.clamp(0, 1) * 255).round() / 127.5 - 1


def _smaller(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x[None], (height, width), mode="bicubic", antialias=True)[0]


def pairs(
    pictures: Tensor, family: str, seed: int, scale: int = 4, at: Sequence[int] | None = None
) -> Tensor:
    """What a restoration gets for pictures (N, 3, H, W): each degraded by a draw of its own from
    (seed, i), or (seed, at[i]), and brought back to its size by bicubic interpolation, in [-1, 1].

    ValueError for a family that is none of `FAMILIES`.
    """
    if family not in FAMILIES:
        raise ValueError(f"degradations: family {family!r}: use one of {', '.join(FAMILIES)}")
    places = range(len(pictures)) if at is None else at
    drawn = zip(pictures, places, strict=True)
    made = [apply(x, _drawn(family, seed, i), scale) for x, i in drawn]
    size = tuple(pictures.shape[2:])
    return F.interpolate(torch.stack(made), size, mode="bicubic").clamp(-1, 1)


def scores(pictures: Tensor, family: str, seed: int, at: Sequence[int], scale: int = 4) -> Tensor:
    """How blurred and how noisy each picture (N, 3, H, W) became by what `pairs` draws there: (N,
    2) in 0 .. 1, what an estimator of degradations is taught.

    blur: the share of fine detail (the deviation of the Laplacian) that is gone where neither noise
    nor JPEG was added; noise: the root of the mean square that these two add, over a quarter (not
    in the papers: our assumption; the drawn parameters themselves can hardly be told from a picture
    four times smaller: its resize hides them).
    """
    found = []
    for x, i in zip(pictures, at, strict=True):
        d = _drawn(family, seed, i)
        with_noise, without = apply(x, d, scale), apply(x, d, scale, quiet=True)
        plain = _smaller((x.float() + 1) / 2, *without.shape[1:]) * 2 - 1
        fine = _detail(plain)
        kept = _detail(without) / fine if fine > FLAT else torch.ones(())
        noise = (with_noise - without).pow(2).mean().sqrt() * 4
        found.append(torch.stack([1 - kept, noise]).clamp(0, 1))
    return torch.stack(found)


def _detail(x: Tensor) -> Tensor:
    return F.conv2d(x[:, None], LAPLACIAN).std()


def _drawn(family: str, seed: int, i: int) -> Degradation:
    return draw(FAMILIES[family], seed * 1_000_003 + i)
