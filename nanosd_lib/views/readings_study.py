"""Readings of notebooks 02 to 05: what their figures and tables say, in words made from the numbers
(see `readings`).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from nanosd_lib.views.readings import between, digits, listed, side, within

RATIO, READ = "{:.2f}", "`read_error`"


def _named(rows: pd.DataFrame) -> str:
    return listed([f"{r.stage}:{r.code}" for r in rows.itertuples()])


# -------------------------------------------------------------------------------------- notebook 02
def surgery(networks: pd.DataFrame, sensitivity: pd.DataFrame, predicted: pd.DataFrame) -> str:
    """Page 02 in three sentences: networks (model, params, gmac_linear, gmac_attention) with rows
    "with" and "without" E4, M and D4; sensitivity_cost.csv; latency_prediction.csv.
    """
    n = networks.set_index("model")
    n["gmac"] = n.gmac_linear + n.gmac_attention
    share = 1 - n.loc["without", ["params", "gmac"]] / n.loc["with", ["params", "gmac"]]
    deep = sensitivity[(sensitivity.how == "removed") & (sensitivity.removed == "E4+M+D4")].iloc[0]
    rows = predicted[(predicted.rows == "published") & (predicted.strings == "corrected")]
    by = rows[rows.target == "htp_ms"].set_index("predictor")
    one, other = by.loc["parameters"], by.loc["attention at 64x64"]
    than = "more closely than" if other["rank"] > one["rank"] else "no more closely than"
    return (
        f"E4, M and D4 hold {share.params:.0%} of SD 1.5's parameters and {share.gmac:.0%} of its"
        " multiply-adds. In sd-mini, removing all three changes the predicted noise by"
        f" {within(deep, 'eps_error')} of its power. The published NPU milliseconds of nine"
        f" networks follow the number of attention blocks at 64x64 (rank correlation"
        f" {other['rank']:.2f}; an unseen network is missed by {digits(other.loo_mean)} ms) {than}"
        f" that of parameters ({one['rank']:.2f}; {digits(one.loo_mean)} ms)."
    )


def family_measured(family: pd.DataFrame) -> str:
    """How many times as fast NanoSD2 is, and what three stages more cost NanoSD1 (family_sd15)."""
    ms = family.pivot(index="model", columns="backend", values="ms_median")
    fast = (ms.loc["SD1.5"] / ms.loc["NanoSD2"]).sort_values()
    more = ms.loc["N1 + E4, M, D4", "ort-int8"] / ms.loc["NanoSD1", "ort-int8"]
    odd = " (faster with more stages: an effect of the runtime, see the ledger)" if more < 1 else ""
    return (
        f"NanoSD2 is {fast.iloc[0]:.1f} ({fast.index[0]}) to {fast.iloc[-1]:.1f}"
        f" ({fast.index[-1]}) times as fast as SD 1.5. In int8, N1 with an E4, the M and a D4 added"
        f" (the string of the poster's ablation) takes {more:.2f} times N1's milliseconds{odd}."
    )


def predictors(predicted: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """What tells the latency of a stage, and whether backends order networks alike
    (latency_prediction.csv, backend_ranks.csv).
    """
    own = predicted[predicted["rows"] == "stages"]
    said = []
    for backend in ("eager", "ort-int8"):
        some = own[own.target == backend].set_index("predictor")
        fit, order = some.r2.idxmax(), some.spearman.idxmax()
        best = some.loc[fit]
        text = f"in {backend} {fit} fits best (R^2 {best.r2:.2f}"
        text += f"; an unseen stage is missed by {digits(best.loo_mean)} ms)"
        if order != fit:
            other = some.loc[order]
            text += (
                f", while {order} orders unseen stages better (rank {other.spearman:.2f} against"
                f" {best.spearman:.2f}; missed by {digits(other.loo_mean)} ms)"
            )
        said.append(text)
    nine = ranks.loc["nine published networks"]
    htp = predicted[(predicted["rows"] == "published") & (predicted.target == "htp_ms")]
    by = htp[htp.predictor == "attention by resolution"].set_index("strings").r2
    return (
        f"Of the milliseconds of 36 stages, {'; '.join(said)}. (Attention by resolution has three"
        " slopes, the others one.) int8 orders the nine published networks as the HTP does at rank"
        f" {nine.loc['ort-int8', 'htp_ms']:.2f}, float32 eager at"
        f" {nine.loc['eager', 'htp_ms']:.2f}. With TinySD's string as printed, R^2 on the HTP's"
        f" milliseconds is {by['as printed']:.3f} instead of {by['corrected']:.3f}, which agrees"
        " with the corrected string (nine rows: a hint)."
    )


def which_can_go(sensitivity: pd.DataFrame) -> str:
    """What a stage saves against what its removal does (sensitivity_cost.csv)."""
    taken = sensitivity[sensitivity.how == "removed"].set_index("removed")
    alone, short = taken.drop("E4+M+D4"), sensitivity[sensitivity.how == "one R"]
    least, most = alone.tafid.idxmin(), alone.tafid.idxmax()
    deep, same = taken.loc["E4+M+D4"], short[short.removed == most]
    also = f"; shortened to one R, {digits(same.tafid.iloc[0])}" if len(same) else ""
    ms = within(deep, "ms_saved")
    time = f"{ms} ms" if deep.ms_saved_low > 0 else f"no time that could be measured ({ms} ms)"
    where = {"below": "below", "above": "above"}.get(
        side(deep.tafid_low, deep.tafid_high, deep.floor), "not told apart from"
    )
    return (
        f"Removed one at a time, {most} hurts most (tAFID {within(alone.loc[most], 'tafid')}{also})"
        f" and {least} least ({digits(alone.tafid[least])}). Removing E4, M and D4 together saves"
        f" {deep.params_saved_share:.0%} of the parameters and {time}, at tAFID"
        f" {within(deep, 'tafid')}, {where} the teacher with other noise ({digits(deep.floor)})."
    )


def additive(additivity: pd.DataFrame) -> str:
    """How far sums of stages are off, and whether they keep the order (additivity.csv)."""
    said = []
    for (width, backend), rows in additivity.groupby(["width", "backend"], sort=False):
        off, order = rows.relative_error, rows.ms_median.corr(rows.sum_of_stages_ms, "spearman")
        said.append(
            f"{width}, {backend}: {off.min():+.0%} to {off.max():+.0%} (rank {order:.2f} over"
            f" {len(rows)} networks)"
        )
    return (
        f"Sums of stages against whole networks, {'; '.join(said)}. A search needs the order more"
        " than the milliseconds."
    )


# -------------------------------------------------------------------------------------- notebook 03
def distilled(surrogates: pd.DataFrame, target: pd.DataFrame, how: str, low_error: float) -> str:
    """Page 03 in one sentence: surrogates.csv, e3_target.csv, how the surrogates were made, and the
    bound of a low error.
    """
    low = surrogates.relative_error_high < low_error
    by = target.set_index("taught")
    one, none = by.loc["D4"], by.loc["nothing"]
    return (
        f"{low.sum()} of {len(surrogates)} surrogates ({how}) have a held-out error"
        f" surely below {low_error:g} (median {digits(surrogates.relative_error.median())}; one"
        " constant would have 1), one teacher pass a step serving all; NanoSD2 assembled from them"
        f" is at tAFID {within(one, 'tafid')}, cut out of the teacher with"
        f" nothing taught at {within(none, 'tafid')}."
    )


def learning(curve: pd.DataFrame, constant: dict[str, float]) -> str:
    """How the held-out errors fall (fwkd_curve.csv): in the first and in the last quarter, and
    which end no better than a constant for each channel.
    """
    by = curve.pivot(index="share", columns="surrogate", values="relative_error").dropna()
    start, first, before, end = (by.iloc[k] for k in (0, 1, -2, -1))
    early = ((start - first) / (start - end)).median()
    late, worst = 1 - end.median() / before.median(), end.idxmax()
    lost = [k for k in end.index if end[k] >= constant[str(k).split(":")[0]]]
    than = (
        f"{listed(lost)} {'end' if len(lost) > 1 else 'ends'} no better than one constant for each"
        " channel"
        if lost
        else ("all end better than one constant for each channel (dashed)")
    )
    return (
        f"The first quarter of the steps brings {early:.0%} of the fall in absolute terms (median"
        f" over surrogates), but the logarithm shows that errors go on shrinking:"
        f" {digits(first.median() / end.median())} times from there to the end, by {late:.0%} in"
        f" the last quarter. {worst} ends with the largest error, {digits(end[worst])}; {than}."
    )


def by_hand(first: float, last: float, steps: int, batch: int) -> str:
    """What a few steps of FwKD do to one surrogate, on batches of that size."""
    return (
        f"{steps} steps on batches of {batch} bring the error of E1:R on the batch of the moment"
        f" from {digits(first)} to {digits(last)}: the loop above is all that FwKD is."
    )


def less_data(amounts: pd.DataFrame, how: str) -> str:
    """What the smaller part of the data costs (fwkd_data.csv), and how either was taught."""
    ratio = (amounts.error_less_data / amounts.error_all_data).set_axis(amounts.surrogate)
    return (
        f"On {amounts.fraction[0]:.0%} of the latents, each seen {amounts.epochs_less[0]:.0f} times"
        f" instead of {amounts.epochs_all[0]:.0f}, the error is {ratio.median():.2f} times as large"
        f" (median of {len(ratio)}; most for {ratio.idxmax()}, {ratio.max():.2f})."
        f" Taught either way: {how}."
    )


def survivors(surrogates: pd.DataFrame, keep_error: float) -> str:
    """What pruning decides (surrogates.csv)."""
    gone, by = surrogates[~surrogates.kept], surrogates.groupby("stage").relative_error.median()
    what = f"{_named(gone)} go" if len(gone) else "nothing goes"
    error = surrogates.set_index(["stage", "code"]).relative_error
    both = [s for s in by.index if {(s, "R"), (s, "RA")} <= set(error.index)]
    ratio = [error[s, "RA"] / error[s, "R"] for s in both]
    stage, code = error.idxmin()
    useless = surrogates[surrogates.read_error >= 1]
    worst = [f"{r.stage}:{r.code} ({digits(r.read_error)})" for r in useless.itertuples()]
    than = f"{listed(worst)} are no better than a constant, which has 1" if worst else (
        "all are better than a constant"
    )  # fmt: skip
    return (
        f"At a threshold of {keep_error:g} {what}. Hardest to copy is {by.idxmax()} (median"
        f" {digits(by.max())}), easiest {by.idxmin()} ({digits(by.min())}); {stage}:{code}"
        f" has the smallest error of all ({digits(error.min())}). One R with attention has"
        f" {min(ratio):.2f} to {max(ratio):.2f} of the error of one R without, stage by stage."
        f" By what is read later in their place ({READ}), {than}."
    )


def e3_target(ratio: tuple[float, float, float]) -> str:
    """NanoSD2 with E3 taught its own output over NanoSD2 with E3 taught D4's, in tAFID."""
    value, low, high = ratio
    said = {"below": "comes out nearer to the teacher", "above": "comes out further away"}
    what = said.get(side(low, high), "cannot be told apart in this run")
    return (
        f"N2 with an E3 that copies the teacher's own E3 {what}:"
        f" {between(value, low, high, RATIO)} times the tAFID, on the same prompts and noise"
        " of one run; the ledger asks for more pictures and seeds."
    )


