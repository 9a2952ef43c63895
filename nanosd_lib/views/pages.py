"""What every page shows alike: its answer on top, made at the end, and readings under figures."""

from __future__ import annotations

from typing import Any

from IPython.display import Markdown, display


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
