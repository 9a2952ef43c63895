"""One notebook's run: cached computations in; tables, figures and records out."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError

from nanosd_lib import paper, paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import artifacts, cache, captions, layout, registry
from nanosd_lib.runs.artifacts import Artifact
from nanosd_lib.runs.profiles import Profile
from nanosd_lib.runs.provenance import machine, teacher_hash


def open_run(
    notebook: str,
    profile: str = "mini",
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    folder: Path | None = None,
) -> Run:
    """Check everything, make the results folder, seed torch. One-line errors name the fix. What is
    no page of a study has a folder of its own.
    """
    paths.check_name("notebook", notebook)
    loaded = layout.check_run(profile, seed, overrides)
    device = loaded.device
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"profile {profile} wants a CUDA device and torch sees none")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(layout.threads(loaded.threads))
    torch.manual_seed(seed)
    folder = folder or layout.results_folder(profile, seed, overrides)
    for name in layout.SUBFOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    store = paths.store_root()
    for root in (store, paths.device_root()):
        root.mkdir(parents=True, exist_ok=True)
        artifacts.sweep(root)
    return Run(loaded, seed, notebook, folder, store, torch.device(device))


class Run:
    """One notebook of one study: computations in, tables, figures and records out."""

    def __init__(
        self,
        profile: Profile,
        seed: int,
        notebook: str,
        folder: Path,
        store: Path,
        device: torch.device,
    ):
        self.profile, self.seed, self.notebook = profile, seed, notebook
        self.folder, self.store, self.device = folder, store, device
        self._records: dict[str, Any] = {}
        self._seen: dict[str, list[str]] = {"reads": [], "writes": []}
        self._saved: dict[str, float] = {}
        self._mine: set[str] = set()

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.profile.dtype)

    @functools.cached_property
    def teacher(self) -> str:
        """The teacher's folder; published weights are downloaded and verified first."""
        teacher = self.profile.teacher
        if teacher.local:
            return str(ROOT / teacher.path)
        return str(registry.fetch(registry.entry(teacher.path)))

    @property
    def variant(self) -> str | None:
        """Which of several sets of weights in the teacher's folder ("fp16")."""
        teacher = self.profile.teacher
        return None if teacher.local else registry.entry(teacher.path).variant

    @functools.cached_property
    def teacher_key(self) -> str:
        """The hash of the teacher: of its folder, or the recorded ones of published weights."""
        path = self.profile.teacher.path
        local = self.profile.teacher.local
        return teacher_hash(ROOT / path) if local else registry.fingerprint(path)

    @property
    def random(self) -> bool:
        """Whether the teacher's weights are random: then nothing may enter the results."""
        teacher = self.profile.teacher
        return teacher.local and (ROOT / teacher.path / layout.RANDOM).exists()

    def cached(
        self,
        name: str,
        fn: Callable[..., dict[str, Any]],
        params: dict[str, Any],
        inputs: Sequence[Artifact | str] = (),
        quiet: bool = False,
        measured: bool = False,
        device: torch.device | None = None,
        **context: Any,
    ) -> Artifact:
        """The artifact of fn(**params, **context): loaded where it is whole, computed otherwise.

        See `cache.cached` for what decides that, and for what fn may take and return; `quiet`
        leaves out the line that says which it was. What is `measured` on this machine is kept with
        the machine, not with the run. `device` is another than the run's.
        """
        store, device = self.store, device or self.device
        if measured:
            store, m = paths.device_root(), machine()
            inputs = [*inputs, f"{m['cpu']}, {m['gpu']}, {torch.get_num_threads()} threads"]
        page = self.notebook
        made = cache.cached(store, device, name, fn, params, inputs, context, quiet, page)
        self._count(made)
        return made

    def repeated(
        self,
        name: str,
        fn: Callable[..., dict[str, Any]],
        params: dict[str, Any],
        inputs: Sequence[Artifact | str] = (),
        more: Callable[..., Sequence[str]] = lambda **params: (),
        **context: Any,
    ) -> cache.Repeated:
        """The same, to be asked many times with the params that are left: `judge(arch="R R R | R R
        R")`; `more(arch="...")` are that call's own inputs. It may be handed to another
        computation.
        """
        what = (name, fn, params, inputs, context)
        return cache.Repeated(self.store, self.device, *what, self.notebook, self._count, more)

    def table(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """tables/<name>.csv, six significant digits, whole numbers in full; returns the table."""
        index = any(level is not None for level in table.index.names)  # a named index is a column
        text = table.to_csv(index=index, float_format=_digits)
        self._refuse_random(name)
        paths.write_atomic(self._file("tables", name, "csv"), text.encode())
        self._note("writes", f"tables/{name}.csv")
        return table

    def ledger(self, table: pd.DataFrame) -> pd.DataFrame:
        """claims.csv, the run's verdicts; returns the table."""
        text = table.to_csv(index=False, float_format=_digits)
        self._refuse_random(layout.LEDGER)
        paths.write_atomic(self.folder / layout.LEDGER, text.encode())
        for path in sorted((self.folder / "records").glob("*.json")):
            self._note("reads", f"records/{path.name}")
        self._note("writes", layout.LEDGER)
        return table

    def figure(self, name: str, figure: Any) -> Any:
        """figures/<name>.png at 110 dpi (pictures at 90), equal bytes for equal figures; returns
        the figure, or where notebooks/captions.yaml has its caption both, to be shown as saved.
        """
        import matplotlib.pyplot as plt

        plt.close(figure)  # shown once, as the cell's value
        data = BytesIO()
        dpi = captions.SHOWN if any(ax.images for ax in figure.axes) else 110
        figure.savefig(data, dpi=dpi, format="png", metadata={"Software": None})
        self._refuse_random(name)
        paths.write_atomic(self._file("figures", name, "png"), data.getvalue())
        self._note("writes", f"figures/{name}.png")
        said = captions.captions().get(name)
        if said is None:
            return figure
        return captions.Captioned(data.getvalue(), figure.get_figwidth(), said)

    def record(
        self, claim_id: str, value: float | tuple[float, float, float], protocol: str, **facts: Any
    ) -> None:
        """One number for the ledger, alone or as (value, low, high); the first of a run replaces
        the notebook's old ones.

        NaN for an end says that nothing is known of the interval. n, seeds, backend, elsewhere
        ({backend: value}), guards ({name: number or interval}) and compiled are `paper.Record`'s;
        every other keyword is a fact that an explanation may fill in.

        ValueError for an id that no claim has, NaN and infinities, and for what the claim's rule,
        guards and explanations miss; TypeError for what is not a number.
        """
        claim = _check_claim(claim_id)
        self._refuse_random(claim_id)
        number, low, high = _ends(claim_id, value)
        own = {k: facts.pop(k) for k in ("n", "seeds", "backend", "compiled") if k in facts}
        more = {k: _plain(v) for k, v in facts.pop("elsewhere", {}).items()}
        guards = {k: _ends(claim_id, v) for k, v in facts.pop("guards", {}).items()}
        said = {k: _plain(v) for k, v in facts.items()}
        entry: dict[str, Any] = {
            "value": number,
            "low": low,
            "high": high,
            "protocol": str(protocol),
        }
        entry |= {k: v if isinstance(v, str | bool) else int(v) for k, v in own.items()}
        kept = {"elsewhere": more, "guards": guards, "facts": said}
        entry |= {k: v for k, v in kept.items() if v}
        try:
            paper.check(claim, paper.Record(**entry, notebook=self.notebook))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"claim {claim_id}: {where}: {first['msg']}") from None
        self._records[claim_id] = entry
        data = json.dumps(self._records, indent=1, sort_keys=True) + "\n"
        paths.write_atomic(self._file("records", self.notebook, "json"), data.encode())
        self._note("writes", f"records/{self.notebook}.json")

    def records(self) -> dict[str, dict[str, Any]]:
        """Claim id -> {value, protocol, notebook}, from all notebooks of this run. What a page of
        older code recorded for a claim that is no longer listed is left out.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.folder / "records").glob("*.json")):
            for claim_id, entry in json.loads(path.read_text(encoding="utf-8")).items():
                if claim_id in found:
                    both = f"{found[claim_id]['notebook']} and {path.stem}"
                    raise ValueError(f"claim {claim_id} is recorded by two notebooks: {both}")
                if claim_id in _claims():  # `record` refuses all others
                    found[claim_id] = {**entry, "notebook": path.stem}
        return found

    def read_table(self, name: str, from_notebook: str) -> pd.DataFrame:
        """A table that an earlier notebook wrote: an empty cell is a gap, and a word like "None" or
        "NA" is a text. FileNotFoundError says which notebook to run.
        """
        path = self._file("tables", name, "csv")
        if not path.exists():
            seed = f" SEED={self.seed}" if self.seed else ""
            make = f"make run NB={from_notebook} PROFILE={self.profile.name}{seed}"
            raise paths.Missing(
                f"tables/{name}.csv is missing: run notebook {from_notebook} first ({make})"
            )
        self._note("reads", f"tables/{name}.csv")
        return pd.read_csv(path, keep_default_na=False, na_values=[""])

    def _note(self, kind: str, file: str) -> None:
        """io/<notebook>.json: what this notebook read of others and wrote, for the test that the
        numbering is an order in which they can run.
        """
        if file not in self._seen[kind]:
            self._seen[kind].append(file)
            text = json.dumps(self._seen, indent=1) + "\n"
            paths.write_atomic(self._file("io", self.notebook, "json"), text.encode())

    def _count(self, made: Artifact) -> None:
        """saved/<notebook>.json: the seconds that this page once computed what it now loads."""
        if not made.loaded:
            self._mine.add(made.key)  # its seconds are this run's own, however often it is asked
        elif made.key not in self._mine and made.manifest.get("page") == self.notebook:
            self._saved[made.key] = made.manifest["seconds"]
        text = json.dumps({"seconds": round(sum(self._saved.values()), 1)}) + "\n"
        paths.write_atomic(self._file("saved", self.notebook, "json"), text.encode())

    def _refuse_random(self, name: str) -> None:
        if self.random:
            raise ValueError(
                f"{name}: this teacher's weights are random, and what they give never enters the"
                " results: use `make dryrun` for a plan, or a trained teacher"
            )

    def _file(self, folder: str, name: str, ending: str) -> Path:
        return self.folder / folder / f"{paths.check_name(folder, name)}.{ending}"


def _digits(value: float) -> str:
    """Six significant digits; a whole number in full, since a column of counts with a gap in it is
    one of floats to pandas.
    """
    whole = abs(value) < 2**53 and value == int(value)
    return f"{value:.0f}" if whole else f"{value:.6g}"


def _ends(claim_id: str, value: Any) -> tuple[float, float | None, float | None]:
    """(value, low, high), where a NaN end becomes None: nothing is known of it."""
    number, *ends = value if isinstance(value, tuple | list) else (value, math.nan, math.nan)
    number = float(number)
    if not math.isfinite(number):
        raise ValueError(f"claim {claim_id}: {number} is not a measurement")
    low, high = (float(x) for x in ends)
    known = math.isfinite(low) and math.isfinite(high)
    return (number, low, high) if known else (number, None, None)


def _plain(value: Any) -> float | str:
    return value if isinstance(value, str) else float(value)


def _check_claim(claim_id: str) -> paper.Claim:
    """The claim of that id; ValueError unless data/paper/claims.yaml lists it."""
    paths.check_name("claim", claim_id)
    known = _claims()
    if claim_id not in known:
        close = difflib.get_close_matches(claim_id, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"claim {claim_id!r} is not in data/paper/claims.yaml{hint}")
    return known[claim_id]


@functools.cache
def _claims() -> dict[str, paper.Claim]:
    return {claim.id: claim for claim in paper.claims()}
