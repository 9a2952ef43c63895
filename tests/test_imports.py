"""imports: the library loads in a fresh process, whichever end a circle is entered at."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanosd_lib.paths import PACKAGE, ROOT
from nanosd_lib.runs.provenance import names_of

MODULES = names_of(ROOT / PACKAGE)
ALL = "import importlib; [importlib.import_module(f'nanosd_lib.{m}') for m in sys.argv[1:]]"
CHECK = """
from papermill.engines import papermill_engines
print(papermill_engines.get_engine('nanosd').execute_notebook.__self__)
"""


@pytest.mark.parametrize(
    "first, then", [("from nanosd_lib.engine import engine", MODULES), ("import papermill", [])]
)
def test_papermill_and_its_engine_import_each_other(first, then):
    """papermill asks for the engine as it is imported, and the engine is made of papermill."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"import sys; {first}; {ALL}{CHECK}", *then]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "<class 'nanosd_lib.engine.engine.NanoSDEngine'>", done.stderr
