"""What lies in the release and was not trained, made again: pictures, the largest photograph."""

from __future__ import annotations

from nanosd_lib.recipes import (
    drawn,
    members,
    photographed,
    shared,
    standin,
    super_resolution,
    surrogates,
)
from nanosd_lib.runs import release
from nanosd_lib.runs.notebook import Run

PRIOR = ("prompts", "resemblance", "diversity", "paths")  # sets that notebooks 00 and 06 look at


def photograph(run: Run, pipe) -> dict:
    """The largest photograph, restored again."""
    try:
        found = {"state": "confirmed", "said": photographed.verify(run, pipe)}
    except release.Absent as error:
        found = {"state": "absent", "said": str(error)}
    except release.Refused as error:
        found = {"state": "refused", "said": str(error)}
    return {"name": photographed.NAME, **found}


def drawings(run: Run, pipe, only: str = "") -> list[dict]:
    """Every set of drawn pictures whose name begins so: name, state, said."""
    sets = [name for name in release.names() if name.startswith(f"{drawn.HOME}/")]
    return [_drawn(run, pipe, name) for name in sets if name.startswith(only)]


def _drawn(run: Run, pipe, name: str) -> dict:
    """The first pictures of every network of a set, drawn again as the pages do it."""
    kind, seed, _ = name.split("/")[1].rsplit("-", 2)
    draw = int(seed) // 10_000
    try:
        asked = release.read(name).recipe.asked
        if kind in PRIOR:
            return {"name": name, **_prior(run, pipe, kind, asked["images"])}
        if kind.startswith("errors-"):
            found = standin.missed(run, pipe, kind.removeprefix("errors-").replace("-", " "))
            said = f"the first batch of {len(found['features'])} errors again"
            return {"name": name, "state": "confirmed", "said": said}
        if kind.startswith("restored-"):
            family = kind.removeprefix("restored-")
            n = len(super_resolution.everything(run, pipe, family))
            return {"name": name, "state": "confirmed", "said": f"{n} restorations again"}
        against = shared.reference(run, pipe, asked["images"], draw)
        n = len(against["features"])
        if kind in ("removed", "one-R"):
            n = len(standin.without(run, pipe, kind.replace("-", " "))["features"])
        if kind == "assembled" and (taught := surrogates.released(run)):
            how, nets = shared.sampling(run, draw)["how"], surrogates.later(pipe, taught)
            judge = shared.judge(run, pipe, nets, against, [taught.key], draw)
            known = drawn.known(run, "score", how, asked["images"], [taught.key])
            n = len([judge(arch=text) for text in known.features])
        if kind == "untrained":
            n = len(standin.distances(run, pipe, against)["features"])
        if kind == "aligned":
            there = [n for n in members.NAMES.values() if f"aligned/{n}" in release.names()]
            some = [members.released(run, name) for name in there]
            n = len([members.judged(run, pipe, t, against, draw) for t in some])
    except (ValueError, LookupError) as error:
        return {"name": name, "state": "refused", "said": str(error)}
    if kind == "codesign":
        return {"name": name, "state": "read", "said": "notebook 04 draws them again"}
    return {"name": name, "state": "confirmed", "said": f"{n} networks drawn again"}


def _prior(run: Run, pipe, kind: str, images: int) -> dict:
    """What notebooks 00 and 06 look at in pictures of the teacher and of NanoSD2."""
    p = run.profile
    asked = {"prompts": p.teacher_check.prompts, "resemblance": p.search.images}
    asked |= {"diversity": 4 * p.family.diversity, "paths": p.family.paths}
    if asked[kind] != images:
        return {"state": "read", "said": f"of {images}, profile {p.name} asks for {asked[kind]}"}
    if kind == "prompts":
        standin.prompts(run, pipe)
    table, _ = members.prior_of(run, pipe, members.released(run, "N2"), "N2")
    return {"state": "confirmed", "said": f"{len(table)} rows of the prior again"}
