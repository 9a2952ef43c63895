"""A notebook's cells as Python: what IPython makes of magics, shell commands and questions."""

from __future__ import annotations

import ast
import builtins
import contextlib
import keyword
import re
from collections.abc import Iterator

from IPython.core.inputtransformer2 import TransformerManager

from nanosd_lib.paths import PACKAGE

PYTHON_MAGICS = ("time", "timeit", "capture", "prun")  # they run what follows in the notebook


def cell_tree(source: str) -> ast.Module:
    """A cell as IPython runs it: magics and shell commands are calls. What `%%time` and its like
    run stands at the end, and so do imports of the library that any other of them names.
    """
    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:
        if not _automagic(source):
            raise
        return cell_tree(f"%{source.lstrip()}")
    for name, text in list(_magics(tree)):
        python = name in PYTHON_MAGICS
        tree.body += [n for n in _statements(text) if python or _imports_something(n)]
        tree.body += _named(text)
    return tree


def _automagic(source: str) -> bool:
    """Whether IPython takes a line that is no Python for a magic without its %: `cd ..`."""
    word = re.fullmatch(r"\s*([a-z_]\w*)[ \t]+[\w./~$'\"-][^\n]*\s*", source)
    return word is not None and not keyword.iskeyword(word[1]) and not hasattr(builtins, word[1])


def _magics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and each text of the magics and shell commands that IPython made calls of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("get_ipython()."):
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            name, *texts = words if len(words) > 1 else ["!", *words]
            yield from ((str(name), str(text)) for text in texts)


def _statements(text: str) -> list[ast.stmt]:
    """What a magic is handed, as Python; nothing where it is not. Options may stand before it."""
    with contextlib.suppress(SyntaxError, ValueError):
        return cell_tree(re.sub(r"^(\s*-\w+(\s+\d+)?\s+)+", "", text)).body
    return []


def _imports_something(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _named(text: str) -> list[ast.stmt]:
    """Imports of the modules of this library that a text names: `python -m nanosd_lib.tiling`."""
    names = sorted(set(re.findall(rf"\b{PACKAGE}(?:\.\w+)+", text)))
    return [ast.Import([ast.alias(name)]) for name in names]
