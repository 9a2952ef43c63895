"""The release: what was trained once and is shipped with its recipe.

A member is a folder of float16 weights with a `recipe.json`: what was asked, how much went into it,
and a witness, a few numbers that anyone can compute again. It is found by what was asked, never by
a hash of code, and refused where its files are not what the recipe says.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, ValidationError

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs.profiles import Strict
from nanosd_lib.runs.provenance import canonical, content_hash, text_hash

# the largest relative difference of a witness computed again: far above what threads and
# instruction sets do to these sums, far below what another seed does
TOLERANCE = 1e-4
RECIPE, CONFIG = "recipe.json", "config.json"
WEIGHTS, DIFFUSERS = "weights.safetensors", "diffusion_pytorch_model.safetensors"
Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Plain = dict[str, Any]


class Refused(ValueError):
    """A member that is damaged, edited, or not what this code makes: one line that names what."""


class Absent(LookupError):
    """No such member: none was made, or one of another teacher or other parts."""


class Witness(Strict):
    """What is computed again, in float32 on a CPU, before a member is trusted."""

    data: dict[str, float]  # `splits.fingerprint` of the training data and of the held-out
    first: list[float]  # losses of the first steps of the full schedule
    heldout: float  # error of the file as it lies there, on the recipe's held-out data


class Made(Strict):
    """Said, not verified."""

    commit: str | None
    finished: str
    cpu: str
    gpu: str | None
    threads: int
    seconds: float
    versions: dict[str, str | None]
    code: dict[str, str]  # module -> hash of its code
    record: list[Plain]  # losses and held-out errors along the way


class Recipe(Strict):
    """recipe.json."""

    format: Literal[1]
    name: str
    asked: Plain  # what it is: it is found by this
    budget: Plain  # how much went in: read, printed, replayed; not matched
    data: Plain
    teacher: Sha
    of: dict[str, Sha]  # keys of the members it was made of
    key: Sha  # of the weights: what others build on
    witness: Witness | None = None  # what nobody trained has none: its user draws it again
    made: Made
    digest: Sha  # of all of the above

    @property
    def how(self) -> str:
        """ "released: 2,000 steps of batch 32, seed 0"."""
        b = self.budget
        if not b:
            return f"released: {len(self.of)} networks, {self.asked['images']} pictures of each"
        return f"released: {b['steps']:,} steps of batch {b['batch']}, seed {b['seed']}"


class Released:
    """A member as it lies there, read whole and checked against its recipe."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe, self.key = folder, recipe, recipe.key

    @functools.cached_property
    def tensors(self) -> dict[str, Any]:
        """Its weights by name."""
        from safetensors.torch import load_file

        return load_file(_weights(self.folder))


def root() -> Path:
    """The folder of the release: NANOSD_RELEASE, else data/nanosd-mini."""
    return Path(os.environ.get("NANOSD_RELEASE") or ROOT / "data" / "nanosd-mini").resolve()


