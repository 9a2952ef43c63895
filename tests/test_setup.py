"""set-up: one list of dependencies, one lock, one direction of imports."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nanosd_lib.paths import PACKAGE, ROOT
from nanosd_lib.runs import provenance

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(  # name==version ; marker \, then indented hashes
    r"^([\w.-]+)==(\S+)(?: ; ([^\\\n]+?))? \\\n((?:    --hash=sha256:\w{64}.*\n)*)", re.M
)
MODULES = [f"{PACKAGE}.{name}" for name in provenance.names_of(ROOT / PACKAGE)]


def locked():
    """Package -> (version, number of hashes), of the entries that apply to this machine."""
    found = {}
    for name, version, marker, hashes in ENTRY.findall(LOCK):
        if not marker or Marker(marker).evaluate():
            found[canonicalize_name(name)] = (version, hashes.count("--hash"))
    return found


def wanted():
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_every_dependency_is_locked_at_a_version_that_fits(requirement):
    version, hashes = locked()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True) and hashes > 0


def test_every_entry_of_the_lock_has_hashes_and_none_an_address():
    entries = re.findall(r"^[a-zA-Z0-9].*$", LOCK, re.M)
    assert len(entries) == len(ENTRY.findall(LOCK)) > 100
    assert all(count > 0 for _, count in locked().values())
    assert not re.search(r"https?:|file:|^--|^-[ef]|/", re.sub(r"--hash=\S+", "", LOCK), re.M)


def test_conda_users_get_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    python = [item for item in environment["dependencies"] if str(item).startswith("python=")]
    assert pip == ["--require-hashes", "-r requirements.lock"] and python == ["python=3.11"]
    assert "3.11" in Requirement(f"python{PROJECT['requires-python']}").specifier


FAKE = """#!/bin/sh
{ printf '%s' "${0##*/}"; printf ' %s' "$@"; echo; env; } >> "$SAID"
case "$*" in *"uv pip"*|*"cache dir"*) pwd;; esac
"""
REDIRECTS = {
    "UV_SYSTEM_PYTHON": "1",
    "UV_PYTHON": "/usr/bin/python3",
    "UV_PROJECT_ENVIRONMENT": "/usr",
    "UV_WORKING_DIR": "/",
    "UV_NO_VERIFY_HASHES": "1",
    "UV_OVERRIDE": "other.txt",
    "PIP_USER": "1",
    "PIP_TARGET": "/opt/target",
    "PIP_PREFIX": "/opt/prefix",
    "PIP_ROOT": "/opt/root",
    "PIP_PYTHON": "/usr/bin/python3",
    "PYTHONPATH": "/opt/packages",
}
KEPT = {
    "PIP_INDEX_URL": "https://a.b/simple",
    "UV_INDEX": "https://a.b/simple",
    "VIRTUAL_ENV": "/opt/other",
    "CONDA_PREFIX": "/opt/conda",
}


def installed(folder, *words, **env):
    """The commands of `make env` and the variables they got, with a Python and a uv that only tell
    what they are asked.
    """
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("requirements.lock", "pyproject.toml", "Makefile"):
        (folder / name).write_text((ROOT / name).read_text())
    for name in ("python", "uv"):
        (folder / ".venv/bin" / name).write_text(FAKE)
        (folder / ".venv/bin" / name).chmod(0o755)
    told = folder / "said"
    env = os.environ | env | {"SAID": str(told), "MAKEFLAGS": "", "MAKELEVEL": "0"}
    subprocess.run(
        ["make", "env", f"PYTHON={sys.executable}", *words], cwd=folder, env=env, check=True
    )
    lines = told.read_text().splitlines()
    calls = [shlex.split(line) for line in lines if re.match(r"(uv|python) ", line)]
    return calls, dict(
        line.split("=", 1) for line in lines if re.match(r"(PIP|UV|VIRT|CONDA)", line)
    )


@pytest.mark.parametrize("given", ["variables", "words"])
def test_make_env_installs_into_its_own_environment(tmp_path, given):
    """Whatever the caller's variables say; to where a mirror is, it listens."""
    if given == "variables":
        calls, env = installed(tmp_path, **REDIRECTS, **KEPT)
    else:
        calls, env = installed(tmp_path, *(f"{k}={v}" for k, v in REDIRECTS.items()), **KEPT)
    assert not env.keys() & REDIRECTS.keys() and KEPT.items() <= env.items()
    pip, _, sync, install, kernel = calls
    isolated = ["python", "-I", "-m"]  # neither PYTHONPATH nor a user's own packages
    assert pip[:4] == [*isolated, "pip"] and "--no-user" in pip and kernel[:3] == isolated
    assert kernel[3] == "ipykernel" and "--sys-prefix" in kernel
    for call, verb in ((sync, "sync"), (install, "install")):
        assert call[:3] == ["uv", "pip", verb]
        assert call[call.index("--python") + 1] == ".venv/bin/python"
    assert "--require-hashes" in pip and "--require-hashes" in sync


