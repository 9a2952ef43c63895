"""The published side: tables of the three sources, their claims, and the ledger of verdicts.

Sources: the poster (CVPR 2026), the abstract page and a third-party article; a figure that only a
reading note reports says so. All of it lives in `data/paper`; nothing here is typed twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

DATA = Path(__file__).parents[1] / "data" / "paper"
TEXT = "E1 E2 E3 E4 M D4 D3 D2 D1 printed_D3 printed_D2 printed_D1 note".split()
COLUMNS = "id statement source paper ours unit protocol rule verdict notebook why".split()
VERDICTS = ("reproduced", "differs", "trend holds", "trend fails", "not run")
Words = Annotated[str, Field(min_length=1)]
Notebook = Literal[
    "00_start_here", "01_tiling_analysis", "02_block_surgery", "03_fwkd", "04_vae_slimming",
    "05_bayesian_search", "06_family", "07_super_resolution", "08_faces_weather_depth",
    "09_on_device", "10_beyond_the_paper",
]  # fmt: skip


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Within(Strict):
    """Ours is as close to the printed value as `abs` or `rel` (a fraction of it) allows."""

    type: Literal["within"]
    abs: Annotated[FiniteFloat, Field(ge=0)] | None = None
    rel: Annotated[FiniteFloat, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Within:
        if (self.abs is None) == (self.rel is None):
            raise ValueError("give either abs or rel")
        return self

    def holds(self, ours: float, value: float) -> bool:
        slack = (self.rel or 0.0) * abs(value) if self.abs is None else self.abs
        return abs(ours - value) <= slack + 1e-12 * abs(value)

    def __str__(self) -> str:
        if self.abs == 0:
            return "equals the paper's value"
        slack = f"{self.abs:g}" if self.rel is None else f"{100 * self.rel:g} %"
        return f"within {slack} of the paper's value"


class Truncates(Strict):
    """Ours, cut or rounded to `digits` decimals, is the printed value (the poster does both)."""

    type: Literal["truncates"]
    digits: Annotated[int, Field(ge=0, le=9)]

    def holds(self, ours: float, value: float) -> bool:
        scaled, printed = ours * 10**self.digits, round(value * 10**self.digits)
        return printed in (math.trunc(scaled + math.copysign(1e-9, ours)), round(scaled))

    def __str__(self) -> str:
        return f"equals the paper's value when cut or rounded at decimal {self.digits}"


class Bound(Strict):
    """Ours stays on one side of a bound (the bounds are ours, not the paper's)."""

    type: Literal["at_least", "at_most"]
    bound: FiniteFloat

    def holds(self, ours: float, value: float) -> bool:
        return ours >= self.bound if self.type == "at_least" else ours <= self.bound

    def __str__(self) -> str:
        return f"{self.type.replace('_', ' ')} {self.bound:g}"


class NoRule(Strict):
    type: Literal["none"]

    def __str__(self) -> str:
        return "no rule: not decided here"


class Claim(Strict):
    """One checkable statement of a source, in our words, and the rule that decides it."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    statement: Words
    source: Literal["poster", "abstract", "article", "note"]
    section: Words
    value: FiniteFloat | None = None
    unit: str = ""
    kind: Literal["exact", "trend", "needs weights", "needs device"]
    rule: Annotated[Within | Truncates | Bound | NoRule, Field(discriminator="type")]
    notebook: Notebook
    measure: Words
    reason: str = ""  # why it cannot run yet
    explanation: str = ""  # what we found, where the statement does not hold

    @model_validator(mode="after")
    def _decidable(self) -> Claim:
        if self.kind.startswith("needs") and not self.reason:
            raise ValueError(f"kind '{self.kind}' wants a reason")
        if not self.kind.startswith("needs") and self.rule.type == "none":
            raise ValueError(f"kind '{self.kind}' wants a rule that decides")
        if self.rule.type in ("within", "truncates") and self.value is None:
            raise ValueError(f"rule '{self.rule.type}' wants a value")
        return self


class Record(Strict):
    """A number a notebook measured for one claim; NaN is refused (record nothing instead)."""

    value: FiniteFloat
    protocol: Words
    notebook: Words


def family() -> pd.DataFrame:
    """The poster's results table: SD 1.5, TinySD, hand-tuned and NanoSD 1-7, one row each."""
    table = pd.read_csv(DATA / "family.csv", dtype={"params_from_strings": "Int64"})
    return table.fillna(dict.fromkeys(TEXT, ""))


def restoration() -> pd.DataFrame:
    """Restoration, prior and VAE figures as reported; column `source` says by whom."""
    return pd.read_csv(DATA / "restoration.csv")


def sources() -> pd.DataFrame:
    """Where every published number comes from, and whether code and weights were found."""
    return pd.read_csv(DATA / "sources.csv")


def claims(path: Path = DATA / "claims.yaml") -> list[Claim]:
    """Every claim of the three sources; an error names the file, the claim and the field."""
    found = [
        _claim(raw, path.name, i)
        for i, raw in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")))
    ]
    ids = [claim.id for claim in found]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"{path.name}: claim '{twice[0]}': field 'id': used more than once")
    return found


def _claim(raw: object, name: str, position: int) -> Claim:
    try:
        return Claim.model_validate(raw)
    except ValidationError as err:
        first = err.errors()[0]
        label = raw.get("id", f"#{position + 1}") if isinstance(raw, dict) else f"#{position + 1}"
        field = ".".join(map(str, first["loc"])) or "kind, rule, value"
        raise ValueError(f"{name}: claim '{label}': field '{field}': {first['msg']}") from None


def verdict(claim: Claim, record: Record | None) -> str:
    """reproduced | differs (exact), trend holds | trend fails (trend), or not run."""
    if record is None or claim.kind.startswith("needs"):
        return "not run"
    assert not isinstance(claim.rule, NoRule)  # only claims that need something have no rule
    holds = claim.rule.holds(record.value, math.nan if claim.value is None else claim.value)
    if claim.kind == "exact":
        return "reproduced" if holds else "differs"
    return "trend holds" if holds else "trend fails"


def ledger(records: Mapping[str, Record], path: Path = DATA / "claims.yaml") -> pd.DataFrame:
    """All claims joined with what the notebooks recorded: one row each, never without a verdict."""
    known = claims(path)
    if unknown := sorted(set(records) - {claim.id for claim in known}):
        raise ValueError(f"{path.name}: no claim '{unknown[0]}': list it there or fix the id")
    return pd.DataFrame([_row(claim, records.get(claim.id)) for claim in known], columns=COLUMNS)


def _why(claim: Claim, record: Record | None, result: str) -> str:
    if result == "not run":
        return claim.reason or f"{claim.notebook} recorded no value in this run"
    if record and result in ("differs", "trend fails"):
        return claim.explanation or f"measured {record.value:.4g}; the rule: {claim.rule}"
    return ""


def _row(claim: Claim, record: Record | None) -> dict[str, object]:
    result = verdict(claim, record)
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": f"{claim.source}, {claim.section}",
        "paper": math.nan if claim.value is None else claim.value,
        "ours": record.value if record else math.nan,
        "unit": claim.unit,
        "protocol": record.protocol if record else "",
        "rule": str(claim.rule),
        "verdict": result,
        "notebook": record.notebook if record else claim.notebook,
        "why": _why(claim, record, result),
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims got each verdict."""
    counts = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    return counts.rename_axis("verdict").reset_index(name="claims")


def paper_name(name: str) -> str:
    """ "N1" is the paper's NanoSD1; other names are the same."""
    return f"NanoSD{name[1:]}" if name[0] == "N" and name[1:].isdigit() else name
