"""What notebooks 03 and 04 write into the ledger: numbers of trained surrogates and autoencoders,
each with the interval of its kind. One seed is one seed: rows that ask for more say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nanosd_lib import paper
from nanosd_lib.hardware import tile
from nanosd_lib.networks import counting, sd15
from nanosd_lib.networks.arch import EXTRA, NANOSD
from nanosd_lib.quality import ratios, uncertainty
from nanosd_lib.quality.uncertainty import Interval
from nanosd_lib.recipes import shared
from nanosd_lib.recipes.surrogates import Taught
from nanosd_lib.recipes.trained import Trained
from nanosd_lib.runs.notebook import Artifact, Run

LOW_ERROR = 0.1  # of the teacher's variance (ours)
NEARLY = 1.1  # of the final error
NEAR_REAL = 1.05  # of the teacher's distance to renders


# -------------------------------------------------------------------------------------- notebook 03
def surrogates(run: Run, taught: Taught, table: pd.DataFrame, left: Mapping[str, Any]) -> None:
    """Rows on the thirty surrogates: table as surrogates.csv, left: the choices of each stage after
    pruning.
    """
    f, steps = run.profile.fwkd, taught.how
    longest = max(t.settings.budget["steps"] for t in taught.trained.values())
    by = taught.curve.pivot(index="share", columns="surrogate", values="relative_error")
    by = by.drop(columns=":".join(EXTRA)).dropna()
    ends = [
        Interval(r.relative_error, r.relative_error_low, r.relative_error_high)
        for r in table.itertuples()
    ]
    run.record("surrogates-trained", shared.counted(ends, lambda x: x < 1), steps, n=f.heldout)
    low = shared.counted(ends, lambda x: x < LOW_ERROR)
    run.record("fwkd-low-error", low, steps, n=f.heldout, steps=longest, possible=low.high)
    median = by.median(axis=1)
    quick = float(median[median <= NEARLY * median.iloc[-1]].index[0])
    last = 1 - median.iloc[-1] / median.iloc[-2]
    run.record(
        "fwkd-shallow", quick, f"{steps}, held-out median at each quarter",
        guards={"steps-of-the-longest-run-over-these": 1}, steps=longest, last_quarter=last,
    )  # fmt: skip
    gone = shared.counted(ends, lambda x: x > f.keep_error)
    worst = table.relative_error.max()
    said = f"relative error above {f.keep_error:g}, the profile's threshold; {steps}"
    run.record("fwkd-prunes", gone, said, threshold=f.keep_error, worst=worst)
    networks = int(np.prod([len(v) for v in left.values()]))
    run.record("pruned-space-size", networks, f"error alone, threshold {f.keep_error:g}")
    hours = paper.elsewhere().set_index("key").value
    run.record("gpu-hours-against-scratch", 360 / (24 * hours["sd-training"]), "printed figures")
    peer = 24 * hours["bk-sdm"]
    run.record("gpu-hours-against-peer", 360 / peer, "printed figures", peer=peer)


def less_data(run: Run, amounts: pd.DataFrame) -> None:
    """amounts as fwkd_data.csv."""
    off = (amounts.error_less_data / amounts.error_all_data).median()
    how = (
        f"{run.profile.fwkd.data_fraction:.0%} of the latents, {len(amounts)} surrogates, one seed"
    )
    run.record("fwkd-quarter-of-data", off, how, seeds=1, epochs=amounts.epochs_less[0])


def assembled(run: Run, against: Artifact, made: Mapping[str, Artifact]) -> dict[str, Interval]:
    """Rows on N2 assembled: made with "D4", "E3" (its own target) and "nothing" taught."""
    teacher, n = against["features"]["teacher"], len(against["prompts"])
    f = {k: shared.features(a, against) for k, a in made.items()}
    own = uncertainty.frechet_ratio([f["E3"]], [f["D4"]], teacher)
    protocol, one = against["floor"]["protocol"], {"n": n, "seeds": 1}
    run.record("e3-own-target", own, protocol, guards={"pictures": n}, **one)
    cut = uncertainty.frechet_ratio([f["nothing"]], [f["D4"]], teacher)
    run.record("plain-pruning-collapses", cut, protocol, **one)
    return {"E3's own target": own, "nothing taught": cut}


# -------------------------------------------------------------------------------------- notebook 04
def slim_vae(
    run: Run,
    kinds: pd.DataFrame,
    channels: Sequence[pd.DataFrame],
    ablated: pd.DataFrame,
    teacher: pd.DataFrame,
    students: Mapping[tuple[str, int], Trained],
) -> None:
    """Rows on the slim VAE: kinds as vae.csv with the column pictures; channels of each seed's
    student; ablated as vae_ablation.csv; teacher as teacher.csv (for bicubic).
    """
    steps = min(t.steps for (kind, _), t in students.items() if kind == "slim")
    v, whole = run.profile.vae, kinds[(kinds.model == "slim") & (kinds.part == "both")]
    base = kinds[kinds.model == "teacher"].set_index("pictures").psnr
    psnr = whole.pivot(index="seed", columns="pictures", values="psnr")
    lost = base - psnr
    scenes, photographs = "held-out scenes", "held-out photographs"
    found = teacher[(teacher.check == "VAE PSNR (dB)") & (teacher.kind == scenes)].iloc[0]
    how = f"{v.heldout} scenes, {steps} steps of batch {v.batch}"
    run.record(
        "vae-loses-little", uncertainty.over_seeds(lost[scenes]), how, n=v.heldout,
        seeds=len(lost), guards={"teacher-above-bicubic": found.value - found.beside},
        steps=steps, photographs=lost[photographs].mean(),
    )  # fmt: skip
    worst = [t.explained.min() for t in channels]
    corr = min(t["corr"].min() for t in channels)
    said = f"{v.heldout} scenes and crops of photographs, {steps} steps"
    run.record(
        "vae-keeps-latents", uncertainty.over_seeds(worst), said, seeds=len(worst), corr=corr
    )
    by = ablated[ablated.pictures == scenes].set_index("left_out")
    all_ = by.loc["nothing"]
    apart = {
        "latent": all_.latent_corr - by.latent_corr["latent"],
        "reconstruction": all_.psnr - by.psnr["reconstruction"],
        "perceptual": by.lpips["perceptual"] / all_.lpips,
    }
    for term, x in apart.items():
        steps = int(ablated.steps.min())
        run.record(f"vae-term-{term}", x, f"{steps} steps, one seed", seeds=1, steps=steps)


def codesign(
    run: Run, each: Mapping[tuple[str, str, str], Artifact], against: Artifact, ways: set[str]
) -> None:
    """Rows on the four pipelines: `each` by (unet, vae, aligned) as `slimming.combinations`; the
    ways in which the networks were aligned.
    """
    guards = {"trained-alike": (float(len(ways) == 1),) * 3}
    teacher, protocol = against["features"]["teacher"], against["floor"]["protocol"]
    both = each["slim", "slim", "slim latents"]
    one = each["slim", "teacher", "teacher's latents"]
    above, below = ([shared.features(x, against)] for x in (both, one))
    kept = uncertainty.frechet_ratio(above, below, teacher)
    run.record("codesign-preserves-prior", kept, protocol, n=len(teacher), guards=guards)
    other = each["slim", "slim", "teacher's latents"]
    gain = uncertainty.mean(both["psnr"]["psnr"] - other["psnr"]["psnr"])
    said = f"one step, alignment {'; '.join(sorted(ways))}, pairs of pictures"
    n = len(both["psnr"]["psnr"])
    run.record("alignment-on-slim-latents", gain, said, n=n, guards=guards)


def tiles(run: Run, wide: pd.DataFrame, measured: pd.DataFrame, mini: float, where: str) -> None:
    """Rows on the pipeline at SD 1.5's size: wide as `tile.vae_costs`, measured the profile of its
    parts, mini the same ratio on sd-mini.
    """
    million = wide.set_index(["model", "part"]).params / 1e6
    for part in ("encoder", "decoder"):
        how = "the layout of networks.vae at SD 1.5's width"
        run.record(f"vae-{part}-params", million["slim", part], how)
    gmac = wide.groupby("model").gmac.sum()
    nets = {k: NANOSD[k] for k in ("SD1.5", "N2")}
    counts = counting.counts(nets, sd15.unet()).set_index("model")
    unet = counts.gmac_linear + counts.gmac_attention
    heavy = gmac["teacher"] / (gmac["teacher"] + unet["SD1.5"])
    run.record("sd15-vae-is-heavy", heavy, "multiply-adds of one tile, the U-Net once")
    s3diff = unet["N2"] + gmac["slim"]
    run.record("sr-s3diff-gmacs", s3diff, "N2 and our slim VAE, one pass, SD 1.5's width")
    rows = measured.set_index(["component", "model", "backend"])
    sums: dict[str, dict[str, pd.Series]] = {}
    for backend in measured.backend.unique():
        sums[backend] = {}
        for name, (unet_, net) in tile.CONFIGURATIONS.items():
            parts = [("text encoder", "teacher"), ("VAE encoder", net)]
            parts += [("U-Net", unet_), ("VAE decoder", net)]
            kept = [rows.loc[(*p, backend)][["ms_median", "ms_low", "ms_high"]] for p in parts]
            sums[backend][name] = sum(kept[1:], kept[0]).astype(float)
    found = {b: ratios.ratio(s["both slim"], s["slim U-Net"]) for b, s in sums.items()}
    others = {b: x.value for b, x in found.items() if b != "eager"} | {"sd-mini": mini}
    run.record(
        "codesign-removes-bottleneck", found["eager"], where, backend="eager", elsewhere=others
    )
    _printed_tiles(run)


def _printed_tiles(run: Run) -> None:
    """Arithmetic on printed milliseconds and parameters of a tile."""
    said, other = paper.restoration(), paper.elsewhere()
    vae = said[said.task == "vae"]
    slim = vae[vae.metric == "htp_fp16_ms"].set_index("model").value
    decoder = vae[vae.metric == "htp_w8a16_ms"].value.item()
    family, by = paper.family().set_index("model"), other.set_index("key").value
    n2, whole = family.htp_ms["NanoSD2"], slim.sum()
    printed = "published figures, NanoSD2"
    bottleneck = (n2 + whole) / (n2 + slim["encoder"] + decoder)
    run.record("phone-pipeline-bottleneck", bottleneck, printed)
    peer, fastest = by["edge-sd-sr"], family.htp_ms.min()
    facts = {"fastest": (fastest + whole) / peer, "peer_params": by["edge-sd-sr-params"]}
    run.record("lighter-peer-on-phone", (n2 + whole) / peer, printed, **facts)
    params = vae[vae.metric == "params_m"].value.sum() + family.params_m["NanoSD2"]
    run.record("sr-s3diff-params", params, printed)
    earlier = other[other.key == "earlier-codesign"]
    works = " and ".join(f"{r.work} ({r.link.split('/')[-1]})" for r in earlier.itertuples())
    run.record("first-joint-codesign", len(earlier), "data/paper/elsewhere.csv", works=works)
