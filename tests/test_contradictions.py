"""contradictions: arithmetic on the sources' own numbers; every row it names is in the ledger."""

from __future__ import annotations

import pandas as pd

from nanosd_lib import paper
from nanosd_lib.recipes import contradictions


def test_every_contradiction_names_rows_of_the_ledger():
    table, known = contradictions.table(), {c.id for c in paper.claims()}
    named = [name for rows in table.rows for name in rows.split(", ")]
    assert len(table) >= 14 and set(named) <= known
    assert table.say.is_unique and (table.arithmetic.str.len() > 10).all()


def test_the_arithmetic_is_the_sources_own():
    """By hand: 28 of 32 decoders' options, 390 / 360 hours, 88 x 126.6 ms, 1 - 130 / 860."""
    said = " ".join(contradictions.table().arithmetic)
    for part in ("28,672", "24,576", "1.08 times", "11.1 s", "84.9 %", "only an overlap of 32"):
        assert part in said, part


def test_another_table_gives_another_arithmetic(monkeypatch):
    family = paper.family()
    family.loc[family.model == "NanoSD7", "params_m"] = 86
    monkeypatch.setattr(contradictions.paper, "family", lambda: family)
    said = " ".join(contradictions.table().arithmetic)
    assert "cuts 90.0 %" in said and "84.9 %" not in said


def test_figures_of_other_works_have_a_source():
    table = paper.elsewhere()
    assert (table.link.str.len() > 10).all() and table.value.gt(0).all()
    assert pd.api.types.is_numeric_dtype(table.value)
