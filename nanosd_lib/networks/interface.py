"""Why every combination composes: each code of a stage hands on what the original does (paper,
surgery step). Checked on the meta device, where nothing is computed.
"""

from __future__ import annotations

import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from nanosd_lib.networks import counting, sd15, surgery
from nanosd_lib.networks.arch import BASE, CHOICES, STAGES, Arch


def shapes(net: nn.Module, inputs: dict) -> list[tuple[int, ...]]:
    """The shapes of what a stage hands on."""
    found = net(**inputs)
    tensors = found[1] if isinstance(found, tuple) else (found,)
    return [tuple(x.shape) for x in tensors]


@torch.no_grad()
def fits(teacher: UNet2DConditionModel) -> pd.DataFrame:
    """stage, code, fits: whether each of the 36 hands on tensors of the original's shapes; teacher
    on the meta device. A network holds a code of each stage, so eight hold them all.
    """
    found: dict[tuple[str, str], list] = {}
    for k in range(max(map(len, CHOICES.values()))):
        codes = [CHOICES[s][k % len(CHOICES[s])] for s in STAGES]
        net = surgery.student(Arch(*codes), teacher)
        for stage, code in zip(STAGES, codes, strict=True):
            inputs = counting.stage_inputs(teacher, stage, 1, device="meta")
            found[stage, code] = shapes(net.stage(stage), inputs)
    rows = [(s, c, seen == found[s, BASE[s]]) for (s, c), seen in found.items()]
    table = pd.DataFrame(rows, columns=["stage", "code", "fits"])
    return table.sort_values(["stage", "code"], ignore_index=True)


def every_code() -> dict[str, pd.DataFrame]:
    """table: `fits` at SD 1.5's width."""
    return {"table": fits(sd15.unet())}
