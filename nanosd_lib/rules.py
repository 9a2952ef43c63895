"""Rules: which values a statement accepts, and what an interval says about them (ours: the sources
print no bounds and no intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SLACK = 1e-9  # of a value: rounding of decimal digits
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of claims.yaml; ten times as fast
Words = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Answer = Literal["inside", "outside", "across"]


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

    def accepted(self, printed: float) -> tuple[float, float]:
        slack = (self.rel or 0.0) * abs(printed) if self.abs is None else self.abs
        return printed - slack, printed + slack

    def __str__(self) -> str:
        if self.abs == 0:
            return "equals the paper's value"
        slack = f"{self.abs:g}" if self.rel is None else f"{100 * self.rel:g} %"
        return f"within {slack} of the paper's value"


class Printed(Strict):
    """Ours, cut or rounded to `digits` decimals, is the printed value."""

    type: Literal["printed"]
    digits: Annotated[int, Field(ge=0, le=9)]
    how: Literal["cut", "round"]

    def accepted(self, printed: float) -> tuple[float, float]:
        unit = 10.0**-self.digits
        begin = printed if self.how == "cut" else printed - unit / 2
        return begin, begin + unit * (1 - 1e-6)

    def __str__(self) -> str:
        way = "cut" if self.how == "cut" else "rounded"
        return f"equals the paper's value when {way} at decimal {self.digits}"


class Bound(Strict):
    """Ours stays on one side of a bound."""

    type: Literal["at_least", "at_most"]
    bound: FiniteFloat

    def accepted(self, printed: float) -> tuple[float, float]:
        return (self.bound, math.inf) if self.type == "at_least" else (-math.inf, self.bound)

    def __str__(self) -> str:
        return f"{self.type.replace('_', ' ')} {self.bound:g}"


class Between(Strict):
    """Ours lies between two bounds: too good is as wrong as too bad."""

    type: Literal["between"]
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _ordered(self) -> Between:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    def accepted(self, printed: float) -> tuple[float, float]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"


Rule = Annotated[Within | Printed | Bound | Between, Field(discriminator="type")]


def answer(
    rule: Within | Printed | Bound | Between, low: float, high: float, printed: float
) -> Answer:
    """Whether [low, high] lies inside what the rule accepts, outside of it, or across its bound.

    NaN and infinity are across: they never pass, and never fail, a rule.
    """
    begin, end = rule.accepted(printed)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "across"
    slack = SLACK * max(abs(low), abs(high), *(abs(x) for x in (begin, end) if math.isfinite(x)))
    if low >= begin - slack and high <= end + slack:
        return "inside"
    return "outside" if high < begin - slack or low > end + slack else "across"


def would_decide(
    rule: Within | Printed | Bound | Between,
    value: float,
    low: float,
    high: float,
    n: int,
    printed: float,
) -> str:
    """How many pictures (prompts, networks) in the place of n would decide, should the value stay:
    an interval narrows as one over the root of their number. "" where n is 0 or none would.
    """
    needed = [
        n * (((high if bound > value else low) - value) / (bound - value)) ** 2
        for bound in rule.accepted(printed)
        if low < bound < high and bound != value
    ]
    if not n or not needed or value in rule.accepted(printed):
        return ""
    many = float(f"{max(needed):.2g}")
    return f"; about {many:,.0f} in place of {n} would decide" if many < 1e5 else ""


class Decided(Strict):
    """A rule, with a plausible value that passes it and one that fails."""

    rule: Rule
    passes: FiniteFloat
    fails: FiniteFloat

    def _tried(self, printed: float) -> None:
        for name, wanted in (("passes", "inside"), ("fails", "outside")):
            x = getattr(self, name)
            if answer(self.rule, x, x, printed) != wanted:
                raise ValueError(f"{name}: {x:g} does not, by the rule '{self.rule}'")


class Guard(Decided):
    """A number without which the row says nothing: where it is not met, the row is undecided (or,
    for a second condition of the statement itself, fails).
    """

    name: Name
    measure: Words
    unmet: Literal["undecided", "fails"] = "undecided"
    said: str = ""  # why the row says nothing then, where name, value and rule are not words enough

    def told(self, value: float) -> str:
        """Why it is not met."""
        return self.said or f"{self.name.replace('-', ' ')} {value:.3g}, not {self.rule}"

    @model_validator(mode="after")
    def _decides(self) -> Guard:
        self._tried(math.nan)
        return self


class Explanation(Strict):
    """What we found, for one verdict and, where `of` names a number of the record, one side of a
    bound; {value}, {low}, {high}, {n}, {backend}, guards and facts are filled in from the record.
    """

    verdict: Literal["fails", "differs", "undecided", "holds", "reproduced", "not run"]
    text: Words
    of: str = ""
    above: FiniteFloat | None = None
    below: FiniteFloat | None = None

    @model_validator(mode="after")
    def _whole(self) -> Explanation:
        if bool(self.of) != ((self.above is not None) or (self.below is not None)):
            raise ValueError("an explanation's condition is `of` with above or below")
        return self

    def meant(self, said: Mapping[str, Any]) -> bool:
        """Whether its condition is met by the numbers of a record."""
        x = said.get(self.of)
        begin = -math.inf if self.above is None else self.above
        end = math.inf if self.below is None else self.below
        return not self.of or (isinstance(x, int | float) and begin < x < end)

    def filled(self, said: Mapping[str, Any], claim: str) -> str:
        """The text with the numbers of a record; ValueError for one that was not recorded."""
        try:
            return self.text.format(**said)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            reason = f"explanation: {error} was not recorded"
            raise ValueError(f"claim '{claim}': {reason}") from None