def read(name: str) -> Released:
    """The member of that name. Absent where there is none; Refused where its files are not what
    its recipe says.
    """
    folder = root() / name
    if not folder.is_dir():
        raise Absent(f"{name} is not in the release")
    try:
        text = (folder / RECIPE).read_text(encoding="utf-8")
        recipe = Recipe.model_validate_json(text)
    except FileNotFoundError:
        raise Refused(f"{name}: {RECIPE} is missing: {_bring_back(name)}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or RECIPE
        raise Refused(f"{name}: {RECIPE}: {where}: {first['msg']}: {_bring_back(name)}") from None
    if recipe.digest != digest(recipe.model_dump(mode="json")) or recipe.name != name:
        raise Refused(f"{name}: {RECIPE} was edited: its digest is another: {_bring_back(name)}")
    try:
        key = content(folder)
    except (OSError, ValueError) as error:
        raise Refused(f"{name}: {error}: {_bring_back(name)}") from None
    if key != recipe.key:
        raise Refused(f"{name}: its weights are not what {RECIPE} says: {_bring_back(name)}")
    return Released(folder, recipe)


def content(folder: Path) -> str:
    """The key of a member: what its files say, the recipe left out."""
    files = [p for p in (folder / WEIGHTS, folder / DIFFUSERS, folder / CONFIG) if p.exists()]
    return text_hash(canonical({p.name: content_hash(p) for p in files}))


def find(name: str, asked: Plain, teacher: str, of: Mapping[str, str]) -> Released:
    """The member of that name where it is what was asked: Absent says in one line what differs."""
    found = read(name)
    recipe = found.recipe
    if recipe.teacher != teacher:
        raise Absent(f"{name} is of another teacher")
    if recipe.asked != asked:
        other = [k for k in asked if recipe.asked.get(k) != asked[k]]
        raise Absent(f"{name} is another one: {', '.join(other or recipe.asked)}")
    for part, key in of.items():
        if recipe.of.get(part) != key:
            raise Absent(f"{name} is made of another {part}")
    return found


def confirm(
    found: Released, computed: Plain, changed: list[str] | None = None, later: float = TOLERANCE
) -> float:
    """The largest relative difference between a recipe's witness and what was computed again of
    it; Refused, in one line that says what differs, where it is above `TOLERANCE`, or above `later`
    for a loss after the first.

    computed holds any of data, first (as many losses as were replayed) and heldout.
    """
    name, w = found.recipe.name, found.recipe.witness
    if w is None:
        raise Refused(f"{name}: {RECIPE} has no witness: {_bring_back(name)}")
    hint = "" if changed is None else _changed(changed)
    most = 0.0
    for what, value in computed.get("data", {}).items():
        gap = _gap(value, w.data.get(what, float("nan")))
        if not gap <= TOLERANCE:
            kept = w.data.get(what)
            raise Refused(
                f"{name}: the data are others: {what} is {value:.6g}, recorded {kept:.6g}{hint}"
            )
        most = max(most, gap)
    for step, (value, kept) in enumerate(zip(computed.get("first", []), w.first, strict=False), 1):
        gap = _gap(value, kept)
        if not gap <= (TOLERANCE if step == 1 else later):
            where = "loss or start" if step == 1 else "rate, schedule or optimiser"
            raise Refused(
                f"{name}: loss of step {step} is {value:.6g}, recorded {kept:.6g}: {where}{hint}"
            )
        most = max(most, gap)
    if "heldout" in computed:
        gap = _gap(computed["heldout"], w.heldout)
        if not gap <= TOLERANCE:
            raise Refused(
                f"{name}: held-out error {computed['heldout']:.6g}, recorded {w.heldout:.6g}:"
                f" these weights are not this recipe's{hint}"
            )
        most = max(most, gap)
    return most


def _gap(value: float, kept: float) -> float:
    return abs(value - kept) / max(abs(kept), 1e-12)


def _changed(modules: list[str]) -> str:
    """Who is to blame: code, where modules were changed since; the machine, where none was."""
    if not modules:
        return " (no module was changed since: another machine or another torch)"
    short = [m.split(".", 1)[1] for m in modules]
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    return f" (changed since: {', '.join(short[:3])}{more})"


def digest(recipe: Plain) -> str:
    """The digest of a recipe's other fields."""
    return text_hash(canonical({k: v for k, v in recipe.items() if k != "digest"}))


def publish(name: str, tensors: dict[str, Any], config: Plain | None, recipe: Plain) -> Released:
    """Write a member whole: weights in float16, recipe with key and digest; then the listing. What
    was there before is replaced in one step. `config` makes it a folder that diffusers loads.
    """
    from safetensors.torch import save_file

    home = root() / name
    home.parent.mkdir(parents=True, exist_ok=True)
    for left in home.parent.glob(f".tmp-{home.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    new = home.parent / f".tmp-{home.name}-{os.getpid()}"
    new.mkdir()
    try:
        half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
        weights = new / (WEIGHTS if config is None else DIFFUSERS)
        save_file({k: v.detach().cpu().contiguous() for k, v in half.items()}, weights)
        if config is not None:
            _write_json(new / CONFIG, config)
        whole = {"format": 1, "name": name, **recipe, "key": content(new)}
        checked = Recipe.model_validate_json(json.dumps(whole | {"digest": "0" * 64}))
        plain = checked.model_dump(mode="json")
        _write_json(new / RECIPE, plain | {"digest": digest(plain)})
        for file in new.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if home.exists():
            aside = new.with_name(f"{new.name}-old")
            os.rename(home, aside)
            os.rename(new, home)
            shutil.rmtree(aside)
        else:
            os.rename(new, home)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    found = read(name)
    paths.write_atomic(root() / "release.csv", listing().to_csv(index=False).encode())
    return found


def _weights(folder: Path) -> Path:
    return folder / (DIFFUSERS if (folder / DIFFUSERS).exists() else WEIGHTS)


def _write_json(path: Path, data: Plain) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _bring_back(name: str) -> str:
    return f"`git checkout {paths.shown(root() / name)}`, or SET='release=false' trains it here"


def names() -> list[str]:
    """Every member that lies there, by name."""
    found = (p.parent.relative_to(root()) for p in root().rglob(RECIPE))
    return sorted(p.as_posix() for p in found if not any(x.startswith(".") for x in p.parts))


def keys(kind: str) -> dict[str, str]:
    """The keys of all members of a kind, as their recipes say."""
    mine = [name for name in names() if name.startswith(f"{kind}/")]
    texts = {name: (root() / name / RECIPE).read_text(encoding="utf-8") for name in mine}
    return {name: json.loads(text)["key"] for name, text in texts.items()}


def listing() -> pd.DataFrame:
    """release.csv: a row for each member."""
    rows = []
    for name in names():
        found = read(name)
        r, size = found.recipe, _weights(found.folder).stat().st_size
        rows.append(
            {
                "name": name,
                "parameters": sum(v.numel() for v in found.tensors.values()),
                "megabytes": round(size / 1e6, 3),
                **{k: r.budget.get(k) for k in ("steps", "batch", "seed")},
                "heldout": None if r.witness is None else r.witness.heldout,
                "seconds": r.made.seconds,
                "threads": r.made.threads,
                "cpu": r.made.cpu,
                "gpu": r.made.gpu or "",
                "commit": (r.made.commit or "")[:7],
                "date": r.made.finished[:10],
                "key": r.key[:12],
            }
        )
    return pd.DataFrame(rows)