# who may import whom; a room may also import itself
BASE = {"paths", "paper"}
LEARNED = BASE | {"networks", "data", "quality"}
MAY = {
    "paths": set(),
    "rules": set(),
    "paper": {"paths", "rules"},
    "networks": BASE,
    "data": BASE | {"networks"},
    "quality": LEARNED,
    "learning": LEARNED,
    "restoration": LEARNED | {"learning"},
    "search": BASE | {"networks"},
    "hardware": BASE | {"networks"},
    "runs": BASE,
    "engine": BASE | {"runs"},
    "studies": BASE | {"runs", "engine"},
    "recipes": LEARNED
    | {"learning", "restoration", "search", "hardware", "runs", "engine", "studies"},
    "views": {"paths", "paper"},
    "cli": LEARNED
    | {"learning", "restoration", "search", "hardware", "runs", "engine", "studies", "recipes"},
}


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_in_one_direction(module):
    wrong = {m for m in provenance.imports(module) if room(m) not in MAY[room(module)]}
    assert {m for m in wrong if room(m) != room(module)} == set()


def test_imports_run_one_way():
    edges = {module: provenance.imports(module) - {module} for module in MODULES}
    while leaves := [m for m, uses in edges.items() if not uses & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"these modules import each other: {sorted(edges)}"


def test_no_two_modules_share_a_name():
    """A notebook imports modules: `from nanosd_lib.quality import tafid`."""
    names = [m.rpartition(".")[2] for m in MODULES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short(module):
    lines = provenance.source_of(module).read_text().count("\n")
    assert lines <= 350, f"{module} has {lines} lines: split it"


def test_a_room_holds_a_sentence_and_no_code():
    """The `__init__.py` of rooms are left out of all hashes, so nothing else may stand in them."""
    rooms = {room(m) for m in MODULES if m.count(".") == 2}
    assert rooms == MAY.keys() - {"paths", "rules", "paper", "cli"}
    for name in rooms:
        body = ast.parse((ROOT / PACKAGE / name / "__init__.py").read_text()).body
        assert [type(node).__name__ for node in body] == ["Expr"], name


def cached_functions() -> dict[str, str]:
    """ "module.function" -> what caches it: all that recipes and notebooks hand to `run.cached` and
    `run.repeated`.
    """
    texts = {p.stem: p.read_text() for p in (ROOT / PACKAGE / "recipes").glob("[!_]*.py")}
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts[path.stem] = "\n".join(
            "".join(c["source"]) for c in cells if c["cell_type"] == "code"
        )
    homes = {m.rpartition(".")[2]: m for m in MODULES}
    found = {}
    for label, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "run.cached",
                "run.repeated",
            ):
                module, _, name = ast.unparse(node.args[1]).rpartition(".")
                found[f"{homes[module]}.{name}"] = label
    return found


def test_what_is_cached_never_reaches_the_machinery():
    """Else an edit of a cache, an engine or a recipe would recompute it."""
    assert len(cached_functions()) > 20
    for function in cached_functions():
        reached = provenance.source_closure({function.rpartition(".")[0]})
        machinery = ("runs", "engine", "studies", "recipes", "views")
        assert not {m for m in reached if room(m) in machinery}, function


def recomputed(module: str) -> set[str]:
    """Cached functions whose key an edit of that module changes."""
    return {
        f
        for f in cached_functions()
        if f"{PACKAGE}.{module}" in provenance.source_closure({f.rpartition(".")[0]})
    }


def test_an_edit_recomputes_what_it_decides_and_no_more():
    own = {f"{PACKAGE}.learning.fwkd.{name}" for name in ("teach", "judged")}
    assert recomputed("learning.fwkd") == own
    judges = {f.split(".")[-2] for f in recomputed("quality.tafid")}
    assert judges == {"codesign", "sensitivity", "tafid"}  # and the search, by its judge
    assert len(recomputed("networks.arch")) > 10  # the test sees what it counts


def test_the_package_itself_holds_no_code():
    """It is left out of the hashes of stages, so nothing but the version may stand in it."""
    body = ast.parse((ROOT / "nanosd_lib" / "__init__.py").read_text()).body
    assert [type(node).__name__ for node in body] == ["Expr", "Assign"]
    assert body[1].targets[0].id == "__version__" and body[1].value.value == PROJECT["version"]


def test_the_source_closure_follows_imports():
    closure = provenance.source_closure({"nanosd_lib.runs.notebook"})
    runs = {f"nanosd_lib.runs.{m}" for m in ("artifacts", "layout", "profiles")}
    assert runs | {"nanosd_lib.paths"} <= closure.keys()
    assert "nanosd_lib.studies.runner" not in closure


@pytest.mark.parametrize(
    "line",
    [
        "from nanosd_lib.networks import arch",
        "from nanosd_lib.networks.arch import Arch",
        "import nanosd_lib.networks.arch",
        "import nanosd_lib.networks.arch as a",
        "from nanosd_lib import networks",
        "import nanosd_lib.networks",
        "from nanosd_lib.networks import *",
        "def f():\n    from nanosd_lib.networks import arch",
    ],
)
def test_every_spelling_of_an_import_is_seen(line):
    """A module that a key does not see could be edited without anything being computed again."""
    assert "nanosd_lib.networks.arch" in provenance._imported(ast.parse(line))


def test_relative_imports_are_seen():
    seen = provenance._imported(ast.parse("from . import arch"), "nanosd_lib.networks.surgery")
    assert seen == {"nanosd_lib.networks.arch"}
    seen = provenance._imported(ast.parse("from ..data import miniworld"), "nanosd_lib.quality.x")
    assert seen == {"nanosd_lib.data.miniworld"}
