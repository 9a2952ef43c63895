"""`make release`: what is absent from data/nanosd-mini, or behind what `full` asks, is trained as
resumable jobs and published; `make verify-release`: every member's witness computed again.

A job runs a frozen copy of a commit, so that the working tree may be edited meanwhile; its
checkpoints and its finished training lie in the store, and a killed verb goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nanosd_lib import paths
from nanosd_lib.learning import fit, vae_student
from nanosd_lib.networks import arch
from nanosd_lib.recipes import (
    again,
    drawn,
    members,
    photographed,
    restoring,
    shared,
    slimming,
    standin,
    super_resolution,
    surrogates,
    trained,
)
from nanosd_lib.recipes.trained import Kind, Member
from nanosd_lib.runs import notebook, provenance, release
from nanosd_lib.runs.notebook import Run
from nanosd_lib.studies import jobs

COMMIT = "NANOSD_COMMIT"  # of the copy that a job runs
MANY = f"{drawn.HOME}/many"  # `family.many` pictures of each aligned network: drawn by no page
PRIOR = f"{drawn.HOME}/prior"  # drawn by pages 00 and 06, and without them
ERRORS = f"{drawn.HOME}/errors"  # without each stage, by pages 00 and 02
RESTORED = f"{drawn.HOME}/restored"  # held-out pictures by every system of page 07


@dataclass(frozen=True)
class Group:
    """Members that share one training: one job."""

    name: str
    kind: Kind
    members: list[Member]


def groups(run: Run) -> list[Group]:
    """All jobs of the release, in the order they can be done; aligned networks and restorations
    join when what they are made of is there.
    """
    return [*_surrogates(run), *_autoencoders(run), *_aligned(run), *_adapters(run)]


def _surrogates(run: Run) -> list[Group]:
    kind, found = surrogates.Surrogates(), []
    for part, codes in PARTS.items():
        members_ = [surrogates.member(part[:2], c) for c in codes]
        found.append(Group(f"surrogates/{part}", kind, members_))
    own = [surrogates.member(s, c, e3_target="E3") for s, c in arch.alternatives() if s == "E3"]
    found.append(Group("surrogates/E3-own", kind, own))
    share = run.profile.fwkd.data_fraction
    for name, few in surrogates.FEW.items():
        less = [surrogates.member(s, c, fraction=share) for s, c in few]
        found.append(Group(f"surrogates/{name}", kind, less))
    return found


def _autoencoders(run: Run) -> list[Group]:
    """Slim ones of three seeds, the other layout, and the ablation: each alone."""
    kinds = [slimming.Student("slim", s) for s in slimming.seeds(run)]
    kinds.append(slimming.Student("tiny", kinds[0].seed))
    for term in ("nothing", *vae_student.TERMS):
        kinds.append(slimming.Student("slim", kinds[0].seed, term))
    some = [(kind, kind.member(run)) for kind in kinds]
    return [Group(m.name, kind, [m]) for kind, m in some]


def _aligned(run: Run) -> list[Group]:
    """The published nine, three at a time; and NanoSD2 on the latents of the slim VAE."""
    taught = surrogates.released(run)
    if taught is None:
        return []
    kind, texts = members.Aligned(taught), list(members.NAMES)
    found = []
    for i in range(0, len(texts), members.TOGETHER):
        some = [members.member(text, taught) for text in texts[i : i + members.TOGETHER]]
        name = "+".join(m.name.split("/")[1] for m in some)
        found.append(Group(f"aligned/{name}", kind, some))
    with contextlib.suppress(release.Absent):
        slim = trained.found(run, slimming.Student(seed=slimming.seeds(run)[0]).member(run))
        m = members.member(str(arch.NANOSD["N2"]), taught, slim)
        found.append(Group(m.name, members.Aligned(taught, slim), [m]))
    return found


def _adapters(run: Run) -> list[Group]:
    """Restorations on backbones that are there, each alone."""
    some = [(kind, kind.member(run)) for kind in restoring.kinds(run)]
    return [Group(m.name, kind, [m]) for kind, m in some]


# a stage is one job; D1's thirty-two by thirty-two takes longer than forty minutes in one
PARTS = {s: [c for t, c in arch.taught() if t == s] for s in ("E1", "E2", "E3", "D3", "D2")}
D1 = [c for t, c in arch.taught() if t == "D1"]
PARTS |= {"D1a": ["RARA", "RR", "R"], "D1b": [c for c in D1 if c not in ("RARA", "RR", "R")]}


def plan(run: Run, pipe, only: str = "") -> pd.DataFrame:
    """name, group, state, why: of each member of the group `only`, else of each whose name begins
    so. A member is absent, behind, damaged or there; one that waits for its parts, or that no
    recipe makes (an orphan), has no group.
    """
    rows, some = [], groups(run)
    alone = only in [g.name for g in some]
    for group in some:
        settings = group.kind.settings(run, pipe)
        for m in group.members:
            if group.name == only if alone else m.name.startswith(only):
                state, why = _state(run, m, settings)
                rows.append({"name": m.name, "group": group.name, "state": state, "why": why})
    known = {m.name for g in groups(run) for m in g.members}
    for name in release.names():
        if name.split("/")[0] in (drawn.HOME, photographed.HOME):
            continue  # whoever reads it asks for its networks one by one
        if name not in known and name.startswith(only):
            what = ("orphan", "no recipe makes it")
            kind = name.split("/")[0]
            if kind in ("aligned", "adapters") and not any(m.startswith(kind) for m in known):
                what = ("waits", "what it is made of is absent")
            rows.append({"name": name, "group": "", "state": what[0], "why": what[1]})
    return pd.DataFrame(rows, columns=["name", "group", "state", "why"])


def _state(run: Run, m: Member, settings: trained.Settings) -> tuple[str, str]:
    try:
        r = release.find(m.name, m.what, run.teacher_key, m.of).recipe
    except release.Absent as error:
        return "absent", str(error)
    except release.Refused as error:
        return "damaged", str(error)
    asked = settings.budget | {"data": settings.data}
    given = r.budget | {"data": r.data}
    other = [f"{k} {given.get(k)}, full asks {v}" for k, v in asked.items() if given.get(k) != v]
    return ("behind", "; ".join(other)) if other else ("there", r.how)


def make(group: str, profile: str, commit: str | None) -> dict:
    """A job: trains one group on the profile's budget and publishes its members."""
    run, pipe = _open(profile)
    (g,) = [g for g in groups(run) if g.name == group]
    made = g.kind.train(run, pipe, g.members, g.kind.settings(run, pipe), None)
    found = trained.publish(run, pipe, g.kind, g.members, made, commit)
    return {"published": [f.recipe.name for f in found]}


