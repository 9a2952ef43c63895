"""Which surrogates survive FwKD, and what each stage may then be."""

from __future__ import annotations

import pandas as pd

from nanosd_lib.networks.arch import BASE, STAGES


def choices(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """What each stage may be after FwKD: the original, and the codes of the table's kept rows."""
    kept = table[table.kept]
    return {s: (BASE[s], *kept.code[kept.stage == s]) for s in STAGES}


def survivors(table: pd.DataFrame, keep_error: float) -> list[bool]:
    """Which rows (stage, code, relative_error) survive FwKD: those that are accurate (the poster
    prunes the others). The paper prints no threshold; `keep_error` is our assumption.
    """
    return [bool(error <= keep_error) for error in table.relative_error]
