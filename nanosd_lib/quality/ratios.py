"""Ratios of latencies with their spread. The profile keeps quartiles of its rounds, not the rounds
themselves: an interval is the worst combination of two quartiles, wider than one paired by round.
"""

from __future__ import annotations

import itertools

import pandas as pd

from nanosd_lib.networks.arch import BASE
from nanosd_lib.quality.uncertainty import Interval

NEAR = 0.1  # two costs within ten per cent are equal (ours)


def ratio(a: pd.Series, b: pd.Series) -> Interval:
    """a / b of two rows with ms_median, ms_low, ms_high."""
    return Interval(a.ms_median / b.ms_median, a.ms_low / b.ms_high, a.ms_high / b.ms_low)


def by_backend(table: pd.DataFrame, a: str, b: str) -> dict[str, Interval]:
    """{backend: latency of model a over b} of model, backend, ms_median, ms_low, ms_high."""
    rows = table.set_index(["model", "backend"])
    return {
        backend: ratio(rows.loc[(a, backend)], rows.loc[(b, backend)])
        for backend in table.backend.unique()
    }


def equal_cost(table: pd.DataFrame, cost: str) -> tuple[Interval, str, str]:
    """Largest latency ratio of two rows (model, ms_median, ms_low, ms_high) whose `cost` is within
    `NEAR` of each other, and the two models; ValueError where no two are.
    """
    rows = table.set_index("model")
    pairs = [
        (ratio(rows.loc[a], rows.loc[b]), a, b)
        for a, b in itertools.permutations(rows.index, 2)
        if abs(rows.loc[a, cost] / rows.loc[b, cost] - 1) <= NEAR
    ]
    if not pairs:
        raise ValueError(f"equal_cost: no two rows have {cost} within {NEAR:.0%} of each other")
    return max(pairs, key=lambda p: p[0].value)


def attention_share(stages: pd.DataFrame) -> Interval:
    """Share of E1 and D1 in the latency of the originals' transformer blocks: a stage minus the
    same without them (stage, code, ms_median, ms_low, ms_high of one backend).
    """
    rows = stages.set_index(["stage", "code"])
    found = {}
    for stage, code in BASE.items():
        with_, without = rows.loc[(stage, code)], rows.loc[(stage, code.replace("A", ""))]
        ends = with_.ms_median - without.ms_median, with_.ms_low - without.ms_high
        found[stage] = [max(0.0, x) for x in (*ends, with_.ms_high - without.ms_low)]
    top = [found["E1"][k] + found["D1"][k] for k in range(3)]
    rest = [sum(v[k] for s, v in found.items() if s not in ("E1", "D1")) for k in range(3)]
    return Interval(
        top[0] / (top[0] + rest[0]), top[1] / (top[1] + rest[2]), top[2] / (top[2] + rest[1])
    )


def order_matters(stages: pd.DataFrame) -> Interval:
    """Largest |RRA / RAR - 1| over the three decoder stages of one backend: equal parameters, equal
    multiply-adds, another order.
    """
    rows = stages.set_index(["stage", "code"])
    off = []
    for stage in ("D3", "D2", "D1"):
        value, low, high = (
            x - 1 for x in ratio(rows.loc[(stage, "RRA")], rows.loc[(stage, "RAR")])
        )
        near = 0.0 if low < 0 < high else min(abs(low), abs(high))
        off.append((abs(value), near, max(abs(low), abs(high))))
    return Interval(*(max(o[k] for o in off) for k in range(3)))


def faster(stages: pd.DataFrame) -> Interval:
    """Share of the alternatives that are faster than their stage's original (one backend): by
    medians, between those whose quartiles are apart and those whose quartiles do not say otherwise.
    """
    rows = stages.set_index(["stage", "code"])
    others = [(s, c) for s, c in rows.index if s in BASE and c != BASE[s]]
    pairs = [(rows.loc[k], rows.loc[(k[0], BASE[k[0]])]) for k in others]
    median, sure, maybe = (
        sum(a[x] < b[y] for a, b in pairs) / len(pairs)
        for x, y in (("ms_median", "ms_median"), ("ms_high", "ms_low"), ("ms_low", "ms_high"))
    )
    return Interval(median, sure, maybe)
