"""The 16-megapixel photograph as large as it is: minutes that no page can spend. It is restored
once, what came out is shipped, and `make verify-release ONLY=photograph` restores it again.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import pandas as pd
from torch import Tensor

from nanosd_lib.recipes import restoring, trained
from nanosd_lib.recipes.restoring import Backbone, Restoration
from nanosd_lib.recipes.trained import Trained
from nanosd_lib.restoration import whole
from nanosd_lib.runs import provenance, release
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.release import Absent, Refused

HOME = "photograph"
NAME = f"{HOME}/whole"
LARGEST = "dandelion.jpg"  # of the held-out photographs, 16 megapixels
SHARES = (1.0, 0.25)  # of its height, so that what follows the height can be told
APART = 0.02  # of a quality restored again, relative


def restored(
    run: Run,
    pipe,
    systems: dict[str, Later],
    made_of: list[str],
    megapixels: float | None,
    share: float = 1.0,
) -> Artifact:
    """The photograph damaged and restored by each system (`whole.report`), on this machine; of so
    many megapixels, or as large as it is.
    """
    r = run.profile.restoration
    how = {"name": LARGEST, "megapixels": megapixels, "family": restoring.TRAINED_ON}
    how |= {"seed": run.seed, "judge": r.judge, "batch": r.batch}
    return run.cached(
        "photograph", whole.report, how | ({} if share == 1 else {"share": share}),
        [run.teacher_key, *made_of, *systems], measured=True, quiet=True, pipe=pipe,
        systems=Later(lambda: {k: v.value() for k, v in systems.items()}),
    )  # fmt: skip


def _asked(run: Run) -> dict:
    r = run.profile.restoration
    how = {"name": LARGEST, "shares": list(SHARES), "family": restoring.TRAINED_ON}
    return how | {"seed": run.seed, "judge": r.judge, "batch": r.batch}


def parts(run: Run) -> tuple[Backbone, Trained]:
    """NanoSD2 with the slim VAE and OSEDiff's adapters for it, as the release has them; Absent
    where it lacks one.
    """
    b = restoring.released(run, "N2", slim=True)
    if b is None:
        raise Absent(f"{NAME} waits: N2 or the slim VAE is not in the release (`make release`)")
    return b, trained.found(run, Restoration(b).member(run))


def _whole(run: Run, pipe) -> list[Artifact]:
    b, t = parts(run)
    label = f"OSEDiff on N2, slim VAE, t = {t.settings.budget['t']}"
    systems = {label: Later(functools.partial(restoring.restorer, pipe, b, t))}
    made_of = [*b.of.values(), t.key]
    return [restored(run, pipe, systems, made_of, None, share) for share in SHARES]


def publish(run: Run, pipe, commit: str | None) -> str:
    """Restore it on this machine and ship table and middle part: the name it has in the release."""
    b, t = parts(run)
    made = _whole(run, pipe)
    m = provenance.machine()
    rows = pd.concat([x["table"] for x in made]).to_dict("records")
    said = {
        "commit": commit,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": m["cpu"],
        "gpu": m["gpu"] if run.device.type == "cuda" else None,
        "threads": run.profile.threads,
        "seconds": round(sum(x.manifest["seconds"] for x in made), 1),
        "versions": m["versions"],
        "code": made[0].manifest["parts"]["source"],
        "record": [{k: None if v != v else v for k, v in r.items()} for r in rows],
    }
    shown: dict[str, Tensor] = {
        k: (x * 127.5 + 127.5).round().byte() for k, x in made[0]["pictures"].items()
    }
    of = {**b.of, t.member.name: t.key}
    recipe = {"asked": _asked(run), "budget": {}, "data": {}, "teacher": run.teacher_key}
    release.publish(NAME, shown, None, recipe | {"of": of, "made": said})
    return NAME


def shipped(run: Run) -> pd.DataFrame:
    """What `publish` measured, with the machine it was measured on (`measured`); no row where the
    run takes nothing from the release, or where it is of other adapters or not there.
    """
    nothing = pd.DataFrame(columns=["picture", "megapixels", "measured"])
    if not trained.asked(run):
        return nothing
    try:
        b, t = parts(run)
        of = {**b.of, t.member.name: t.key}
        made = release.find(NAME, _asked(run), run.teacher_key, of).recipe.made
    except Absent:
        return nothing
    where = f"{made.cpu}, {made.threads} thread{'s' if made.threads > 1 else ''}"
    return pd.DataFrame(made.record).assign(measured=where)


def verify(run: Run, pipe) -> str:
    """Restore it again and lay its qualities beside the shipped: `Refused` where one differs."""
    kept = shipped(run)
    if kept.empty:
        raise Absent(f"{NAME} is not in the release, or of other adapters")
    again = pd.concat([x["table"] for x in _whole(run, pipe)], ignore_index=True)
    for column in ("tiles", "psnr_y", "lpips"):
        apart = (again[column] / kept[column] - 1).abs().max()
        if not apart < APART:
            raise Refused(f"{NAME}: {column} restored again differs by {apart:.1%}")
    return f"{len(again)} rows restored again"
