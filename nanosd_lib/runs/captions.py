"""Captions: what is drawn in each figure of the pages, written once in notebooks/captions.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import yaml

from nanosd_lib.paths import ROOT

FILE = ROOT / "notebooks" / "captions.yaml"
BEGIN = "*Figure.* "
SHOWN = 90  # pixels for an inch on the screen


@functools.cache
def captions() -> dict[str, str]:
    """By the name of the figure."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Captioned:
    """A figure that a notebook shows as it was saved, with its caption under it."""

    png: bytes
    inches: float  # of its width
    caption: str

    def _ipython_display_(self) -> None:
        from IPython.display import Image, Markdown, display

        display(Image(self.png, format="png", width=round(SHOWN * self.inches)))
        display(Markdown(BEGIN + self.caption))
