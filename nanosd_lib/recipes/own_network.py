"""A reader's own network: assembled from the surrogates, judged without training, and laid beside
the published nine (`make judge ARCH="R RA RA | RARA RRA RRA"`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib import paths
from nanosd_lib.hardware import timing
from nanosd_lib.networks import arch, counting
from nanosd_lib.networks.arch import Arch
from nanosd_lib.recipes import shared, surrogates
from nanosd_lib.recipes.surrogates import Taught
from nanosd_lib.runs import notebook
from nanosd_lib.runs.notebook import Artifact, Run

YOURS = "yours"


def read(text: str, taught: Taught) -> Arch:
    """The network of that string; ValueError, in one line, says what is allowed: for a string of
    another form, a code that no stage has, and a surrogate that nobody taught.
    """
    a = Arch.parse(text)
    if a.deep:
        raise ValueError(
            f"arch {text!r} keeps E4, M and D4, which are no surrogates: write six codes,"
            " as in 'R RA RA | RARA RARA RR'"
        )
    for stage, code in a.stages.items():
        if code != arch.BASE[stage] and f"{stage}:{code}" not in taught.trained:
            there = [k.split(":")[1] for k in taught.trained if k.startswith(f"{stage}:")]
            raise ValueError(
                f"arch {text!r}: nobody taught {stage}:{code}; use one of"
                f" {', '.join([arch.BASE[stage], *there])} (notebook 03 teaches the others)"
            )
    return a


def judged(
    run: Run, pipe, text: str, taught: Taught, draw: int = 1
) -> tuple[pd.DataFrame, dict[str, Artifact], Artifact]:
    """Your network beside those of the nine whose surrogates are there, all assembled and not
    aligned: network, arch, params, gmac, ms (with quartiles, all in turns), tafid (with interval),
    better (how many of the others have a smaller tAFID), protocol; what was measured of each; the
    teacher's side.
    """
    mine = read(text, taught)
    models = {YOURS: str(mine)}
    models |= {k: str(a) for k, a in arch.NANOSD.items() if not a.deep and _there(a, taught)}
    against = shared.reference(run, pipe, run.profile.search.images, draw)
    judge = shared.judge(run, pipe, surrogates.later(pipe, taught), against, [taught.key], draw)
    made = {k: judge(arch=a) for k, a in tqdm(models.items(), desc="networks")}
    meta, tokens = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length
    costs = counting.counts({k: Arch.parse(a) for k, a in models.items()}, meta, tokens)
    costs = costs.set_index("model")
    c = run.profile.cost
    how = {"archs": models, "batch": c.batch, "tokens": tokens, "repeats": c.repeats}
    ms = run.cached(
        "profile-own", timing.profile_networks, how | {"warmup": c.warmup}, [run.teacher_key],
        quiet=True, measured=True, teacher=pipe.unet,
    )["table"].set_index("name")  # fmt: skip
    table = pd.DataFrame({"network": list(models), "arch": list(models.values())})
    table["params"] = costs.params.reindex(table.network).to_numpy()
    gmac = costs.gmac_linear + costs.gmac_attention
    table["gmac"] = gmac.reindex(table.network).to_numpy()
    for end in ("median", "low", "high"):
        table[f"ms_{end}"] = ms[f"ms_{end}"].reindex(table.network).to_numpy()
    for end in ("tafid", "tafid_low", "tafid_high"):
        table[end] = [made[k]["scores"][end] for k in table.network]
    table["better"] = [int((table.tafid < x).sum()) for x in table.tafid]
    return table.assign(protocol=against["floor"]["protocol"]), made, against


def _there(a: Arch, taught: Taught) -> bool:
    keys = [f"{s}:{c}" for s, c in a.stages.items() if c != arch.BASE[s]]
    return all(k in taught.trained for k in keys)


def said(table: pd.DataFrame) -> str:
    """Where your network stands, in a sentence."""
    by = table.set_index("network")
    mine, others = by.loc[YOURS], by.drop(index=YOURS)
    same = others[(others.tafid_low < mine.tafid_high) & (others.tafid_high > mine.tafid_low)]
    ahead = others[(others.tafid < mine.tafid) & (others.ms_median < mine.ms_median)]
    each = [f"{k} ({r.ms_median:.0f} ms, tAFID {r.tafid:.1f})" for k, r in ahead.iterrows()]
    beaten = (
        f"in this timing, beside it in turns, both faster and nearer: {', '.join(each)}"
        if each
        else ("none of the others is both faster and nearer")
    )
    return (
        f"{mine.arch}: {mine.params / 1e6:.2f} M parameters, {mine.gmac:.2f} G multiply-adds,"
        f" {mine.ms_median:.0f} ms here ({mine.ms_low:.0f} to {mine.ms_high:.0f}), tAFID"
        f" {mine.tafid:.1f} ({mine.tafid_low:.1f} to {mine.tafid_high:.1f}) without alignment;"
        f" {mine.better:.0f} of {len(others)} published networks come out nearer to the teacher,"
        f" with {len(same)} of them its interval overlaps; {beaten}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Judge one network; tables and pictures in results/judge."""
    parser = argparse.ArgumentParser(prog='make judge ARCH="R RA RA | RARA RRA RRA"')
    parser.add_argument("--arch", required=True)
    parser.add_argument("--profile", default="mini")
    args = parser.parse_args(argv)
    try:
        Arch.parse(args.arch)  # before anything is loaded
        folder = paths.results_root() / "judge"
        run = notebook.open_run("judge", args.profile, 0, folder=folder)
        pipe = shared.teacher(run)
        taught = surrogates.there(run, pipe)
        table, made, against = judged(run, pipe, args.arch, taught)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    run.table("judge", table)
    path = folder / "judge.png"
    mine = made[YOURS]["pictures"]["pictures"]
    sheet([against["pictures"]["teacher"][:4], mine[:4]]).save(path)
    shown = ["network", "params", "gmac", "ms_median", "tafid", "tafid_low", "tafid_high"]
    print(table[shown].to_string(index=False, float_format="{:.4g}".format))
    print(f"\n{said(table)}\npictures, above the teacher's: {paths.shown(path)}")
    return 0


def sheet(rows: Sequence[Tensor], times: int = 3) -> Image.Image:
    """Rows of pictures (N, 3, H, W) in [-1, 1] as one image, each pixel so many wide."""
    x = torch.cat([torch.cat(list(row), 2) for row in rows], 1).permute(1, 2, 0)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    image = Image.fromarray(pixels)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
