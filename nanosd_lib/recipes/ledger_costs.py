"""What notebooks 01 and 02 write into the ledger, and what the printed tables say about themselves:
counted, timed, and arithmetic on printed numbers. Nothing here is computed for long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from nanosd_lib import paper
from nanosd_lib.hardware import builders, prediction
from nanosd_lib.networks import arch, counting, sd15
from nanosd_lib.networks.arch import NANOSD, STAGES
from nanosd_lib.quality import metrics, ratios, uncertainty
from nanosd_lib.quality.uncertainty import Interval
from nanosd_lib.recipes import shared
from nanosd_lib.restoration import tiling
from nanosd_lib.runs.notebook import Artifact, Run

INT8 = "ort-int8"  # the paper's number format: what decides where backends differ
PRINTED = "published table"
MEMBERS = [f"NanoSD{k}" for k in range(1, 8)]
IDLE = 1e-3  # of the predicted noise, relative square: a stage that moves it by less is dead
PUT_BACK = "N1 + E4, M, D4"
CALLED = (
    {k: k for k in ("six originals", PUT_BACK)}
    | {"without": "six originals"}
    | {k: paper.paper_name(k) for k in NANOSD}
)
LARGE = (4000, 3000)  # pixels of the article's photograph
BETTER = {"psnr": 1, "ssim": 1, "musiq": 1, "delta1": 1}  # larger is better; of the others smaller


def _elsewhere(key: str) -> float:
    table = paper.elsewhere().set_index("key")
    return float(table.loc[key, "value"])


def _reported(**where: str) -> float:
    table = paper.restoration()
    for column, value in where.items():
        table = table[table[column] == value]
    return float(table.value.iloc[0])


# -------------------------------------------------------------------------------------- notebook 01
def tiling_and_memory(run: Run, photo: pd.DataFrame, memory: pd.DataFrame) -> pd.DataFrame:
    """The rows of notebook 01; photo, memory: its tables."""
    poster, article = tiling.Grid(1000, 750, 128, 32), tiling.Grid(*LARGE, 512, 128)
    literal = tiling.Grid(*LARGE, 128, 32)
    run.record("tiles-poster", poster.count, "tile 128, overlap 32, stride 96")
    run.record("tiles-article", article.count, "tile 512, overlap 128, stride 384")
    run.record("tiles-4k-at-128", literal.count, "tile 128, overlap 32, stride 96")
    by, family = photo.set_index("model"), paper.family().set_index("model")
    w4 = by.unet_only_s.iloc[0]
    run.record("photo-latency-w4", w4, "our tile count x 116 ms")
    decoder = _reported(metric="htp_w8a16_ms", dataset="SD1.5")
    whole = w4 + poster.count * decoder / 1e3
    run.record("end-to-end-with-vae", whole, "88 x (116 ms + the decoder)", decoder=decoder)
    public = _elsewhere("public-unet")
    run.record("w4-against-public-profile", public, "w8a16, the vendor's public profile")
    fast = int((family.htp_ms[MEMBERS] <= 20).sum())
    run.record("real-time-tile", fast, "published HTP latencies, one tile, U-Net only")
    for claim, column in (
        ("real-time-photo", "unet_only_s"),
        ("real-time-photo-with-vae", "with_vae_s"),
    ):
        seconds = by[column][MEMBERS]
        how = "our tile count x published latencies of the fastest member"
        run.record(claim, 1e3 * seconds.min(), how, n2_ms=1e3 * seconds["NanoSD2"])
    unet = counting.parameters(sd15.unet())
    with torch.device("meta"):
        text = counting.parameters(CLIPTextModel(CLIPTextConfig(**sd15.CLIP)))
    vae = counting.parameters(sd15.autoencoder())
    counted = "parameters counted on the meta device"
    run.record("sd15-int8-memory", unet / 1e9, f"{counted} x 1 byte, 1e9 bytes a GB")
    run.record("sd15-fp32-memory", 4 * unet / 1e9, f"{counted} x 4 bytes, 1e9 bytes a GB")
    run.record("sd15-params-article", unet / 1e6, counted)
    all_ = (unet + text + vae) / 1e6
    run.record("sd15-whole-params", all_, counted, text=text / 1e6, vae=vae / 1e6)
    peak = memory[(memory.component == "VAE decoder") & (memory.format == "fp16")]
    area = LARGE[0] * LARGE[1] / (8 * sd15.unet().config.sample_size) ** 2
    run.record(
        "tiling-needed-for-memory",
        peak.peak_activation_mb.item() * area / 1e3,
        f"a tile's recorded peak x {area:.1f}, the ratio of areas",
    )
    return shared.verdicts(run)


# -------------------------------------------------------------------------------------- notebook 02
def sizes(run: Run, networks: pd.DataFrame, fits: pd.DataFrame, peaks: pd.Series, ran: int) -> None:
    """Counted rows of notebook 02: networks as `counting.sd15_counts` gives them (with the names of
    `arch.NANOSD`, "string-tinysd-printed" and "ablation-params"), fits as `interface.fits`, peaks
    of activations in MB (float32) by model, and how many networks drawn at random ran.
    """
    width, million = "SD 1.5's width, meta device", networks.set_index("model").params / 1e6
    gmac = networks.set_index("model")[["gmac_linear", "gmac_attention"]].sum(axis=1)
    keys = {"SD1.5": "sd15", "TinySD": "tinysd", "Hand-tuned": "hand-tuned"}
    for name in NANOSD:
        run.record(f"params-{keys.get(name, name.lower())}", million[name], width)
    smallest, n2 = (100 * (1 - million[k] / million["SD1.5"]) for k in ("N7", "N2"))
    run.record("ninety-percent-cut", smallest, width, n2_cut=n2)
    run.record("article-model2-params", million["N2"], width)
    r2 = {p: prediction.fit_latency(paper.family(), "htp_ms", p)["r2"] for p in (True, False)}
    facts = {"r2_printed": r2[True], "r2_corrected": r2[False]}
    printed = "string-tinysd-printed"
    run.record(printed, million[printed], width, **facts)
    run.record("ablation-params", million["ablation-params"], width)
    run.record("space-size", len(arch.space()), "arch.space()")
    stages = f"36 stages on the meta device; {ran} networks drawn at random ran on sd-mini"
    run.record("combinations-compose", fits.fits.mean(), stages)
    run.record("deblur-macs-ratio", gmac["SD1.5"] / gmac["N2"], width)
    int8 = {k: million[k] + peaks[k] / 4 for k in (f"N{i}" for i in range(1, 8))}
    number = int(min(int8, key=lambda k: int8[k])[1:])
    run.record("smallest-is-model-7", number, f"{width}; recorded peaks, a byte an element, MB")
    ends = paper.family().set_index("model").params_m[MEMBERS]
    run.record("family-range", sum((ends.min() == 130, ends.max() == 315)), PRINTED)
    pairs = [(e, d) for e in range(2, 33) for d in range(e + 1, 33)]
    fit = sum((e * d) ** 3 == 32768 and 3 * (e - 1 + d - 1) == 30 for e, d in pairs)
    run.record("options-per-stage", fit, "e below d, both from 2 to 32")


def traffic(run: Run, measured: dict[str, Any]) -> None:
    """What E4, M and D4 move of the bytes, over what they do of the work; as recorded."""
    traced = measured["traces"].set_index("row")
    whole, left = traced.loc["net:SD1.5"], traced.loc["net:six originals"]
    share = 1 - left[["moved_mb", "gmac"]] / whole[["moved_mb", "gmac"]]
    how = "recorded bytes and multiply-adds, SD 1.5's width"
    run.record("dropped-stages-cost-much", share.moved_mb / share.gmac, how)


def without_deep(run: Run, removed: Artifact, against: Artifact) -> pd.Series:
    """The row on E4, M and D4: their removal against that of the least important kept stage, whose
    row comes back with the `ratio`. removed: `sensitivity.sensitivity` of "removed".
    """
    table = removed["table"]
    whole = table[table.band == "all"].set_index("removed")
    least = whole.loc[list(STAGES)].tafid.idxmin()
    f, teacher = removed["features"], against["features"]["teacher"]
    found = uncertainty.frechet_ratio([f["E4+M+D4"]], [f[least]], teacher)
    deep = whole.loc["E4+M+D4"]
    guard = {"effect": (deep.eps_error, deep.eps_error_low, deep.eps_error_high)}
    idle = int((whole.eps_error[["E4", "M", "D4"]] < IDLE).sum())
    run.record(
        "dropped-stages-give-little", found, against["floor"]["protocol"],
        n=len(teacher), guards=guard, least=least, idle=float(idle),
    )  # fmt: skip
    row = whole.loc[least].copy()
    row["removed"], row["ratio"] = least, found.value
    return row


def timed(
    run: Run, measured: dict[str, Any], networks: pd.DataFrame, where: str, mini: float
) -> None:
    """Timed rows of notebook 02: `measured` is the hardware profile, networks as for `sizes`; INT8
    decides, the other backends stand beside it. mini: the worst sum of stages on sd-mini.
    """
    stages = measured["stages"]
    nets = measured["networks"].assign(model=measured["networks"].model.map(CALLED))
    costs = networks.assign(model=networks.model.map(CALLED), params=networks.params)
    costs = costs.assign(gmac=costs.gmac_linear + costs.gmac_attention)[["model", "params", "gmac"]]
    per = {b: some for b, some in stages.groupby("backend", sort=False)}

    def put(claim: str, found: dict[str, Interval], **more: Any) -> None:
        others = {b: x.value for b, x in found.items() if b != INT8}
        run.record(claim, found[INT8], where, backend=INT8, elsewhere=others, **more)

    put("n2-twice-as-fast-as-tinysd", ratios.by_backend(nets, "TinySD", "NanoSD2"))
    put("tinysd-faster-than-sd15", ratios.by_backend(nets, "TinySD", "SD1.5"))
    put("more-parameters-faster", ratios.by_backend(nets, "NanoSD2", "NanoSD1"))
    put("attention-at-64-dominates-cpu", {b: ratios.attention_share(t) for b, t in per.items()})
    put("operator-order-matters", {b: ratios.order_matters(t) for b, t in per.items()})
    put("survivors-faster", {b: ratios.faster(t) for b, t in per.items()})
    ran = stages[stages.backend == INT8].ms_median.gt(0).sum()
    run.record("stages-quantise", ran, where)
    put("deep-stages-cost-time", _deep(nets, costs))
    sums = _sums(measured)
    found = ratios.by_backend(nets, PUT_BACK, "NanoSD1")
    put("ablation-costs-time", found, guards={"against-its-parts": _against_parts(sums)})
    worst = _additive(sums)
    facts = {"worst": worst[INT8][1], "mini": mini}
    put("latency-additive", {b: x for b, (x, _) in worst.items()}, **facts)
    nine = paper.family().dropna(subset=["htp_ms"]).set_index("model")
    for cost, claim in (("params", "params"), ("gmac", "flops")):
        whole = nets[nets.model.isin(nine.index)].merge(costs, on="model")
        rows = whole.groupby("backend", sort=False)
        both = {b: ratios.equal_cost(t, cost) for b, t in rows}
        pair = f"{both[INT8][1]} and {both[INT8][2]}"
        put(f"{claim}-do-not-predict-cpu", {b: x for b, (x, _, _) in both.items()}, pair=pair)
    ours = nets.pivot(index="model", columns="backend", values="ms_median").loc[nine.index]
    ranks = {
        b: uncertainty.jackknife(
            lambda keep, x=ours[b]: metrics.spearman(nine.htp_ms.iloc[keep], x.iloc[keep]),
            len(nine),
        )
        for b in ours
    }
    put("htp-order-carries-to-cpu", ranks, n=len(nine))


def _deep(nets: pd.DataFrame, costs: pd.DataFrame) -> dict[str, Interval]:
    """What E4, M and D4 take of the time, over their share of the multiply-adds."""
    gmac = costs.set_index("model").gmac
    share = 1 - gmac["six originals"] / gmac["SD1.5"]
    left = ratios.by_backend(nets, "six originals", "SD1.5")
    return {
        b: Interval(*((1 - x) / share for x in (v, high, low)))
        for b, (v, low, high) in left.items()
    }


def _sums(measured: dict[str, Any]) -> pd.DataFrame:
    """model, backend, ms_median, ms_low, ms_high, parts: each network and its stages' sum."""
    stages, networks, rest = (measured[k] for k in ("stages", "networks", "rest"))
    sums = prediction.additivity(stages, networks, rest, builders.NETWORKS)
    sums = sums.rename(columns={"sum_of_stages_ms": "parts"})[["model", "backend", "parts"]]
    table = networks.merge(sums, on=["model", "backend"])
    return table.assign(model=table.model.map(CALLED))


