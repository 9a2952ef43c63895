"""Readings: what a figure or a table says, in words that are made from its numbers.

Each function takes the tables that a page shows and returns one paragraph. A comparison whose
interval holds both answers is "undecided"; no number stands here that is not in a table.
"""

from __future__ import annotations

import pandas as pd

CAN_FAIL = 1e-3  # of the prediction's power: what a stage must move for a claim on it to fail


def _digits(x: float, form: str = "") -> str:
    """Two digits that matter, without an exponent for what is large: 130, 0.91, 1.5e-05."""
    return form.format(x) if form else f"{float(f'{x:.2g}'):g}"


def _between(value: float, low: float, high: float, form: str = "") -> str:
    """ "0.91 (0.87 to 0.94)" """
    return f"{_digits(value, form)} ({_digits(low, form)} to {_digits(high, form)})"


def _percent(row: pd.Series) -> str:
    """A share with its interval: "90 % (82 to 94)"."""
    return f"{100 * row.value:.0f} % ({100 * row.value_low:.0f} to {100 * row.value_high:.0f})"


def _row(teacher: pd.DataFrame, check: str, kind: str) -> pd.Series:
    return teacher[(teacher.check == check) & (teacher.kind == kind)].iloc[0]


def _ends(row: pd.Series, form: str = "") -> str:
    return _between(row.value, row.value_low, row.value_high, form)


def _listed(names: list[str]) -> str:
    return (
        ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "none"
    )


def can_fail(sensitivity: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Stages whose whole interval lies above `CAN_FAIL`, and the rest."""
    whole = sensitivity[sensitivity.band == "all"]
    matters = whole.eps_error_low > CAN_FAIL
    return list(whole.removed[matters]), list(whole.removed[~matters])


def answer(teacher: pd.DataFrame, sensitivity: pd.DataFrame) -> str:
    """Page 00 in one sentence."""
    one, two = (
        _row(teacher, "prompts, both", kind) for kind in ("one object", "two objects, new caption")
    )
    photographs = _row(teacher, "VAE PSNR (dB)", "held-out photographs")
    sure, rest = can_fail(sensitivity)
    return (
        f"The teacher shows the shape and colour asked for in {_percent(one)} of one-object and"
        f" {_percent(two)} of two-object prompts (other prompts' pictures: {100 * one.beside:.0f} %"
        f" and {100 * two.beside:.0f} %), and its VAE keeps held-out photographs at"
        f" {_ends(photographs, '{:.1f}')} dB,"
        f" {against(photographs)} bicubic of a quarter of the size ({photographs.beside:.1f} dB)."
        f" Claims about {_listed(sure)} can fail on it; about {_listed(rest)} they can hardly."
    )


def against(row: pd.Series) -> str:
    """Where a value stands beside what it is to be read against: above, below or level with it."""
    if row.value_low > row.beside:
        return "above"
    return "below" if row.value_high < row.beside else "level with"


def reconstruction(teacher: pd.DataFrame) -> str:
    psnr = teacher[teacher.check == "VAE PSNR (dB)"].set_index("kind")
    files = psnr.drop(index=["held-out scenes", "held-out photographs"])
    gain = files.value - files.beside
    colour = teacher[teacher.check == "VAE colour error"].set_index("kind").value[files.index]
    return (
        f"Scenes come back at {_ends(psnr.loc['held-out scenes'], '{:.1f}')} dB. Of {len(files)}"
        f" photographs the VAE is nearest to bicubic on {gain.idxmin()} ({gain.min():+.1f} dB) and"
        f" farthest above it on {gain.idxmax()} ({gain.max():+.1f} dB); the mean colour moves most"
        f" on {colour.idxmax()} ({colour.max():.2g} of the range)."
    )


def prompts(teacher: pd.DataFrame) -> str:
    both = teacher[teacher.check == "prompts, both"].set_index("kind")
    judged = both[both.index.str.startswith("renders")]
    pairs = {"one object": "one object", "two objects": "two objects, new caption"}
    said = []
    for objects, kind in pairs.items():
        unseen, seen = both.loc[f"{objects}, unseen pair"], both.loc[kind]
        apart = unseen.value_high < seen.value_low or unseen.value_low > seen.value_high
        said.append(
            f"with {objects} {_percent(unseen)} against {_percent(seen)}"
            + ("" if apart else f", undecided at n = {int(seen.n)}")
        )
    return (
        f"Of pairs of shape and colour that no training scene held, are drawn: {'; '.join(said)}."
        f" The classifier itself is right about {100 * judged.value.iloc[0]:.0f} % of renders with"
        f" one object and {100 * judged.value.iloc[1]:.0f} % with two; what is missing beyond that"
        f" is the teacher's."
    )


def stages(sensitivity: pd.DataFrame) -> str:
    whole = sensitivity[sensitivity.band == "all"].set_index("removed")
    most, least = whole.eps_error.idxmax(), whole.eps_error.idxmin()
    deep = whole.loc["E4+M+D4"]
    line = lambda r: _between(r.eps_error, r.eps_error_low, r.eps_error_high)  # noqa: E731
    side = (
        "less than"
        if deep.tafid_high < deep.floor
        else "more than"
        if deep.tafid_low > deep.floor
        else "about as much as"
    )
    return (
        f"Over all timesteps, the prediction changes by {line(whole.loc[most])} of its power"
        f" without {most}, by {line(whole.loc[least])} without {least}. E4, M and D4 together,"
        f" which the paper drops: {line(deep)}; their pictures move by a distance of"
        f" {_between(deep.tafid, deep.tafid_low, deep.tafid_high)}, {side} other noise moves them"
        f" ({_digits(deep.floor)})."
    )


def distances(table: pd.DataFrame) -> str:
    frechet = table.set_index("pictures")
    renders, yard = (
        frechet.loc[k] for k in ("teacher to renders", "teacher to itself, other noise")
    )
    floor, none = (frechet.loc[k] for k in ("renders to renders", "untrained network to renders"))
    line = lambda r: _between(r.frechet, r.frechet_low, r.frechet_high)  # noqa: E731
    return (
        f"Over {int(renders.n)} pictures the teacher lies {line(renders)} from renders, where other"
        f" renders lie {line(floor)} and an untrained network {line(none)}. With other noise"
        f" it lies {line(yard)} from itself: the yardstick of every tAFID here,"
        f" and no floor of it: a student shares the teacher's noise."
    )
