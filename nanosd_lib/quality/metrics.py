"""Distances between pictures, features and orders: plain functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between two feature sets (N, D), (M, D): clean-fid's own implementation."""
    from cleanfid.fid import frechet_distance

    (ma, ca), (mb, cb) = ((f.numpy().mean(0), np.cov(f.numpy(), rowvar=False)) for f in (a, b))
    return float(frechet_distance(ma, ca, mb, cb))


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine similarity of paired features (N, D)."""
    return float(torch.nn.functional.cosine_similarity(a, b).mean())


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of pictures (N, 3, H, W) in [-1, 1]."""
    return -10 * torch.log10(((a - b) / 2).pow(2).mean((1, 2, 3)).clamp_min(1e-10))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of pictures (N, 3, H, W) in [-1, 1]: (N,), by
    scikit-image, as in Wang et al. 2004 (Gaussian window, sigma 1.5).
    """
    from skimage.metrics import structural_similarity

    how = dict(channel_axis=0, data_range=2, gaussian_weights=True, sigma=1.5)
    how["use_sample_covariance"] = False
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return torch.tensor([structural_similarity(x, y, **how) for x, y in pairs])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation of two columns."""
    return float(
        pd.Series(np.asarray(a, float)).corr(pd.Series(np.asarray(b, float)), method="spearman")
    )