def _against_parts(sums: pd.DataFrame) -> Interval:
    """N1 with E4, M and D4 over the sum of its own parts."""
    row = sums[(sums.model == PUT_BACK) & (sums.backend == INT8)].iloc[0]
    return Interval(*(x / row.parts for x in (row.ms_median, row.ms_low, row.ms_high)))


def _additive(sums: pd.DataFrame) -> dict[str, tuple[Interval, str]]:
    """{backend: (largest |sum of stages / network - 1|, model)}; the interval is over the quartiles
    of the network.
    """
    worst = {}
    for b, rows in sums[sums.model != PUT_BACK].groupby("backend", sort=False):
        off = []
        for r in rows.itertuples():
            each = [r.parts / x - 1 for x in (r.ms_median, r.ms_low, r.ms_high)]
            near = 0.0 if min(each) < 0 < max(each) else min(map(abs, each))
            off.append((Interval(abs(each[0]), near, max(map(abs, each))), r.model))
        worst[b] = max(off, key=lambda o: o[0].value)
    return worst


def attention(run: Run, predicted: pd.DataFrame, gmac: pd.Series) -> None:
    """What the published rows say about their own latency; predicted: `prediction.study` of them,
    gmac: multiply-adds by model.
    """
    nine, family = "nine published rows", paper.family().dropna(subset=["htp_ms"])
    known = family.set_index("model").assign(gmac=gmac, ms_low=np.nan, ms_high=np.nan)
    known = known.assign(ms_median=known.htp_ms).fillna({"gmac": 0}).reset_index()
    for cost, claim in (("params_m", "params"), ("gmac", "flops")):
        found, a, b = ratios.equal_cost(known, cost)
        ranks = metrics.spearman(known[cost], known.htp_ms)
        run.record(
            f"{claim}-do-not-predict-latency", found.value, nine, pair=f"{a}, {b}", rank=ranks
        )
    run.record("htp-order-carries-to-ane", metrics.spearman(family.htp_ms, family.ane_ms), nine)
    best = "attention by resolution"
    table = predicted[(predicted.rows == "published") & (predicted.strings == "corrected")]
    for column, claim in (
        ("htp_ms", "attention-model-left-out"),
        ("ane_ms", "attention-model-ane"),
    ):
        off = table[table.target == column].set_index("predictor").loo_mean
        guard = {"against-rival": off[best] / off.drop(best).min()}
        run.record(claim, off[best] / family[column].mean(), f"{nine}, leave one out", guards=guard)
    coef: Any = prediction.fit_latency(family, "htp_ms")["coef"]
    run.record("attention-at-64-dominates", coef["a64"] / max(coef["a32"], coef["a16"]), nine)
    gain = {
        k: family.set_index("model")[k]["TinySD"] / family.set_index("model")[k]
        for k in ("htp_ms", "ane_ms")
    }
    kept = (gain["ane_ms"][MEMBERS] >= 0.9 * gain["htp_ms"][MEMBERS]).sum()
    run.record("gain-carries-to-ane", kept, PRINTED)


