"""What keeps the deep stages of a small teacher alive while it learns (not in the paper).

A small U-Net on small latents learns everything in its top stages: attention at full resolution
sees the whole picture, and the stages below are left with nothing to do. Two measures, taken only
during training, and nothing of them stays in the network: the top stages' attention is left out of
a share of the steps, and the middle and each deep decoder stage are asked, through one 1x1
convolution, for the clean latent at their own resolution (deep supervision, Lee et al. 2015).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


@contextmanager
def without_top_attention(unet: UNet2DConditionModel, off: bool = True) -> Iterator[None]:
    """The attention of E1 and D1 is the identity inside, where `off`."""
    blocks = [*unet.down_blocks[0].attentions, *unet.up_blocks[-1].attentions] if off else []
    for block in blocks:
        block.forward = lambda x, *args, **kwargs: (x,)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class Supervision(nn.Module):
    """Loss of M, D4, D3 and D2: each predicts the clean latent (N, C, H, W), averaged to its own
    resolution, from what it gave in the U-Net's last pass. `close` takes the hooks out again.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        deep, channels = [unet.mid_block, *unet.up_blocks[:-1]], unet.config.out_channels
        widths = [block.resnets[-1].out_channels for block in deep]
        self.heads = nn.ModuleList([nn.Conv2d(w, channels, 1) for w in widths])
        self._seen: dict[int, Tensor] = {}
        self._hooks = [block.register_forward_hook(self._keep(i)) for i, block in enumerate(deep)]

    def _keep(self, i: int):
        return lambda block, inputs, output: self._seen.__setitem__(i, output)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen.clear()

    def forward(self, clean: Tensor) -> Tensor:
        """RuntimeError where the U-Net has not run since the last call."""
        if len(self._seen) < len(self.heads):
            raise RuntimeError("deep supervision looks at a pass of the U-Net: run it first")
        losses = []
        for i, head in enumerate(self.heads):
            x = self._seen.pop(i).float()
            losses.append(
                F.mse_loss(head(x), F.adaptive_avg_pool2d(clean, (x.shape[-2], x.shape[-1])))
            )
        return torch.stack(losses).mean()
