"""profiles: three budgets, strict types, one-line refusals that name the fix."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nanosd_lib.runs import profiles


@pytest.mark.parametrize("name", profiles.NAMES)
def test_every_profile_loads_under_its_own_name(name):
    assert profiles.load(name).name == name


def test_smoke_is_much_smaller_than_mini():
    smoke, mini = profiles.load("smoke"), profiles.load("mini")
    assert 10 * smoke.fwkd.steps <= mini.fwkd.steps
    assert smoke.model_dump().keys() == mini.model_dump().keys()


@pytest.mark.parametrize("name", profiles.NAMES)
def test_covariances_of_inception_features_are_not_singular(name):
    profile = profiles.load(name)
    images = profile.sensitivity.images, profile.search.images
    assert profile.samples.features == "mini-clip" or min(images) > 2048


def test_overrides_replace_single_fields():
    profile = profiles.load("mini", {"fwkd.steps": 10, "fwkd.data_fraction": 0.5, "threads": 1})
    assert (profile.fwkd.steps, profile.fwkd.data_fraction, profile.threads) == (10, 0.5, 1)
    assert profile.search == profiles.load("mini").search


def test_a_profile_cannot_be_assigned_to():
    with pytest.raises(ValidationError):
        profiles.load("mini").fwkd.steps = 3


def refusal(name, overrides=None):
    with pytest.raises(ValueError) as error:
        profiles.load(name, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_profile_is_refused_with_a_guess():
    assert refusal("mni") == (
        "profile 'mni' does not exist: use one of smoke, mini, full, sd15 (did you mean 'mini'?)"
    )
    assert "does not exist" in refusal(None)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("fwkd.stepz", "did you mean 'fwkd.steps'?"),
        ("fkwd.steps", "use one of teacher, release, photographs, dtype"),
        ("fwkd", "is a section: use one of fwkd.steps"),
        ("fwkd.steps.more", "too deep"),
        ("name", "does not exist"),
        (3, "a dotted name like 'fwkd.steps'"),
    ],
)
def test_an_unknown_override_is_refused(key, says):
    assert says in refusal("mini", {key: 10})


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("fwkd.steps", "ten", "fwkd.steps = 'ten' (str) is refused: input should be a valid int"),
        ("fwkd.steps", 10.0, "fwkd.steps"),
        ("fwkd.steps", True, "(bool) is refused"),
        ("fwkd.steps", 0, "greater than or equal to 1"),
        ("fwkd.lr", float("nan"), "fwkd.lr"),
        ("fwkd.lr", "1e-3", "valid number"),
        ("fwkd.data_fraction", "all", "fwkd.data_fraction"),
        ("fwkd.data_fraction", 2.0, "fwkd.data_fraction = 2.0"),
        ("device", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("threads", object(), "not plain data"),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_type(key, value, says):
    assert says in refusal("mini", {key: value})


def test_overrides_that_are_no_dict_are_refused():
    assert "a dict of dotted keys" in refusal("mini", ["fwkd.steps"])


def test_a_budget_that_is_no_yaml_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "BUDGETS", tmp_path)
    assert refusal("mini") == f"{tmp_path / 'mini.yaml'}: No such file or directory"
    for text in ("", "threads: 1\nthreads: 2", "{", "\x00"):
        (tmp_path / "mini.yaml").write_text(text)
        assert refusal("mini").startswith(str(tmp_path / "mini.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("-1.E+2", -100.0),
        ("1_000.5", 1000.5),
        ("+7", 7),
        ("010", 10),
        ("1:30", "1:30"),
        ("1e", "1e"),
        ("-", "-"),
        ("1\n", "1\n"),
    ],
)
def test_numbers_are_those_of_json_and_more(text, value):
    read = profiles.number(text)
    assert read == value and type(read) is type(value)
