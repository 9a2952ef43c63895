"""sensitivity: every stage simplified and removed; what it saves is what it held."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from nanosd_lib.data import splits
from nanosd_lib.hardware import timing
from nanosd_lib.networks import counting, pipeline
from nanosd_lib.networks.arch import STAGES
from nanosd_lib.quality import sensitivity, tafid


@pytest.fixture(scope="module")
def pipe(sd_mini):
    return sd_mini


@pytest.fixture(scope="module")
def every(pipe):
    how = pipeline.Sampling(steps=1, guidance=1.0, batch=4)
    reference = tafid.reference(pipe, 4, how)
    latents = splits.Latents(**splits.latents(pipe, "heldout", 4, 0, 0)["latents"])
    against, tables = reference["features"]["teacher"], []
    for way in ("removed", "one R"):
        missed = sensitivity.errors(pipe, latents, way, 4, how)["features"]
        found = sensitivity.sensitivity(pipe, missed, way, against, how)
        tables.append(found["table"])
    return pd.concat(tables).set_index(["removed", "how"])


def test_known_errors_are_looked_at_again(pipe, monkeypatch):
    """Of two batches the first is predicted again; a number that is another is refused."""
    monkeypatch.setattr(sensitivity, "BANDS", {"late": sensitivity.BANDS["late"]})
    how = pipeline.Sampling(steps=1, guidance=1.0, batch=4)
    latents = splits.Latents(**splits.latents(pipe, "heldout", 4, 0, 0)["latents"])
    whole = sensitivity.errors(pipe, latents, "one R", 64, how)["features"]
    again = sensitivity.errors(pipe, latents, "one R", 64, how, known=whole)["features"]
    assert all(torch.equal(x, again[k]) for k, x in whole.items()) and len(whole) == 9
    said = sensitivity.label("E1", "late", len(latents))
    assert whole[said].shape == (64, 1) and whole[said].min() > 0
    other = whole | {said: whole[said] * 1.1}
    with pytest.raises(ValueError, match="E1, late"):
        sensitivity.errors(pipe, latents, "one R", 64, how, known=other)


@pytest.fixture(scope="module")
def found(every):
    return every[every.band == "all"]


def test_every_metric_has_an_interval_in_every_band(every):
    bands = every.groupby(level=[0, 1]).band.apply(list)
    assert all(band == [*sensitivity.BANDS] for band in bands)
    for metric in ("eps_error", "tafid"):
        low, value, high = (every[metric + end] for end in ("_low", "", "_high"))
        assert (low <= value).all() and (value <= high).all() and (low < high).all()
    by_band = every.loc["E1", "removed"].set_index("band").eps_error
    assert by_band["early"] < by_band["middle"] < by_band["late"]  # noise hides what E1 adds


def test_every_stage_is_shortened_and_removed(found):
    removed = {s for s, how in found.index if how == "removed"}
    assert removed == {*STAGES, "E4", "M", "D4", "E4+M+D4"}
    assert {s for s, how in found.index if how == "one R"} == {*STAGES, "E4", "D4"}


def test_the_six_stages_are_missed_and_the_middle_is_not(found):
    """By far more than rounding: each of the six without retraining, against E4 and M."""
    removed = found.xs("removed", level="how")
    six, idle = removed.loc[list(STAGES)], removed.loc[["E4", "M"]]
    assert six.eps_error.drop("E3").min() > 5e-3
    assert six.eps_error.min() > 100 * idle.eps_error.max()
    assert six.tafid.min() > 10 > 10 * idle.tafid.max()


def test_what_is_saved_is_what_the_stage_held(pipe, found):
    unet = pipe.unet
    assert found.params_saved["M", "removed"] == counting.parameters(unet.mid_block)
    assert found.params_saved["E1", "removed"] == counting.parameters(unet.down_blocks[0])
    assert found.params_saved["D3", "removed"] == counting.parameters(unet.up_blocks[1])
    shorter = found.xs("one R", level="how").params_saved
    longer = found.xs("removed", level="how").params_saved
    assert (shorter < longer[shorter.index]).all()


def test_latency_of_every_variant_is_measured_beside_the_teacher(pipe, found):
    table = timing.profile_ablations(pipe, batch=1, tokens=4, repeats=1, warmup=0)["table"]
    assert {(r.removed, r.how) for r in table.itertuples()} == set(found.index)
    assert table.ms_median.gt(0).all() and torch.isfinite(torch.tensor(table.ms_saved)).all()
    assert table.ms_saved_low.isna().all()  # one round says nothing of the spread
