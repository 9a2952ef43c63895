"""interface: every code of a stage hands on what the original does; one that does not is seen."""

from __future__ import annotations

import pytest
import torch

from nanosd_lib.networks import counting, interface
from nanosd_lib.networks.arch import CHOICES


@pytest.fixture(scope="module")
def meta(sd_mini):
    return counting.on_meta(sd_mini.unet)


def test_all_thirty_six_fit(meta):
    table = interface.fits(meta)
    pairs = set(zip(table.stage, table.code, strict=True))
    assert len(table) == 36 and pairs == {(s, c) for s, codes in CHOICES.items() for c in codes}
    assert table.fits.all()


def test_a_stage_of_another_shape_does_not(meta, monkeypatch):
    plain = interface.shapes

    def wider(net, inputs):
        found = plain(net, inputs)
        return [(1, 1, 1, 1)] if (net.stage, net.code) == ("D2", "RA") else found

    monkeypatch.setattr(interface, "shapes", wider)
    table = interface.fits(meta).set_index(["stage", "code"]).fits
    assert not table["D2", "RA"] and table.sum() == 35
    assert torch.device("meta") == next(meta.parameters()).device
