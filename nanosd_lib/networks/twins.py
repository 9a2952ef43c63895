"""The twin of a student in diffusers itself: TinySD, N2 and N4 are stock models, weight for weight
and output for output.
"""

from __future__ import annotations

import re

from diffusers import UNet2DConditionModel

from nanosd_lib.networks import stock, surgery
from nanosd_lib.networks.arch import Arch


def stock_config(arch: Arch, teacher: UNet2DConditionModel) -> dict | None:
    """Config of the stock `UNet2DConditionModel` that equals this arch, or None where diffusers has
    none.

    Stock models have two-R decoders, one-R encoders, and per stage all transformer blocks or none
    (TinySD, N2, N4).
    """
    kinds = {
        "RA": "CrossAttnDownBlock2D",
        "R": "DownBlock2D",
        "RARA": "CrossAttnUpBlock2D",
        "RR": "UpBlock2D",
    }
    down, up = (arch.E1, arch.E2, arch.E3), (arch.D3, arch.D2, arch.D1)
    if arch.deep or not set(down) <= {"R", "RA"} or not set(up) <= {"RR", "RARA"}:
        return None
    own, teacher = surgery.settings(teacher), stock.unwrapped(teacher)
    heads = teacher.config.attention_head_dim
    return own | dict(
        block_out_channels=tuple(teacher.config.block_out_channels[:3]),
        attention_head_dim=heads if isinstance(heads, int) else tuple(heads[:3]),
        down_block_types=tuple(kinds[c] for c in down),
        up_block_types=tuple(kinds[c] for c in up),
        mid_block_type=None,
        layers_per_block=1,
    )


def stock_name(name: str) -> str:
    """A student parameter's name in the stock model: the second kept decoder block is numbered 1
    there, 2 here.
    """
    return re.sub(r"^(up_blocks\.\d\.(?:resnets|attentions))\.2\.", r"\1.1.", name)
