"""Captions: what is drawn in each figure of the pages, written once in notebooks/captions.yaml."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import yaml

from nanosd_lib.paths import ROOT

FILE = ROOT / "notebooks" / "captions.yaml"
BEGIN = "*Figure.* "


@functools.cache
def captions() -> dict[str, str]:
    """By the name of the figure."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Captioned:
    """A figure that a notebook shows with its caption under it."""

    figure: Any
    caption: str

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        display(self.figure)
        display(Markdown(BEGIN + self.caption))
