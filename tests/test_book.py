"""book: the executed pages as a site that asks nothing of a network, seen through a browser too."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from nanosd_lib.studies import book, executed, printed, troubleshooting

pytest.importorskip("sphinx")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("book") / "book"
    made = book.build(book.REFERENCE, out)
    return out, made


PAGES = sorted(p.stem for p in (book.REFERENCE / "notebooks").glob("*.ipynb"))


class Page(HTMLParser):
    """What a page fetches, its pictures, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self._code = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append(tag)
        self.ids.update(filter(None, [a.get("id")]))
        self._code += tag in ("code", "pre", "script", "style", "annotation")
        if tag in ("script", "img", "iframe", "source") and a.get("src"):
            self.fetched.append(a["src"])
        if tag == "link" and a.get("rel") in ("stylesheet", "preload", "icon"):
            self.fetched.append(a["href"])
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag == "img":
            self.alts.append(a.get("alt"))

    def handle_endtag(self, tag):
        self._code -= tag in ("code", "pre", "script", "style", "annotation")

    def handle_data(self, data):
        self.text += "" if self._code else data


def pages(out: Path) -> dict[str, Page]:
    return {p.relative_to(out).as_posix(): Page(p) for p in out.rglob("*.html")}


def test_it_is_built_in_a_minute_and_stays_small(built):
    out, made = built
    assert made["pages"] == len(PAGES) and made["seconds"] < 60 and made["megabytes"] < 60
    assert {f"notebooks/{name}.html" for name in PAGES} <= set(pages(out))


def test_no_page_fetches_anything_from_elsewhere(built):
    for name, page in pages(built[0]).items():
        foreign = [x for x in page.fetched if re.match(r"(https?:)?//", x)]
        assert not foreign, (name, foreign)
        for x in page.fetched:
            if not x.startswith("data:"):
                file = (built[0] / name).parent / x.split("?")[0].split("#")[0]
                assert file.exists(), (name, x)
    for style in built[0].rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:", style.read_text(encoding="utf-8")), style


def test_every_link_inside_leads_somewhere(built):
    out, seen = built[0], 0
    some = {(out / name).resolve(): page for name, page in pages(out).items()}
    for at, page in some.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, mark = link.partition("#")
            to = (at.parent / path.split("?")[0]).resolve() if path else at
            assert to.exists(), (at.name, link)
            if mark and to in some:
                seen += 1
                assert mark in some[to].ids, (at.name, link)
    assert seen > 100


def test_the_page_to_print_holds_all_others(built):
    out, _ = built
    page = pages(out)[printed.PAGE]
    for name in PAGES:
        heading = executed.title(executed.read(book.REFERENCE / "notebooks" / f"{name}.ipynb"))
        assert heading in page.text
    assert "script" not in page.tags and page.tags.count("h1") >= len(PAGES)
    text = (out / printed.PAGE).read_text()
    assert "<details class" not in text and text.count("<article") == len(PAGES) + 2


def test_a_page_without_an_article_is_named(tmp_path):
    (tmp_path / "index.html").write_text("<p>another theme")
    with pytest.raises(ValueError, match="index.html has no article"):
        printed.write(tmp_path, [])


def test_every_picture_has_words(built):
    seen = 0
    for name in PAGES:
        alts = Page(built[0] / "notebooks" / f"{name}.html").alts
        assert all(a and a.startswith("Figure: ") and len(a) <= book.LONGEST for a in alts), name
        seen += len(alts)
    assert seen > 20


