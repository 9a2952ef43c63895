"""`make bundle OUT=folder`: the repository and every wheel of its lock in one folder, for a room
without network; there `make env WHEELS=folder` installs from it.

The check of such a folder runs before there is an environment, by path, with any Python that the
project takes: nothing but the standard library is imported here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCK = "requirements.lock"
WHEELS, LIST, REPOSITORY = "wheels", "wheels.json", "nanosd-notebooks"
README = """NanoSD Notebooks, packed at commit {commit} for {system}. No other system is served.

Python itself, make and git must be there before. Then, without any network:

    cp -r nanosd-notebooks ~/ && cd ~/nanosd-notebooks
    make env WHEELS=/path/of/this/folder/wheels
    make doctor        (its last line is one word: ready)
    make lab
"""


def here() -> dict[str, str]:
    """What wheels are made for: the version of Python, the system."""
    version = ".".join(platform.python_version_tuple()[:2])
    return {"Python": version, "system": sysconfig.get_platform()}


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(wheels: Path, lock: Path) -> dict[str, Any]:
    """What wheels.json holds of a folder: for what, of which lock, bytes and SHA-256 of each."""
    some = sorted(p for p in wheels.iterdir() if p.suffix == ".whl")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": digest(p)} for p in some}
    return here() | {"lock": digest(lock), "files": files}


def wrong(wheels: Path, lock: Path) -> list[str]:
    """Lines that say why this folder cannot be installed from here: none where it can."""
    try:
        told = json.loads((wheels / LIST).read_text(encoding="utf-8"))
        files = {str(k): (int(v["bytes"]), str(v["sha256"])) for k, v in told["files"].items()}
        asked = {k: str(told[k]) for k in (*here(), "lock")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{wheels}: no list of wheels ({LIST}) in it: `make bundle OUT=folder` packs them"]
    for what, mine in here().items():
        if asked[what] != mine:
            return [f"{wheels}: packed for {what} {asked[what]}, and this is {mine}"]
    if asked["lock"] != digest(lock):
        return [f"{wheels}: packed for another {LOCK}: take the repository that lies beside it"]
    found = []
    for name, (size, sha) in files.items():
        path, why = wheels / name, ""
        if not path.is_file():
            why = "is missing"
        elif path.stat().st_size != size:
            why = f"is cut ({path.stat().st_size:,} of {size:,} bytes)"
        elif digest(path) != sha:
            why = "is damaged"
        if why:
            found.append(f"{wheels}: {name} {why}: copy the folder again")
    return found


def pack(out: Path, say: Callable[[str], None] = print) -> None:
    """Make that folder, which must not be there. ValueError where that cannot be done; what was
    begun is then removed.
    """
    if out.exists():
        raise ValueError(f"OUT={out}: exists: name a new folder")
    git = ["git", "-C", str(ROOT)]
    try:
        commit = _told([*git, "rev-parse", "--short=12", "HEAD"])
        changed = _told([*git, "status", "--porcelain", "--", LOCK])
    except (OSError, subprocess.CalledProcessError):
        raise ValueError("bundle: this is no git checkout: clone the repository first") from None
    if changed:
        raise ValueError(f"bundle: {LOCK} has changes that the copy would lack: commit them first")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        say(f"the repository, commit {commit}")
        home, copy = f"file://{ROOT}", part / REPOSITORY
        _told(["git", "clone", "--quiet", "--depth", "1", home, str(copy)])
        say("the wheels: gigabytes, minutes")
        wheels(part / WHEELS)
        told = listed(part / WHEELS, copy / LOCK)
        text = json.dumps(told, indent=1) + "\n"
        (part / WHEELS / LIST).write_text(text, encoding="utf-8")
        system = f"Python {told['Python']} on {told['system']}"
        text = README.format(commit=commit, system=system)
        (part / "README.txt").write_text(text, encoding="utf-8")
        part.rename(out)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()[-1:] or ["see above"]
        raise ValueError(f"bundle: {error.cmd[0]} failed: {said[0]}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    whole = sum(f["bytes"] for f in told["files"].values()) / 1e9
    say(f"{out}: {len(told['files'])} wheels, {whole:.1f} GB, for {system}")


def wheels(folder: Path) -> None:
    """Every wheel of the lock for this system, with the installer and the build backend."""
    asked = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(ROOT / LOCK)]
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-I", "-m", "pip", "download", *quiet, *asked, "-d", str(folder)]
    subprocess.run(command, check=True)


def _told(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()


def main(argv: list[str] | None = None) -> int:
    """`--out FOLDER` packs; `--check FOLDER` prints what is wrong with its wheels."""
    parser = argparse.ArgumentParser(prog="make bundle")
    parser.add_argument("--out", default="", help="a new folder")
    parser.add_argument("--check", default="", help="a folder of wheels")
    args = parser.parse_args(argv)
    if args.check:
        lines = wrong(Path(args.check), ROOT / LOCK)
        for line in lines:
            print(line, file=sys.stderr)
        return int(bool(lines))
    try:
        if not args.out:
            raise ValueError("OUT= names no folder: make bundle OUT=/media/stick/nanosd")
        pack(Path(args.out).expanduser())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
