"""Readings of notebook 04: what its figures and tables say, in words made from the numbers (see
`readings`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nanosd_lib.views.readings import digits, listed, within

RATIO = "{:.2f}"
WORSE = {  # a measure of reconstruction: what is worse, its name, how it is written
    "psnr": (-1, "PSNR", "{:+.1f} dB"),
    "lpips": (1, "LPIPS", "{:+.3f}"),
    "latent_corr": (-1, "the correlation with the teacher's latents", "{:+.3f}"),
}


def slimmed(vae: pd.DataFrame, large: pd.DataFrame, total: pd.DataFrame) -> str:
    """Page 04 in one sentence: vae.csv with the column pictures, vae_sd15.csv, pipeline_total.csv
    of one geometry.
    """
    params = large.drop_duplicates(["model", "part"]).groupby("model").params.sum() / 1e6
    whole = vae[(vae.model == "slim") & (vae.part == "both")]
    base = vae[vae.model == "teacher"].set_index("pictures").psnr
    off = whole.psnr - whole.pictures.map(base)
    by = off.groupby(whole.pictures).agg(["mean", "min", "max"])
    lost = [
        f"{'loses' if r['mean'] < 0 else 'gains'} {abs(r['mean']):.1f} dB on {kind}"
        f" ({r['min']:+.1f} to {r['max']:+.1f} over seeds)"
        for kind, r in by.iterrows()
    ]
    ratio = total.set_index("configuration").ratio
    return (
        f"At SD 1.5's width the slim VAE has {params['slim']:.1f} million parameters instead of"
        f" {params['teacher']:.1f}. sd-mini's slim VAE {listed(lost)} against its teacher's (it is"
        " taught the pictures themselves, so it may gain), and its latents correlate with the"
        f" teacher's at {whole.latent_corr.min():.2f} or more. On this CPU in float32, with one"
        f" call of the U-Net, a tile of SD 1.5's size takes {ratio['slim U-Net']:.0%} of the"
        f" original time with a slim U-Net, {ratio['slim VAE']:.0%} with a slim VAE and"
        f" {ratio['both slim']:.0%} with both."
    )


def halves(vae: pd.DataFrame) -> str:
    """Which half of the slim VAE costs the decibels (vae.csv with the column pictures)."""
    base = vae[vae.model == "teacher"].set_index("pictures").psnr
    slim = vae[(vae.model == "slim") & (vae.part != "both")]
    off = (slim.psnr - slim.pictures.map(base)).groupby([slim.pictures, slim.part]).mean()
    parts = []
    for kind in off.index.get_level_values(0).unique():
        each = [
            f"the slim {half} {'loses' if off[kind, half] < 0 else 'gains'}"
            f" {abs(off[kind, half]):.1f} dB"
            for half in ("encoder", "decoder")
        ]
        parts.append(f"on {kind} {listed(each)}")
    return f"With only one half slim and the other the teacher's: {'; '.join(parts)}."


def speeds(table: pd.DataFrame) -> str:
    """What fewer multiply-adds buy in time (vae_speed.csv)."""
    said = []
    for part, some in table[table.model == "slim"].groupby("part", sort=False):
        each = [f"at batch {r.batch} {within(r, 'faster', '{:.1f}')}" for _, r in some.iterrows()]
        fewer = some.fewer_macs.iloc[0]
        sure = "surely" if some.faster_high.max() < fewer else "not surely"
        said.append(
            f"The slim {part} needs {fewer:.1f} times fewer multiply-adds; it is {listed(each)}"
            f" times as fast, {sure} less than that"
        )
    return f"{'. '.join(said)}. What moves memory, and what each call costs, stay."


def pipelines(codesign: pd.DataFrame) -> str:
    """What either slim part adds to tAFID (codesign.csv)."""
    by = codesign.set_index(["unet", "vae", "aligned"])
    vae = by.loc[("teacher", "slim", "no")]
    unet = by.loc[("slim", "teacher", "teacher's latents")]
    both = by.loc[("slim", "slim", "teacher's latents")]
    own = by.loc[("slim", "slim", "slim latents")]
    apart = ""
    if unet.tafid_low > vae.tafid_high or vae.tafid_low > unet.tafid_high:
        larger = "U-Net" if unet.tafid > vae.tafid else "VAE"
        apart = f": the {larger} is what the pictures pay for"
    bare = [digits(by.loc[("slim", v, "no")].tafid) for v in ("teacher", "slim")]
    alike = own.trained == unet.trained
    other = "" if alike else f" ({own.trained}: not to be compared)"
    return (
        f"The slim VAE alone puts tAFID at {within(vae, 'tafid')}. The slim U-Net, aligned on the"
        f" teacher's latents ({unet.trained}), has {within(unet, 'tafid')} with the teacher's VAE"
        f" and {within(both, 'tafid')} with the slim one{apart}; before alignment {listed(bare)}."
        f" Aligned on the slim VAE's own latents it has {within(own, 'tafid')}{other}. The teacher"
        f" with other noise has {digits(both.floor)}."
    )


def terms(records: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> str:
    """How each term of the loss went (the records of the slim students, by name)."""
    slim = [r for name, r in records.items() if name.startswith("slim")]
    said = []
    for name in names:
        began, ended = (sum(r[k][name] for r in slim) / len(slim) for k in (0, -1))
        half = sum(_half_way(r)[name] for r in slim) / len(slim)
        left = f" ({ended / half:.0%} of half way)" if ended < half else ""
        said.append(f"{name} {digits(began)} to {digits(ended)}{left}")
    return f"Mean of {len(slim)} slim students, from the first point to the last: {listed(said)}."


def ablated(table: pd.DataFrame) -> str:
    """Which term each measure needs most (vae_ablation.csv); one seed, so nothing is decided."""
    off = table.set_index(["pictures", "left_out"])[list(WORSE)]
    off = off - off.xs("nothing", level="left_out").reindex(off.index, level="pictures")
    off, said = off.drop("nothing", level="left_out"), []
    for measure, (sign, name, form) in WORSE.items():
        term = (sign * off[measure]).groupby("left_out").mean().idxmax()
        each = off[measure].xs(term, level="left_out")
        kinds = [f"{form.format(x)} on {kind}" for kind, x in each.items()]
        said.append(f"{name} suffers most without {term} ({listed(kinds)})")
    gains = []
    for term in off.index.get_level_values("left_out").unique():
        each = off.xs(term, level="left_out")
        won = [
            name
            for m, (sign, name, _) in WORSE.items()
            if (sign * each[m] < -0.1 * (sign * off[m]).max()).all()
        ]
        gains += [f"{listed(won)} without {term}"] if won else []
    less = f" Better on both kinds of pictures: {'; '.join(gains)}." if gains else ""
    return (
        f"Each measure leans on the term that asks for it: {listed(said)}.{less} One seed: a hint,"
        " no verdict."
    )


def _half_way(record: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    return min(record, key=lambda r: abs(r["step"] - record[-1]["step"] / 2))


def latents(channels: pd.DataFrame, pictures: str) -> str:
    """How near the slim latents are to the teacher's (vae_latents.csv) on those pictures."""
    some = channels[channels.pictures == pictures]
    worst = some.loc[some["corr"].idxmin()]
    return (
        f"The furthest channel is {int(worst.channel)}: correlation {worst['corr']:.3f},"
        f" {worst.explained:.0%} of its variance explained; the nearest has"
        f" {some['corr'].max():.3f}."
    )


def tile_time(totals: pd.DataFrame) -> str:
    """Where a tile's time goes, and what either half buys (pipeline_total.csv)."""
    said = []
    for geometry, rows in totals.groupby("geometry", sort=False):
        by = rows.set_index("configuration")
        left = [f"{by.ratio[k]:.0%}" for k in ("slim U-Net", "slim VAE", "both slim")]
        said.append(f"{geometry}: {by.vae_share['teacher']:.0%}; {listed(left)}")
    return (
        "The VAE's share of a tile's time; and what is left of that time with a slim U-Net, a slim"
        f" VAE, both slim. {'. '.join(said)}."
    )
