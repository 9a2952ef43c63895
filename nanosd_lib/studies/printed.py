"""The book as one page to print: every built page behind the other, on the book's own styles."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

PAGE = "print.html"
_ARTICLE = re.compile(r'<article class="bd-article">.*?</article>', re.S)
_STYLE = re.compile(r'<link\b[^>]*rel="stylesheet"[^>]*>')
_ID = re.compile(r'\bid="([^"]+)"')
_LINK = re.compile(r'\b(href|src)="(?![a-z]+:)([^"]*)"')
_HEAD = """<!doctype html>
<html lang="en" data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>NanoSD Notebooks, to print</title>
%s
<style>
main { margin: 0 auto; max-width: 50em; padding: 1em }
article + article { break-before: page }
img, pre, table, math { break-inside: avoid; max-width: 100%% }
.headerlink, .copybtn { display: none }
</style></head><body><main>
"""


def write(out: Path, names: list[str]) -> Path:
    """print.html of a built book: its front page, the notebooks of those names and what follows,
    folded cells open, links between them kept; its path. ValueError for a page without an article.
    """
    pages = ["index", *(f"notebooks/{name}" for name in names), "troubleshooting"]
    parts = []
    for page in pages:
        text = (out / f"{page}.html").read_text(encoding="utf-8")
        found = _ARTICLE.search(text)
        if found is None:
            raise ValueError(f"book: {page}.html has no article: the theme has changed")
        inside = _LINK.sub(partial(_moved, page=page, pages=pages), found[0])
        inside = _ID.sub(partial(_marked, page=page), inside)
        top = f'<article id="{_mark(page, "top")}" class="bd-article">'
        inside = inside.replace('<article class="bd-article">', top, 1)
        parts.append(inside.replace("<details class", "<details open class"))
    first = (out / "index.html").read_text(encoding="utf-8")
    text = _HEAD % "\n".join(_STYLE.findall(first)) + "\n".join(parts) + "\n</main></body></html>\n"
    (out / PAGE).write_text(text, encoding="utf-8")
    return out / PAGE


def _moved(found: re.Match, page: str, pages: list[str]) -> str:
    """A link as it leads from the one page: to a place in it where its target is in it."""
    kind, (path, _, mark) = found[1], found[2].partition("#")
    folder = page.rpartition("/")[0]
    parts = [*folder.split("/"), *path.split("/")] if folder else path.split("/")
    whole: list[str] = []
    for part in parts if path else []:
        if part == "..":
            whole.pop()
        else:
            whole.append(part)
    target = "/".join(whole)
    if not path or target.removesuffix(".html") in pages:
        at = target.removesuffix(".html") if path else page
        return f'{kind}="#{_mark(at, mark) if mark else _mark(at, "top")}"'
    return f'{kind}="{target}{"#" if mark else ""}{mark}"'


def _marked(found: re.Match, page: str) -> str:
    return f'id="{_mark(page, found[1])}"'


def _mark(page: str, mark: str) -> str:
    return f"{page.replace('/', '-')}-{mark}"
