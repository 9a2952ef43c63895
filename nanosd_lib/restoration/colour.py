"""Colour fixes of the published one-step systems: what the network changed in colour is taken back
from the damaged picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 5  # of the wavelet, as published; dilations 1, 2, 4, 8, 16
_ROW = torch.tensor([0.25, 0.5, 0.25])


def low(x: Tensor, levels: int = LEVELS) -> Tensor:
    """The low band of pictures (N, 3, H, W): the binomial 3x3 filter with dilations 1, 2, 4, ... in
    turn (a trous), borders repeated. A pixel reads 2^levels - 1 pixels in each direction.
    """
    kernel = torch.outer(_ROW, _ROW).to(x).expand(3, 1, 3, 3)
    for level in range(levels):
        d = 2**level
        x = F.conv2d(F.pad(x, [d] * 4, mode="replicate"), kernel, dilation=d, groups=3)
    return x


def wavelet(restored: Tensor, damaged: Tensor, levels: int = LEVELS) -> Tensor:
    """High bands of the restored picture on the low band of the damaged one (S3Diff's fix), not
    clipped. Local: a tile with `2**levels - 1` pixels around it gives what the whole picture gives.
    """
    return restored - low(restored, levels) + low(damaged, levels)


def adain(restored: Tensor, damaged: Tensor) -> Tensor:
    """The damaged picture's mean and deviation of each channel (OSEDiff's fix), not clipped. Of the
    whole picture: tiles need its statistics first.
    """
    (m, s), (n, r) = (
        (x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)) for x in (restored, damaged)
    )
    return (restored - m) / s.clamp_min(1e-5) * r + n


FIXES = {"none": lambda restored, damaged: restored, "wavelet": wavelet, "adain": adain}
