"""The published side: tables of the three sources, their claims, and the ledger of verdicts.

Sources: the poster (CVPR 2026), the abstract page and a third-party article; a figure that only a
reading note reports says so. All of it lives in `data/paper`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator

from nanosd_lib import rules
from nanosd_lib.rules import LOADER, Decided, Explanation, Guard, Name, Strict, Words

DATA = Path(__file__).parents[1] / "data" / "paper"
TEXT = "E1 E2 E3 E4 M D4 D3 D2 D1 printed_D3 printed_D2 printed_D1 note".split()
COLUMNS = """id step statement source evidence paper ours low high n seeds unit backend elsewhere
    guards protocol rule verdict notebook why""".split()
VERDICTS = ("fails", "differs", "undecided", "holds", "reproduced", "not run")  # worst news first
Evidence = Literal["trained", "timed", "compiled", "counted", "arithmetic", "restated"]
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)
SURE = ("counted", "arithmetic", "restated")  # kinds of evidence that have no interval
STEPS = {
    "00": "Sources",
    "01": "Background: tiles and memory",
    "02": "1 Surgery and latency",
    "03": "2 Feature-wise distillation",
    "04": "4 Slim VAE, co-design",
    "05": "3 Search",
    "06": "5 Alignment and the family",
    "07": "Super-resolution",
    "08": "Faces, weather, depth",
    "09": "On the device",
    "10": "Beyond the paper",
}
Notebook = Literal[
    "00_start_here", "01_tiling_analysis", "02_block_surgery", "03_fwkd", "04_vae_slimming",
    "05_bayesian_search", "06_family", "07_super_resolution", "08_faces_weather_depth",
    "09_on_device", "10_beyond_the_paper",
]  # fmt: skip


class Claim(Decided):
    """One checkable statement of a source, in our words, and the rule that decides it."""

    id: Name
    statement: Words
    source: Literal["poster", "abstract", "article", "note"]
    section: Words
    value: FiniteFloat | None = None
    unit: str = ""
    kind: Literal["exact", "trend"]
    evidence: Evidence
    count: bool = False  # of things that were weighed with their intervals: its own may be a point
    backend: str = ""  # the one that decides, named in advance
    seeds: Annotated[int, Field(ge=0)] = 0  # so many at least
    guards: tuple[Guard, ...] = ()
    notebook: Notebook
    measure: Words
    waits: str = ""  # the table it waits for; only such a row may be "not run"
    explanations: tuple[Explanation, ...] = ()

    @field_validator("guards", "explanations", mode="before")
    @classmethod
    def _listed(cls, found: Any) -> Any:
        return tuple(found) if isinstance(found, list) else found

    @model_validator(mode="after")
    def _decidable(self) -> Claim:
        if self.rule.type in ("within", "printed") and self.value is None:
            raise ValueError(f"rule '{self.rule.type}' wants a value")
        if self.evidence == "compiled" and not self.waits:
            raise ValueError(
                "evidence 'compiled' wants `waits`: where a compiled record comes from"
            )
        self._tried(math.nan if self.value is None else self.value)
        return self


class Record(Strict):
    """A number that a notebook found for one claim: as many digits as the ledger keeps (six), so
    that the verdict is that of the digits. NaN is refused: record nothing instead.

    low, high: the interval, None where nothing is known of it. guards: {name: (value, low, high)}.
    elsewhere: the same on other backends. facts: what explanations fill in.
    """

    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int | None = None
    seeds: int | None = None
    backend: str = ""
    elsewhere: dict[str, FiniteFloat] = {}
    guards: dict[str, tuple[FiniteFloat, FiniteFloat | None, FiniteFloat | None]] = {}
    facts: dict[str, FiniteFloat | str] = {}
    compiled: bool = False
    protocol: Words
    notebook: Words

    @field_validator("guards", mode="before")
    @classmethod
    def _ends(cls, found: Any) -> Any:
        return {k: (v[0], v[1], v[2]) for k, v in dict(found).items()}

    @field_validator("value", "low", "high")
    @classmethod
    def _digits(cls, x: float | None) -> float | None:
        whole = x is not None and abs(x) < 2**53 and x == int(x)
        return x if x is None or whole else float(f"{x:.6g}")

    @model_validator(mode="after")
    def _ordered(self) -> Record:
        if self.low is not None and self.high is not None:
            if not self.low <= self.value <= self.high:
                ends = f"[{self.low:g}, {self.high:g}]"
                raise ValueError(f"value {self.value:g} lies outside its interval {ends}")
        elif self.low is not self.high:
            raise ValueError("an interval has two ends")
        return self

    @property
    def said(self) -> dict[str, Any]:
        """What an explanation may fill in."""
        ends = {"low": self.low, "high": self.high}
        own = {"value": self.value, **ends, "n": self.n, "seeds": self.seeds}
        guards = {k.replace("-", "_"): v[0] for k, v in self.guards.items()}
        return own | {"backend": self.backend} | guards | self.facts


def family() -> pd.DataFrame:
    """The poster's results table: SD 1.5, TinySD, hand-tuned, NanoSD1 to NanoSD7, a row each."""
    table = pd.read_csv(DATA / "family.csv", dtype={"params_from_strings": "Int64"})
    return table.fillna(dict.fromkeys(TEXT, ""))


