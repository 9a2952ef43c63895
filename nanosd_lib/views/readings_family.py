"""Readings of notebook 06: what its figures and tables say, in words made from the numbers (see
`readings`).
"""

from __future__ import annotations

import pandas as pd

from nanosd_lib.views.readings import digits, listed, side, within

RATIO = "{:.2f}"


def aligned(family: pd.DataFrame, prior: pd.DataFrame, steps: int, many: pd.DataFrame) -> str:
    """Page 06 in a few sentences: family.csv and prior.csv of networks aligned for so many steps,
    family_many.csv where it has rows.
    """
    n2 = family.set_index("model").loc["NanoSD2"]
    two = prior.set_index(["measure", "model"]).loc[("two objects, new caption", "ratio")]
    told = side(two.value_low, two.value_high)
    same = ", not told apart from equally often" if told == "undecided" else ""
    text = (
        f"{steps} steps of alignment bring NanoSD2 from tAFID {within(n2, 'tafid_assembled')} to"
        f" {within(n2, 'tafid_aligned')}, where the teacher with other noise is at"
        f" {digits(n2.floor)}."
    )
    if len(many):
        r, best = many.set_index("model").loc["NanoSD2"], many.loc[many.tafid.idxmin()]
        apart = r.tafid_low > r.floor_high or r.tafid_high < r.floor_low
        how = "beside" if apart else "level with"
        text += (
            f" On {r.n} pictures, where distances are smaller, it is at {within(r, 'tafid')},"
            f" {how} other noise ({within(r, 'floor')})"
            + ("." if best.model == "NanoSD2" else f"; {best.model} has {digits(best.tafid)}.")
        )
    return (
        f"{text} It follows two-object prompts {within(two, 'value', RATIO)} times as often as the"
        f" teacher{same}."
    )


def drawn(family: pd.DataFrame, when: str) -> str:
    """What the grid of pictures shows (family.csv), when "assembled" or "aligned": by the cosine of
    image features to the teacher's own picture of the same prompt and noise, beside that of the
    teacher with other noise.
    """
    cosine, low, high = (family[f"cosine_{when}{end}"] for end in ("", "_low", "_high"))
    other = family.cosine_floor.iloc[0]
    near = family.model[low > family.cosine_floor_high]
    far = family.model[high < family.cosine_floor_low]
    best, worst = family.model[cosine.idxmax()], family.model[cosine.idxmin()]
    above = f"above it for {listed(list(near))}" if len(near) else "above it for none"
    below = f", below it for {listed(list(far))}" if len(far) else ""
    return (
        "Beside the teacher's own picture of the same noise, the teacher with other noise has a"
        f" mean cosine of {other:.2f}. Beyond the intervals the networks' is {above}{below};"
        f" {best} is highest ({cosine.max():.2f}), {worst} lowest ({cosine.min():.2f})."
    )


def more_pictures(many: pd.DataFrame) -> str:
    """Which aligned networks lie surely below, surely above or beside the teacher with other noise,
    on many pictures (`Many.table`): none, where the release holds no such set.
    """
    if many.empty:
        return "The release holds no larger sets of pictures here: the numbers above are all."
    r = many.iloc[0]
    below = many.model[many.tafid_high < r.floor_low]
    above = many.model[many.tafid_low > r.floor_high]
    rest = many.model.drop([*below.index, *above.index])
    parts = [
        f"{listed(list(some))} {verb}"
        for some, verb in (
            (below, "surely nearer to the teacher's pictures"),
            (above, "surely further from them"),
            (rest, "not told apart"),
        )
        if len(some)
    ]
    best = many.loc[many.tafid.idxmin()]
    return (
        f"On {r.n} pictures, where the teacher with other noise is at {within(r, 'floor')}:"
        f" {'; '.join(parts)}. Lowest is {best.model} ({within(best, 'tafid')})."
    )


def what_is_kept(prior: pd.DataFrame) -> str:
    """The measures of prior.csv that are surely the teacher's, and those that surely are not."""
    ratios = prior[prior.model == "ratio"].set_index("measure")
    names = {
        "lpips": "the distance to the teacher's own pictures, over that of other noise",
        "one object": "one-object prompts followed",
        "two objects, new caption": "two-object prompts followed",
        "diversity": "diversity",
        "detail": "fine detail",
        "largest_over_mean": "the largest step of a path over its mean",
        "length": "the length of a path",
    }
    less: list[str] = []
    more: list[str] = []
    open_: list[str] = []
    for measure, name in names.items():
        r = ratios.loc[measure]
        text = f"{name} ({within(r, 'value', RATIO)})"
        {"below": less, "above": more}.get(side(r.value_low, r.value_high), open_).append(text)
    parts = [
        f"{what} {listed(some)}"
        for what, some in (("smaller is", less), ("larger is", more), ("not told apart:", open_))
        if some
    ]
    return f"NanoSD2 over the teacher, on equal prompts and noise: {'; '.join(parts)}."
