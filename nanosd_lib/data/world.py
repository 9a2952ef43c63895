"""What the teacher is trained on: renders of miniworld, crops of photographs, and captions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanosd_lib.data import miniworld, photographs, raycast


class World:
    """Training pictures as uint8 (N, 3, 64, 64): renders first, then photograph crops. Those asked
    for are made when they are asked for; `kept` makes them all, once, and keeps them in a file.
    """

    def __init__(self, scenes: int, crops: int, seed: int) -> None:
        self.scenes, self.crops, self.seed = scenes, crops, seed
        self.drawn = miniworld.sample(scenes, seed)

    def __len__(self) -> int:
        return self.scenes + self.crops

    def __getitem__(self, i: Tensor) -> Tensor:
        """The pictures of those indices (M,): (M, 3, 64, 64)."""
        made = torch.empty(len(i), 3, miniworld.SIZE, miniworld.SIZE, dtype=torch.uint8)
        render = i < self.scenes
        if render.any():
            made[render] = to_bytes(raycast.render(self.drawn[i[render]])[0])
        if not render.all():
            some = [self._cuts[k] for k in (i[~render] - self.scenes).tolist()]
            made[~render] = photographs.cut_out(some)
        return made

    @cached_property
    def _cuts(self) -> list[photographs.Cut]:
        return photographs.cuts("train", self.crops, self.seed)

    @cached_property
    def captions(self) -> list[str]:
        return miniworld.captions(self.drawn) + [cut.caption for cut in self._cuts]

    def kept(self, work: Path) -> Tensor:
        """All of it, from `work` where it is there already."""
        path = work / f"world-{self.scenes}-{self.crops}-{self.seed}.safetensors"
        if not path.exists():
            renders = to_bytes(raycast.render(self.drawn, progress=True)[0])
            pixels = torch.cat([renders, photographs.cut_out(self._cuts)])
            save_file({"pixels": pixels}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
        return load_file(path)["pixels"]


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to uint8."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte()


def to_float(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
