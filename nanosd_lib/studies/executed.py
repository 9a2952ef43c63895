"""What an executed notebook says of itself: its question and its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """An executed notebook."""
    import nbformat  # half a second that who only plans a run need not spend

    return nbformat.read(path, as_version=4)


def asked(text: str) -> str:
    """The question of a page: its first heading, without the number."""
    return re.sub(r"^#\s*\d*\s*·?\s*", "", text.split("\n", 1)[0]).strip()


def title(nb: Any) -> str:
    """The question of an executed page."""
    return asked(nb.cells[0].source)


def answer(nb: Any) -> str:
    """The page's answer in one sentence; what it does, where its run gave none."""
    for text in said(nb.cells):
        if text.startswith("**Answer.**"):
            return text.removeprefix("**Answer.**").strip()
    parts = [x for x in nb.cells[0].source.split("\n\n") if x[:1] not in "#|"]
    return "".join(f"*{x.removeprefix('**In one sentence:**').strip()}*" for x in parts[:1])


def said(cells: Any) -> Iterator[str]:
    """Texts that these cells put out as Markdown."""
    for cell in cells:
        for out in cell.get("outputs", []):
            text = out.get("data", {}).get("text/markdown")
            if text:
                yield "".join(text)