# -------------------------------------------------------------------------------------- notebook 05
def searched(trials: pd.DataFrame, volume: pd.DataFrame, space: int) -> str:
    """Page 05 in one sentence: search_trials.csv, search_hypervolume.csv, networks in the space."""
    seen, parts = trials.arch.nunique(), []
    for direction, rows in volume.groupby("direction"):
        first, last = rows.iloc[0], rows.iloc[-1]
        more = (last.EHVI - first.EHVI) / max(last.random - first.random, 1e-12)
        parts.append(f"{digits(more)} times as much for tAFID and {direction}")
    return (
        f"{seen} of {space:,} networks were judged in all. From a common start, EHVI's picks"
        " enlarge the hypervolume (the area of quality and cost that is reached), against the mean"
        f" of equally many random picks, {listed(parts)}. One run each: undecided, the ledger asks"
        " for ten."
    )


def hypervolumes(volume: pd.DataFrame) -> str:
    """Where EHVI ends beside the band of random picks (search_hypervolume.csv)."""
    said = []
    for direction, rows in volume.groupby("direction"):
        last = rows.iloc[-1]
        apart = (last.EHVI - last.random) / last.random_std
        where = "within one deviation of"
        if abs(apart) >= 1:
            where = f"{abs(apart):.1f} deviations {'above' if apart > 0 else 'below'}"
        said.append(f"for {direction} EHVI ends {where} the mean of random picks")
    return (
        f"After {int(volume.order.max()) + 1} judged networks, {listed(said)}. The deviation is"
        " that of other orders of one random pool: it describes this run. Whether the gain repeats"
        " only more seeds can tell."
    )


