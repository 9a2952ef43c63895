"""quick: one page from the shipped release, nothing fetched, nothing trained."""

from __future__ import annotations

import re

import pandas as pd
from PIL import Image

from nanosd_lib.recipes import quick
from nanosd_lib.runs import release


def test_the_first_two_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    monkeypatch.setattr(quick, "PROMPTS", quick.PROMPTS[:1])
    monkeypatch.setattr(quick, "MEGAPIXELS", 0.02)
    assert quick.main([]) == 0
    page = (tmp_path / "quick" / "index.html").read_text()
    assert (tmp_path / "quick" / "quick.png").exists() and quick.PROMPTS[0] in page
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert links and not [x for x in links if "//" in x or x.startswith("/")]
    assert len(re.findall(r'<img [^>]*alt="[^"]{20,}"', page)) == page.count("<img")
    out = capsys.readouterr().out
    assert "look at" in out and "NanoSD2 is" in out
    assert 'src="restored.png"' in page
    with Image.open(tmp_path / "quick" / "restored.png") as three:
        assert three.width > 300


def test_without_an_adapter_there_is_no_photograph(tmp_path, monkeypatch, capsys):
    def absent(*_):
        raise release.Absent("adapters/some is not in the release")

    monkeypatch.setattr(quick, "restored", absent)
    assert quick._photograph(None, None, tmp_path) is None
    assert "no photograph is restored: adapters/some" in capsys.readouterr().out
    page = quick.page(pd.DataFrame(), "said", None)
    assert "restored.png" not in page and "restored.png" in quick.page(pd.DataFrame(), "said", 1.0)


def test_without_the_release_it_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "none"))
    assert quick.main([]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: surrogates/E1-R is not in the release"
    assert not release.names() and not (tmp_path / "quick" / "index.html").exists()


def test_words_are_refused(capsys):
    assert quick.main(["fast"]) == 2 and "takes no words" in capsys.readouterr().err
