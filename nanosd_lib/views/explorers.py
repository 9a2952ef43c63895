"""Explorers: sliders over a pure function.

A page shows one call of the function; `show()` opens the sliders, in JupyterLab, when a reader asks
for them (a live widget can stall a batch run). The engine calls every explorer's function over its
grid after the last cell, so that a broken callback fails the run instead of hiding in a widget.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

MADE: list[Explorer] = []  # in this kernel, for `check`
MOST = 64  # calls of a check


class Explorer:
    """A function and the values of each of its arguments: a range becomes a slider, a list a menu.

    TypeError for anything else, ValueError for no values at all.
    """

    def __init__(self, function: Callable[..., Any], **choices: range | Sequence[Any]) -> None:
        for name, values in choices.items():
            if not isinstance(values, range | list | tuple):
                raise TypeError(f"explorer: {name} = {values!r}: a range or a list is wanted")
            if not values:
                raise ValueError(f"explorer: {name} has no values")
        self.function, self.choices = function, choices
        MADE.append(self)

    def show(self) -> Any:
        """The widgets, to be displayed by a cell."""
        import ipywidgets
        from IPython.display import display

        def slider(values: range | Sequence[Any]) -> Any:
            middle = values[len(values) // 2]
            if isinstance(values, range):
                low, high = min(values), max(values)
                return ipywidgets.IntSlider(middle, low, high, abs(values.step))
            return ipywidgets.Dropdown(options=list(values), value=middle)

        widgets = {name: slider(values) for name, values in self.choices.items()}
        return ipywidgets.interactive(lambda **k: display(self.function(**k)), **widgets)

    def grid(self) -> list[dict[str, Any]]:
        """Both ends and the middle of every range, every entry of every list: all combinations, or,
        where they are more than `MOST`, so many of them (always the same), in which each is.
        """
        few = {
            k: sorted({v[0], v[len(v) // 2], v[-1]}) if isinstance(v, range) else list(v)
            for k, v in self.choices.items()
        }
        if math.prod(len(v) for v in few.values()) <= MOST:
            return [dict(zip(few, c, strict=True)) for c in itertools.product(*few.values())]
        longest, draw = max(len(v) for v in few.values()), random.Random(0)
        each = [{k: v[i % len(v)] for k, v in few.items()} for i in range(longest)]
        some = range(max(0, MOST - longest))
        return each + [{k: draw.choice(v) for k, v in few.items()} for _ in some]

    def check(self) -> int:
        """Call the function over its grid; how often. RuntimeError names the choice that fails."""
        for choice in tqdm(self.grid(), desc="explorer", leave=False):
            try:
                self.function(**choice)
            except Exception as error:
                called = ", ".join(f"{k}={v!r}" for k, v in choice.items())
                what = f"{type(error).__name__}: {error}"
                raise RuntimeError(f"explorer({called}) fails: {what}") from error
        return len(self.grid())


def check() -> int:
    """Check every explorer that this kernel has made; how many calls that took."""
    return sum(explorer.check() for explorer in MADE)
