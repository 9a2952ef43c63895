"""The book (`make book`): executed pages as a site that asks nothing of a network.

    make book                          # of results/reference, into results/book
    make book RUN=results/mini

Equations become MathML here, widgets are left out (each explorer shows a state of its own), so that
no script is fetched when a page is read, from a server or from a stick.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd

from nanosd_lib import paths
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import captions
from nanosd_lib.studies import executed, printed, troubleshooting
from nanosd_lib.studies.stale import REFERENCE

SOURCE = ROOT / "docs" / "book"
LEFT_OUT = (
    ".doctrees",
    ".buildinfo",
    "*webpack-macros.html",
)  # Sphinx's own, the theme's templates
LONGEST = 250  # characters of an alternative text
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"^(cached .*|\s*\d+%\|.*|hardware profile: .*)$", re.M)


# -------------------------------------------------------------------------------------------- maths
def _mathml(latex: str, display: str) -> str:
    from latex2mathml.converter import convert

    return convert(latex, display=display)


def _inline(self: Any, node: Any) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise _skip()


def _block(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>')
    raise _skip()


def _skip() -> Exception:
    from docutils.nodes import SkipNode

    return SkipNode()


mathml = SimpleNamespace(inline=_inline, block=_block)  # what Sphinx calls at a formula


# -------------------------------------------------------------------------------------------- pages
def prepared(nb: Any, name: str) -> Any:
    """An executed notebook as a page of the book: bookkeeping folded or gone, every picture with
    an alternative text, its two downloads named.
    """
    nb = nbformat.from_dict(nb)
    injected = any("injected-parameters" in c.metadata.get("tags", []) for c in nb.cells)
    nb.metadata.pop("widgets", None)
    heading, kept = executed.title(nb), []
    for i, cell in enumerate(nb.cells):
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "markdown":
            found = re.search(r"^#+\s*(.*)$", cell.source, re.M)
            heading = found[1] if found else heading
            cell.source = cell.source.replace("| | |\n|---|---|\n", "| this page | |\n|---|---|\n")
        else:
            if injected and "parameters" in tags:
                continue
            tags.append("hide-cell" if "open_run" in cell.source else "hide-input")
            cell.outputs = [o for o in map(_shown, cell.outputs) if o is not None]
            if any("image/png" in o.get("data", {}) for o in cell.outputs):
                image = {"alt": alternative(nb.cells, i, heading)}
                cell.metadata["mystnb"] = {"image": image}
        kept.append(cell)
    nb.cells = kept
    both = f"{_file('with outputs', f'../downloads/{name}.ipynb')},"
    both += f" {_file('without', f'../downloads/{name}_empty.ipynb')}"
    head = nb.cells[0].source.rstrip()
    in_table = head.rsplit("\n", 1)[-1].startswith("|")
    nb.cells[0].source = head + (
        f"\n| download | {both} |" if in_table else f"\n\nDownload {both}."
    )
    return nb


def _file(text: str, path: str) -> str:
    """A link to a file that is no page: Sphinx would look for a page of that name."""
    return f'<a href="{path}">{text}</a>'


def _shown(out: Any) -> Any:
    """An output as a reader wants it; None for progress bars and lines of the cache."""
    if out.output_type == "stream":
        if out.name == "stderr":
            return None
        out.text = _NOISE.sub("", _ANSI.sub("", out.text)).strip("\n")
        return out if out.text.strip() else None
    if out.output_type in ("display_data", "execute_result"):
        out.data = {k: v for k, v in out.data.items() if not k.startswith("application/")}
        return out if out.data else None
    return out


def alternative(cells: Sequence[Any], i: int, heading: str) -> str:
    """What a figure shows, for who does not see it: the heading it stands under, its caption, and
    the reading that follows it.
    """
    text = f"Figure: {heading}."
    for said in executed.said(cells[i : i + 1]):
        if said.startswith(captions.BEGIN):
            text += " " + said.removeprefix(captions.BEGIN).strip()
    for cell in cells[i : i + 3]:
        for said in executed.said([cell]):
            if said.startswith("**Reading.**"):
                text += " " + said.removeprefix("**Reading.**").strip()
    plain = re.sub(r"[*`$\\]", "", text).replace("\n", " ")
    if len(plain) <= LONGEST:
        return plain
    return plain[: LONGEST - 1].rsplit(" ", 1)[0] + "…"


def emptied(nb: Any) -> Any:
    """The notebook without outputs, as its repository holds it."""
    nb = nbformat.from_dict(nb)
    injected = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    nb.cells = injected
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nb.metadata.pop("papermill", None)
    nb.metadata.pop("widgets", None)
    return nb


def front(pages: dict[str, Any], claims: pd.DataFrame, said: str) -> str:
    """The first page: what this is, the answers, where to go."""
    counts = claims.verdict.value_counts()
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    rows = []
    for name, nb in pages.items():
        rows.append(
            f"**[{name[:2]} · {executed.title(nb)}](notebooks/{name})**\\\n{executed.answer(nb)}\n"
        )
    index = "\n".join([*(f"notebooks/{name}" for name in pages), "troubleshooting"])
    return "\n".join(
        [
            "# NanoSD Notebooks",
            "",
            "*NanoSD: Edge Efficient Foundation Model for Real-Time Image Restoration* (CVPR 2026)"
            " cuts Stable Diffusion 1.5 into a network for a phone. No official code is public."
            " These pages re-run the whole study on a real Stable Diffusion small enough for a"
            " laptop, and give its checkable statements a verdict.",
            "",
            f"**{len(claims)} claims:** {verdicts}."
            f" {_file('All of them, with search', 'claims.html')}."
            f" {_file('All pages in one', printed.PAGE)}, to print.",
            "",
            said,
            "",
            "Run it yourself: `make reproduce`. Two minutes: `make quick`. A number of yours"
            " differs: `make compare RUN=results/mini`.",
            "",
            "## What each page found",
            "",
            *rows,
            "```{toctree}",
            ":hidden:",
            ":maxdepth: 1",
            "",
            index,
            "```",
            "",
        ]
    )


# ------------------------------------------------------------------------------------------- claims
COLUMNS = ["statement", "source", "evidence", "paper", "ours", "low", "high", "n", "verdict", "why"]


def claims_page(claims: pd.DataFrame) -> str:
    """claims.csv as one page with search and a filter by verdict; nothing outside it is needed."""
    esc = lambda x: html.escape("" if pd.isna(x) else str(x))  # noqa: E731
    columns = [c for c in COLUMNS if c in claims]
    body = []
    for row in claims.to_dict("records"):
        cells = []
        for c in columns:
            kind = f' class="v {esc(row[c]).replace(" ", "-")}"' if c == "verdict" else ""
            cells.append(f"<td{kind}>{esc(_short(row[c]))}</td>")
        name = esc(row["id"])
        body.append(f'<tr id="{name}" data-v="{esc(row["verdict"])}">{"".join(cells)}</tr>')
    counts = claims.verdict.value_counts()
    boxes = " ".join(
        f'<label><input type="checkbox" checked value="{esc(v)}">{esc(v)} ({n})</label>'
        for v, n in counts.items()
    )
    head = "".join(f"<th>{esc(c)}</th>" for c in columns)
    page = Template((SOURCE / "claims.html").read_text(encoding="utf-8"))
    return page.substitute(boxes=boxes, head=head, body="".join(body))


def _short(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) and value == value else value


# ----------------------------------------------------------------------------------------- building
def build(run: Path, out: Path) -> dict[str, Any]:
    """Build the book of a finished run (or the reference): pages, seconds, megabytes.

    FileNotFoundError, in one line, for a folder that holds no executed page; RuntimeError where
    Sphinx warns. What lay in `out` is replaced when the book is whole.
    """
    books = sorted((run / "notebooks").glob("*.ipynb"))
    if not books or not (run / "claims.csv").exists():
        raise FileNotFoundError(
            f"{paths.shown(run)} holds no finished run: make reproduce, or leave RUN out"
        )
    began = time.perf_counter()
    pages = {p.stem: executed.read(p) for p in books}
    claims = pd.read_csv(run / "claims.csv")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("claims.html"))
        (source / "notebooks").mkdir()
        downloads = source / "extra" / "downloads"
        downloads.mkdir(parents=True)
        for name, nb in pages.items():
            nbformat.write(prepared(nb, name), source / "notebooks" / f"{name}.ipynb")
            shutil.copy(run / "notebooks" / f"{name}.ipynb", downloads)
            nbformat.write(emptied(nb), downloads / f"{name}_empty.ipynb")
        (source / "extra" / "claims.html").write_text(claims_page(claims), encoding="utf-8")
        (source / "troubleshooting.md").write_text(troubleshooting.page(), encoding="utf-8")
        said = _made_at(run)
        (source / "index.md").write_text(front(pages, claims, said), encoding="utf-8")
        made = Path(folder) / "html"
        _sphinx(source, made)
        printed.write(made, list(pages))
        new = out.with_name(f".{out.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, new, ignore=shutil.ignore_patterns(*LEFT_OUT))
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / 1e6
    return {"pages": len(pages), "seconds": time.perf_counter() - began, "megabytes": size}


def _made_at(run: Path) -> str:
    if run == REFERENCE:
        return (
            "These are the pages of the reference run; `make stale` says which of them the code has"
            " outgrown since."
        )
    return f"These are the pages of the run in `{paths.shown(run)}`."


def _sphinx(source: Path, out: Path) -> None:
    """Sphinx over the prepared pages; RuntimeError with its first warning, where it has one."""
    from io import StringIO

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    said = StringIO()
    with warnings.catch_warnings(), patch_docutils(str(source)), docutils_namespace():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the theme, for its authors
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        doctrees = out.with_name("doctrees")
        app = Sphinx(source, source, out, doctrees, "html", status=None, warning=said)
        app.build(force_all=True)
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    if app.statuscode or lines:
        first = _ANSI.sub("", lines[0]) if lines else "Sphinx failed"
        raise RuntimeError(f"book: {first.replace(str(source), 'docs/book')}")


def main(argv: Sequence[str]) -> int:
    """`make book`."""
    parser = argparse.ArgumentParser(prog="make book")
    parser.add_argument("--run", default="")
    args = parser.parse_args(argv)
    run = Path(args.run).absolute() if args.run else REFERENCE
    out = paths.results_root() / "book"
    try:
        made = build(run, out)
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{made['pages']} pages, {made['megabytes']:.0f} MB, in {made['seconds']:.0f} s:"
        f" open {paths.shown(out / 'index.html')}"
    )
    return 0
