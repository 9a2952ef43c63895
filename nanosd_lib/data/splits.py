"""What the experiments train and measure on: pictures of a split, their latents and text embeddings
under a teacher's own encoders, and noisy batches of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import folder, miniworld, photographs, raycast
from nanosd_lib.networks import pipeline

KINDS = ("held-out scenes", "held-out photographs")
SEEDS = {"train": 101, "heldout": 202, "prompts": 303}  # never the seed the teacher was trained on
# of the 1,000,003 steps that `learning.fit.rng` gives a seed: none trains so far
HELDOUT_STEP = 900_000


@dataclass(frozen=True)
class Latents:
    """Scaled latents (N, 4, h, w), text embeddings (N, T, D), and the embedding of the empty prompt
    (1, T, D); `own` are a student VAE's latents of the same pictures, where there is one.
    """

    z: Tensor
    text: Tensor
    empty: Tensor
    own: Tensor | None = None

    def __post_init__(self) -> None:
        if self.own is not None and len(self.own) != len(self.z):
            raise ValueError(f"own has {len(self.own)} latents, z {len(self.z)}: encode the same")

    def __len__(self) -> int:
        return len(self.z)


def pictures(split: str, scenes: int, crops: int, seed: int) -> tuple[Tensor, list[str]]:
    """Renders, then photograph crops of the split ("train" or "heldout"), resized to nothing:
    64x64, with captions.
    """
    batch = miniworld.sample(scenes, SEEDS[split] + 1000 * seed)
    x, text = raycast.render(batch, progress=True)[0], miniworld.captions(batch)
    if crops:
        patch, patch_text = photographs.crops(split, crops, SEEDS[split] + 1000 * seed)
        x, text = torch.cat([x, patch]), text + patch_text
    return x, text


def batches(
    split: str,
    scenes: int,
    crops: int,
    seed: int,
    side: int,
    few: int,
    mine: folder.Photographs | None = None,
) -> tuple[Iterable[Tensor], list[str]]:
    """`pictures` a few at a time; of a user's own photographs, if there are any, as many crops in
    the place of both, side x side.
    """
    if mine is not None:
        return folder.crops(mine, split, scenes + crops, side, SEEDS[split] + 1000 * seed, few)
    x, text = pictures(split, scenes, crops, seed)
    return x.split(few), text


def latents(
    pipe: StableDiffusionPipeline,
    split: str,
    scenes: int,
    crops: int,
    seed: int,
    mine: folder.Photographs | None = None,
) -> dict[str, dict[str, Tensor]]:
    """`Latents` of a split as plain tensors."""
    z, text = _latents(pipe, split, scenes, crops, seed, mine)
    return {
        "latents": {"z": z, "text": pipeline.embed(pipe, text), "empty": pipeline.embed(pipe, [""])}
    }


def latents_alone(
    pipe: StableDiffusionPipeline,
    split: str,
    scenes: int,
    crops: int,
    seed: int,
    mine: folder.Photographs | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The latents of `latents` without its text, for another VAE of the same pictures."""
    return {"latents": {"z": _latents(pipe, split, scenes, crops, seed, mine)[0]}}


