"""The figures of notebook 07: the gain of a step, differences to bicubic, and crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from torch import Tensor

from nanosd_lib.views import figures

REACH = {"lpips": 0.55, "psnr_y": 2.0}  # of an axis, to either side of bicubic
TEACHER, PUBLISHED, TINY, PLAIN = "#4D4D4D", "#0072B2", "#8A5AA0", "#808080"


def colour(case: str) -> str:
    """One colour for a backbone, on every page."""
    names = {"on teacher": TEACHER, "on N": PUBLISHED, "on TinySD": TINY}
    return next((c for part, c in names.items() if part in case), PLAIN)


def gain(g: Sequence[float], damage: pd.DataFrame, used: Mapping[str, int]) -> Figure:
    """How much an error of the U-Net is multiplied by at each timestep, the published systems' own
    timesteps, and the distance of damaged and clean latents.
    """
    fig, ax = figures.subplots(figsize=(6.4, 3.4))
    ax.semilogy(range(len(g)), g, color="#222222", lw=1.5)
    for i, (name, t) in enumerate(used.items()):
        ax.plot(t, g[t], "o", color=PLAIN, ms=5)
        left = i % 2 == 0  # neighbours to either side of the curve
        ax.annotate(
            f"{name}, t = {t}",
            (t, g[t]),
            xytext=(-7, 5) if left else (7, -10),
            ha="right" if left else "left",
            textcoords="offset points",
            fontsize=7,
            color="#555555",
        )
    both = damage.iloc[-1]
    ax.axhspan(both.rms_low, both.rms_high, color=PUBLISHED, alpha=0.25, lw=0)
    ax.axhline(both.rms, color=PUBLISHED, lw=1)
    ax.plot([both.t] * 2, [max(0.05, min(g)), both.rms], color=PUBLISHED, lw=1, ls=":")
    ax.annotate(
        f"damage: {both.rms:.2f}, met at t = {both.t:.0f}",
        (len(g) * 0.98, both.rms),
        xytext=(0, -11),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=PUBLISHED,
    )
    ax.set(xlabel="timestep t", ylabel="gain g(t)", ylim=(max(0.05, min(g)), max(g) * 2))
    fig.tight_layout()
    return fig


def differences(table: pd.DataFrame) -> Figure:
    """LPIPS and PSNR of each case against bicubic, in pairs, with the steps that it was trained
    for: rows of `differences`. What lies beyond the limits of an axis (`REACH`) is written there.
    """
    measures = {"lpips": "LPIPS minus that of bicubic\n(left is better)"}
    measures["psnr_y"] = "PSNR of luma minus that of bicubic, dB\n(right is better)"
    names = list(dict.fromkeys(table.case))
    fig, axes = figures.subplots(
        1, 2, figsize=(8.4, 0.42 * len(names) + 1.4), sharey=True, squeeze=False
    )
    marks = {"held-out scenes": ("o", -0.14), "held-out photographs": ("s", 0.14)}
    for ax, (measure, label) in zip(axes[0], measures.items(), strict=True):
        for data, (mark, shift) in marks.items():
            rows = table[(table.measure == measure) & (table.data == data)].set_index("case")
            for i, name in enumerate(names):
                r, limit = rows.loc[name], REACH[measure]
                if abs(r.difference) > limit:
                    where = dict(ha="right" if r.difference > 0 else "left", va="center")
                    arrow = "{:+.2f} \u2192" if r.difference > 0 else "\u2190 {:+.2f}"
                    at = (0.97 * limit * np.sign(r.difference), i + shift)
                    said = arrow.format(r.difference)
                    ax.text(*at, said, fontsize=6.5, color=colour(name), **where)
                    continue
                ends = [
                    [r.difference - r.difference_low],
                    [r.difference_high - r.difference],
                ]
                ax.errorbar(
                    r.difference,
                    i + shift,
                    xerr=np.nan_to_num(ends),
                    fmt=mark,
                    color=colour(name),
                    ms=4.5,
                    lw=1.2,
                    mfc=colour(name) if mark == "o" else "white",
                )
        ax.axvline(0, color="black", lw=0.8)
        ax.set(xlabel=label, xlim=(-REACH[measure], REACH[measure]))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    steps = table.drop_duplicates("case").set_index("case").steps
    rows_ = [f"{k}\n({steps[k]:,} steps)" if steps[k] else f"{k}\n(no adapter)" for k in names]
    axes[0, 0].set_yticks(range(len(names)), rows_, fontsize=7)
    axes[0, 0].invert_yaxis()
    for data, (mark, _) in marks.items():
        axes[0, 1].plot(
            [], [], mark, color="black", mfc="black" if mark == "o" else "white", label=data
        )
    fig.legend(loc="upper center", ncols=2, fontsize=8)
    fig.tight_layout(rect=(0, 0, 1, 0.95))
    return fig


def each_photograph(table: pd.DataFrame, cases: Sequence[str]) -> Figure:
    """LPIPS less bicubic's of each photograph, by those cases, with intervals over crops."""
    names = list(dict.fromkeys(table.photograph))
    fig, ax = figures.subplots(figsize=(6.4, 0.42 * len(names) + 1.1))
    for k, case in enumerate(cases):
        rows = table[table.case == case].set_index("photograph").loc[names]
        y = np.arange(len(names))[::-1] + 0.28 * ((len(cases) - 1) / 2 - k)
        spread = [rows.difference - rows.difference_low, rows.difference_high - rows.difference]
        how = dict(fmt="os^"[k % 3], ms=4, lw=1, color=colour(case), label=case)
        ax.errorbar(rows.difference, y, xerr=np.maximum(spread, 0), **how)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(np.arange(len(names))[::-1], names)
    ax.set(xlabel="LPIPS minus that of bicubic (left is better)")
    ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=len(cases))
    fig.tight_layout()
    return fig


def crops(rows: Mapping[str, Tensor], n: int = 6) -> Figure:
    """The same pictures in each row, n of them."""
    return figures.grid({k: v[:n] for k, v in rows.items()}, margin=1.6)


def halves(before: Tensor, after: Tensor, cut: int, names: tuple[str, str]) -> Figure:
    """One picture, to the left of `cut` percent as it was before, to the right as it is after."""
    fig, ax = figures.subplots(figsize=(4.2, 4.4))
    at = round(before.shape[2] * cut / 100)
    both = before.clone()
    both[:, :, at:] = after[:, :, at:]
    ax.imshow(figures.to_image(both), interpolation="nearest")
    ax.axvline(at - 0.5, color="white", lw=1)
    ax.axis("off")
    ax.set_title(f"{names[0]} | {names[1]}", fontsize=9)
    fig.tight_layout()
    return fig
