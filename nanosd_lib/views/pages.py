"""What every page shows alike: its answer on top, made at the end, and readings under figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import pandas as pd
from IPython.display import Markdown, display

from nanosd_lib.views.readings import between, digits, within


class Answer:
    """The page's answer in one sentence, in the place where this was made: `is_` fills it in when
    the page has computed it.
    """

    def __init__(self) -> None:
        self._handle: Any = display(
            Markdown("*The answer appears here when the page has run to its end.*"), display_id=True
        )

    def is_(self, sentence: str) -> None:
        self._handle.update(Markdown(f"**Answer.** {sentence}"))


def reading(sentence: str) -> None:
    """What the figure or table above says, in words made from its numbers."""
    display(Markdown(f"**Reading.** {sentence}"))


def costs(sensitivity: pd.DataFrame) -> Any:
    """sensitivity_cost.csv as a table to read: for each stage what goes, what that saves, what it
    does, removed and shortened.
    """
    stages: dict[str, dict[tuple[str, str], str]] = {}
    for _, r in sensitivity.iterrows():
        row = {"parameters saved": f"{r.params_saved_share:.0%}"}
        row |= {"ms saved": within(r, "ms_saved", "{:.1f}"), "tAFID": within(r, "tafid")}
        stages.setdefault(r.removed, {}).update({(r.how, k): v for k, v in row.items()})
    said = f"the teacher with other noise: tAFID {digits(sensitivity.floor.iloc[0])}"
    return pd.DataFrame.from_dict(stages, orient="index").style.set_caption(said)


def autoencoders(whole: pd.DataFrame, seeds: Mapping[str, int]) -> Any:
    """Rows of vae.csv of whole autoencoders (with the column pictures), seeds averaged."""
    rows = []
    for (kind, model), r in whole.groupby(["pictures", "model"], sort=False):
        m = r.mean(numeric_only=True)
        rows.append(
            {
                "pictures": kind,
                "model": model + (f" (mean of {seeds[model]} seeds)" if model in seeds else ""),
                "parameters": f"{m.params:,.0f}",
                "ms": f"{m.ms_median:.0f}",
                "PSNR, dB": between(m.psnr, m.psnr_low, m.psnr_high, "{:.1f}"),
                "SSIM": f"{m.ssim:.3f}",
                "LPIPS": f"{m.lpips:.2f}",
                "correlation of latents": "–" if pd.isna(m.latent_corr) else f"{m.latent_corr:.3f}",
            }
        )
    said = "95 % intervals over pictures (over photographs: all crops of one count as one)"
    return pd.DataFrame(rows).style.hide(axis="index").set_caption(said)


def speeds(table: pd.DataFrame) -> Any:
    """Rows of vae_speed.csv, a line for each half of each student."""
    students, rows = table[table.model != "teacher"], []
    for (part, model), some in students.groupby(["part", "model"], sort=False):
        row = {"half": part, "model": model, "parameters": f"{some.params.iloc[0]:,}"}
        row["multiply-adds, times fewer"] = f"{some.fewer_macs.iloc[0]:.1f}"
        for _, r in some.iterrows():
            row[f"times as fast, batch {r.batch}"] = within(r, "faster", "{:.2f}")
        rows.append(row)
    said = "against the teacher's half; medians over rounds with 95 % intervals, paired by round"
    return pd.DataFrame(rows).style.hide(axis="index").set_caption(said)


def family(table: pd.DataFrame, steps: Mapping[str, int]) -> Any:
    """family.csv as a reader wants it; steps of alignment by arch."""
    rows = [
        {
            "model": r.model,
            "parameters": f"{r.params / 1e6:.2f} M",
            "ms": between(r.latency_ms, r.latency_low, r.latency_high, "{:.0f}"),
            "tAFID as assembled": within(r, "tafid_assembled"),
            "aligned": within(r, "tafid_aligned"),
            "steps": steps[r.arch],
            "tAFID in the paper": "–" if pd.isna(r.tafid_paper) else f"{r.tafid_paper:g}",
            "HTP ms in the paper": "–" if pd.isna(r.htp_ms_paper) else f"{r.htp_ms_paper:g}",
        }
        for _, r in table.iterrows()
    ]
    said = f"the teacher with other noise: tAFID {digits(table.floor.iloc[0])}"
    return pd.DataFrame(rows).style.hide(axis="index").set_caption(said)


TARGETS = {
    "htp_ms": "nine printed, Hexagon",
    "ane_ms": "nine printed, Apple's chip",
    "family": "the nine here",
    "stages": "36 stages here",
}


def explained(table: pd.DataFrame) -> Any:
    """R^2 of every predictor (a column) for every target and transcription of
    latency_prediction.csv, darker where it is higher.
    """
    printed = table.rows == "published"
    here = table.rows.map(TARGETS) + ", " + table.target
    named = table.assign(
        target=table.target.map(TARGETS).where(printed, here),
        strings=table.strings.where(printed, "counted"),
    )
    wide = named.pivot_table(
        index=["target", "strings"], columns="predictor", values="r2", sort=False
    )
    wide = wide.rename_axis(index={"target": "milliseconds of", "strings": "stage strings"})
    return wide.style.format("{:.2f}").background_gradient("Blues", axis=None, vmin=0, vmax=1.3)


def surrogates(table: pd.DataFrame) -> Any:
    """Held-out errors of surrogates.csv, a line for each stage and a column for each code."""
    named = table.assign(error=[within(r, "relative_error") for _, r in table.iterrows()])
    wide = named.pivot(index="stage", columns="code", values="error")
    codes = sorted(wide, key=lambda code: (-len(code), code))
    return wide.loc[list(dict.fromkeys(table.stage)), codes].style.format(na_rep="")


def choices(left: Mapping[str, Sequence[str]], table: pd.DataFrame) -> Any:
    """Which codes pruning leaves in each stage; one sentence where it takes none."""
    if table.kept.all():
        n = prod(len(codes) for codes in left.values())
        return Markdown(f"Nothing is dropped: all {n:,} networks are left.")
    return pd.Series({k: ", ".join(v) for k, v in left.items()}).to_frame("choices that are left")
