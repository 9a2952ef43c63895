"""The first two minutes (`make quick`): the same prompts through the teacher and through NanoSD 2,
with the weights of the release, and what either costs; one page to look at.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from nanosd_lib import paths
from nanosd_lib.networks import arch, counting, pipeline, surgery
from nanosd_lib.recipes import members, own_network, shared, surrogates, trained
from nanosd_lib.recipes.trained import Trained
from nanosd_lib.runs import notebook, release
from nanosd_lib.runs.notebook import Run

PROMPTS = (
    "a red cube on grass at noon",
    "a blue sphere and a yellow cone on sand at sunset",
    "a striped green cylinder on snow at noon",
    "a purple cube and an orange sphere on stone at dusk",
)
N2 = str(arch.NANOSD["N2"])
PARETO = "../reference/figures/05_pareto.png"


@dataclass(frozen=True)
class Drawn:
    """What one network drew, and how long it took."""

    pictures: Tensor
    seconds: float


def network(run: Run, pipe: StableDiffusionPipeline) -> tuple[UNet2DConditionModel, str]:
    """NanoSD 2 and a word on how far it was trained: aligned where the release holds it, else
    assembled of its surrogates. `release.Absent` where these are missing too.
    """
    taught = _parts(run)
    try:
        return members.network(pipe, aligned(run)), "aligned"
    except release.Absent:
        nets = surrogates.nets(pipe, taught)
        return surgery.assemble(arch.NANOSD["N2"], pipe.unet, nets), "assembled, not aligned"


def aligned(run: Run) -> Trained:
    """NanoSD 2 as it lies in the release; `release.Absent` where it does not."""
    return trained.found(run, members.member(N2, _parts(run)))


def _parts(run: Run) -> surrogates.Taught:
    """The surrogates that NanoSD 2 is made of; `release.Absent` where one is missing."""
    changed = [(s, c) for s, c in arch.NANOSD["N2"].stages.items() if c != arch.BASE[s]]
    parts = [trained.found(run, surrogates.member(s, c)) for s, c in changed]
    by = {f"{s}:{c}": t for (s, c), t in zip(changed, parts, strict=True)}
    return surrogates.Taught(by, pd.DataFrame())


def draw(pipe: StableDiffusionPipeline, how: pipeline.Sampling) -> Drawn:
    """The prompts, from the same noise for whoever draws."""
    began = time.perf_counter()
    pictures = pipeline.generate(pipe, list(PROMPTS), how)
    return Drawn(pictures, time.perf_counter() - began)


def costs(pipe: StableDiffusionPipeline, drawn: dict[str, Drawn]) -> pd.DataFrame:
    """network, parameters and multiply-adds of the U-Net, seconds here."""
    meta, tokens = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length
    nets = {"teacher": arch.NANOSD["SD1.5"], "NanoSD 2": arch.NANOSD["N2"]}
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


def page(table: pd.DataFrame, said: str) -> str:
    """results/quick/index.html: no script, nothing fetched from anywhere."""
    prompts = "".join(f"<li>{html.escape(p)}</li>" for p in PROMPTS)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>NanoSD, quickly</title>
<style>body{{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}}
img{{max-width:100%}} td,th{{padding:.2em 1em .2em 0;text-align:right}}
:root{{color-scheme:light dark}}</style>
<h1>The same prompts, through the teacher and through NanoSD 2</h1>
<p><img src="quick.png" alt="Two rows of four pictures: the teacher's above, NanoSD 2's below.">
<ol>{prompts}</ol><p>{html.escape(said)}</p>
{table.to_html(index=False, border=0)}
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
            "NanoSD 2": draw(pipeline.with_parts(pipe, unet=net), how),
        }
    table = costs(pipe, drawn)
    own_network.sheet([d.pictures for d in drawn.values()], 4).save(folder / "quick.png")
    said = f"{how.steps} steps each, from the same noise; NanoSD 2 is {trained_how}."
    path = folder / "index.html"
    paths.write_atomic(path, page(table, said).encode())
    print(table.to_string(index=False))
    print(f"\n{said}\nlook at {paths.shown(path)}")
    return 0
