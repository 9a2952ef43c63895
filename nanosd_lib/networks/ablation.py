"""Networks that lack something: every stage of the teacher shortened, or taken away (paper, surgery
step; it does not say how it took stages away).
"""

from __future__ import annotations

from dataclasses import replace

from nanosd_lib.networks import surgery
from nanosd_lib.networks.arch import BASE, DEEP, NANOSD, STAGES, Arch

WHOLE = NANOSD["SD1.5"]


def variants(teacher) -> dict[tuple[str, str], surgery.NanoUNet]:
    """(what, how) -> network: every stage as one R and removed, and E4, M and D4 together."""
    whole = surgery.borrow(WHOLE, teacher)
    shorter = [s for s in (*STAGES, *DEEP) if s != "M"]  # M has no shorter code
    nets = {(s, "one R"): surgery.borrow(replace(WHOLE, **{s: "R"}), teacher) for s in shorter}
    nets |= {(s, "removed"): surgery.without(whole, s) for s in (*STAGES, *DEEP)}
    return nets | {("E4+M+D4", "removed"): surgery.borrow(Arch(**BASE), teacher)}
