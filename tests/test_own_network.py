"""own_network: a reader's string is judged beside the nine, or refused in one line."""

from __future__ import annotations

import pandas as pd
import pytest

from nanosd_lib.networks import arch
from nanosd_lib.recipes import own_network, shared, surrogates
from nanosd_lib.runs import notebook


def taught(*keys: str) -> surrogates.Taught:
    return surrogates.Taught(dict.fromkeys(keys), pd.DataFrame())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("R RA RA | RARA RRA", "write 'E1 E2 E3 | D3 D2 D1'"),
        ("R RA XX | RARA RRA RRA", "E3 cannot be 'XX': use one of RARA, RA, RR, R"),
        ("R RA RA | RARA RRA RRA", "nobody taught E2:RA; use one of RARA, RR (notebook 03"),
        (str(arch.NANOSD["SD1.5"]), "keeps E4, M and D4"),
    ],
)
def test_what_cannot_be_judged_is_one_line(text, said):
    with pytest.raises(ValueError) as error:
        own_network.read(text, taught("E1:R", "E2:RR"))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_verb_refuses_before_anything_is_loaded(capsys):
    assert own_network.main(["--arch", "R R"]) == 1
    assert "error: arch 'R R': write" in capsys.readouterr().err


def table(mine: float, ms: float) -> pd.DataFrame:
    rows = [(own_network.YOURS, mine, ms), ("N2", 10.0, 50.0), ("N7", 30.0, 20.0)]
    t = pd.DataFrame(rows, columns=["network", "tafid", "ms_median"]).assign(arch="R", params=1e6)
    t = t.assign(gmac=0.5, tafid_low=t.tafid - 2, tafid_high=t.tafid + 2)
    t = t.assign(ms_low=t.ms_median, ms_high=t.ms_median)
    return t.assign(better=[int((t.tafid < x).sum()) for x in t.tafid])


def test_where_it_stands_is_read_from_the_table():
    behind, ahead = own_network.said(table(20, 60)), own_network.said(table(9, 10))
    assert (
        "1 of 2 published networks come out nearer" in behind and "faster and nearer: N2" in behind
    )
    assert "0 of 2" in ahead and "with 1 of them its interval overlaps; none of the" in ahead


def test_a_network_is_judged_beside_those_that_can_be(tmp_path, monkeypatch):
    """Only networks whose surrogates are there stand beside it."""
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    how = {"fwkd.steps": 1, "fwkd.scenes": 8, "fwkd.heldout": 4, "search.images": 4}
    run = notebook.open_run("toy", "smoke", 0, how | {"samples.steps": 1, "cost.repeats": 1})
    pipe = shared.teacher(run)
    pairs = [("E1", "R"), ("E2", "R"), ("E3", "R"), ("D3", "R"), ("D2", "RA"), ("D1", "RRA")]
    some = surrogates.taught(run, pipe, pairs)
    found, made, against = own_network.judged(run, pipe, "R R RARA | R RARARA RRA", some)
    assert found.network.to_list() == ["yours", "N7"]
    assert (found.tafid_low <= found.tafid).all() and (found.ms_low <= found.ms_high).all()
    assert found.params[0] > found.params[1] and len(made["yours"]["pictures"]["pictures"]) == 4
    image = own_network.sheet(
        [against["pictures"]["teacher"], made["yours"]["pictures"]["pictures"]]
    )
    assert image.size == (4 * 64 * 3, 2 * 64 * 3)
