"""The runner: `python -m nanosd_lib.cli reproduce|run` executes the notebooks, one by one.

Everything that can be refused is refused here, in one line, before the first kernel starts (exit
code 2); `study` does the rest.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from nanosd_lib import paths
from nanosd_lib.engine import kernels
from nanosd_lib.engine.interrupts import cause, signals
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import profiles
from nanosd_lib.runs.provenance import made_of
from nanosd_lib.studies.study import Study


def main(argv: list[str] | None = None, notebooks: Path = ROOT / "notebooks") -> int:
    """The one command line of the library; returns the exit code."""
    options = _parse(argv)
    with signals():
        try:
            return _main(options, notebooks)
        except BaseException as problem:
            if (number := cause(problem)) is None:
                raise
            print(f"interrupted; go on with: {_again(options)}", file=sys.stderr)
            return 128 + number


def _main(options: argparse.Namespace, notebooks: Path) -> int:
    try:
        overrides = dict(assignment(text) for text in options.set)
        run = Study(options.profile, seed(options.seed), overrides, _again(options))
        chosen = choose(notebooks, options.nb if options.verb == "run" else None)
        for path in chosen:
            kernels.check_parameters(path, run.parameters)
            made_of(path)  # its cells parse
    except SyntaxError as error:
        print(f"error: {path.name} does not parse: {error.msg}", file=sys.stderr)
        return 2
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return run.execute(chosen, whole=options.verb == "reproduce")
    except OSError as error:  # a full disk, a folder that cannot be written
        where = f": {paths.shown(Path(error.filename))}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}; go on with: {run.resume}", file=sys.stderr)
        return 1


def choose(folder: Path, number: str | None = None) -> list[Path]:
    """The numbered notebooks in order, or the one of that number; ValueError where none is."""
    found = {path.stem[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise ValueError(f"{paths.shown(folder)} holds no numbered notebook")
    if number is None:
        return list(found.values())
    wanted = number.strip() and number.strip().zfill(2)
    if wanted not in found:
        raise ValueError(f"notebook {number!r} does not exist: use one of {', '.join(found)}")
    return [found[wanted]]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make reproduce|run", description="Execute the notebooks."
    )
    parser.add_argument("verb", choices=("reproduce", "run"))
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--nb", default="", help="number of the notebook, for `run`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(argv)


def seed(text: str) -> Any:
    """The integer, or the text itself for the check that refuses it: 00 is no way to write 0."""
    return int(text) if re.fullmatch(r"0|-?[1-9][0-9]{0,99}", text) else text


def assignment(text: str) -> tuple[str, Any]:
    """'fwkd.steps=10' -> ("fwkd.steps", 10); a value that is neither JSON nor number is a text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is refused: key=value is wanted, like fwkd.steps=10")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), profiles.number(value)


def _again(options: argparse.Namespace) -> str:
    words = [f"make {options.verb}"] + ([f"NB={options.nb}"] if options.verb == "run" else [])
    words += [f"PROFILE={options.profile}", f"SEED={options.seed}"]
    return " ".join(words + ([f"SET='{' '.join(options.set)}'"] if options.set else []))
