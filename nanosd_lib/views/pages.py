"""What every page shows alike: its answer on top, made at the end, and readings under figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import pandas as pd
from IPython.display import Markdown, display

from nanosd_lib.views.readings import digits, within


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
    """sensitivity_cost.csv as a table to read: what goes, what that saves, what it does."""
    shown = pd.DataFrame(
        {
            "stage": sensitivity.removed,
            "how": sensitivity.how,
            "parameters saved": [f"{x:.0%}" for x in sensitivity.params_saved_share],
            "ms saved": [within(r, "ms_saved", "{:.1f}") for _, r in sensitivity.iterrows()],
            "prediction moves by": [within(r, "eps_error") for _, r in sensitivity.iterrows()],
            "tAFID": [within(r, "tafid") for _, r in sensitivity.iterrows()],
        }
    )
    said = f"the teacher with other noise: tAFID {digits(sensitivity.floor.iloc[0])}"
    return shown.style.hide(axis="index").set_caption(said)


def surrogates(table: pd.DataFrame) -> Any:
    """surrogates.csv as a table to read, the constant columns left out."""
    shown = pd.DataFrame(
        {
            "stage": table.stage,
            "code": table.code,
            "parameters": table.params,
            "held-out error": [within(r, "relative_error") for _, r in table.iterrows()],
            "read_error": [digits(x) for x in table.read_error],
        }
    )
    return shown.style.hide(axis="index").format({"parameters": "{:,}"})


def choices(left: Mapping[str, Sequence[str]], table: pd.DataFrame) -> Any:
    """Which codes pruning leaves in each stage; one sentence where it takes none."""
    if table.kept.all():
        n = prod(len(codes) for codes in left.values())
        return Markdown(f"Nothing is dropped: all {n:,} networks are left.")
    return pd.Series({k: ", ".join(v) for k, v in left.items()}).to_frame("choices that are left")
