"""The tiles of one photograph, all of them, timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor

from nanosd_lib.hardware import timing


def timed(
    tiles: int,
    batch: int,
    side: int,
    rounds: int,
    systems: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict:
    """name, ms_median, ms_low, ms_high (quartiles over rounds) of so many random tiles of side x
    side through each system, in batches; systems in turns, after one batch of each to warm up.
    """
    x = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    some = [x[: min(batch, tiles - i)] for i in range(0, tiles, batch)]

    def all_of(system: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return [system(b) for b in some]

        return call

    with torch.no_grad():
        for system in systems.values():
            system(x)
    table: pd.DataFrame = timing.measure({k: all_of(s) for k, s in systems.items()}, rounds, 0)
    return {"table": table}
