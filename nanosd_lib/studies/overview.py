"""What a run will do, and what it left: a plan before its first page, an index.html at its end."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanosd_lib import paths
from nanosd_lib.runs import captions, layout
from nanosd_lib.studies import executed
from nanosd_lib.studies.stale import REFERENCE

INDEX = "index.html"


def plan(notebooks: Sequence[Path], profile: str, folder: Path) -> list[str]:
    """Lines that say which pages come, what each asks, and about how long it takes: as long as in
    this folder before, else as in the reference run on its machine; nothing where neither is known.
    """
    own, reference = _minutes(folder), _minutes(REFERENCE) if profile == "mini" else {}
    names = [path.stem for path in notebooks]
    known = {k: v for k, v in (reference | own).items() if k in names}
    lines = [f"{len(notebooks)} pages, into {paths.shown(folder)}:"]
    for path in notebooks:
        minutes = known.get(path.stem)
        about = f"{minutes:5.1f} min" if minutes is not None else " " * 9
        lines.append(f"  {about}  {path.stem[:2]}  {_question(path)}")
    if known:
        here = "as here before" if own else ""
        there = "as in the reference run, on its two cores" if reference.keys() - own else ""
        whose = ", else ".join(filter(None, (here, there)))
        lines.append(f"  {sum(known.values()):5.1f} min  in all, {whose}")
    lines.append("Meanwhile: finished pages lie in its folder notebooks, and open in `make lab`.")
    return lines


def _minutes(folder: Path) -> dict[str, float]:
    """Minutes that each finished page of a run took when it was computed."""
    try:
        books = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notebooks"]
    except (OSError, ValueError, KeyError):
        return {}
    done = {k: e for k, e in books.items() if e.get("state") == "ok"}
    return {k: e.get("computed_seconds", e["seconds"]) / 60 for k, e in done.items()}


def _question(path: Path) -> str:
    """The first heading of a notebook, without its number."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            return executed.asked("".join(cell["source"]))
    return path.stem


def sentences(folder: Path) -> list[str]:
    """Page 11's sentences of a finished run, as plain text."""
    import pandas as pd

    path = folder / "tables" / "sentences.csv"
    if not path.exists():
        return []
    return [f"{r.step}. {r.sentence}".replace("**", "") for r in pd.read_csv(path).itertuples()]


# -------------------------------------------------------------------------------------------- index
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>%(title)s</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em }
figure { display: inline-block; margin: .3em; vertical-align: top; width: 15em }
figure img { width: 100%%; background: #fff }
figcaption { font-size: 12px }
.state { font-size: 13px; opacity: .75 }
</style>
<h1>%(title)s</h1>
%(body)s
</html>
"""


def write(folder: Path, report: dict[str, Any]) -> Path:
    """results/<run>/index.html: answers, pages, figures, tables, claims of a run; its path."""
    parts = [f"<p>{line}</p>" for line in _rich(sentences(folder))]
    claims = folder / layout.LEDGER
    if claims.exists():
        parts.append(f'<p><a href="{layout.LEDGER}">Every claim with its verdict</a> (CSV)</p>')
    parts.append("<h2>Pages</h2>")
    for name, entry in report["notebooks"].items():
        path = folder / "notebooks" / f"{name}.ipynb"
        if not path.exists():
            parts.append(f"<p>{html.escape(name)}: {html.escape(entry['state'])}</p>")
            continue
        nb = executed.read(path)
        said = "".join(_rich([executed.answer(nb)]))
        question = html.escape(f"{name[:2]} · {executed.title(nb)}")
        state = f"{entry['state']}, {entry.get('seconds', 0.0) / 60:.1f} min"
        parts.append(
            f'<p><b><a href="notebooks/{name}.ipynb">{question}</a></b>'
            f' <span class="state">({html.escape(state)})</span><br>{said}</p>'
        )
    parts.append("<h2>Figures</h2>")
    for path in sorted((folder / "figures").glob("*.png")):
        link = f"figures/{path.name}"
        said = html.escape(captions.captions().get(path.stem, path.stem))
        parts.append(
            f'<figure><a href="{link}"><img src="{link}" alt="{said}" loading="lazy"></a>'
            f"<figcaption>{said}</figcaption></figure>"
        )
    parts.append("<h2>Tables</h2><p>")
    tables = sorted((folder / "tables").glob("*.csv"))
    parts.append(", ".join(f'<a href="tables/{p.name}">{p.stem}</a>' for p in tables) + "</p>")
    title = f"{report['profile']}, seed {report['seed']}"
    text = _PAGE % {"title": html.escape(f"NanoSD Notebooks: {title}"), "body": "\n".join(parts)}
    paths.write_atomic(folder / INDEX, text.encode())
    return folder / INDEX


def _rich(texts: Sequence[str]) -> list[str]:
    """Markdown's bold, italics and code as HTML, everything else escaped."""
    out = []
    for text in texts:
        safe = html.escape(text, quote=False)
        safe = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", safe)
        safe = re.sub(r"(?<!\*)\*(?!\*)(.+?)\*", r"<i>\1</i>", safe)
        out.append(re.sub(r"`(.+?)`", r"<code>\1</code>", safe))
    return out
