"""readings: sentences are made of the tables, of every number in them, and say "undecided"."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from nanosd_lib import paper
from nanosd_lib.views import ledger, readings


def teacher(one=0.9, photographs=31.0, bicubic=27.0, unseen=0.85) -> pd.DataFrame:
    rows = []

    def add(check, kind, value, spread, beside=None):
        low, high = value - spread, value + spread
        rows.append((check, kind, value, low, high, beside, 96, "a protocol"))

    add("VAE PSNR (dB)", "held-out scenes", 32.0, 0.5, 26.8)
    for name, psnr in (("a.jpg", photographs + 4), ("b.jpg", photographs - 4)):
        add("VAE PSNR (dB)", name, psnr, 1, bicubic)
        add("VAE colour error", name, psnr / 10_000, 0)
    add("VAE PSNR (dB)", "held-out photographs", photographs, 2.0, bicubic)
    for kind, value in (
        ("one object", one),
        ("one object, unseen pair", unseen),
        ("two objects, new caption", one - 0.1),
        ("two objects, unseen pair", one - 0.1),
        ("renders of 1 objects", 1.0),
        ("renders of 2 objects", 0.98),
    ):
        add("prompts, both", kind, value, 0.03, 0.02)
    columns = ["check", "kind", "value", "value_low", "value_high", "beside", "n", "protocol"]
    return pd.DataFrame(rows, columns=columns)


def sensitivity(m=1e-5, d4=0.01) -> pd.DataFrame:
    errors = {"E1": 0.3, "E3": 0.03, "M": m, "D4": d4, "E4+M+D4": d4 / 2}
    rows = [
        (removed, band, e, 0.8 * e, 1.3 * e, 100 * e, 80 * e, 130 * e)
        for removed, e in errors.items()
        for band in ("all", "early", "middle", "late")
    ]
    columns = ["removed", "band", "eps_error", "eps_error_low", "eps_error_high"]
    table = pd.DataFrame(rows, columns=[*columns, "tafid", "tafid_low", "tafid_high"])
    return table.assign(floor=2.6)


def distances(teacher=17.0) -> pd.DataFrame:
    found = {
        "renders to renders": 6.8,
        "teacher to itself, other noise": 1.9,
        "teacher to renders": teacher,
        "untrained network to renders": 130.0,
    }
    rows = [(k, 96, v, 0.8 * v, 1.2 * v) for k, v in found.items()]
    return pd.DataFrame(rows, columns=["pictures", "n", "frechet", "frechet_low", "frechet_high"])


READINGS = {
    "answer": (lambda **k: readings.answer(teacher(**k), sensitivity()), {"one": 0.5}),
    "reconstruction": (lambda **k: readings.reconstruction(teacher(**k)), {"photographs": 29.0}),
    "prompts": (lambda **k: readings.prompts(teacher(**k)), {"unseen": 0.4}),
    "stages": (lambda **k: readings.stages(sensitivity(**k)), {"d4": 0.2}),
    "distances": (lambda **k: readings.distances(distances(**k)), {"teacher": 9.0}),
}


@pytest.mark.parametrize("name", READINGS)
def test_two_tables_give_two_sentences(name):
    say, change = READINGS[name]
    assert say() == say() != say(**change)
    assert "nan" not in say() and say().endswith(".")


@pytest.mark.parametrize("name", READINGS)
def test_every_number_is_one_of_the_tables(name):
    """As it stands there, as the difference of two of them, or as a count of rows."""
    tables = teacher(), sensitivity(), distances()
    values = {float(v) for t in tables for v in t.select_dtypes("number").stack()}
    apart = {a - b for a in values for b in values if 20 < a < 50 and 20 < b < 50}
    said = [
        float(x) for x in re.findall(r"(?<![\w.])[-+]?\d+\.?\d*(?:e-?\d+)?", READINGS[name][0]())
    ]
    values |= {100 * v for v in values if 0 <= v <= 1}  # in per cent
    names = {4, 3, 1, 2}  # D4, E3: digits of names do not match; two photographs are counted
    close = lambda x: any(abs(x - v) <= 0.051 * max(abs(v), 0.01) for v in values | apart | names)  # noqa: E731
    assert said and all(close(x) for x in said), said


@pytest.mark.parametrize("value, word", [(31.0, "above"), (27.5, "level with"), (20.0, "below")])
def test_a_comparison_is_decided_by_its_interval(value, word):
    assert f"{word} bicubic" in readings.answer(teacher(photographs=value), sensitivity())


def test_unseen_pairs_are_undecided_until_intervals_part():
    assert readings.prompts(teacher(unseen=0.4)).count("undecided at n = 96") == 1
    assert readings.prompts(teacher(unseen=0.87)).count("undecided at n = 96") == 2


@pytest.mark.parametrize("floor, word", [(0.1, "more than"), (0.5, "about as"), (9, "less than")])
def test_what_the_deep_stages_move_is_read_against_other_noise(floor, word):
    assert f"{word} " in readings.stages(sensitivity().assign(floor=floor))


def test_which_claims_can_fail_is_decided_by_the_lower_end():
    sure, rest = readings.can_fail(sensitivity(m=1.2e-3))
    assert "M" in rest and "D4" in sure  # its lower end is below a thousandth
    assert "M hardly: they are nearly dead, and what is said of E4+M+D4 rests on E4 and D4" in (
        readings.answer(teacher(), sensitivity())
    )
    assert "rests on" not in readings.answer(teacher(), sensitivity(m=0.1))


def test_digits_have_no_exponent_where_numbers_are_large():
    assert readings.between(130.4, 98.7, 171.0) == "130 (99 to 170)"
    assert readings.between(1.5e-5, 6.7e-6, 2.4e-5) == "1.5e-05 (6.7e-06 to 2.4e-05)"


# ------------------------------------------------------------------------------------------ ledger
def records(worse: bool) -> dict[str, paper.Record]:
    """The rows that the sentences are made of, all good or all bad."""

    def made(good, bad, spread=0.01, **more):
        x = bad if worse else good
        ends = {"low": x - spread, "high": x + spread}
        return paper.Record(value=x, **ends, protocol="toy", notebook="03_fwkd", **more)

    effect = {"effect": (0.004, 0.003, 0.005)}
    dead = {"least": "E3", "idle": 2.0}
    steps = {"steps": 160.0, "photographs": 1.0}
    bicubic = {"teacher-above-bicubic": (5.0, 5.0, 5.0)}
    equal = {"trained-alike": (1, 1, 1)}
    alike = {"made-worse": (0.0, 0.0, 0.0)}
    facts = {"possible": 29.0, **steps}
    int8 = {"backend": "ort-int8"}
    return {
        "dropped-stages-give-little": made(0.3, 1.4, guards=effect, facts=dead, n=96),
        "dropped-stages-cost-much": made(2.8, 1.2),
        "deep-stages-cost-time": made(2.4, 0.8, **int8),
        "fwkd-low-error": made(28, 10, spread=1, facts=facts),
        "stage-errors-predict-tafid": made(0.7, 0.2, n=59, facts={"without_e3": 0.5}),
        "fwkd-quarter-of-data": made(1.0, 1.2, seeds=1, facts={"epochs": 4.0}),
        "ehvi-beats-random-latency": made(0.2, -0.2, seeds=10, facts={"beaten": 0.9}),
        "ehvi-beats-random-params": made(0.2, -0.2, seeds=10, facts={"beaten": 0.9}),
        "tinysd-dominated-by-search": made(3, 0, spread=0, facts={"possible": 3.0}),
        "vae-loses-little": made(0.6, 1.8, seeds=3, guards=bicubic, facts=steps),
        "vae-keeps-latents": made(0.97, 0.8, seeds=3, facts={"corr": 0.9}),
        "codesign-removes-bottleneck": made(0.15, 0.8, backend="eager"),
        "codesign-preserves-prior": made(1.05, 1.6, guards=equal, n=96),
        "alignment-improves": made(0.7, 1.1, guards=alike, n=96),
        "images-resemble-teacher-lpips": made(0.6, 1.1, n=96),
        "images-resemble-teacher-clip": made(0.05, -0.1, n=96),
        "sr-quality-kept": made(1.0, 1.3, guards=equal | {"teacher-restores": (0.8, 0.7, 0.9)}),
        "sr-beats-input": made(0.8, 1.2, n=6),
        "prior-helps-restoration": made(0.8, 1.2, seeds=3, guards=equal),
    }


def test_the_sentences_follow_the_verdicts():
    good, bad = (readings.sentences(paper.ledger(records(worse))) for worse in (False, True))
    assert list(good) == list(bad) and len(good) == 6
    assert all(good[k] != bad[k] for k in good)
    for step in good:
        assert "**holds** here" in good[step] and "**fails** here" in bad[step]
    assert "makes an accurate network" in good["Feature-wise distillation"]
    assert "does not make an accurate network" in bad["Feature-wise distillation"]
    assert "nearer by LPIPS" in good["Alignment"] and "further by LPIPS" in bad["Alignment"]
    assert "nearer by embedding" in good["Alignment"] and "further by emb" in bad["Alignment"]
    assert "2 of the three move this teacher's prediction" in good["Surgery"]
    assert "TinySD lies behind" in good["Search"] and "does not lie behind" in bad["Search"]


def test_an_undecided_sentence_says_why():
    unsure = records(False)
    few = unsure["vae-loses-little"].model_copy(update={"seeds": 1})
    wide = unsure["codesign-preserves-prior"].model_copy(update={"low": 0.8, "high": 1.9})
    table = paper.ledger(unsure | {"vae-loses-little": few, "codesign-preserves-prior": wide})
    said = readings.sentences(table)["Slim VAE"]
    assert "**is undecided** here (too few seeds: 1 of 3)" in said and "1.1 (0.8 to 1.9" in said
    lost = unsure["dropped-stages-give-little"].model_copy(update={"guards": {}})
    said = readings.sentences(paper.ledger(unsure | {"dropped-stages-give-little": lost}))
    assert "is undecided** here (effect: not measured)" in said["Surgery"]


def test_what_is_undecided_is_read_out():
    table = paper.ledger(records(False))
    few = readings.undecided(table)
    assert few.startswith(
        "1 rows are undecided: 1 rest on a guard that is not met or not measured."
    )
    wide = records(False)["alignment-improves"].model_copy(update={"low": 0.5, "high": 1.2})
    more = readings.undecided(paper.ledger(records(False) | {"alignment-improves": wide}))
    assert "2 rows are undecided" in more and "1 want more pictures, rounds or networks" in more


def test_the_ledger_shows_its_worst_news_first_and_filters():
    table = paper.ledger(records(True))
    shown = ledger.worst_first(table)
    rank = shown.verdict.map({v: k for k, v in enumerate(paper.VERDICTS)})
    assert all(rank[shown.step == s].is_monotonic_increasing for s in shown.step.unique())
    vae = ledger.only(table, "4 Slim VAE, co-design", "trained", "fails").data
    assert len(vae) == 3 and set(vae.verdict) == {"fails"} and "step" not in vae
    assert vae.ours.str.contains(r"\[").all()
    every = ledger.only(table, "all", "all", "all").data
    assert {*every.statement} >= {*table.statement[~table.statement.str.match("NanoSD[1-7] ")]}
    assert "step" in every


def test_rows_that_say_the_same_of_each_network_are_one():
    sizes = (309.1, 315.7, 306.6, 297.4, 169.5, 161.0, 130.5)
    counted = {"protocol": "counted", "notebook": "02"}
    found = {
        f"params-n{k}": paper.Record(value=x, low=x, high=x, **counted)
        for k, x in enumerate(sizes, 1)
    }
    shown = ledger.shade(paper.ledger(records(True) | found), ids=True).data
    (row,) = shown[shown.id == "params-n1 to params-n7"].itertuples()
    assert row.statement == "NanoSD1, 2, 3, 4, 5, 6, 7: each has … M parameters."
    assert row.paper == "309, 315, 306, 297, 170, 160, 130" and row.verdict == "reproduced"
    assert row.ours == "309, 316, 307, 297, 170, 161, 130 M"
    assert not shown.id.isin(found).any() and shown.id.str.startswith("tafid-n1 to").any()

    other = paper.Record(value=250.0, low=250.0, high=250.0, **counted)
    shown = ledger.shade(paper.ledger(found | {"params-n3": other}), ids=True).data.set_index("id")
    assert shown.verdict["params-n3"] == "differs"
    assert shown.statement["params-n1 to params-n7"].startswith("NanoSD1, 2, 4, 5, 6, 7:")