def restoration() -> pd.DataFrame:
    """Restoration, prior and VAE figures as reported; column `source` says by whom."""
    return pd.read_csv(DATA / "restoration.csv")


def sources() -> pd.DataFrame:
    """Where every published number comes from, and whether code and weights were found."""
    return pd.read_csv(DATA / "sources.csv")


def elsewhere() -> pd.DataFrame:
    """What other works print that a claim is compared with: key, work, what, value, unit, link."""
    return pd.read_csv(DATA / "elsewhere.csv")


def claims(path: Path = DATA / "claims.yaml") -> list[Claim]:
    """Every claim of the three sources; an error names the file, the claim and the field."""
    return list(_claims(path.read_text(encoding="utf-8"), path.name))


@cache  # a third of a second: a study asks for them at every page
def _claims(text: str, name: str) -> tuple[Claim, ...]:
    found = [_claim(raw, name, i) for i, raw in enumerate(LOADER(text).get_single_data())]
    ids = [claim.id for claim in found]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"{name}: claim '{twice[0]}': field 'id': used more than once")
    return tuple(found)


def _claim(raw: object, name: str, position: int) -> Claim:
    try:
        return Claim.model_validate(raw)
    except ValidationError as err:
        first, label = err.errors()[0], f"#{position + 1}"
        label = raw.get("id", label) if isinstance(raw, dict) else label
        field = ".".join(map(str, first["loc"])) or "rule, value, passes, fails"
        raise ValueError(f"{name}: claim '{label}': field '{field}': {first['msg']}") from None


def verdict(claim: Claim, record: Record | None) -> tuple[str, str]:
    """(verdict, reason where it is undecided).

    reproduced | differs (exact), holds | fails (trend): the record's interval lies inside what the
    rule accepts, or is disjoint from it; undecided in between, where a guard is not met, where
    seeds are too few, and where nothing is known of the interval. ValueError for a record of
    another kind than the claim asks for.
    """
    if record is None:
        return "not run", ""
    _fits(claim, record)
    good, bad = ("reproduced", "differs") if claim.kind == "exact" else ("holds", "fails")
    for guard in claim.guards:
        found, reason = _guarded(guard, record)
        if found != "inside":
            return (bad if found == "outside" and guard.unmet == "fails" else "undecided"), reason
    if (record.seeds or 1) < claim.seeds:
        return "undecided", f"too few seeds: {record.seeds or 1} of {claim.seeds}"
    low, high = (record.value,) * 2 if claim.evidence in SURE else (record.low, record.high)
    if low is None or high is None:
        return "undecided", "no interval: one measurement says nothing of its spread"
    if low == high and claim.evidence not in SURE and not claim.count:
        return "undecided", "an interval of no width: too little varied to know the spread"
    printed = math.nan if claim.value is None else claim.value
    found = rules.answer(claim.rule, low, high, printed)
    if found == "across":
        said = f"the interval {low:.3g} to {high:.3g} crosses the bound ({claim.rule})"
        n = 0 if claim.count else record.n or 0
        more = rules.would_decide(claim.rule, record.value, low, high, n, printed)
        return "undecided", said + more
    return (good if found == "inside" else bad), ""


def _fits(claim: Claim, record: Record) -> None:
    if record.compiled != (claim.evidence == "compiled"):
        kind = "a compiled" if record.compiled else "a measured"
        raise ValueError(f"claim '{claim.id}': {kind} number for evidence '{claim.evidence}'")
    if claim.backend != record.backend:
        raise ValueError(
            f"claim '{claim.id}': backend '{record.backend}', but '{claim.backend}' decides"
        )
    if unknown := sorted(set(record.guards) - {guard.name for guard in claim.guards}):
        raise ValueError(f"claim '{claim.id}': no guard '{unknown[0]}'")


def _guarded(guard: Guard, record: Record) -> tuple[rules.Answer, str]:
    if guard.name not in record.guards:
        return "across", f"{guard.name.replace('-', ' ')}: not measured"
    value, low, high = record.guards[guard.name]
    ends = (value if low is None else low), (value if high is None else high)
    found, name = rules.answer(guard.rule, *ends, math.nan), guard.name.replace("-", " ")
    across = f"{name}: {ends[0]:.3g} to {ends[1]:.3g} crosses the bound ({guard.rule})"
    return found, across if found == "across" else guard.told(value)


def check(claim: Claim, record: Record) -> None:
    """ValueError unless a ledger could hold the record, with all that explains its verdict."""
    result, _ = verdict(claim, record)
    for one in claim.explanations:
        if one.verdict == result and one.meant(record.said):
            one.filled(record.said, claim.id)


