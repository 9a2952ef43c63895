"""Where the sources contradict each other or themselves: what they say, the arithmetic on their own
numbers, and the rows of the ledger that hold it. Everything is computed from `data/paper`.
"""

from __future__ import annotations

from math import prod

import pandas as pd

from nanosd_lib import paper
from nanosd_lib.hardware.prediction import attention_counts
from nanosd_lib.networks import arch
from nanosd_lib.restoration import tiling

COLUMNS = ["sources", "say", "arithmetic", "rows"]


def table() -> pd.DataFrame:
    """sources, say, arithmetic, rows: one row for each contradiction."""
    rows = [*_space(), *_family(), *_cost(), *_quality()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _space() -> list[tuple[str, str, str, str]]:
    sizes = [len(c) for c in arch.CHOICES.values()]
    whole = prod(sizes)
    fewer = [whole // size * (size - 1) for size in (max(sizes), min(sizes))]
    parts = f"one pruned decoder leaves {fewer[0]:,}, one encoder {fewer[1]:,}"
    family = paper.family().set_index("model")
    members = family.loc[[f"NanoSD{k}" for k in range(1, 8)]]
    varied = [s for s in arch.STAGES if members[s].nunique() > 1]
    same = (members.E2 == members.E3).all()
    used = {(s, c) for s in arch.STAGES for c in members[s]}
    decoders = {c for s, c in used if s[0] == "D"}
    return [
        ("poster", "32,768 networks, and inaccurate alternatives are pruned",
         f"{whole:,} is the whole space: {parts}", "space-size, pruned-space-size"),
        ("poster, article", "two objectives; three minimised at once",
         _fronts(members), "objectives-agree, family-pareto"),
        ("poster", "six decisions",
         f"the printed members vary {len(varied)} ({', '.join(varied)})"
         + (", E2 and E3 always alike" if same else "")
         + f", and {len(decoders)} decoders of {max(sizes)} appear", "decision-space"),
    ]  # fmt: skip


def _fronts(members: pd.DataFrame) -> str:
    """Which members are optimal in three, and in two, of the printed columns."""
    said = []
    for columns in (["tafid", "htp_ms", "params_m"], ["tafid", "htp_ms"], ["tafid", "params_m"]):
        t = members[columns].astype(float)
        best = [
            m for m in t.index
            if not ((t <= t.loc[m]).all(axis=1) & (t < t.loc[m]).any(axis=1)).any()
        ]  # fmt: skip
        said.append(f"{', '.join(columns)}: {', '.join(m[6:] for m in best)}")
    return "optimal members in " + "; in ".join(said)


def _family() -> list[tuple[str, str, str, str]]:
    family = paper.family().set_index("model")
    cut = 100 * (1 - family.params_m["NanoSD7"] / family.params_m["SD1.5"])
    n7, n5 = family.loc["NanoSD7"], family.loc["NanoSD5"]
    printed = family.dropna(subset=["tafid"]).tafid
    top = {m: attention_counts(r)[0] for m, r in family.dropna(subset=["htp_ms"]).iterrows()}
    ratio = (family.ane_ms / family.htp_ms).dropna()
    none, some = (
        ratio[[m for m in ratio.index if (top[m] == 0) == empty]] for empty in (True, False)
    )
    gain = {c: family[c]["TinySD"] / family[c]["NanoSD2"] for c in ("htp_ms", "ane_ms")}
    sizes = family.params_from_strings.dropna().astype(float) / 1e6
    ways = [m for m in sizes.index if family.params_m[m] == int(sizes[m]) != round(sizes[m])]
    return [
        ("article", "90 % fewer parameters",
         f"the smallest member cuts {cut:.1f} %, has the worst tAFID of the table ({n7.tafid:g}) at"
         f" {n7.htp_ms:g} ms; N5 is better and faster ({n5.tafid:g}, {n5.htp_ms:g} ms)",
         "ninety-percent-cut, smallest-is-model-7"),
        ("article, poster", "the recommended model's tAFID is 26.7",
         f"the poster's column spans {printed.min():g} to {printed.max():g}",
         "article-model2-tafid"),
        ("poster", "one column of sizes",
         f"{', '.join(ways)} are cut, SD 1.5 is rounded ({sizes['SD1.5']:.1f} to"
         f" {family.params_m['SD1.5']:g}), N5 to N7 stand in tens",
         "params-sd15, params-n1, params-n5"),
        ("poster", "gains on one chip extend to another",
         f"the gain of N2 over TinySD is {gain['htp_ms']:.1f} on the chip it was optimised for and"
         f" {gain['ane_ms']:.1f} on the other: ANE over HTP is {none.min():.1f} to {none.max():.1f}"
         f" without attention at 64x64, {some.min():.1f} to {some.max():.1f} with it",
         "gain-carries-to-ane, attention-at-64-dominates"),
    ]  # fmt: skip


def _cost() -> list[tuple[str, str, str, str]]:
    other = paper.elsewhere().set_index("key").value
    told = paper.restoration()
    decoder = told[told.metric == "htp_w8a16_ms"].value.item()
    slim = told[told.metric == "htp_fp16_ms"].value.sum()
    gmacs = told[told.metric == "gmacs"].set_index("model").value
    family = paper.family().set_index("model")
    n2, tiles = family.htp_ms["NanoSD2"], tiling.Grid(1000, 750, 128, 32).count
    public, peer = other["public-unet"], 24 * other["bk-sdm"]
    both = [
        k for k in range(1, 96)
        if tiling.Grid(1000, 750, 128, k).count == 88
        and tiling.Grid(512, 512, 128, k).count == other["edge-sd-sr-tiles"]
    ]  # fmt: skip
    return [
        ("article", "360 of 750 GPU hours distil; the search is cheap",
         f"{750 - 360} h are left for the rest, {(750 - 360) / 360:.2f} times the distillation;"
         f" {360 / 30:.0f} h a surrogate, where BK-SDM distils a whole model in {peer:.0f} h",
         "search-cheaper-printed, gpu-hours-against-peer"),
        ("poster, article", "memory in w8, latency in w4: two exports",
         f"0.86 GB in w8 are 0.43 in w4; w4 at 116 ms is {116 / public:.1f} times the vendor's"
         f" public w8a16 profile, whose whole U-Net ({public:g} ms) beats the poster's TinySD"
         f" ({family.htp_ms['TinySD']:g} ms)", "sd15-int8-memory, w4-against-public-profile"),
        ("poster", "10.2 s end to end",
         f"{tiles} decoders at {decoder:g} ms add {tiles * decoder / 1e3:.1f} s",
         "end-to-end-with-vae"),
        ("article", "the VAE is distilled after the U-Net; the first joint distillation",
         "SnapFusion slims U-Net and decoder, Edge-SD-SR trains U-Net and encoder together; its"
         f" tile takes {other['edge-sd-sr']:g} ms, N2's with its VAE {n2 + slim:g}",
         "first-joint-codesign, lighter-peer-on-phone"),
        ("poster", "88 tiles",
         f"with Edge-SD-SR's {other['edge-sd-sr-tiles']:g} for 512x512 only an overlap of"
         f" {', '.join(map(str, both))} gives both", "tiles-poster"),
        ("note", "160,640 GMAC fall to 17,120",
         f"a factor of {gmacs['DiffPlugin'] / gmacs['Nano-DiffPlugin']:.1f}, of which the network"
         " is a small part",
         "deblur-macs-ratio"),
    ]  # fmt: skip


def _quality() -> list[tuple[str, str, str, str]]:
    table = paper.restoration().set_index(["model", "metric"]).value
    lpips, cosine = (table["NanoSD", k] for k in ("lpips_vs_sd15", "embedding_cosine"))
    depth = table["Nano-Marigold", "absrel"] / table["Marigold", "absrel"] - 1
    missed = (100 - table["Nano-Marigold", "delta1"]) / (100 - table["Marigold", "delta1"]) - 1
    return [
        ("article, note", "a near-perfect clone",
         f"the note reports a cosine of {cosine:g} and an LPIPS of {lpips:g}",
         "near-perfect-clone-printed, prior-lpips"),
        ("article, note", "depth matches or exceeds",
         f"AbsRel {depth:+.0%}, 1 - delta1 {missed:+.0%}",
         "depth-matches-printed, quality-kept-printed"),
    ]  # fmt: skip