def on_new_prompts(ratios: Mapping[str, tuple[float, float, float]], n: int) -> str:
    """tAFID over TinySD's of networks that the search chose, on prompts it never saw."""
    if not ratios:
        return "The search found no network below TinySD's latency."
    where: dict[str, list[str]] = {"below": [], "above": [], "undecided": []}
    for name, found in ratios.items():
        where[side(*found[1:])].append(f"{name} at {between(*found, RATIO)}")
    said = {
        "below": "surely nearer to the teacher than TinySD",
        "above": "surely further from the teacher than TinySD",
        "undecided": "not told apart from TinySD",
    }
    parts = [f"{said[k]}: {listed(names)}" for k, names in where.items() if names]
    return f"On {n} new prompts, {'; '.join(parts)}."


def front(own: pd.DataFrame, trials: pd.DataFrame, family: pd.DataFrame) -> str:
    """Who stands on the front of the (tAFID, latency) search: its rows of search_trials.csv, all
    trials, and the published networks (model, tafid, latency).
    """
    picked = (own.phase == "ehvi").sum()
    judged = trials[(trials.direction == "latency") & (trials.search == "EHVI")]
    free = [
        r.model
        for r in family.itertuples()
        if not ((judged.tafid < r.tafid) & (judged.latency < r.latency)).any()
    ]
    mine = trials[trials.direction == "latency"]
    some = {
        "EHVI picked": mine[mine.phase == "ehvi"].tafid,
        "of the first design": mine[mine.phase == "initial"].drop_duplicates("arch").tafid,
        "drawn at random": mine[(mine.search == "random") & (mine.phase != "initial")].tafid,
    }
    least = [f"{digits(x.min())} among {len(x)} {k}" for k, x in some.items() if len(x)]
    return (
        f"{picked} of the {len(own)} networks on the front were picked by EHVI, the rest are of the"
        f" first design. In latency and tAFID, of the {len(family)} networks of the paper's table"
        + (f" {listed(free)} lie behind none" if free else " each lies behind one")
        + f" that this search judged. The smallest tAFID is {listed(least)}."
    )


def errors_and_pictures(
    rho: tuple[float, float, float], n: int, all_: tuple[float, float, float], of: int
) -> str:
    """Whether stage errors rank networks: Spearman's correlation with its interval, over the n that
    were chosen before anything was judged, and over all.
    """
    value, low, high = rho
    where = side(low, high, 0.5)
    said = {"above": "is above", "below": "is below"}.get(where, "may be on either side of")
    return (
        f"Over the {n} networks that were chosen before any was judged (the first design, and those"
        " drawn at random) the sums of stage errors and tAFID have a rank correlation of"
        f" {between(value, low, high, RATIO)}, which {said} 0.5, the bound of the ledger. Over all"
        f" {of} it is {between(*all_, RATIO)}; those that EHVI picked were picked for what they"
        " cost and draw, which no sample of the space is."
    )