def _open(profile: str):
    """A run that makes the release: parts of its members come from the release itself."""
    folder = paths.store_root() / ".release" / profile
    run = notebook.open_run("release", profile, 0, {"release": True}, folder)
    return run, shared.teacher(run)


def verify(run: Run, pipe, only: str = "", steps: int = fit.FIRST) -> pd.DataFrame:
    """name, steps, difference, said of each member: its files, its data, its first losses and its
    held-out error, computed again; of drawn pictures, the first of each network drawn again.
    """
    rows = []
    for group in groups(run):
        some = [m for m in group.members if (m.name + "/").startswith(only)]
        found = []
        for m in some:
            try:
                found.append(trained.found(run, m))
            except release.Absent as error:
                rows.append({"name": m.name, "state": "absent", "said": str(error)})
            except release.Refused as error:
                rows.append({"name": m.name, "state": "refused", "said": str(error)})
        for t in found:
            rows.append(
                {"name": t.member.name} | _confirmed(run, pipe, group.kind, found, t, steps)
            )
    rows += again.drawings(run, pipe, only)
    if only.startswith(photographed.HOME):  # minutes: only for who asks for it
        rows.append(again.photograph(run, pipe))
    return pd.DataFrame(rows, columns=["name", "state", "steps", "difference", "said"])


def _confirmed(run, pipe, kind, found, t, steps) -> dict:
    """One member of those that are replayed together."""
    try:
        said = trained.confirm(run, pipe, kind, found, steps, just=t.member.name)
    except release.Refused as error:
        return {"state": "refused", "said": str(error)}
    return {"state": "confirmed", **said[t.member.name], "said": t.how}


def main(argv: Sequence[str]) -> int:
    """`release` and `verify-release`."""
    verb, *words = argv
    parser = argparse.ArgumentParser(prog=verb)
    parser.add_argument("--only", default="", help="members or jobs whose names begin so")
    parser.add_argument("--profile", default="full", help="whose budgets are spent")
    if verb == "release":
        parser.add_argument("--workers", type=int, default=1)
        parser.add_argument("--fresh", action="store_true", help="train what is there again")
        parser.add_argument("--commit", action="store_true", help="commit each as it is published")
    args = parser.parse_args(words)
    if verb == "release" and COMMIT not in os.environ:
        return _frozen(argv)
    run, pipe = _open(args.profile)
    if verb == "verify-release":
        table = verify(run, pipe, args.only)
        print(table.to_string(index=False))
        return int((table.state == "refused").any())
    return _release(run, pipe, args)


