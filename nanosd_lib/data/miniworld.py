"""miniworld: small ray-cast scenes with captions, depth and attributes (not in the paper: our
stand-in data).

A scene is a handful of integers and floats drawn from a seed; `render` turns a batch of scenes into
pictures (N, 3, 64, 64) in [-1, 1] and depth maps (N, 1, 64, 64) in world units. Everything is
torch, so two cores render about 20,000 scenes a minute and the same seed gives the same world.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

SIZE = 64
SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.50, 0.05),
    "yellow": (0.98, 0.88, 0.10),
    "green": (0.10, 0.62, 0.18),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.70),
    "pink": (0.98, 0.50, 0.72),
}
TEXTURES = ("plain", "striped", "checkered")
GROUNDS = {
    "sand": (0.80, 0.68, 0.48),
    "grass": (0.42, 0.58, 0.26),
    "stone": (0.58, 0.58, 0.60),
    "wood": (0.52, 0.36, 0.22),
    "snow": (0.82, 0.86, 0.92),
}
# light: (zenith colour, horizon colour, sun colour, ambient colour, sun elevation in radians)
LIGHTS = {
    "noon": ((0.30, 0.55, 0.92), (0.78, 0.88, 0.98), (0.80, 0.78, 0.72), (0.38, 0.40, 0.44), 1.05),
    "sunset": (
        (0.45, 0.35, 0.60),
        (0.99, 0.68, 0.42),
        (0.88, 0.62, 0.42),
        (0.36, 0.31, 0.34),
        0.50,
    ),
    "dusk": ((0.10, 0.12, 0.30), (0.40, 0.36, 0.55), (0.52, 0.54, 0.66), (0.30, 0.30, 0.40), 0.80),
}
# what the teacher's U-Net never learns from, so that prompts can ask for what it has not seen
UNSEEN = (("sphere", "purple"), ("cube", "cyan"), ("cylinder", "pink"), ("cone", "orange"))
NAMES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "ground": tuple(GROUNDS),
    "light": tuple(LIGHTS),
}


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes with at most three objects each; an unused slot has `shape` -1."""

    shape: Tensor  # (N, 3) index into SHAPES, -1 where there is no object
    colour: Tensor  # (N, 3) index into COLOURS
    texture: Tensor  # (N, 3) index into TEXTURES
    x: Tensor  # (N, 3) metres, left to right
    z: Tensor  # (N, 3) metres, away from the camera
    r: Tensor  # (N, 3) half-width in metres
    yaw: Tensor  # (N, 3) radians
    ground: Tensor  # (N,)
    light: Tensor  # (N,)
    azimuth: Tensor  # (N,) of the sun, radians
    phase: Tensor  # (N, 8) of the ground's texture

    def __len__(self) -> int:
        return len(self.ground)

    def __getitem__(self, i: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[i] for f in fields(self)})


def joined(parts: list[Scenes]) -> Scenes:
    """Batches of scenes as one."""
    names = [f.name for f in fields(Scenes)]
    return Scenes(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def sample(n: int, seed: int, objects: int | None = None) -> Scenes:
    """Draw n scenes; `objects` fixes their number (1-3), otherwise 45 / 40 / 15 % hold one, two,
    three.
    """
    g = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.rand(*s, generator=g, dtype=torch.float32)  # noqa: E731
    pick = lambda k, *s: torch.randint(k, s, generator=g)  # noqa: E731
    u = rand(n)
    count = (
        torch.where(u < 0.45, 1, torch.where(u < 0.85, 2, 3))
        if objects is None
        else torch.full((n,), objects)
    )
    slot = torch.arange(3)[None]
    used = slot < count[:, None]
    # object k of m stands in the k-th of m lanes, so that captions can read left to right
    lane = (slot.float() + 0.5) / count[:, None] * 2 - 1
    spread = torch.tensor([0.0, 0.75, 1.7, 2.25], dtype=torch.float32)[count][:, None]
    jitter = torch.tensor([0.0, 0.55, 0.22, 0.15], dtype=torch.float32)[count][:, None]
    r = torch.tensor([0.0, 0.95, 0.68, 0.55], dtype=torch.float32)[count][:, None] * (
        0.85 + 0.3 * rand(n, 3)
    )
    return Scenes(
        shape=torch.where(used, pick(len(SHAPES), n, 3), -1),
        colour=pick(len(COLOURS), n, 3),
        texture=pick(len(TEXTURES), n, 3),
        x=lane * spread + jitter * (2 * rand(n, 3) - 1),
        z=(2 * rand(n, 3) - 1) * 0.5,
        r=r,
        yaw=rand(n, 3) * 2 * torch.pi,
        ground=pick(len(GROUNDS), n),
        light=pick(len(LIGHTS), n),
        azimuth=(rand(n) * 2 - 1) * 1.1 + (rand(n) >= 0.5).float() * torch.pi,
        phase=rand(n, 8) * 2 * torch.pi,
    )


def unseen(scenes: Scenes) -> Tensor:
    """Which objects (N, 3) are a pair of shape and colour in `UNSEEN`."""
    pairs = [(SHAPES.index(s), list(COLOURS).index(c)) for s, c in UNSEEN]
    found = [(scenes.shape == s) & (scenes.colour == c) for s, c in pairs]
    return torch.stack(found).any(0)


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def captions(scenes: Scenes) -> list[str]:
    """One sentence a scene, objects from left to right: "a striped red cube and an orange cone on
    grass at noon".
    """
    rows = zip(
        scenes.shape.tolist(),
        scenes.colour.tolist(),
        scenes.texture.tolist(),
        scenes.ground.tolist(),
        scenes.light.tolist(),
        strict=True,
    )
    out = []
    for shape, colour, texture, ground, light in rows:
        things = []
        for s, c, t in zip(shape, colour, texture, strict=True):
            if s >= 0:
                words = [TEXTURES[t]] if t else []
                things.append(_article(" ".join([*words, NAMES["colour"][c], SHAPES[s]])))
        out.append(
            f"{' and '.join(things)} on {NAMES['ground'][ground]} at {NAMES['light'][light]}"
        )
    return out


def scene_prompts(n: int, seed: int, objects: int | None = None) -> list[str]:
    """Captions of n scenes that `sample` would draw: the prompts of every experiment."""
    return captions(sample(n, seed, objects))
