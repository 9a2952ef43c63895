"""What papermill's entry point names.

papermill loads its engines while it is imported itself, and the engine is made of papermill: this
stands between them and asks `engine` only when a notebook is executed.
"""

from __future__ import annotations

from typing import Any


class _Later(type):
    def __getattr__(cls, name: str) -> Any:
        from nanosd_lib.engine import engine

        return getattr(engine.NanoSDEngine, name)


class NanoSDEngine(metaclass=_Later):
    """`engine.NanoSDEngine`, once it is asked for anything."""
