"""What every generated reading is held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def check(one: Callable[[], str], two: Callable[[], str], words: Sequence[str]) -> None:
    """Two tables are read as two sentences: each holds its words, ends, and has no hole."""
    texts = one(), two()
    assert texts[0] != texts[1]
    for text, part in zip(texts, words, strict=True):
        begins = (
            text[0].isupper() or text[0].isdigit() or text.split()[0].endswith((".jpg", ".png"))
        )
        assert part in text and begins and text[-1] == "."
        assert "nan" not in text and "  " not in text
