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
        f"At SD 1.5's width the slim VAE has {params['slim']:.1f} million parameters for"
        f" {params['teacher']:.1f}; here it {listed(lost)} against the teacher's, and follows its"
        f" latents at a correlation of at least {whole.latent_corr.min():.2f}. A tile of SD 1.5's"
        f" size takes {ratio['slim U-Net']:.0%} of its time with the U-Net slimmed,"
        f" {ratio['slim VAE']:.0%} with the VAE slimmed, {ratio['both slim']:.0%} with both."
    )


def halves(vae: pd.DataFrame) -> str:
    """Which half of the slim VAE costs the decibels (vae.csv with the column pictures)."""
    base = vae[vae.model == "teacher"].set_index("pictures").psnr
    slim = vae[(vae.model == "slim") & (vae.part != "both")]
    off = (slim.psnr - slim.pictures.map(base)).groupby([slim.pictures, slim.part]).mean()
    parts = []
    for kind in off.index.get_level_values(0).unique():
        e, d = off[kind, "encoder"], off[kind, "decoder"]
        said = f"(encoder {e:+.1f} dB, decoder {d:+.1f})"
        worse = "the decoder" if d < e else "the encoder"
        if min(e, d) >= 0 or abs(d - e) < 0.1:
            parts.append(f"on {kind} neither half costs more {said}")
        elif max(e, d) > 0:
            parts.append(f"on {kind} {worse} alone costs something {said}")
        else:
            parts.append(f"on {kind} {worse} costs more {said}")
    return f"Swapped alone, {listed(parts)}."


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
    alike = own.trained == unet.trained
    other = "" if alike else f", trained otherwise ({own.trained}) and not to be compared"
    return (
        f"With the slim VAE alone tAFID is {within(vae, 'tafid')}, with the slim U-Net alone"
        f" {within(unet, 'tafid')}, with both {within(both, 'tafid')}{apart}. Aligned on the slim"
        f" VAE's own latents it is {within(own, 'tafid')}{other}. The teacher with other noise has"
        f" {digits(both.floor)}."
    )


def terms(records: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> str:
    """How each term of the loss went (the records of the slim students, by name)."""
    slim = [r for name, r in records.items() if name.startswith("slim")]
    said = []
    for name in names:
        began, ended = (sum(r[k][name] for r in slim) / len(slim) for k in (0, -1))
        half = sum(_half_way(r)[name] for r in slim) / len(slim)
        left = f" ({ended / half:.2f} of what it was half way)" if ended < half else ""
        said.append(f"{name} {digits(ended)} from {digits(began)}{left}")
    return f"Mean of {len(slim)} slim students, first to last record: {listed(said)}."


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
    return f"Against all four terms {listed(said)}. One seed: a hint, no verdict."


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
        said.append(
            f"{geometry}: the VAE has {by.vae_share['teacher']:.0%} of the teacher's time; the slim"
            f" U-Net alone leaves {by.ratio['slim U-Net']:.2f} of it, both"
            f" {by.ratio['both slim']:.2f}"
        )
    return f"{'; '.join(said)}."