def test_formulas_are_mathml_and_none_is_left_in_the_text(built):
    for name in PAGES:
        nb = nbformat.read(book.REFERENCE / "notebooks" / f"{name}.ipynb", 4)
        formulas = sum(c.source.count("$$") // 2 for c in nb.cells if c.cell_type == "markdown")
        page = Page(built[0] / "notebooks" / f"{name}.html")
        assert page.tags.count("math") >= formulas
        assert "\\frac" not in page.text and "$$" not in page.text and "\\hat" not in page.text


def test_downloads_are_what_is_shown(built):
    for name in PAGES:
        folder, page = built[0] / "downloads", Page(built[0] / "notebooks" / f"{name}.html")
        source = book.REFERENCE / "notebooks" / f"{name}.ipynb"
        assert (folder / f"{name}.ipynb").read_bytes() == source.read_bytes()
        empty = nbformat.read(folder / f"{name}_empty.ipynb", 4)
        code = [c for c in empty.cells if c.cell_type == "code"]
        assert code and not any(c.outputs or c.execution_count for c in code)
        assert sum(link.endswith(".ipynb") for link in page.links) == 2


def test_bookkeeping_is_out_of_sight(built):
    for name in PAGES:
        text = (built[0] / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        page = Page(built[0] / "notebooks" / f"{name}.html")
        assert "cached " not in page.text or "cached computation" in page.text, name
        assert "it/s]" not in page.text and "\x1b[" not in text


def test_the_claims_page_holds_every_row_once(built):
    claims = pd.read_csv(book.REFERENCE / "claims.csv")
    text = (built[0] / "claims.html").read_text(encoding="utf-8")
    ids = re.findall(r'<tr id="([^"]+)"', text)
    assert ids == list(claims.id)
    for verdict, n in claims.verdict.value_counts().items():
        assert f'value="{verdict}">{verdict} ({n})' in text
    assert not re.search(r'(src|href)="https?:', text)


def test_the_front_page_says_what_each_page_found(built):
    page = Page(built[0] / "index.html")
    for name in PAGES:
        nb = nbformat.read(book.REFERENCE / "notebooks" / f"{name}.ipynb", 4)
        assert executed.title(nb) in page.text and len(executed.answer(nb)) > 40
    claims = pd.read_csv(book.REFERENCE / "claims.csv")
    assert f"{len(claims)} claims:" in page.text


def test_the_page_on_errors_is_read_from_the_source(built):
    """Every message that the verbs' own tests meet stands there, with its blanks."""
    found = troubleshooting.messages()
    texts = {m.text for m in found}
    assert len(found) > 150 and len(found) == len(set(found))
    assert "OUT {out} exists: give another name, or remove it first" in texts
    assert any(m.kind == "Refused" and "was edited: its digest is another" in m.text for m in found)
    raw = (built[0] / "troubleshooting.html").read_text(encoding="utf-8")
    shown = " ".join(re.sub(r"<[^>]+>", "", raw).split())
    assert "give another name, or remove it first" in shown and "{out}" in shown
    assert {m.module.split(".")[0] for m in found} <= set(troubleshooting.PARTS)


def notebook(*cells):
    made = [nbformat.v4.new_markdown_cell("# 01 · A question?\n\n**In one sentence:** so it is.")]
    return nbformat.v4.new_notebook(cells=[*made, *cells])


def code(source, *outputs, tags=()):
    cell = nbformat.v4.new_code_cell(source, outputs=list(outputs))
    cell.metadata["tags"] = list(tags)
    return cell


def shown(**data):
    return nbformat.v4.new_output("display_data", {k.replace("_", "/"): v for k, v in data.items()})


def test_a_page_is_prepared():
    stream = nbformat.v4.new_output("stream", name="stdout", text="cached a: loaded\nkept\n")
    bar = nbformat.v4.new_output("stream", name="stderr", text="50%|##")
    widget = shown(**{"application_vnd.jupyter.widget-view+json": {}, "text_plain": "x"})
    figure, read = shown(image_png="aGk="), shown(text_markdown="**Reading.** It *rises*.")
    under = shown(text_markdown="*Figure.* A line.")
    nb = notebook(
        code("profile = 'mini'", tags=["parameters"]),
        code("profile = 'smoke'", tags=["injected-parameters"]),
        code("run = notebook.open_run('x')", stream, bar),
        nbformat.v4.new_markdown_cell("## A part"),
        code("plot()", widget, figure, under),
        code("pages.reading('x')", read),
    )
    page = book.prepared(nb, "01_x")
    tags = [set(c.metadata.tags) for c in page.cells if c.cell_type == "code"]
    shut, folded = {"hide-cell"}, {"hide-input"}
    assert tags == [folded | {"injected-parameters"}, shut, folded, folded]
    assert [o.text for o in page.cells[2].outputs] == ["kept"]
    plot = page.cells[4]
    assert plot.metadata.mystnb.image.alt == "Figure: A part. A line. It rises."
    assert not any(k.startswith("application/") for o in plot.outputs for k in o.data)
    assert "downloads/01_x.ipynb" in page.cells[0].source
    assert nb.cells[3].outputs  # the run's own page stays as it is


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert book.main(["--run", str(tmp_path)]) == 1
    assert "holds no finished run: make reproduce, or leave RUN out" in capsys.readouterr().err


def test_a_warning_of_sphinx_stops_the_build(tmp_path):
    """And the book of before stays."""
    run, out = tmp_path / "run", tmp_path / "book"
    (run / "notebooks").mkdir(parents=True)
    shutil.copy(book.REFERENCE / "claims.csv", run)
    nbformat.write(notebook(), run / "notebooks" / "01_x.ipynb")
    book.build(run, out)
    kept = (out / "index.html").read_bytes()
    nbformat.write(
        notebook(nbformat.v4.new_markdown_cell("```{nothing}\n```")),
        run / "notebooks" / "01_x.ipynb",
    )
    with pytest.raises(RuntimeError, match="book: .*nothing"):
        book.build(run, out)
    assert (out / "index.html").read_bytes() == kept


# -------------------------------------------------------------------------------------- a browser's
@pytest.fixture(scope="module")
def browser(built):
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the book is not seen through a browser")
    with api.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, built):
    """A page that opens the book from disk and remembers what it asked for beyond."""
    made = browser.new_page()
    made.bad = []
    made.on("request", lambda r: r.url.startswith(("file:", "data:")) or made.bad.append(r.url))
    made.on("pageerror", lambda e: made.bad.append(str(e)))
    made.home = built[0].as_uri()
    yield made
    assert made.bad == []
    made.close()


def test_every_page_opens_by_a_double_click(page):
    page.goto(f"{page.home}/index.html")
    links = page.locator(".bd-sidebar-primary a.reference.internal")
    found = links.evaluate_all("a => a.map(x => x.href)")
    assert len(found) >= len(PAGES)
    for link in found:
        page.goto(link)
        assert page.locator("article h1").count() == 1
        loaded = "[...document.images].every(i => i.complete && i.naturalWidth)"
        page.wait_for_function(loaded, timeout=10_000)


def test_search_folds_and_the_claims_filter(page):
    page.goto(f"{page.home}/search.html?q=hypervolume")
    found = page.locator("#search-results li a")
    found.first.wait_for(timeout=10_000)
    page.wait_for_timeout(500)  # the glossary of page 00 may come first
    assert any("05" in said for said in found.all_text_contents()[:5])
    page.goto(f"{page.home}/notebooks/05_bayesian_search.html")
    page.locator("details.hide summary").first.click()
    assert page.locator("details.hide[open]").count() == 1
    page.goto(f"{page.home}/claims.html")
    page.locator("input[type=search]").fill("tinysd")
    shown = page.locator("tbody tr:visible").count()
    assert 0 < shown < page.locator("tbody tr").count()
    for box in page.locator("input[type=checkbox]").all():
        box.uncheck()
    assert page.locator("tbody tr:visible").count() == 0


@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_sticks_out(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    for name in PAGES:
        page.goto(f"{page.home}/notebooks/{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_dark_mode_keeps_charts_readable(page):
    page.goto(f"{page.home}/notebooks/05_bayesian_search.html")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    ground = "getComputedStyle(document.querySelector('.bd-content img')).backgroundColor"
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
