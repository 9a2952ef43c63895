"""arch: six codes, one notation, 32,768 networks."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest

from nanosd_lib import paper
from nanosd_lib.networks import arch
from nanosd_lib.networks.arch import Arch

N2 = Arch("R", "RA", "RA", "RARA", "RARA", "RR")


@pytest.fixture(scope="module")
def space():
    return arch.space()


def full(code: str) -> str:
    """NanoSD1 of the paper's tables is N1 here."""
    return re.sub(r"^NanoSD(?=\d)", "N", code)


def test_the_space_holds_32768_different_networks(space):
    assert len(space) == 32_768 == len(set(space)) == len({str(a) for a in space})


def test_every_network_is_read_back_from_what_it_prints(space):
    assert all(Arch.parse(str(a)) == a for a in space)


def test_every_network_is_read_back_from_its_codes(space):
    assert all(Arch.from_codes(a.codes) == a for a in space)
    assert space[0].codes == (0,) * 6 and space[-1].codes == (3, 3, 3, 7, 7, 7)


def test_codes_are_positions_in_the_choices():
    assert N2.codes == (3, 1, 1, 1, 1, 4)
    assert Arch.from_codes([3.0, 1.0, 1.0, 1.0, 1.0, 4.0]) == N2


@pytest.mark.parametrize("codes", [(0,) * 5, (0,) * 7])
def test_there_are_six_codes(codes):
    with pytest.raises(ValueError):
        Arch.from_codes(codes)


def test_a_smaller_space_is_the_product_of_its_choices():
    choices = {s: c[:2] for s, c in arch.CHOICES.items()} | {"E1": ("R",)}
    some = arch.space(choices)
    assert len(some) == 2**5 and {a.E1 for a in some} == {"R"}


def test_thirty_alternatives_and_no_original_among_them():
    pairs = list(arch.alternatives())
    assert len(pairs) == 30 == len(set(pairs))
    assert [sum(s == stage for s, _ in pairs) for stage in arch.STAGES] == [3, 3, 3, 7, 7, 7]
    assert not set(pairs) & set(arch.BASE.items())


@pytest.mark.parametrize("text", ["", "R", "RX RA | R", "R RA RA RARA RARA RR", "R|RA|RA|R|R|R"])
def test_a_wrong_form_is_refused_in_one_line_that_shows_the_right_one(text):
    with pytest.raises(ValueError) as err:
        Arch.parse(text)
    assert "E1 E2 E3 | D3 D2 D1" in str(err.value) and repr(text) in str(err.value)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    "text, stage, bad, allowed",
    [
        ("R RX RA | RARA RARA RR", "E2", "RX", arch.ENCODER),
        ("RRA RA RA | RARA RARA RR", "E1", "RRA", arch.ENCODER),
        ("R RA RA | RARA ra RR", "D2", "ra", arch.DECODER),
        ("R RA RA RARA | RAR | RRR RR RR RR", "E4", "RARA", arch.DEEP["E4"]),
        ("R RA RA R | RA | RRR RR RR RR", "M", "RA", arch.DEEP["M"]),
        ("R RA RA R | RAR | RA RR RR RR", "D4", "RA", arch.DEEP["D4"]),
    ],
)
def test_a_wrong_code_names_its_stage_and_the_allowed_ones(text, stage, bad, allowed):
    with pytest.raises(ValueError) as err:
        Arch.parse(text)
    message = str(err.value)
    assert f"{stage} cannot be {bad!r}" in message and message.endswith(", ".join(allowed))


def test_the_deep_stages_stand_or_fall_together():
    with pytest.raises(ValueError, match="all three or none"):
        Arch(**arch.BASE, E4="RR")


def test_the_deep_stages_are_printed_and_read_in_the_order_of_the_forward_pass():
    sd15 = arch.NANOSD["SD1.5"]
    assert str(sd15) == "RARA RARA RARA RR | RAR | RRR RARARA RARARA RARARA"
    assert Arch.parse(str(sd15)) == sd15 and sd15.deep and not N2.deep
    assert list(sd15.stages) == ["E1", "E2", "E3", "E4", "M", "D4", "D3", "D2", "D1"]
    assert list(N2.stages) == list(arch.STAGES)


def test_space_between_codes_does_not_matter():
    assert Arch.parse("  R  RA RA|RARA\tRARA RR ") == N2


def test_an_arch_is_a_key_and_cannot_change():
    assert {N2: 1}[Arch.parse("R RA RA | RARA RARA RR")] == 1
    with pytest.raises(FrozenInstanceError):
        N2.E1 = "RA"


def test_the_family_is_the_papers():
    table = paper.family().set_index("model")
    assert {full(m) for m in table.index} == set(arch.NANOSD)
    for model, row in table.iterrows():
        a = arch.NANOSD[full(model)]
        assert {s: row[s] for s in a.stages} == a.stages, model
        assert a.deep == bool(row.E4)


def test_printed_strings_that_contradict_their_counts_are_kept():
    row = paper.family().set_index("model").loc["TinySD"]
    printed = arch.PRINTED["TinySD"]
    assert (printed.D3, printed.D2, printed.D1) == (row.printed_D3, row.printed_D2, row.printed_D1)
    assert printed != arch.NANOSD["TinySD"]


def test_which_networks_a_smaller_space_lacks():
    left = dict(arch.CHOICES) | {"E1": ("RARA", "RA"), "D1": ("RR", "RRA")}
    named = {k: arch.NANOSD[k] for k in ("TinySD", "N2", "N7")}
    out = arch.outside(left, named)
    assert out == {"TinySD": ["D1:RARA"], "N2": ["E1:R"], "N7": ["E1:R"]}
    inside = set(arch.space(left))
    assert not any(a in inside for a in named.values())
    assert arch.outside(arch.CHOICES, named) == {k: [] for k in named}
