"""What a notebook's `parameters` cell declares, and whether what is given fits."""

from __future__ import annotations

import ast
import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nanosd_lib.engine import endstate
from nanosd_lib.runs import layout
from nanosd_lib.runs.cells import cell_tree

TYPES = (bool, int, float, complex, str, list, tuple, set, dict)
ALSO = {  # parameters are JSON, which has fewer types
    float: (float, int),
    complex: (complex, float, int),
    tuple: (tuple, list),
    set: (set, list),
}
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: pow,
}


def check_parameters(notebook: Any, given: dict[str, Any], name: str = "the notebook") -> None:
    """ValueError, in one line, unless the `parameters` cell declares each of them with that type.

    A notebook that declares profile, seed and overrides also gets them checked as a run.
    """
    declared = _declared(notebook)
    for key, value in given.items():
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise ValueError(f"{name} has no parameter {key!r}: it declares {known}")
        wanted = declared[key].type
        if wanted is not None and type(value) not in ALSO.get(wanted, (wanted,)):
            raise ValueError(
                f"{name}: parameter {key} = {value!r} ({type(value).__name__}) is refused:"
                f" {wanted.__name__} is wanted"
            )
    run = {key: one.default for key, one in declared.items()} | given
    three = [run.get(key, ...) for key in ("profile", "seed", "overrides")]
    if ... not in three:
        layout.check_run(*three)


@dataclass(frozen=True)
class Parameter:
    """A name of the `parameters` cell: its default, `...` where only a kernel could tell, and the
    type that is wanted, None where any will do.
    """

    default: Any
    type: type | None


def _declared(notebook: Any) -> dict[str, Parameter]:
    """What the cells tagged `parameters` assign. What stands under an `if` or a loop has no known
    default.
    """
    found: dict[str, Parameter] = {}
    for cell in endstate._code(notebook):
        if "parameters" in cell.metadata.get("tags", []):
            for node in cell_tree(cell.source).body:
                for name, one in _assigned(node):
                    found[name] = one
    return found


def _assigned(node: ast.stmt) -> Iterator[tuple[str, Parameter]]:
    """The names that a statement assigns."""
    if isinstance(node, ast.AnnAssign):
        yield from _typed(node)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _unpacked(target, node.value)
    elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id, Parameter(..., None)


def _typed(node: ast.AnnAssign) -> Iterator[tuple[str, Parameter]]:
    """`x: float = 1`: a plain type is the one that is wanted; any other annotation takes all."""
    if isinstance(node.target, ast.Name):
        default = ... if node.value is None else _value(node.value)
        said = node.annotation
        whole = said.value if isinstance(said, ast.Subscript) else said  # list[int] is a list
        wanted = next((t for t in TYPES if t.__name__ == ast.unparse(whole)), None)
        yield node.target.id, Parameter(default, None if default is None else wanted)


def _unpacked(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, Parameter]]:
    """`a, b = 1, 2` name by name; where the value does not say which is whose, nothing is known."""
    if isinstance(target, ast.Name):
        default = ... if value is None else _value(value)
        yield target.id, Parameter(default, None if default in (None, ...) else type(default))
    elif isinstance(target, ast.Starred):
        yield from _unpacked(target.value, None)
    elif isinstance(target, ast.Tuple | ast.List):
        parts = value.elts if isinstance(value, ast.Tuple | ast.List) else []
        plain = not any(isinstance(p, ast.Starred) for p in [*target.elts, *parts])
        known = parts if plain and len(parts) == len(target.elts) else [None] * len(target.elts)
        for one, part in zip(target.elts, known, strict=True):
            yield from _unpacked(one, part)


def _value(node: ast.expr) -> Any:
    """A literal, or arithmetic of numbers; `...` for anything else."""
    with contextlib.suppress(ValueError, TypeError):
        return ast.literal_eval(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _calculated(operator.sub, 0, _value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return _calculated(ARITHMETIC[type(node.op)], _value(node.left), _value(node.right))
    return ...


def _calculated(how: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """The result for two numbers, unless it would be huge."""
    if {type(left), type(right)} <= {int, float} and not (how is pow and abs(right) > 99):
        with contextlib.suppress(ArithmeticError):
            return how(left, right)
    return ...