def _release(run: Run, pipe, args: argparse.Namespace) -> int:
    if args.only.startswith(drawn.HOME):
        if args.only in DRAWN:
            DRAWN[args.only](run, pipe)
        return _ship(run)
    if args.only.startswith(photographed.HOME):
        try:
            print(photographed.publish(run, pipe, os.environ[COMMIT] or None))
        except release.Absent as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    table = plan(run, pipe, args.only)
    print(table.drop(columns="group").to_string(index=False))
    todo = table[table.group != ""]
    if not args.fresh:
        todo = todo[todo.state != "there"]
    names = list(dict.fromkeys(todo.group))
    if not names:
        print("nothing is left to train")
        return 0
    commit = os.environ[COMMIT] or None
    function = f"{__name__}:make"
    asked = [{"group": name, "profile": args.profile, "commit": commit} for name in names]
    some = [jobs.Job(function, what, str(run.store)) for what in asked]
    how = "pool" if args.workers > 1 else "here"
    done = _commit if args.commit else _nothing
    ended = jobs.run(some, how, args.workers, each=done)
    for e in ended:
        if e.error:
            print(f"{e.job.description['group']}: {e.error}", file=sys.stderr)
    print(f"{paths.shown(release.root())}: commit what is new in it")
    return int(any(e.error for e in ended))


def _draw_many(run: Run, pipe) -> None:
    """The pictures of the aligned networks that no page draws, as far as the store lacks them."""
    some = [m for g in _aligned(run) for m in g.members if m.name in release.names()]
    there = {members.NAMES[m.what["arch"]]: trained.found(run, m) for m in some}
    members.many(run, pipe, there, draw=1, fill=True)


def _draw_prior(run: Run, pipe) -> None:
    """What notebooks 00 and 06 see in pictures of the teacher and of NanoSD2."""
    standin.prompts(run, pipe)
    standin.distances(run, pipe, shared.reference(run, pipe, run.profile.sensitivity.images))
    members.prior_of(run, pipe, members.released(run, "N2"), "N2")


def _draw_errors(run: Run, pipe) -> None:
    """What the teacher predicts otherwise without each stage."""
    for way in ("removed", "one R"):
        standin.missed(run, pipe, way)


def _draw_restored(run: Run, pipe) -> None:
    for family in super_resolution.FAMILIES:
        super_resolution.everything(run, pipe, family)


DRAWN = {MANY: _draw_many, PRIOR: _draw_prior, ERRORS: _draw_errors, RESTORED: _draw_restored}


def _ship(run: Run) -> int:
    """What pages have drawn of members of the release, from the store."""
    parts = {key for kind in ("aligned", "vae", "adapters") for key in release.keys(kind).values()}
    taught = surrogates.released(run)
    parts |= set() if taught is None else {taught.key}
    grown = drawn.publish(run, parts, os.environ[COMMIT] or None)
    print("\n".join(grown) or "the store holds nothing that is not shipped: run the pages first")
    return 0


def _nothing(ended: jobs.Ended) -> None:
    pass


def _commit(ended: jobs.Ended) -> None:
    """Commit the release as far as it has come; an index that is locked is left for the next."""
    if ended.error:
        return
    root, name = release.root(), ended.job.description["group"]
    git: Callable = lambda *w: subprocess.run(["git", *w], cwd=root, capture_output=True)  # noqa: E731
    git("add", "--", ".")
    git("commit", "--no-verify", "-m", f"The release: {name}", "--only", "--", ".")


def _frozen(argv: Sequence[str]) -> int:
    """The same verb in a copy of the last commit, which is made once; what lies in the work tree
    and was not committed is left out.
    """
    commit = provenance.git_state()["commit"]
    here = paths.ROOT
    if commit is not None:
        here = paths.store_root() / ".release" / commit
        if not here.is_dir():
            packed = subprocess.run(
                ["git", "archive", commit], cwd=paths.ROOT, capture_output=True, check=True
            ).stdout
            new = here.with_name(f".tmp-{os.getpid()}")
            with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                tar.extractall(new, filter="data")
            try:
                os.replace(new, here)
            except OSError:  # another process was faster
                shutil.rmtree(new)
                if not here.is_dir():
                    raise
    outside: dict[str, Path] = {
        "NANOSD_RESULTS": paths.results_root(),
        "NANOSD_STORE": paths.store_root(),
        "NANOSD_DEVICE": paths.device_root(),
        "NANOSD_RELEASE": release.root(),
        "PYTHONPATH": here,
    }
    env = os.environ | {k: str(v) for k, v in outside.items()} | {COMMIT: commit or ""}
    return subprocess.run(
        [sys.executable, "-m", "nanosd_lib.cli", *argv], cwd=here, env=env
    ).returncode
