"""The book's page on errors: every one-line message of the library, read from its own source."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanosd_lib.paths import PACKAGE, ROOT

# what a reader calls, the likeliest first, and its heading
PARTS = {
    "runs": "A run, its profile and its folders",
    "engine": "Executing a notebook",
    "studies": "Studies, sweeps, the book",
    "recipes": "The release, restoring, a network of one's own",
    "data": "Pictures and photographs",
    "restoration": "Tiles and adapters",
    "networks": "Networks",
    "quality": "Measures",
    "learning": "Training",
    "search": "The search",
    "hardware": "Profiling",
    "views": "Explorers",
    "paper": "Claims",
    "rules": "Rules of claims",
    "paths": "Files and folders",
}
OWN = ("Refused", "Absent", "Missing", "Damaged")  # the library's own classes that a reader meets
SHORTEST = 20  # characters: shorter ones are an assertion, not an explanation


@dataclass(frozen=True)
class Message:
    """One error: its class, what it says with its blanks, and the module that raises it."""

    kind: str
    text: str
    module: str


def messages() -> list[Message]:
    """Every message that a module raises with a text, once."""
    found: dict[Message, None] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        for kind, text in _raised(path):
            if len(text) >= SHORTEST:
                found[Message(kind, text, module)] = None
    return list(found)


def _raised(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            kind = ast.unparse(node.exc.func).rpartition(".")[2]
            text = _text(node.exc.args[-1])
            if text and (hasattr(builtins, kind) or kind in OWN):
                yield kind, " ".join(text.split())


def _text(node: ast.expr) -> str:
    """A string with its blanks named: "no such folder: {path}"; "" for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_piece, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def _piece(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue):
        name = ast.unparse(node.value)
        return "{" + (name if name.replace("_", "").replace(".", "").isalnum() else "…") + "}"
    return ""


def page() -> str:
    """The page, in Markdown: what to do first, then every message by its part of the library."""
    every = messages()
    lines = [
        "# When it stops",
        "",
        "Errors here are one line that says what to do. A blank in braces stands for what was found"
        " on your machine. First aid, in this order: `make doctor` says what this machine has and"
        " can run; the line that ends a failed run says how to go on (finished computations are"
        " kept); `make compare RUN=results/mini` says whether your numbers differ from the"
        " reference beyond their intervals. Search this page for a few words of the line you see.",
        "",
    ]
    for room, heading in PARTS.items():
        mine = [m for m in every if m.module.split(".")[0] == room]
        if mine:
            lines += [f"## {heading}", ""]
            lines += [f"- `{m.text.replace('`', chr(39))}` — {m.kind}, {m.module}" for m in mine]
            lines.append("")
    return "\n".join(lines)
