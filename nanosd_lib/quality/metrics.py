"""Distances between pictures, features and orders: plain functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

WINDOW = 11  # pixels of SSIM's Gaussian: 2 * round(3.5 sigma) + 1, sigma 1.5
SLACK = 1e-3  # how far a picture may leave [-1, 1] by rounding


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between two feature sets (N, D), (M, D): as FID, the square.

    Never negative, and 0 for equal sets. ValueError, in one line, for fewer than two pictures,
    other shapes, integers, and NaN.
    """
    a, b = (x.double() for x in features_of("frechet", a, b, least=2))
    if a.shape == b.shape and torch.equal(a, b):
        return 0.0
    return frechet_of(a, b)


def frechet_of(a: Tensor, b: Tensor) -> float:
    """The same, unchecked: tr (C_a C_b)^(1/2) is the nuclear norm of A B^T over the root of
    (N - 1)(M - 1), A and B centred, and of it R_a R_b^T is enough, from A = Q_a R_a. There is no
    matrix root, which fails where pictures are few, and nothing larger than D x D.
    """
    x, y, n, m = a - a.mean(0), b - b.mean(0), len(a) - 1, len(b) - 1
    (_, r), (_, s) = (torch.linalg.qr(z, mode="r") for z in (x, y))
    root = torch.linalg.svdvals(r @ s.T).sum() / (n * m) ** 0.5
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(shift + x.square().sum() / n + y.square().sum() / m - 2 * root))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of paired features (N, D): (N,). ValueError as for `frechet`, and where the
    shapes differ.
    """
    a, b = features_of("cosines", a, b, least=1, paired=True)
    return torch.nn.functional.cosine_similarity(a, b)


def detail(x: Tensor) -> Tensor:
    """Power of pictures (N, 3, H, W) above half the Nyquist frequency, mean over channels: (N,)."""
    x = _floats("detail", x, "(N, 3, H, W)")
    power = torch.fft.fft2(x.double()).abs().square() / (x.shape[2] * x.shape[3]) ** 2
    radius = torch.stack(
        torch.meshgrid(
            *(torch.fft.fftfreq(n, dtype=torch.float64) for n in x.shape[2:]), indexing="ij"
        )
    ).norm(dim=0)
    return (power * (radius > 0.25)).sum((2, 3)).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of pictures (N, 3, H, W) in [-1, 1].

    At most 100. ValueError, in one line, for other shapes, types and ranges.
    """
    a, b = pairs_of("psnr", a, b)
    return -10 * torch.log10(((a - b) / 2).pow(2).mean((1, 2, 3)).clamp_min(1e-10))


def _floats(name: str, x: Tensor, shape: str) -> Tensor:
    """x, half precision widened; ValueError unless it holds finite floats in as many dimensions as
    `shape` names, and something at all.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = getattr(x, "dtype", type(x).__name__)
        raise ValueError(f"{name}: expected a tensor of floats {shape}, got {kind}")
    if x.ndim != shape.count(",") + 1 or x.numel() == 0:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: NaN or infinite values in what should be {shape}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def features_of(
    name: str, a: Tensor, b: Tensor, least: int, paired: bool = False
) -> tuple[Tensor, Tensor]:
    """Feature sets (N, D), (M, D) on the CPU, at least so many rows; paired: N = M."""
    a, b = (_floats(name, x, "(N, D)").detach().cpu() for x in (a, b))
    if a.shape[1] != b.shape[1] or (paired and len(a) != len(b)):
        what = "pairs (N, D) of one shape" if paired else "as many features D on both sides"
        raise ValueError(f"{name}: expected {what}, got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"{name}: at least {least} pictures a side, got {len(a)} and {len(b)}")
    return a, b


def pairs_of(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of pictures (N, 3, H, W); ValueError for other shapes and outside [-1, 1]."""
    a, b = (_floats(name, x, "(N, 3, H, W)") for x in (a, b))
    if a.shape != b.shape or a.shape[1] != 3:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{name}: expected pairs (N, 3, H, W) of one shape, got {got}")
    low, high = min(float(x.min()) for x in (a, b)), max(float(x.max()) for x in (a, b))
    if low < -1 - SLACK or high > 1 + SLACK:
        raise ValueError(
            f"{name}: expected pictures in [-1, 1], got {low:g} to {high:g}:"
            " x / 127.5 - 1 for 0 .. 255, else clamp"
        )
    return a, b


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of pictures (N, 3, H, W) in [-1, 1]: (N,), by
    scikit-image, as in Wang et al. 2004 (Gaussian window, sigma 1.5).

    ValueError, in one line, for other shapes, types and ranges, and for sides below the window's.
    """
    from skimage.metrics import structural_similarity

    a, b = (x.detach().cpu() for x in pairs_of("ssim", a, b))
    if min(a.shape[2:]) < WINDOW:
        size = f"{a.shape[2]}x{a.shape[3]}"
        raise ValueError(f"ssim: its window is {WINDOW}x{WINDOW} and the pictures are {size}")
    how = dict(channel_axis=0, data_range=2, gaussian_weights=True, sigma=1.5)
    how["use_sample_covariance"] = False
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return torch.tensor([structural_similarity(x, y, **how) for x, y in pairs], dtype=torch.float32)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two paired columns; NaN where one of them does not vary.

    ValueError, in one line, for columns of other lengths or labels, and for NaN: whoever leaves
    pairs out says so.
    """
    from scipy.stats import spearmanr

    if isinstance(a, pd.Series) and isinstance(b, pd.Series) and not a.index.equals(b.index):
        raise ValueError("spearman: the columns are labelled differently: align them first")
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(
            f"spearman: expected two columns of one length, at least 2, got {x.shape} and {y.shape}"
        )
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("spearman: NaN in a column: leave these pairs out first (dropna)")
    if (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    return float(spearmanr(x, y).statistic)
