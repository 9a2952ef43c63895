"""The published tables, the claims and the ledger: numbers, strictness, verdicts."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from nanosd_lib import paper
from nanosd_lib.hardware import prediction

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
GOOD = {
    "id": "a-claim",
    "statement": "It is ten.",
    "source": "poster",
    "section": "somewhere",
    "value": 10,
    "kind": "exact",
    "rule": {"type": "within", "abs": 0},
    "notebook": "03_fwkd",
    "measure": "a number",
}


def claims_file(tmp_path, *changes):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([GOOD | change for change in changes]))
    return path


def record(value):
    return paper.Record(value=value, protocol="toy, seed 0", notebook="03_fwkd")


def row(tmp_path, change, value=None):
    records = {} if value is None else {"a-claim": record(value)}
    return paper.ledger(records, claims_file(tmp_path, change)).iloc[0]


# the claims as shipped


def test_claims_cover_the_sources():
    claims = paper.claims()
    assert len(claims) >= 45
    assert len({c.id for c in claims}) == len(claims)
    assert {c.source for c in claims} == {"poster", "abstract", "article", "note"}
    assert {c.source for c in claims} <= set(paper.sources()["key"])
    assert {c.notebook[:2] for c in claims} == {f"{n:02d}" for n in range(11)}


def test_claims_of_rooms_that_are_not_built_say_why():
    for claim in paper.claims():
        room = NOTEBOOKS / f"{claim.notebook}.ipynb"
        if claim.notebook[:2] in ("04", "07", "08", "09", "10") and not room.exists():
            assert claim.reason, claim.id


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
        "string-tinysd-printed": 206.5,
        "string-hand-tuned-ra": 227.7,
        "article-model2-params": 315.746,
        "article-model2-latency": 27,
        "article-model2-tafid": 10,
        "article-model5-latency": 12,
        "article-130m-in-20ms": 27,
        "ninety-percent-cut": 84.9,
        "sd15-fp32-memory": 3.438,
        "sd15-params-article": 859.52,
        "real-time-photo": 2376,
        "code-and-weights-public": 0,
    }
    table = paper.ledger({key: record(value) for key, value in found.items()}).set_index("id")
    assert (table.loc[list(found), "verdict"] == "differs").all()
    explained = {c.id: c.explanation for c in paper.claims()}
    assert all(explained[key] for key in found)
    assert all(table.loc[key, "why"] == explained[key] for key in found)


# strictness: one line that names the file, the claim and the field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"rule": {"type": "roughly", "abs": 1}}, "rule"),
        ({"rule": {"type": "within"}}, "rule.within"),
        ({"rule": {"type": "within", "abs": 1, "rel": 1}}, "rule.within"),
        ({"rule": {"type": "truncates", "digits": 1.5}}, "digits"),
        ({"rule": {"type": "at_least", "bound": "ten"}}, "bound"),
        ({"rule": {"type": "at_least", "bound": 1, "abs": 1}}, "abs"),
        ({"value": "10"}, "value"),
        ({"value": math.nan}, "value"),
        ({"value": None}, "value"),
        ({"kind": "maybe"}, "kind"),
        ({"kind": "needs device"}, "kind"),
        ({"rule": {"type": "none"}}, "rule"),
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


# verdicts


@pytest.mark.parametrize(
    ("rule", "value", "holds", "fails"),
    [
        ({"type": "within", "abs": 0}, 10, [10], [10.001, 9]),
        ({"type": "within", "abs": 0.5}, 10, [9.5, 10.5], [9.4, 10.6]),
        ({"type": "within", "rel": 0.01}, 170, [169.494, 171.7], [168.2, 171.8]),
        ({"type": "truncates", "digits": 0}, 315, [315.746, 314.6], [316.0, 314.4]),
        ({"type": "truncates", "digits": 0}, 860, [859.52, 860.9], [861.0, 859.4]),
        ({"type": "truncates", "digits": 1}, 10.2, [10.208, 10.29, 10.16], [10.3, 10.14]),
        ({"type": "truncates", "digits": 2}, 0.29, [0.29], [0.284]),
        ({"type": "at_least", "bound": 0.7}, None, [0.7, 1.0], [0.699, -1.0]),
        ({"type": "at_most", "bound": 1}, None, [1.0, -3.0], [1.001]),
    ],
)
def test_every_rule_decides_both_ways(tmp_path, rule, value, holds, fails):
    exact, trend = {"rule": rule, "value": value}, {"rule": rule, "value": value, "kind": "trend"}
    for ours in holds:
        assert row(tmp_path, exact, ours).verdict == "reproduced"
        assert row(tmp_path, trend, ours).verdict == "trend holds"
        assert row(tmp_path, exact, ours).why == ""
    for ours in fails:
        assert row(tmp_path, exact, ours).verdict == "differs"
        assert row(tmp_path, trend, ours).verdict == "trend fails"
        assert "measured" in row(tmp_path, exact, ours).why


def test_what_did_not_run_says_why(tmp_path):
    silent = row(tmp_path, {})
    assert (silent.verdict, silent.why) == ("not run", "03_fwkd recorded no value in this run")
    needs = {"kind": "needs device", "rule": {"type": "none"}, "reason": "no phone here"}
    assert row(tmp_path, needs).why == "no phone here"
    stand_in = row(tmp_path, needs, 10)  # a number of another protocol is shown, never judged
    assert (stand_in.verdict, stand_in.ours, stand_in.why) == ("not run", 10.0, "no phone here")


def test_ledger_has_every_claim_and_no_blank_verdict():
    table = paper.ledger({"space-size": record(32_768)})
    head = "id statement source paper ours unit protocol rule verdict notebook why"
    assert list(table.columns) == head.split()
    assert list(table["id"]) == [c.id for c in paper.claims()]
    assert table["verdict"].isin(paper.VERDICTS).all()
    assert (table.loc[table["verdict"] == "not run", "why"] != "").all()
    assert table["paper"].dtype == table["ours"].dtype == float
    space = table.set_index("id").loc["space-size"]
    assert (space.verdict, space.ours, space.protocol) == ("reproduced", 32_768, "toy, seed 0")
    counts = paper.summary(table).set_index("verdict")["claims"]
    assert list(counts.index) == list(paper.VERDICTS)
    assert counts["reproduced"] == 1 and counts["not run"] == len(table) - 1 == counts.sum() - 1


def test_unknown_ids_and_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="no-such-claim"):
        paper.ledger({"no-such-claim": record(1)})
    for bad in (math.nan, math.inf, np.float32("nan"), "1", None, True):
        with pytest.raises(ValueError, match="value"):
            record(bad)
    assert record(np.float32(2)).value == record(np.int64(2)).value == 2.0
    with pytest.raises(ValueError, match="protocol"):
        paper.Record(value=1.0, protocol="", notebook="03_fwkd")


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
