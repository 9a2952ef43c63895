"""The ledger's rows of notebook 07."""

from __future__ import annotations

from nanosd_lib.recipes import restoring, super_resolution
from nanosd_lib.recipes.super_resolution import FIX, Case, Judged
from nanosd_lib.runs.notebook import Run

PHOTOGRAPHS, SCENES = "held-out photographs", "held-out scenes"


def restored(run: Run, cases: dict[str, Case], made: Judged) -> None:
    """LPIPS of OSEDiff on N2 against bicubic, the teacher's backbone, TinySD's, and a network from
    nothing; paired over photographs, the mean over seeds, the scenes' ratio beside it.
    """
    matched = [
        c for c in cases.values() if c.system == "OSEDiff" and c.t != restoring.one_step.PUBLISHED
    ]
    by = {(c.backbone.name, c.backbone.vae): c for c in matched if c.backbone is not None}
    n2, r = by["N2", "teacher"], run.profile.restoration
    pairs = {
        "prior-helps-restoration": next(
            c for c in cases.values() if c.system == restoring.NAMES["scratch"]
        ),
        "sr-beats-input": cases["bicubic"],
        "sr-quality-kept": by["teacher", "teacher"],
        "sr-beats-light-backbones": by["TinySD", "teacher"],
    }
    ours = made[n2.label, restoring.TRAINED_ON]
    for claim, other in pairs.items():
        theirs = made[other.label, restoring.TRAINED_ON]
        ratio = super_resolution.lpips_ratio(ours, theirs, PHOTOGRAPHS)
        scenes = super_resolution.lpips_ratio(ours, theirs, SCENES)
        n = len(super_resolution.sets(ours, PHOTOGRAPHS, "lpips"))
        seeds = min(len(ours), len(theirs)) if other.adapters else len(ours)
        said = f"{n2.adapters[0].how}; {restoring.TRAINED_ON} family, x4, t = {n2.t}, {FIX} fix,"
        said += f" LPIPS over {r.judge}, paired by photograph"
        alike = {(t.released is None) for c in (n2, other) for t in c.adapters}
        guards = {"trained-alike": (float(len(alike) == 1),) * 3} if other.adapters else {}
        if claim == "sr-quality-kept":
            plain = made[cases["bicubic"].label, restoring.TRAINED_ON]
            guards["teacher-restores"] = super_resolution.lpips_ratio(theirs, plain, PHOTOGRAPHS)
        run.record(claim, ratio, said, n=n, seeds=seeds, guards=guards, scenes=scenes.value)
