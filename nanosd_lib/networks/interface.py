"""Why every combination composes: each code of a stage hands on what the original does (paper,
surgery step). Checked on the meta device, where nothing is computed.
"""

from __future__ import annotations

import pandas as pd
import torch
from diffusers import UNet2DConditionModel

from nanosd_lib.networks import counting, sd15, surgery
from nanosd_lib.networks.arch import BASE, CHOICES, STAGES


def shapes(teacher: UNet2DConditionModel, stage: str, code: str) -> list[tuple[int, ...]]:
    """The shapes that a stage of that code hands on; teacher on the meta device."""
    inputs = counting.stage_inputs(teacher, stage, 1, device="meta")
    found = surgery.surrogate(stage, code, teacher)(**inputs)
    tensors = found[1] if isinstance(found, tuple) else (found,)
    return [tuple(x.shape) for x in tensors]


@torch.no_grad()
def every_code() -> dict[str, pd.DataFrame]:
    """table (stage, code, fits): whether each of the 36 hands on tensors of the original's shapes,
    at SD 1.5's width.
    """
    teacher, rows = sd15.unet(), []
    for stage in STAGES:
        wanted = shapes(teacher, stage, BASE[stage])
        rows += [(stage, c, shapes(teacher, stage, c) == wanted) for c in CHOICES[stage]]
    return {"table": pd.DataFrame(rows, columns=["stage", "code", "fits"])}
