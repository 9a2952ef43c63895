"""Prompt following: does a picture show what its prompt names? A classifier that was trained on
renders alone reads every attribute of every object, from left to right.

Prompts are of kinds, by what the teacher has seen of them: a pair of shape and colour that no scene
of its training held (`miniworld.UNSEEN`), a caption that one had, or a new caption of known pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import miniworld, raycast, splits
from nanosd_lib.networks import pipeline
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import extractors, judges, uncertainty

POOL = 512  # scenes that are drawn at a time until enough are of a kind
MOST = 200  # such draws
SHOWN = 8  # pictures of each kind, which are kept


@dataclass(frozen=True)
class Kind:
    """Number of objects, whether one of them is an unseen pair, whether the caption was trained
    on (None: either).
    """

    objects: int
    unseen: bool
    known: bool | None = None


KINDS = {
    "one object": Kind(1, False),
    "one object, unseen pair": Kind(1, True),
    "two objects, trained caption": Kind(2, False, True),
    "two objects, new caption": Kind(2, False, False),
    "two objects, unseen pair": Kind(2, True),
}
PLAIN = ("one object", "two objects, new caption")


def trained_captions(scenes: int, seed: int) -> frozenset[str]:
    """The captions of all scenes that the teacher's U-Net learned from."""
    drawn = miniworld.sample(scenes, seed)
    return frozenset(miniworld.captions(drawn[~miniworld.unseen(drawn).any(1)]))


def scenes_of(kind: str, n: int, seed: int, trained: frozenset[str]) -> miniworld.Scenes:
    """n scenes of a kind, drawn from the prompts' seeds; ValueError where there are too few."""
    k, found, first = KINDS[kind], [], splits.SEEDS["prompts"] + 1000 * seed
    for draw in range(MOST):
        some = miniworld.sample(POOL, first + 1_000_000 * draw, objects=k.objects)
        fits = miniworld.unseen(some).any(1) == k.unseen
        if k.known is not None:
            fits &= torch.tensor([(c in trained) == k.known for c in miniworld.captions(some)])
        found.append(some[fits])
        if sum(map(len, found)) >= n:
            return miniworld.joined(found)[torch.arange(n)]
    raise ValueError(f"prompts: fewer than {n} of the kind {kind!r} in {POOL * MOST} scenes")


def check_prompts(
    pipe: StableDiffusionPipeline,
    n: int,
    how: Sampling,
    kinds: list[str],
    trained: dict[str, int],
    known: Mapping[str, Tensor] | None = None,
) -> dict:
    """n samples of each kind of prompt: table (kind, attribute, n, value and interval, chance),
    hits (of each prompt: were shape and colour of every object recognised?), and of each kind the
    first eight pictures, their captions, and what was recognised in them; features: of each kind
    the classifier's answers (n, D), which may be `known`.

    trained: {"scenes", "seed"} of the teacher's training, none for a teacher that was trained on
    something else; kinds that ask for a trained caption are then left out. Chance is how often a
    picture shows what the next prompt names.
    """
    seen = trained_captions(**trained) if trained else frozenset()
    net, rows, shown, hits, answers = judges.classifier(), [], {}, {}, {}
    for kind in (k for k in kinds if seen or not KINDS[k].known):
        scenes = scenes_of(kind, n, how.seed, seen)
        captions = miniworld.captions(scenes)
        pictures, answers[kind] = _answered(pipe, net, captions, how, kind, (known or {}).get(kind))
        right = judges.recognised(answers[kind], scenes)
        chance = judges.recognised(answers[kind], scenes[torch.arange(n).roll(-1)])
        rows += _rows(kind, right, chance)
        hits[kind] = right["both"].tolist()
        ticks = {k: v[:SHOWN].tolist() for k, v in right.items()}
        shown[kind] = {"pictures": pictures, "captions": captions[:SHOWN], "right": ticks}
    return {
        "table": pd.DataFrame(rows),
        "hits": pd.DataFrame(hits),
        "pictures": {kind: s["pictures"] for kind, s in shown.items()},
        "captions": {kind: s["captions"] for kind, s in shown.items()},
        "right": {kind: s["right"] for kind, s in shown.items()},
        "features": answers,
    }


def _answered(
    pipe, net, captions: list[str], how: Sampling, kind: str, known: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The first pictures of those captions, and what the classifier answers to all."""

    def draw(n: int) -> tuple[Tensor, Tensor]:
        made = pipeline.generate(pipe, captions[:n], how, kind)
        return judges.answers(net, made), made[:SHOWN].clone()

    answers, pictures = extractors.witnessed(draw, len(captions), SHOWN, kind, known)
    return pictures, answers


def _rows(kind: str, right: dict[str, Tensor], chance: dict[str, Tensor] | None) -> list[dict]:
    rows = []
    for attribute, hits in right.items():
        row = {"kind": kind, "attribute": attribute, "n": len(hits)}
        row |= uncertainty.share(int(hits.sum()), len(hits)).named("value")
        row["chance"] = float(chance[attribute].double().mean()) if chance else None
        rows.append(row)
    return rows


def check_classifier(renders: int, seed: int) -> dict:
    """What the classifier itself reads in held-out renders of one, two and three objects: a table
    as `check_prompts` gives, without chance.
    """
    net, rows = judges.classifier(), []
    for objects in (1, 2, 3):
        where = splits.SEEDS["heldout"] + 7 + 1000 * seed
        scenes = miniworld.sample(renders, where, objects=objects)
        right = judges.recognised(judges.answers(net, raycast.render(scenes)[0]), scenes)
        rows += _rows(f"renders of {objects} objects", right, None)
    return {"table": pd.DataFrame(rows)}
