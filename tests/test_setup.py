"""set-up: one list of dependencies, one lock, one direction of imports."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nanosd_lib.paths import ROOT
from nanosd_lib.runs import provenance

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(  # name==version ; marker \, then indented hashes
    r"^([\w.-]+)==(\S+)(?: ; ([^\\\n]+?))? \\\n((?:    --hash=sha256:\w{64}.*\n)*)", re.M
)
MODULES = sorted(f"nanosd_lib.{p.stem}" for p in (ROOT / "nanosd_lib").glob("[!_]*.py"))


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


def test_imports_run_one_way():
    edges = {module: provenance.imports(module) - {module} for module in MODULES}
    while leaves := [m for m, uses in edges.items() if not uses & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"these modules import each other: {sorted(edges)}"


def test_the_package_itself_holds_no_code():
    """It is left out of the hashes of stages, so nothing but the version may stand in it."""
    body = ast.parse((ROOT / "nanosd_lib" / "__init__.py").read_text()).body
    assert [type(node).__name__ for node in body] == ["Expr", "Assign"]
    assert body[1].targets[0].id == "__version__" and body[1].value.value == PROJECT["version"]


def test_the_source_closure_follows_imports():
    closure = provenance.source_closure({"nanosd_lib.store"})
    assert {"nanosd_lib.artifacts", "nanosd_lib.layout", "nanosd_lib.profiles"} <= closure.keys()
    assert "nanosd_lib.runner" not in closure
