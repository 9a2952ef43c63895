"""Photographs and crops of them: some for training, some held out, split by picture so that no crop
of a held-out one is ever trained on.

Two sources: what scikit-image ships, and camera photographs under open licences in
`data/photographs` (authors and licences: `data/photographs/photographs.csv`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from nanosd_lib.data.miniworld import NAMES, SIZE
from nanosd_lib.paths import ROOT

CAMERA = ROOT / "data" / "photographs"
PHOTOGRAPHS = {
    "train": {
        "astronaut.png": "an astronaut",
        "coffee.png": "a cup of coffee",
        "motorcycle_left.png": "a motorcycle",
        "motorcycle_right.png": "a motorcycle",
        "camera.png": "a man with a camera",
        "coins.png": "old coins",
        "hubble_deep_field.jpg": "distant galaxies",
        "brick.png": "a brick wall",
        "gravel.png": "gravel",
        "autumn-hill.jpg": "a hill in autumn",
        "bird-lamp.jpg": "a bird and a lamp",
        "bridge.jpg": "a bridge",
        "brushes.jpg": "brushes",
        "clock.jpg": "a clock",
        "dragonfly.jpg": "a dragonfly",
        "drum.jpg": "a drum",
        "mountains.jpg": "mountains",
        "sunset.jpg": "a sunset",
    },
    "heldout": {
        "chelsea.png": "a cat",
        "rocket.jpg": "a rocket",
        "creek.jpg": "a creek",
        "dandelion.jpg": "a dandelion",
        "dogs.jpg": "dogs",
        "fig.jpg": "a fig",
    },
}
LARGEST = 2048  # pixels on the longer side that crops are cut from


@dataclass(frozen=True)
class Cut:
    """One square crop of a photograph: left upper corner and side in pixels, mirrored or not."""

    name: str
    caption: str
    x: int
    y: int
    side: int
    mirrored: bool


def path_of(name: str) -> Path:
    """Where a photograph of `PHOTOGRAPHS` lies: in this repository, or in scikit-image.
    FileNotFoundError, with the fix, where it is in neither.
    """
    from skimage import data

    folders = (CAMERA / "train", CAMERA / "heldout", Path(data.__file__).parent)
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"data/photographs holds no {name}: bring it back with `git checkout data/photographs`"
    )


def credits() -> pd.DataFrame:
    """file, author, licence, ... of the camera photographs."""
    return pd.read_csv(CAMERA / "photographs.csv")


@lru_cache(maxsize=64)
def _image(name: str) -> Image.Image:
    with Image.open(path_of(name)) as file:
        file.draft("RGB", (LARGEST, LARGEST))
        image = file.convert("RGB")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return image


def photograph(name: str) -> Tensor:
    """A photograph of `PHOTOGRAPHS` as (3, H, W) in [-1, 1], at most 2048 pixels on a side; grey
    ones are repeated over the channels.
    """
    pixels = np.asarray(_image(name))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def cuts(
    split: str,
    n: int,
    seed: int,
    smallest: int = 96,
    largest: int = 1024,
    names: Sequence[str] = (),
) -> list[Cut]:
    """n crops of a split's photographs (or of those named), drawn from a seed: sides log-uniform in
    [smallest, largest] pixels, so that the content is there at every scale.

    Raises ValueError for a split that is neither "train" nor "heldout".
    """
    if split not in PHOTOGRAPHS:
        raise ValueError(f"split {split!r}: use one of {', '.join(PHOTOGRAPHS)}")
    g, names = torch.Generator().manual_seed(seed), list(names or PHOTOGRAPHS[split])
    drawn = []
    for _ in range(n):
        name = names[int(torch.randint(len(names), (1,), generator=g))]
        size = _image(name).size
        most = math.log(min(largest, *size) / smallest)
        u = float(torch.rand(1, generator=g, dtype=torch.float32))
        side = int(smallest * math.exp(u * max(0.0, most)))
        x, y = (int(torch.randint(m - side + 1, (1,), generator=g)) for m in size)
        mirrored = bool(torch.rand(1, generator=g, dtype=torch.float32) < 0.5)
        caption = f"a photograph of {PHOTOGRAPHS[split][name]}"
        drawn.append(Cut(name, caption, x, y, side, mirrored))
    return drawn


def cut_out(some: Sequence[Cut]) -> Tensor:
    """The crops as uint8 (N, 3, 64, 64), every pixel the mean of those it covers."""
    out = np.empty((len(some), SIZE, SIZE, 3), dtype=np.uint8)
    for k, c in enumerate(some):
        box = (c.x, c.y, c.x + c.side, c.y + c.side)
        crop = _image(c.name).resize((SIZE, SIZE), Image.Resampling.BOX, box=box)
        out[k] = np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if c.mirrored else crop)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def crops(split: str, n: int, seed: int, names: Sequence[str] = ()) -> tuple[Tensor, list[str]]:
    """n square crops (N, 3, 64, 64) in [-1, 1] as `cuts` draws them, and their captions."""
    drawn = cuts(split, n, seed, names=names)
    return cut_out(drawn).float() / 127.5 - 1, [cut.caption for cut in drawn]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [p for split in PHOTOGRAPHS.values() for p in split.values()]
    words = {w for group in NAMES.values() for w in group} | {w for p in phrases for w in p.split()}
    return sorted(words | {"a", "an", "and", "on", "at", "photograph", "of"})
