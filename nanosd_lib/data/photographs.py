"""Photographs that scikit-image ships, and crops of them: some for training, some held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanosd_lib.data.miniworld import NAMES, SIZE

# scikit-image's bundled photographs, split by picture so that no crop of a held-out one is ever
# trained on
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
    },
    "heldout": {"chelsea.png": "a cat", "rocket.jpg": "a rocket"},
}


def photograph(name: str) -> Tensor:
    """A bundled scikit-image photograph as (3, H, W) in [-1, 1]; grey ones are repeated over the
    channels.
    """
    from skimage import data
    from skimage.io import imread

    pixels = np.asarray(imread(Path(data.__file__).parent / name))
    pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels[..., :3]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def crops(
    split: str, n: int, seed: int, smallest: int = 96, largest: int = 256
) -> tuple[Tensor, list[str]]:
    """n square crops (N, 3, 64, 64), sides drawn in [smallest, largest] pixels, and their captions.

    Raises ValueError for a split that is neither "train" nor "heldout".
    """
    if split not in PHOTOGRAPHS:
        raise ValueError(f"split {split!r}: use one of {', '.join(PHOTOGRAPHS)}")
    names = list(PHOTOGRAPHS[split])
    photos, g, out, text = (
        [photograph(p) for p in names],
        torch.Generator().manual_seed(seed),
        [],
        [],
    )
    for _ in range(n):
        i = int(torch.randint(len(names), (1,), generator=g))
        _, h, w = photos[i].shape
        side = int(torch.randint(smallest, min(largest, h, w) + 1, (1,), generator=g))
        y, x = (int(torch.randint(m - side + 1, (1,), generator=g)) for m in (h, w))
        crop = photos[i][None, :, y : y + side, x : x + side]
        if torch.rand(1, generator=g, dtype=torch.float32) < 0.5:
            crop = crop.flip(-1)
        out.append(torch.nn.functional.interpolate(crop, (SIZE, SIZE), mode="area"))
        text.append(f"a photograph of {PHOTOGRAPHS[split][names[i]]}")
    return torch.cat(out), text


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = [p for split in PHOTOGRAPHS.values() for p in split.values()]
    words = {w for group in NAMES.values() for w in group} | {w for p in phrases for w in p.split()}
    return sorted(words | {"a", "an", "and", "on", "at", "photograph", "of"})
