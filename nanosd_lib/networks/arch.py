"""The design space: a network is six stage codes in the paper's notation.

R is a ResNet block, A a transformer block. `E1 E2 E3 | D3 D2 D1`:

    Arch.parse("R RA RA | RARA RARA RR")    # NanoSD2
    Arch.parse("RARA RARA RARA RR | RAR | RRR RARARA RARARA RARARA")    # SD 1.5, with E4 | M | D4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

ENCODER = ("RARA", "RA", "RR", "R")
# seven appear in the paper's tables; RRR is our assumption for the eighth, which is listed nowhere
DECODER = ("RARARA", "RARA", "RRA", "RAR", "RR", "RA", "R", "RRR")
STAGES = ("E1", "E2", "E3", "D3", "D2", "D1")
CHOICES = {s: ENCODER if s[0] == "E" else DECODER for s in STAGES}
BASE = {"E1": "RARA", "E2": "RARA", "E3": "RARA", "D3": "RARARA", "D2": "RARARA", "D1": "RARARA"}
DEEP = {"E4": ("RR", "R"), "M": ("RAR",), "D4": ("RRR", "RR", "R")}


def _check(stage: str, code: str, allowed: tuple[str, ...]) -> None:
    if code not in allowed:
        raise ValueError(f"arch: {stage} cannot be {code!r}: use one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Arch:
    """Six stage codes, and E4, M, D4 where a network keeps them; hashable, prints as the paper
    writes it.
    """

    E1: str
    E2: str
    E3: str
    D3: str
    D2: str
    D1: str
    E4: str = ""
    M: str = ""
    D4: str = ""

    def __post_init__(self) -> None:
        for stage in STAGES:
            _check(stage, getattr(self, stage), CHOICES[stage])
        if self.deep:
            for stage, allowed in DEEP.items():
                _check(stage, getattr(self, stage), allowed)
        elif self.E4 or self.M or self.D4:
            raise ValueError("arch: E4, M and D4 stand or fall together: give all three or none")

    @property
    def deep(self) -> bool:
        """Whether E4, M and D4 are present."""
        return bool(self.E4 and self.M and self.D4)

    @classmethod
    def parse(cls, text: str) -> Arch:
        """Read the paper's notation; raises ValueError with the form that is expected."""
        groups = [g.split() for g in str(text).split("|")]
        if [len(g) for g in groups] == [3, 3]:
            return cls(*groups[0], *groups[1])
        if [len(g) for g in groups] == [4, 1, 4]:
            (e1, e2, e3, e4), (m,), (d4, d3, d2, d1) = groups
            return cls(e1, e2, e3, d3, d2, d1, e4, m, d4)
        raise ValueError(
            f"arch {text!r}: write 'E1 E2 E3 | D3 D2 D1', as in 'R RA RA | RARA RARA RR'"
            " (with the deep stages: 'E1 E2 E3 E4 | M | D4 D3 D2 D1')"
        )

    def __str__(self) -> str:
        if self.deep:
            encoder = f"{self.E1} {self.E2} {self.E3} {self.E4}"
            return f"{encoder} | {self.M} | {self.D4} {self.D3} {self.D2} {self.D1}"
        return f"{self.E1} {self.E2} {self.E3} | {self.D3} {self.D2} {self.D1}"

    @property
    def stages(self) -> dict[str, str]:
        """Stage name to code in the order of the forward pass, deep stages where present."""
        order = ("E1", "E2", "E3", "E4", "M", "D4", "D3", "D2", "D1") if self.deep else STAGES
        return {s: getattr(self, s) for s in order}

    @property
    def codes(self) -> tuple[int, ...]:
        """The paper's z: six indices into `CHOICES`."""
        return tuple(CHOICES[s].index(getattr(self, s)) for s in STAGES)

    @classmethod
    def from_codes(cls, codes) -> Arch:
        """Inverse of `codes`."""
        return cls(*(CHOICES[s][int(i)] for s, i in zip(STAGES, codes, strict=True)))


def space(choices: Mapping[str, tuple[str, ...]] = CHOICES) -> list[Arch]:
    """Every network of the search space: 4*4*4*8*8*8 = 32,768 (paper, search step)."""
    return [Arch(*codes) for codes in product(*(choices[s] for s in STAGES))]


def alternatives() -> Iterator[tuple[str, str]]:
    """The 3+3+3+7+7+7 = 30 (stage, code) pairs that need a surrogate (paper, surgery step)."""
    return ((s, c) for s in STAGES for c in CHOICES[s] if c != BASE[s])


# The original E3 is taught as well: the student's D3 reads it where the teacher's reads D4. Not one
# of the paper's thirty (our assumption), and counted apart from them.
EXTRA = ("E3", BASE["E3"])


def taught() -> list[tuple[str, str]]:
    """All (stage, code) pairs that FwKD teaches: the paper's thirty, and `EXTRA`."""
    return [*alternatives(), EXTRA]


# The paper's family (poster table). Where a printed string contradicts the printed parameter count,
# the string that meets the count stands here and the printed one in PRINTED.
NANOSD = {
    "SD1.5": Arch.parse("RARA RARA RARA RR | RAR | RRR RARARA RARARA RARARA"),
    "TinySD": Arch.parse("RA RA RA | RARA RARA RARA"),
    "Hand-tuned": Arch.parse("RA RA RA | RAR RAR RAR"),
    "N1": Arch.parse("R RA RA | RARA RRA RRA"),
    "N2": Arch.parse("R RA RA | RARA RARA RR"),
    "N3": Arch.parse("R RA RA | RARA RRA RR"),
    "N4": Arch.parse("R RA RA | RARA RR RR"),
    "N5": Arch.parse("R R R | RA RR RR"),
    "N6": Arch.parse("R R R | RA RA RA"),
    "N7": Arch.parse("R R R | R RA RRA"),
}
PRINTED = {
    "TinySD": Arch.parse("RA RA RA | RA RA RA"),
}
ABLATION = Arch.parse("R RA RA R | RAR | RR RARA RRA RRA")  # N1 with E4, M and D4 put back


def outside(left: Mapping[str, Sequence[str]], archs: Mapping[str, Arch]) -> dict[str, list[str]]:
    """For each named network the choices ("E1:R") that a space of the codes in `left` lacks."""
    return {
        name: [f"{s}:{c}" for s, c in a.stages.items() if s in left and c not in left[s]]
        for name, a in archs.items()
    }