# -------------------------------------------------------------------- what the sources print, in 06
def printed(run: Run) -> None:
    """Rows on the published table and on what a reading note reports; nothing is measured."""
    family = paper.family().dropna(subset=["htp_ms", "tafid"]).set_index("model")
    three = family[["tafid", "htp_ms", "params_m"]].astype(float)

    def beaten(m: str) -> bool:
        others = three.drop(m)
        return bool(
            ((others <= three.loc[m]).all(axis=1) & (others < three.loc[m]).any(axis=1)).any()
        )

    nano, tiny = three.loc[MEMBERS], three.loc["TinySD"]
    run.record("family-pareto", sum(not beaten(m) for m in MEMBERS), f"{PRINTED}, three columns")
    run.record("tinysd-dominated-printed", (nano < tiny).all(axis=1).sum(), PRINTED)
    no_worse = nano[(nano.tafid <= tiny.tafid) & (nano.params_m <= tiny.params_m)]
    run.record("tinysd-far-behind", (tiny.htp_ms / no_worse.htp_ms).max(), PRINTED)
    light = three.tafid[["TinySD", "Hand-tuned"]].min()
    run.record("lightweight-baselines-printed", nano.tafid["NanoSD2"] / light, PRINTED)
    run.record("fastest-is-model-5", int(nano.htp_ms.idxmin()[-1]), PRINTED)
    run.record("article-model5-latency", nano.htp_ms["NanoSD5"], PRINTED)
    run.record("article-model2-latency", nano.htp_ms["NanoSD2"], PRINTED)
    run.record("article-model2-tafid", nano.tafid["NanoSD2"], PRINTED)
    run.record("article-130m-in-20ms", nano[nano.params_m == 130].htp_ms.iloc[0], PRINTED)
    fastest, public = nano.htp_ms.min(), _elsewhere("public-unet")
    facts = {"public": public, "against_public": public / fastest}
    run.record("orders-of-magnitude", 116 / fastest, f"{PRINTED}, w4 SD 1.5", **facts)
    cosine = _reported(task="prior", model="NanoSD", metric="embedding_cosine")
    run.record("near-perfect-clone-printed", cosine, "as the reading note reports it")
    pairs = _pairs()
    of = lambda task, metric: pairs[(pairs.task == task) & (pairs.metric == metric)].iloc[0]  # noqa: E731
    face, fid = of("face", "lpips"), of("face", "fid_ffhq")
    depth, delta = of("depth", "absrel"), of("depth", "delta1")
    said = "as the reading note and the baselines' own papers report them"
    run.record("face-superior-printed", face.nano / face.plain, said, fid=fid.nano / fid.plain)
    off = (100 - delta.nano) / (100 - delta.plain)
    run.record("depth-matches-printed", depth.nano / depth.plain, said, delta=off)
    run.record("quality-kept-printed", pairs.kept.sum(), said, pairs=len(pairs))


def _pairs() -> pd.DataFrame:
    """task, dataset, metric, nano, plain, kept: every reported figure of a system with NanoSD that
    the same system without it has as well (costs left out).
    """
    table = paper.restoration()
    table = table[table.task.isin(["sr", "face", "deblur", "depth"])]
    table = table[~table.metric.isin(["gmacs", "params_m"])]
    nano = table.model.str.startswith("Nano-")
    key = ["task", "dataset", "metric", "system"]
    named = table.assign(system=table.model.str.removeprefix("Nano-"))
    both = named[nano].merge(named[~nano], on=key, suffixes=("_nano", "_plain"))
    sign = both.metric.map(BETTER).fillna(-1)
    kept = sign * (both.value_nano - both.value_plain) >= 0
    return both.assign(nano=both.value_nano, plain=both.value_plain, kept=kept)