def _latents(
    pipe: StableDiffusionPipeline,
    split: str,
    scenes: int,
    crops: int,
    seed: int,
    mine: folder.Photographs | None,
) -> tuple[Tensor, list[str]]:
    """Pictures brought to the size the teacher works at and encoded, a few at a time; captions."""
    size, z = pipeline.side(pipe), []
    few = 4096 if size <= 64 else 16  # large pictures are never all in memory
    parts, text = batches(split, scenes, crops, seed, size, few, mine)
    for some in tqdm(parts, desc=f"latents, {split}", total=-(-len(text) // few), leave=False):
        z.append(pipeline.encode(pipe, pipeline.sized(some, size), batch=min(few, 64)))
    return torch.cat(z), text


class Rows:
    """Rows of a tensor that are made when they are asked for: what a few steps of a training look
    at, without the rest. `shape` is that of all of it, `make` takes indices (M,); what was asked
    for last is kept.
    """

    def __init__(self, n: int, make: Callable[[Tensor], Tensor]) -> None:
        self._make = functools.lru_cache(maxsize=16)(lambda i: make(torch.tensor(i)))
        one = make(torch.zeros(1, dtype=torch.int64))
        self.shape, self.dtype, self.device = (n, *one.shape[1:]), one.dtype, one.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: Tensor) -> Tensor:
        return self._make(tuple(i.tolist())).clone()


def pictures_on_demand(
    split: str, scenes: int, crops: int, seed: int
) -> tuple[Callable[[Tensor], Tensor], list[str]]:
    """`pictures`, those of any indices (M,) made when they are asked for, and all captions."""
    drawn = miniworld.sample(scenes, SEEDS[split] + 1000 * seed)
    cuts = photographs.cuts(split, crops, SEEDS[split] + 1000 * seed)

    def look(i: Tensor) -> Tensor:
        x = torch.empty(len(i), 3, miniworld.SIZE, miniworld.SIZE, dtype=torch.float32)
        scene = i < scenes
        if scene.any():
            x[scene] = raycast.render(drawn[i[scene]])[0]
        if not scene.all():
            some = photographs.cut_out([cuts[k] for k in (i[~scene] - scenes).tolist()])
            x[~scene] = some.float() / 127.5 - 1
        return x

    return look, miniworld.captions(drawn) + [cut.caption for cut in cuts]


def on_demand(
    pipe: StableDiffusionPipeline, split: str, scenes: int, crops: int, seed: int
) -> Latents:
    """`latents` of scenes and bundled photographs, each row made when it is asked for."""
    look, text = pictures_on_demand(split, scenes, crops, seed)
    size = pipeline.side(pipe)

    def encoded(i: Tensor) -> Tensor:
        return pipeline.encode(pipe, pipeline.sized(look(i), size))

    def embedded(i: Tensor) -> Tensor:
        return pipeline.embed(pipe, [text[k] for k in i.tolist()])

    z, words = Rows(len(text), encoded), Rows(len(text), embedded)
    return Latents(cast(Tensor, z), cast(Tensor, words), pipeline.embed(pipe, [""]))


def fingerprint(
    pipe: StableDiffusionPipeline, split: str, scenes: int, crops: int, seed: int, few: int = 16
) -> dict[str, dict[str, float]]:
    """A few numbers that are others where the pictures, the VAE or the text encoder are: of the
    first scenes and the first crops, made anew.
    """
    data = on_demand(pipe, split, scenes, crops, seed)
    found: dict[str, float] = {}
    n = len(data)
    for name, first, end in (("scenes", 0, scenes), ("crops", scenes, n)):
        i = torch.arange(first, min(end, first + few))
        if len(i):
            z, text = data.z[i].float(), data.text[i].float()
            found |= {f"{name}.abs": float(z.abs().mean()), f"{name}.std": float(z.std())}
            found[f"{name}.text"] = float(text.abs().mean())
    return {"found": found}


def of(artifact) -> Latents:
    """The `Latents` in a finished latents stage."""
    return Latents(**{k: artifact["latents"][k] for k in ("z", "text", "empty")})


def prompts(n: int, seed: int, objects: int | None = None) -> list[str]:
    """Captions of n scenes that no split holds: what images are generated from.

    Held out are scenes (by seed), not captions: there are 1,440 of one object, and most of them the
    teacher was trained on; with two objects they hardly recur.
    """
    return miniworld.scene_prompts(n, SEEDS["prompts"] + 1000 * seed, objects)


def noisy(
    data: Latents,
    scheduler,
    batch: int,
    g: torch.Generator,
    drop: float = 0.1,
    device: torch.device | None = None,
    between: tuple[float, float] = (0, 1),
    among: Tensor | None = None,
) -> dict[str, Tensor]:
    """One diffusion batch on that device (default: where the latents are), drawn from all latents
    or from those rows: x_t, t uniform in that part of the schedule, text (10 % empty) and the
    noise; `own` is x_t of the student VAE's latents under the same noise, where there is one.

    The paper does not say which timesteps FwKD sees; uniform is the diffusion loss's own choice.
    """
    n = len(data) if among is None else len(among)
    i = torch.randint(n, (batch,), generator=g)
    i = i if among is None else among[i]
    first, last = (round(part * scheduler.config.num_train_timesteps) for part in between)
    t = torch.randint(first, last, (batch,), generator=g)
    noise = torch.randn(batch, *data.z.shape[1:], generator=g, dtype=torch.float32)
    empty = torch.rand(batch, 1, 1, generator=g, dtype=torch.float32) < drop
    device, dtype = device or data.z.device, data.z.dtype
    # from the schedule itself: a sampler's own add_noise depends on the steps it was last set to
    a = scheduler.alphas_cumprod.cpu()[t].float()[:, None, None, None]
    text = torch.where(empty.to(data.text.device), data.empty, data.text[i])
    made = {"t": t.to(device), "text": text.to(device), "noise": noise.to(device, dtype)}
    for name, z in (("x", data.z), ("own", data.own)):
        if z is not None:
            x = a.sqrt() * z[i].cpu().float() + (1 - a).sqrt() * noise
            made[name] = x.to(device, dtype)
    return made


def heldout_pictures(
    pipe: StableDiffusionPipeline, n: int, seed: int, mine: folder.Photographs | None = None
) -> dict[str, Tensor]:
    """n held-out scenes and n crops of held-out photographs (the user's own, if there are any), at
    the size the teacher works at.
    """
    where, side = SEEDS["heldout"] + 1000 * seed, pipeline.side(pipe)
    kinds = {"held-out scenes": _scenes(n, where).clone()}
    if mine is None:
        kinds["held-out photographs"] = photographs.crops("heldout", n, where)[0]
    else:
        x = torch.cat(list(folder.crops(mine, "heldout", n, side, where, 16)[0]))
        mixed = torch.randperm(n, generator=torch.Generator().manual_seed(where))
        kinds["held-out photographs"] = x[mixed]  # the first eight are shown: not all of one
    return {k: pipeline.sized(x, side) for k, x in kinds.items()}


@functools.lru_cache(maxsize=2)
def _scenes(n: int, seed: int) -> Tensor:
    """Rendered scenes: a notebook looks at the same ones many times."""
    return raycast.render(miniworld.sample(n, seed))[0]


def heldout_photographs(
    pipe: StableDiffusionPipeline, n: int, seed: int, mine: folder.Photographs | None = None
) -> dict[str, Tensor]:
    """n crops of each held-out photograph (of the user's own, if there are any), by file name."""
    where, side = SEEDS["heldout"] + 1000 * seed, pipeline.side(pipe)
    if mine is None:
        names = photographs.PHOTOGRAPHS["heldout"]
        cut = {name: photographs.crops("heldout", n, where, names=[name])[0] for name in names}
        return {name: pipeline.sized(x, side) for name, x in cut.items()}
    alone = {
        file: folder.Photographs(mine.folder, {"heldout": [(file, caption)]})
        for file, caption in mine.splits["heldout"]
    }
    return {
        file: torch.cat(list(folder.crops(one, "heldout", n, side, where, 16)[0]))
        for file, one in alone.items()
    }


def heldout_sets(
    pipe: StableDiffusionPipeline, n: int, seed: int, mine: folder.Photographs | None = None
) -> dict[str, list[Tensor]]:
    """About n held-out pictures of each kind in sets that count as one: each scene by itself, all
    crops of a photograph together.
    """
    scenes = heldout_pictures(pipe, n, seed, mine)["held-out scenes"]
    names = heldout_photographs(pipe, 1, seed, mine)
    each = heldout_photographs(pipe, max(1, n // len(names)), seed, mine)
    return dict(zip(KINDS, ([*scenes.split(1)], [*each.values()]), strict=True))


def judged(mine: object) -> str:
    """Which held-out pictures a single number is given of: a user's own where there are any (not
    None), scenes otherwise.
    """
    return "held-out scenes" if mine is None else "held-out photographs"


def heldout_batches(
    latents: Latents,
    pipe: StableDiffusionPipeline,
    n: int,
    seed: int,
    batch: int = 32,
    between: tuple[float, float] = (0, 1),
) -> list[dict[str, Tensor]]:
    """Fixed noisy batches of about n held-out latents, t in that part of the schedule: batch k is
    drawn from (seed, k), and no step of a training from the same, whatever its seed.
    """
    first, few = seed * 1_000_003 + HELDOUT_STEP, min(batch, n)
    draws = [torch.Generator().manual_seed(first + k) for k in range(max(1, n // batch))]
    how = {"device": pipe.device, "between": between}
    return [noisy(latents, pipe.scheduler, few, g, **how) for g in draws]