def ledger(records: Mapping[str, Record], path: Path = DATA / "claims.yaml") -> pd.DataFrame:
    """All claims joined with what the notebooks recorded: one row each, never without a verdict."""
    known = claims(path)
    if unknown := sorted(set(records) - {claim.id for claim in known}):
        raise ValueError(f"{path.name}: no claim '{unknown[0]}': list it there or fix the id")
    return pd.DataFrame([_row(claim, records.get(claim.id)) for claim in known], columns=COLUMNS)


def again(row: Mapping[str, Any], claim: Claim) -> str:
    """The verdict of a row of claims.csv, found again from the digits that it holds."""
    if math.isnan(row["ours"]):
        return "not run"
    gap = lambda k: None if math.isnan(row[k]) else float(row[k])  # noqa: E731
    text = {k: row[k] if isinstance(row[k], str) else "" for k in ("backend", "guards")}
    made = Record(
        value=float(row["ours"]),
        low=gap("low"),
        high=gap("high"),
        seeds=None if math.isnan(row["seeds"]) else int(row["seeds"]),
        backend=text["backend"],
        guards=json.loads(text["guards"] or "{}"),
        compiled=row["evidence"] == "compiled",
        protocol="claims.csv",
        notebook=str(row["notebook"]),
    )
    return verdict(claim, made)[0]


def _row(claim: Claim, record: Record | None) -> dict[str, object]:
    result, reason = verdict(claim, record)
    gap = lambda x: math.nan if x is None else float(x)  # noqa: E731
    sure = record and claim.evidence in SURE
    return {
        "id": claim.id,
        "step": STEPS[claim.notebook[:2]],
        "statement": claim.statement,
        "source": f"{claim.source}, {claim.section}",
        "evidence": claim.evidence,
        "paper": gap(claim.value),
        "ours": gap(record.value) if record else math.nan,
        "low": gap(record.value if sure else record.low) if record else math.nan,
        "high": gap(record.value if sure else record.high) if record else math.nan,
        "n": gap(record.n) if record else math.nan,
        "seeds": gap(record.seeds) if record else math.nan,
        "unit": claim.unit,
        "backend": record.backend if record else "",
        "elsewhere": _elsewhere(claim, record, result) if record else "",
        "guards": json.dumps(record.guards) if record and record.guards else "",
        "protocol": record.protocol if record else "",
        "rule": " and ".join([str(claim.rule), *(f"{g.name} {g.rule}" for g in claim.guards)]),
        "verdict": result,
        "notebook": record.notebook if record else claim.notebook,
        "why": _why(claim, record, result, reason),
    }


def _why(claim: Claim, record: Record | None, result: str, reason: str) -> str:
    if record is None:
        waits = f"waits for {claim.waits}" if claim.waits else ""
        return waits or f"{claim.notebook} recorded no value in this run"
    said = record.said
    found = [reason] if reason else []
    for one in claim.explanations:
        if one.verdict == result and one.meant(said):
            with contextlib.suppress(ValueError):  # a page of older code recorded less
                found.append(one.filled(said, claim.id))
    if not found and result in ("differs", "fails"):
        found = [f"measured {record.value:.4g}; the rule: {claim.rule}"]
    return ": ".join(found[:1]) + "".join(f". {x}" for x in found[1:])


def _elsewhere(claim: Claim, record: Record, result: str) -> str:
    """The same number on other backends; a verdict that would flip there is said."""
    printed = math.nan if claim.value is None else claim.value
    good = {"holds": "inside", "reproduced": "inside", "fails": "outside", "differs": "outside"}
    parts = []
    for backend, x in record.elsewhere.items():
        flips = result in good and rules.answer(claim.rule, x, x, printed) != good[result]
        parts.append(f"{backend} {x:.3g}" + (" (flips)" if flips else ""))
    return ", ".join(parts)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each kind of evidence got each verdict."""
    counts = pd.crosstab(table["evidence"], table["verdict"])
    counts = counts.reindex(index=list(EVIDENCE), columns=list(VERDICTS), fill_value=0)
    return counts.rename_axis("evidence").rename_axis(None, axis=1).reset_index()


def summary_line(table: pd.DataFrame) -> str:
    """The same in words, by evidence; there is no total of what was reproduced."""
    counts, parts = summary(table).set_index("evidence"), []
    for evidence, row in counts.iterrows():
        said = [f"{row[v]} {v}" for v in VERDICTS if v != "not run" and row[v]]
        if said:
            parts.append(f"{evidence}: {', '.join(said)}")
    parts.append(f"not run: {counts['not run'].sum()}")
    return f"{len(table)} rows. {'; '.join(parts)}"


def paper_name(name: str) -> str:
    """ "N1" is the paper's NanoSD1; other names are the same."""
    return f"NanoSD{name[1:]}" if name[0] == "N" and name[1:].isdigit() else name
