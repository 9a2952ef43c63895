"""The command line: `python -m nanosd_lib.cli VERB`, which is what the Makefile calls.

A verb's module is imported when the verb is asked for, so that `doctor` need not wait for torch.
Each verb reads its own words (`VERB --help`), refuses what it cannot do in one line, and its exit
code is the command's.
"""

from __future__ import annotations

import importlib
import os
import sys

import typer

from nanosd_lib import paths

# two threads that wait for each other by spinning starve as soon as another process is busy (forty
# times slower here); a short spin costs nothing on a quiet machine. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
WORDS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
MAINS = {  # verb: module of this library, what it does
    "reproduce": ("studies.runner", "execute every notebook: --profile, --seed, --set"),
    "run": ("studies.runner", "execute one notebook: --nb and the same"),
    "hardware": ("recipes.device_profile", "profile SD 1.5's stages, networks and pipeline here"),
    "sweep": ("studies.sweep", "many studies and their spread, or `status`"),
    "doctor": ("studies.doctor", "what this machine has, and which profiles it can run"),
    "dryrun": ("recipes.dryrun", "every computation once with random weights, and a plan"),
    "teacher": ("recipes.teacher", "train sd-mini from nothing"),
    "reference": (
        "studies.reference",
        "a finished run, or a page of it, becomes results/reference",
    ),
    "stale": ("studies.stale", "which pages of results/reference the code has outgrown"),
    "book": ("studies.book", "the executed pages as a site that works without network: --run"),
    "workshop": ("studies.workshop", "student, solution and instructor copies of the notebooks"),
    "bundle": (
        "studies.bundle",
        "the repository and all wheels, for a room without network: --out",
    ),
    "compare": (
        "studies.compare",
        "a finished run beside the reference, claim by claim: --run FOLDER",
    ),
    "release": ("recipes.releasing", "train and publish what data/nanosd-mini lacks: --only"),
    "verify-release": ("recipes.releasing", "compute every released member's witness again"),
    "judge": ("recipes.own_network", "a network of your own, assembled and judged: --arch"),
    "quick": ("recipes.quick", "two minutes: the same prompts through the teacher and NanoSD2"),
    "restore": ("recipes.restore", "a picture of your own: --image, --task, --out"),
    "drift": ("studies.drift", "the smoke run with one thread and with two, compared"),
}


def _add(verb: str, module: str, what: str) -> None:
    @app.command(verb, help=what, context_settings=WORDS)
    def call(words: typer.Context) -> None:
        from nanosd_lib.engine.interrupts import leave

        try:
            paths.store_root(), paths.device_root()
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            leave(2)
        own = [verb] if module in ("studies.runner", "recipes.releasing") else []
        leave(importlib.import_module(f"nanosd_lib.{module}").main([*own, *words.args]))


for _verb, (_module, _what) in MAINS.items():
    _add(_verb, _module, _what)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    app(prog_name="nanosd")
