"""What a notebook's `parameters` cell declares, and whether what is given fits."""

from __future__ import annotations

import ast
import contextlib
from typing import Any

from nanosd_lib.runs import layout


def check_parameters(notebook: Any, given: dict[str, Any], name: str = "the notebook") -> None:
    """ValueError, in one line, unless the `parameters` cell declares each of them with that type.

    A notebook that declares profile, seed and overrides also gets them checked as a run.
    """
    declared = _declared(notebook)
    for key, value in given.items():
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise ValueError(f"{name} has no parameter {key!r}: it declares {known}")
        wanted = type(declared[key])
        if declared[key] is not None and type(value) is not wanted:
            if not (wanted is float and type(value) is int):
                raise ValueError(
                    f"{name}: parameter {key} = {value!r} ({type(value).__name__}) is refused:"
                    f" {wanted.__name__} is wanted"
                )
    run = declared | given
    if {"profile", "seed", "overrides"} <= declared.keys():
        layout.check_run(run["profile"], run["seed"], run["overrides"])


def _declared(notebook: Any) -> dict[str, Any]:
    """Names and literal defaults of the cell tagged `parameters`."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    with contextlib.suppress(ValueError):
                        found[node.targets[0].id] = ast.literal_eval(node.value)
    return found
