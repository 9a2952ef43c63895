"""provenance: a notebook's hash reads its cells as IPython does."""

from __future__ import annotations

import nbformat
import pytest

from nanosd_lib.runs import provenance


def notebook(path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(book, path)
    return path


@pytest.mark.parametrize(
    "cell",
    [
        "%matplotlib inline\nfrom nanosd_lib.restoration import tiling",
        "%%time\nfrom nanosd_lib.restoration import tiling",
        "%%timeit -n 3\nfrom nanosd_lib.restoration import tiling",
        "%%memit\nfrom nanosd_lib.restoration import (\n    tiling,\n)",
        "%time from nanosd_lib.restoration import tiling",
        "!python -m nanosd_lib.restoration.tiling",
        "found = !python -m nanosd_lib.restoration.tiling",
        "%run -m nanosd_lib.restoration.tiling",
        "%%bash\npython -m nanosd_lib.restoration.tiling",
        "await f()\nfrom nanosd_lib.restoration import tiling",
    ],
)
def test_library_code_that_a_cell_reaches_decides_the_page(tmp_path, monkeypatch, cell):
    path = notebook(tmp_path / "a.ipynb", cell)
    before = provenance.made_of(path)
    real = provenance.source_closure
    monkeypatch.setattr(
        provenance, "source_closure", lambda m: {k: f"new {v}" for k, v in real(m).items()}
    )
    assert provenance.made_of(path) != before


@pytest.mark.parametrize("cell", ["len?", "cd ..", "a = !ls", "# nothing", "", "x = 1;", "%pwd"])
def test_what_ipython_reads_parses(tmp_path, cell):
    assert provenance.made_of(notebook(tmp_path / "a.ipynb", cell))


@pytest.mark.parametrize("cell", ["x = (", "def f(", "print 1", "y += (", "a b\nc d"])
def test_what_it_does_not_read_is_a_syntax_error(tmp_path, cell):
    with pytest.raises(SyntaxError):
        provenance.made_of(notebook(tmp_path / "a.ipynb", cell))
