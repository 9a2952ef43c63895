"""How a restoration is trained, whichever system it is: its numbers, what learns, the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nanosd_lib.learning import fit
from nanosd_lib.restoration import adapters

NAME = "restoration"  # of the adapters


class Learning(nn.ParameterDict):
    """What learns, as one module for `fit`: parameters by name, which may not hold a dot."""

    def __init__(self, **parts: nn.Module) -> None:
        found = {
            f"{part}.{k}".replace(".", "|"): p
            for part, net in parts.items()
            for k, p in adapters.trained(net).items()
        }
        super().__init__(found)


@dataclass(frozen=True)
class Lesson:
    """The numbers of one training: the optimiser's, the timestep, the adapters' rank, the weight of
    each loss, the guidance of a system that has one, the backbone of the perceptual loss.
    """

    steps: int
    batch: int
    lr: float
    seed: int
    t: int
    rank: int
    weights: Mapping[str, float]
    guidance: float
    loss: str

    def whole(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses by their weights."""
        return torch.stack([self.weights[k] * v for k, v in parts.items()]).sum()

    def learn(
        self,
        name: str,
        parts: Mapping[str, nn.Module],
        loss_of: Callable[[torch.Generator], dict[str, Tensor]],
        scratch: Path,
        until: int | None,
        weights: Callable[[], dict[str, Tensor]],
    ) -> dict:
        """Train what learns in the parts: `weights` afterwards, in float16, and the record of every
        loss; with `until`, the record alone.
        """
        schedule, every = fit.Schedule(self.steps, self.lr, self.seed), max(1, self.steps // 8)
        record = fit.fit(name, Learning(**parts), loss_of, schedule, scratch, every, until=until)
        training = {"training": {"record": record}}
        if until:
            return training
        return training | {"weights": {k: v.half() for k, v in weights().items()}}
