"""The published tables, the claims and the ledger: numbers, strictness, verdicts."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from nanosd_lib import paper, rules
from nanosd_lib.hardware import prediction

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
GOOD = {
    "id": "a-claim",
    "statement": "It is ten.",
    "source": "poster",
    "section": "somewhere",
    "value": 10,
    "kind": "exact",
    "evidence": "counted",
    "rule": {"type": "within", "abs": 0},
    "passes": 10,
    "fails": 11,
    "notebook": "03_fwkd",
    "measure": "a number",
}
TREND = {"kind": "trend", "evidence": "trained", "value": None, "passes": 1, "fails": -1}
TREND |= {"rule": {"type": "at_least", "bound": 0}}
GUARD = {"name": "effect", "measure": "a size", "passes": 2, "fails": 0}
GUARD |= {"rule": {"type": "at_least", "bound": 1}}


def claims_file(tmp_path, *changes):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([GOOD | change for change in changes]))
    return path


def record(value, low=None, high=None, **more):
    ends = {"low": low, "high": high}
    return paper.Record(value=value, **ends, protocol="toy, seed 0", notebook="03_fwkd", **more)


def row(tmp_path, change, value=None, low=None, high=None, **more):
    records = {} if value is None else {"a-claim": record(value, low, high, **more)}
    return paper.ledger(records, claims_file(tmp_path, change)).iloc[0]


# the claims as shipped


def test_claims_cover_the_sources():
    claims = paper.claims()
    assert len(claims) >= 190
    assert {c.source for c in claims} == {"poster", "abstract", "article", "note"}
    assert {c.source for c in claims} <= set(paper.sources()["key"])
    assert {c.notebook[:2] for c in claims} == {f"{n:02d}" for n in range(11)}
    assert {c.evidence for c in claims} == set(paper.EVIDENCE)


def test_rows_of_rooms_that_are_not_built_wait_and_say_for_what():
    for claim in paper.claims():
        if not (NOTEBOOKS / f"{claim.notebook}.ipynb").exists():
            assert claim.waits, claim.id
    waiting = paper.ledger({})
    assert (waiting.verdict == "not run").all() and (waiting.why != "").all()


def test_what_a_row_of_a_trained_network_says_is_two_sided_or_bounded():
    """No trained row is decided by a printed value alone: they come from another teacher."""
    for claim in paper.claims():
        if claim.evidence == "trained" and not claim.waits and not claim.count:
            assert claim.kind == "trend", claim.id


def test_every_row_that_can_fail_explains_itself_when_it_does():
    """Rows on what was trained or timed: an explanation of that verdict stands ready."""
    for claim in paper.claims():
        if claim.waits or claim.evidence in ("arithmetic", "restated", "counted"):
            continue
        bad = "differs" if claim.kind == "exact" else "fails"
        assert any(e.verdict == bad for e in claim.explanations), claim.id


def test_claims_quote_the_same_numbers_as_the_tables():
    values = {c.id: c.value for c in paper.claims()}
    for _, model in paper.family().iterrows():
        key = {"SD1.5": "sd15"}.get(model.model, model.model.lower().replace("nanosd", "n"))
        assert values[f"params-{key}"] == model.params_m
        if key != "sd15":
            assert values[f"tafid-{key}"] == model.tafid
            assert values[f"htp-{key}"] == model.htp_ms
            assert values[f"ane-{key}"] == model.ane_ms
    reported = set(paper.restoration()["value"])
    for key in ("sr-osediff-psnr", "sr-s3diff-psnr", "face-lpips", "deblur-fid", "depth-absrel"):
        assert values[key] in reported, key


def test_misprints_come_out_as_differs_and_explain_themselves():
    found = {
        "string-tinysd-printed": record(206.5, facts={"r2_printed": 0.9, "r2_corrected": 0.997}),
        "article-model2-params": record(315.746),
        "article-model2-latency": record(27),
        "article-model2-tafid": record(10),
        "article-model5-latency": record(12),
        "article-130m-in-20ms": record(27),
        "ninety-percent-cut": record(84.9, facts={"n2_cut": 63.3}),
        "sd15-fp32-memory": record(3.438),
        "sd15-params-article": record(859.52),
        "code-and-weights-public": record(0),
    }
    table = paper.ledger(found).set_index("id").loc[list(found)]
    assert (table.verdict == "differs").all() and (table.why != "").all()
    assert table.why["article-model2-params"].startswith("A misprint: we count 315.7 M")


# strictness: one line that names the file, the claim and the field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"rule": {"type": "roughly", "abs": 1}}, "rule"),
        ({"rule": {"type": "within"}}, "rule.within"),
        ({"rule": {"type": "within", "abs": 1, "rel": 1}}, "rule.within"),
        ({"rule": {"type": "printed", "digits": 1.5, "how": "cut"}}, "digits"),
        ({"rule": {"type": "printed", "digits": 1}}, "how"),
        ({"rule": {"type": "at_least", "bound": "ten"}}, "bound"),
        ({"rule": {"type": "at_least", "bound": 1, "abs": 1}}, "abs"),
        ({"rule": {"type": "between", "low": 2, "high": 1}}, "rule.between"),
        ({"value": "10"}, "value"),
        ({"value": math.nan}, "value"),
        ({"value": None}, "value"),
        ({"kind": "maybe"}, "kind"),
        ({"evidence": "felt"}, "evidence"),
        ({"evidence": "compiled"}, "evidence"),
        ({"rule": {"type": "none"}}, "rule"),
        ({"passes": 11}, "passes"),
        ({"fails": 10}, "fails"),
        ({"fails": None}, "fails"),
        ({"guards": [GUARD | {"fails": 3}]}, "guards"),
        ({"explanations": [{"verdict": "fails", "text": "x", "of": "value"}]}, "explanations"),
        ({"notebook": "12_elsewhere"}, "notebook"),
        ({"source": "rumour"}, "source"),
        ({"statement": ""}, "statement"),
    ],
)
def test_a_bad_claim_is_refused_in_one_line(tmp_path, change, field):
    with pytest.raises(ValueError) as err:
        paper.claims(claims_file(tmp_path, change))
    message = str(err.value)
    assert "\n" not in message
    assert "claims.yaml" in message and "'a-claim'" in message and field in message


def test_a_rule_without_a_value_that_passes_and_one_that_fails_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    for missing in ("passes", "fails"):
        path.write_text(yaml.safe_dump([{k: v for k, v in GOOD.items() if k != missing}]))
        with pytest.raises(ValueError, match=f"'a-claim'.*'{missing}'"):
            paper.claims(path)


def test_a_bad_or_missing_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'A Claim'.*field 'id'"):
        paper.claims(claims_file(tmp_path, {"id": "A Claim"}))
    with pytest.raises(ValueError, match="'a-claim'.*more than once"):
        paper.claims(claims_file(tmp_path, {}, {}))
    (tmp_path / "claims.yaml").write_text("- just a string\n")
    with pytest.raises(ValueError, match=r"claims.yaml: claim '#1'"):
        paper.claims(tmp_path / "claims.yaml")


def test_claims_are_frozen():
    with pytest.raises(ValueError):
        paper.claims()[0].value = 1.0


# rules


@pytest.mark.parametrize(
    ("rule", "value", "inside", "outside"),
    [
        ({"type": "within", "abs": 0}, 10, [10], [10.001, 9]),
        ({"type": "within", "abs": 0.5}, 10, [9.5, 10.5], [9.4, 10.6]),
        ({"type": "within", "rel": 0.01}, 170, [169.494, 171.7], [168.2, 171.8]),
        ({"type": "printed", "digits": 0, "how": "cut"}, 315, [315.746], [316.0, 314.6]),
        ({"type": "printed", "digits": 0, "how": "round"}, 860, [859.52, 860.4], [860.6, 859.4]),
        ({"type": "printed", "digits": 1, "how": "cut"}, 10.2, [10.208, 10.29], [10.3, 10.16]),
        ({"type": "printed", "digits": 2, "how": "cut"}, 0.29, [0.29], [0.284]),
        ({"type": "at_least", "bound": 0.7}, None, [0.7, 1.0], [0.699, -1.0]),
        ({"type": "at_most", "bound": 1}, None, [1.0, -3.0], [1.001]),
        ({"type": "between", "low": 0.8, "high": 1.1}, None, [0.8, 1.1], [0.79, 1.2]),
    ],
)
def test_every_rule_decides_both_ways(tmp_path, rule, value, inside, outside):
    change = {"rule": rule, "value": value, "passes": inside[0], "fails": outside[0]}
    for ours in inside:
        assert row(tmp_path, change, ours).verdict == "reproduced"
        assert row(tmp_path, change | {"kind": "trend"}, ours).verdict == "holds"
        assert row(tmp_path, change, ours).why == ""
    for ours in outside:
        assert row(tmp_path, change, ours).verdict == "differs"
        assert row(tmp_path, change | {"kind": "trend"}, ours).verdict == "fails"
        assert "measured" in row(tmp_path, change, ours).why


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_pass_and_never_fail(x):
    for claim in paper.claims():
        printed = math.nan if claim.value is None else claim.value
        assert rules.answer(claim.rule, x, x, printed) == "across"


# verdicts


@pytest.mark.parametrize(
    ("ends", "verdict", "reason"),
    [
        ((0.5, 0.1, 0.9), "holds", ""),
        ((0.5, 0.0, 0.9), "holds", ""),
        ((0.5, -0.1, 0.9), "undecided", "the interval -0.1 to 0.9 crosses the bound"),
        ((-0.5, -0.9, -0.1), "fails", "measured -0.5"),
        ((0.5, None, None), "undecided", "no interval"),
        ((0.5, 0.5, 0.5), "undecided", "an interval of no width"),
    ],
)
def test_an_interval_decides_or_it_does_not(tmp_path, ends, verdict, reason):
    found = row(tmp_path, TREND, *ends)
    assert found.verdict == verdict and found.why.startswith(reason)


def test_an_undecided_row_says_how_many_would_decide(tmp_path):
    """An interval twice as wide as the way to the bound wants four times as many."""
    found = row(tmp_path, TREND, 0.2, -0.2, 0.6, n=96)
    assert found.why.endswith(
        "crosses the bound (at least 0); about 380 in place of 96 would decide"
    )
    assert "about 860 in place of 96" in row(tmp_path, TREND, 0.1, -0.2, 0.4, n=96).why
    assert "would decide" not in row(tmp_path, TREND, 0.0, -0.2, 0.4, n=96).why  # on the bound
    assert "would decide" not in row(tmp_path, TREND, 1e-3, -0.2, 0.4, n=96).why
    assert "would decide" not in row(tmp_path, TREND, 0.1, -0.2, 0.4).why


def test_what_counts_decided_things_may_be_a_point(tmp_path):
    assert row(tmp_path, TREND | {"count": True}, 0.5, 0.5, 0.5).verdict == "holds"


def test_too_few_seeds_decide_nothing(tmp_path):
    three = TREND | {"seeds": 3}
    assert row(tmp_path, three, 0.5, 0.4, 0.6, seeds=3).verdict == "holds"
    for few in ({"seeds": 2}, {}):
        found = row(tmp_path, three, 0.5, 0.4, 0.6, **few)
        assert found.verdict == "undecided" and found.why.startswith("too few seeds")


@pytest.mark.parametrize(
    ("unmet", "guard", "verdict"),
    [
        ("undecided", (2, 2, 2), "holds"),
        ("undecided", (0.5, 0.5, 0.5), "undecided"),
        ("undecided", (1.5, 0.5, 2.5), "undecided"),
        ("undecided", None, "undecided"),
        ("fails", (0.5, 0.5, 0.5), "fails"),
        ("fails", (1.5, 0.5, 2.5), "undecided"),
    ],
)
def test_a_guard_decides_whether_a_row_says_anything(tmp_path, unmet, guard, verdict):
    change = TREND | {"guards": [GUARD | {"unmet": unmet}]}
    guards = {} if guard is None else {"effect": guard}
    found = row(tmp_path, change, 0.5, 0.4, 0.6, guards=guards)
    assert found.verdict == verdict
    if verdict == "undecided":
        assert found.why.startswith("effect")


def test_a_record_of_another_kind_is_refused(tmp_path):
    compiled = TREND | {"evidence": "compiled", "waits": "a table"}
    with pytest.raises(ValueError, match="a compiled number for evidence 'trained'"):
        row(tmp_path, TREND, 0.5, 0.4, 0.6, compiled=True)
    with pytest.raises(ValueError, match="a measured number for evidence 'compiled'"):
        row(tmp_path, compiled, 0.5, 0.4, 0.6)
    found = row(tmp_path, compiled, 0.5, 0.4, 0.6, compiled=True)
    assert (found.verdict, found.evidence) == ("holds", "compiled")
    with pytest.raises(ValueError, match="backend 'eager', but 'ort-int8' decides"):
        row(tmp_path, TREND | {"backend": "ort-int8"}, 0.5, 0.4, 0.6, backend="eager")
    with pytest.raises(ValueError, match="no guard 'speed'"):
        row(tmp_path, TREND, 0.5, 0.4, 0.6, guards={"speed": (1, 1, 1)})


def test_every_backend_stands_in_the_row_and_a_flip_is_said(tmp_path):
    how = {"backend": "ort-int8", "elsewhere": {"eager": -0.2, "ort-fp32": 0.3}}
    found = row(tmp_path, TREND | {"backend": "ort-int8"}, 0.5, 0.4, 0.6, **how)
    assert found.elsewhere == "eager -0.2 (flips), ort-fp32 0.3"


def test_explanations_belong_to_a_verdict_and_a_condition(tmp_path):
    told = [
        {"verdict": "fails", "text": "By {value:.1f} of {steps:.0f}.", "of": "steps", "below": 50},
        {"verdict": "holds", "text": "Good."},
    ]
    change = TREND | {"explanations": told}
    short = row(tmp_path, change, -0.5, -0.6, -0.4, facts={"steps": 10})
    assert short.why == "By -0.5 of 10."
    assert "measured" in row(tmp_path, change, -0.5, -0.6, -0.4, facts={"steps": 90}).why
    assert row(tmp_path, change, 0.5, 0.4, 0.6).why == "Good."
    untold = TREND | {"explanations": [{"verdict": "holds", "text": "{lost}"}]}
    (claim,) = paper.claims(claims_file(tmp_path, untold))
    with pytest.raises(ValueError, match="explanation: 'lost' was not recorded"):
        paper.check(claim, record(0.5, 0.4, 0.6))
    assert row(tmp_path, untold, 0.5, 0.4, 0.6).why == ""  # a page of older code recorded less


def test_what_did_not_run_says_why(tmp_path):
    silent = row(tmp_path, {})
    assert (silent.verdict, silent.why) == ("not run", "03_fwkd recorded no value in this run")
    assert row(tmp_path, {"waits": "a phone"}).why == "waits for a phone"


def test_ledger_has_every_claim_and_no_blank_verdict():
    table = paper.ledger({"space-size": record(32_768)})
    assert list(table.columns) == paper.COLUMNS
    assert list(table["id"]) == [c.id for c in paper.claims()]
    assert table["verdict"].isin(paper.VERDICTS).all()
    assert (table.loc[table["verdict"] == "not run", "why"] != "").all()
    space = table.set_index("id").loc["space-size"]
    assert (space.verdict, space.ours, space.protocol) == ("reproduced", 32_768, "toy, seed 0")
    counts = paper.summary(table).set_index("evidence")
    assert counts.loc["counted", "reproduced"] == 1
    assert counts.to_numpy().sum() == len(table) == 1 + counts["not run"].sum()
    assert paper.summary_line(table).startswith(f"{len(table)} rows. counted: 1 reproduced; not")


def test_the_verdict_is_found_again_from_the_digits_of_the_ledger(tmp_path):
    change = TREND | {"guards": [GUARD], "seeds": 2}
    path = claims_file(tmp_path, change)
    for value, low, high, guard in (
        (1 / 3, 1e-7, 2 / 3, (2, 1.5, 3)),
        (1 / 3, -1e-7, 2 / 3, (2, 1.5, 3)),
        (-1 / 3, -2 / 3, -1e-7, (2, 1.5, 3)),
        (1 / 3, 1e-7, 2 / 3, (2, 0.5, 3)),
    ):
        made = record(value, low, high, seeds=2, guards={"effect": guard})
        table = paper.ledger({"a-claim": made}, path)
        table.to_csv(tmp_path / "claims.csv", index=False, float_format="%.6g")
        read = pd.read_csv(tmp_path / "claims.csv").iloc[0]
        assert paper.again(read, paper.claims(path)[0]) == table.verdict[0]


def test_unknown_ids_and_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="no-such-claim"):
        paper.ledger({"no-such-claim": record(1)})
    for bad in (math.nan, math.inf, np.float32("nan"), "1", None, True):
        with pytest.raises(ValueError, match="value"):
            record(bad)
    assert record(np.float32(2)).value == record(np.int64(2)).value == 2.0
    with pytest.raises(ValueError, match="protocol"):
        paper.Record(value=1.0, protocol="", notebook="03_fwkd")
    with pytest.raises(ValueError, match="outside its interval"):
        record(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="two ends"):
        record(1.0, 0.5)


# the tables


def test_family_strings_and_counts_agree_with_what_is_printed():
    family = paper.family().set_index("model")
    counted = family["params_from_strings"].dropna() / 1e6
    assert len(counted) == 7
    for model, millions in counted.items():
        printed = family.loc[model, "params_m"]
        assert printed in (math.floor(millions), round(millions)), model
    assert family.loc["TinySD", "params_from_strings"] == 323_384_964
    assert list(family.loc["TinySD", ["D3", "D2", "D1"]]) == ["RARA"] * 3
    assert list(family.loc["TinySD", ["printed_D3", "printed_D2", "printed_D1"]]) == ["RA"] * 3
    assert (family.drop("TinySD")["printed_D1"] == "").all()


def test_attention_counts():
    family = paper.family().set_index("model")
    assert prediction.attention_counts(family.loc["SD1.5"]) == (5, 5, 5)
    assert prediction.attention_counts(family.loc["NanoSD2"]) == (0, 3, 3)


@pytest.mark.parametrize(
    ("column", "coefficients", "r2", "loo", "r2_printed"),
    [
        ("htp_ms", (7.7, 15.8, 3.1, 3.4), 0.997, (1.3, 2.5), 0.905),
        ("ane_ms", (11.8, 51.3, 3.0, 5.3), 0.999, (2.7, 5.3), 0.907),
    ],
)
def test_latency_model_of_the_published_rows(column, coefficients, r2, loo, r2_printed):
    fit = prediction.fit_latency(paper.family(), column)
    assert [round(c, 1) for c in fit["coef"].values()] == list(coefficients)
    assert round(fit["r2"], 3) == r2
    assert (round(fit["loo_mean"], 1), round(fit["loo_max"], 1)) == loo
    assert (
        round(prediction.fit_latency(paper.family(), column, printed=True)["r2"], 3) == r2_printed
    )


def test_published_rank_correlations():
    rank = paper.family()[["params_m", "htp_ms", "ane_ms"]].corr("spearman")
    assert round(rank.loc["params_m", "htp_ms"], 2) == 0.34
    assert round(rank.loc["htp_ms", "ane_ms"], 3) == 0.996


def test_a_guard_says_in_its_own_words_why_a_row_says_nothing():
    (claim,) = [c for c in paper.claims() if c.id == "sr-quality-kept"]
    guards = {"trained-alike": (0, 0, 0), "teacher-restores": (0.8, 0.7, 0.9)}
    how = {"value": 1.0, "low": 0.99, "high": 1.01, "n": 6, "protocol": "toy"}
    record = paper.Record(**how, guards=guards, notebook=claim.notebook, facts={"scenes": 1.1})
    verdict, why = paper.verdict(claim, record)
    assert verdict == "undecided" and why.startswith("not comparable: one comes from the release")
    met = {"trained-alike": (1, 1, 1), "teacher-restores": (1.0, 0.9, 1.2)}
    verdict, why = paper.verdict(claim, record.model_copy(update={"guards": met}))
    assert verdict == "undecided" and "teacher restores: 0.9 to 1.2 crosses the bound" in why
