"""The first two minutes (`make quick`): the same prompts through the teacher and through NanoSD2,
with the weights of the release, and what either costs; one page to look at.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from nanosd_lib import paths
from nanosd_lib.networks import arch, counting, pipeline, surgery
from nanosd_lib.recipes import members, own_network, restore, restoring, shared, surrogates
from nanosd_lib.restoration import photograph, whole
from nanosd_lib.runs import notebook, release
from nanosd_lib.runs.notebook import Run

PROMPTS = (
    "a red cube on grass at noon",
    "a blue sphere and a yellow cone on sand at sunset",
    "a striped green cylinder on snow at noon",
    "a purple cube and an orange sphere on stone at dusk",
)
PHOTOGRAPH, MEGAPIXELS, SEED = "dogs.jpg", 0.12, 1  # held out, damaged by that draw
PARETO = "../reference/figures/05_pareto.png"


@dataclass(frozen=True)
class Drawn:
    """What one network drew, and how long it took."""

    pictures: Tensor
    seconds: float


def network(run: Run, pipe: StableDiffusionPipeline) -> tuple[UNet2DConditionModel, str]:
    """NanoSD2 and a word on how far it was trained: aligned where the release holds it, else
    assembled of its surrogates. `release.Absent` where these are missing too.
    """
    taught = members.released_parts(run, "N2")
    try:
        return members.network(pipe, members.released(run, "N2")), "aligned"
    except release.Absent:
        nets = surrogates.nets(pipe, taught)
        return surgery.assemble(arch.NANOSD["N2"], pipe.unet, nets), "assembled, not aligned"


def draw(pipe: StableDiffusionPipeline, how: pipeline.Sampling) -> Drawn:
    """The prompts, from the same noise for whoever draws."""
    began = time.perf_counter()
    pictures = pipeline.generate(pipe, list(PROMPTS), how)
    return Drawn(pictures, time.perf_counter() - began)


def restored(run: Run, pipe: StableDiffusionPipeline) -> tuple[list[np.ndarray], float]:
    """A held-out photograph, damaged and four times smaller: enlarged by bicubic interpolation,
    restored around NanoSD2, and as it was; and the seconds. `release.Absent` without the adapter.
    """
    system = restore.released(run, pipe)
    good = whole.photograph_of(PHOTOGRAPH, MEGAPIXELS)
    bad = whole.damaged(good, restoring.TRAINED_ON, SEED)
    began = time.perf_counter()
    made = photograph.restored(bad, system, progress=False)
    seconds = time.perf_counter() - began
    large = Image.fromarray(bad).resize(good.shape[1::-1], Image.Resampling.BICUBIC)
    return [np.asarray(large), made, good], seconds


def costs(pipe: StableDiffusionPipeline, drawn: dict[str, Drawn]) -> pd.DataFrame:
    """network, parameters and multiply-adds of the U-Net, seconds here."""
    meta, tokens = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length
    nets = {"teacher": arch.NANOSD["SD1.5"], "NanoSD2": arch.NANOSD["N2"]}
    table = counting.counts(nets, meta, tokens).set_index("model")
    rows = [
        {
            "network": name,
            "parameters": int(table.params[name]),
            "G multiply-adds": round(
                float(table.gmac_linear[name] + table.gmac_attention[name]), 3
            ),
            "seconds for four pictures": round(drawn[name].seconds, 1),
        }
        for name in nets
    ]
    return pd.DataFrame(rows)


_PHOTOGRAPH = """<h2>A photograph, restored around NanoSD2</h2>
<p><img src="restored.png" alt="Three times the same photograph: damaged, restored, as it was.">
<p>Damaged and four times smaller, enlarged by bicubic interpolation; restored in one step, tile by
tile, in {seconds:.1f} s; and as it was. Your own: <code>make restore IMAGE=photo.jpg</code>."""


def page(table: pd.DataFrame, said: str, seconds: float | None) -> str:
    """results/quick/index.html: no script, nothing fetched from anywhere; with the photograph where
    it was restored in so many seconds.
    """
    prompts = "".join(f"<li>{html.escape(p)}</li>" for p in PROMPTS)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>NanoSD, quickly</title>
<style>body{{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}}
img{{max-width:100%}} td,th{{padding:.2em 1em .2em 0;text-align:right}}
:root{{color-scheme:light dark}}</style>
<h1>The same prompts, through the teacher and through NanoSD2</h1>
<p><img src="quick.png" alt="Two rows of four pictures: the teacher's above, NanoSD2's below.">
<ol>{prompts}</ol><p>{html.escape(said)}</p>
{table.to_html(index=False, border=0)}
{"" if seconds is None else _PHOTOGRAPH.format(seconds=seconds)}
<h2>All networks judged in the reference run</h2>
<p><img src="{PARETO}" alt="tAFID against latency and against parameters, of every network judged.">
<p>Go on with the <a href="../reference/notebooks/">executed pages</a>.</html>
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, count, write results/quick/index.html."""
    if argv:
        print(f"error: quick takes no words, got {argv[0]!r}", file=sys.stderr)
        return 2
    folder = paths.results_root() / "quick"
    try:
        run = notebook.open_run("quick", "mini", 0, folder=folder)
        pipe = shared.teacher(run)
        net, trained_how = network(run, pipe)
    except (release.Absent, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    how = shared.sampling(run)["how"].but(steps=20)
    with torch.no_grad():
        drawn = {
            "teacher": draw(pipe, how),
            "NanoSD2": draw(pipeline.with_parts(pipe, unet=net), how),
        }
        seconds = _photograph(run, pipe, folder)
    table = costs(pipe, drawn)
    own_network.sheet([d.pictures for d in drawn.values()], 4).save(folder / "quick.png")
    said = f"{how.steps} steps each, from the same noise; NanoSD2 is {trained_how}."
    path = folder / "index.html"
    paths.write_atomic(path, page(table, said, seconds).encode())
    print(table.to_string(index=False))
    print(f"\n{said}\nlook at {paths.shown(path)}")
    return 0


def _photograph(run: Run, pipe: StableDiffusionPipeline, folder: Path) -> float | None:
    """Write restored.png; the seconds, or None where the release has no adapter."""
    try:
        pictures, seconds = restored(run, pipe)
    except release.Absent as error:
        print(f"no photograph is restored: {error}")
        return None
    gap = ((0, 0), (0, 8), (0, 0))
    row = np.concatenate([np.pad(x, gap, constant_values=255) for x in pictures], 1)
    Image.fromarray(row).save(folder / "restored.png")
    return seconds
