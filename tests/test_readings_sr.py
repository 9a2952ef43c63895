"""readings_sr: every reading is given two tables and says two different things."""

from __future__ import annotations

import pandas as pd
import pytest
import sentences

from nanosd_lib.views import readings_sr as readings
from nanosd_lib.views import sr_figures as charts

G = [0.03 * k for k in range(500)] + [14.6] * 500
OURS = "OSEDiff on N2, t = 220"


def damage(t=220):
    rows = [("scenes", 0.58, t - 9), ("crops of photographs", 0.64, t + 8), ("both", 0.61, t)]
    table = pd.DataFrame(rows, columns=["data", "rms", "t"])
    return table.assign(rms_low=table.rms - 0.01, rms_high=table.rms + 0.01)


def differences(lpips=-0.2, psnr=-0.4, spread=0.01):
    rows = []
    some = ((OURS, 0.0, 600), ("OSEDiff on teacher, t = 999", 0.5, 600), ("untrained", 0.3, 0))
    for case, shift, steps in (*some, ("S3Diff on N2", -0.1, 40)):
        how = f"released: {steps} steps" if steps else ""
        for data in ("held-out scenes", "held-out photographs"):
            for measure, value in (("lpips", lpips + shift), ("psnr_y", psnr - shift)):
                row = {
                    "case": case,
                    "trained": how,
                    "steps": steps,
                    "data": data,
                    "measure": measure,
                    "n": 6,
                    "seeds": 3,
                }
                ends = {"difference_low": value - 0.05, "difference_high": value + 0.05}
                ends |= {"over_seeds_low": value - 0.01, "over_seeds_high": value + spread}
                rows.append(row | {"difference": value, "over_seeds": value} | ends)
    return pd.DataFrame(rows)


def each(half=0.02, last=0.05):
    some = {"cat.png": -0.05, "fig.jpg": 0.001, "creek.jpg": last}
    rows = [{"case": OURS, "photograph": k, "n": 16, "difference": v} for k, v in some.items()]
    found = pd.DataFrame(rows)
    return found.assign(
        difference_low=found.difference - half, difference_high=found.difference + half
    )


def table(ceiling=32.0):
    rows = [("bicubic", None, 25.0), ("VAE alone", "teacher", ceiling), ("VAE alone", "slim", 31.0)]
    some = pd.DataFrame(rows, columns=["system", "vae", "psnr_y"]).assign(fix="none")
    kinds = ("held-out scenes", "held-out photographs")
    return pd.concat([some.assign(data=kind) for kind in kinds], ignore_index=True)


def photo_tiles(small=4.0, fast=90.0):
    here, far = "sd-mini, 64 pixels, eager, all timed", "SD 1.5, 512 pixels, {}, one timed"
    rows = [(here, "teacher", "teacher", 8.0, 1.0), (here, "N2", "slim", small, small / 8)]
    rows += [(far.format("eager"), "teacher", "teacher", 400.0, 1.0)]
    rows += [(far.format("ort-int8"), "N2", "slim", fast, fast / 400)]
    some = pd.DataFrame(rows, columns=["where", "backbone", "vae", "seconds", "ratio"])
    ends = {"seconds_low": some.seconds - 0.1, "seconds_high": some.seconds + 0.1}
    return some.assign(tiles=88, **ends)


def photograph(lpips=0.4, control=1.05):
    rows = [("bicubic", 1, 0.6, 0.1, control), ("OSEDiff on N2", 416, lpips, 30.0, 1.1)]
    some = pd.DataFrame(rows, columns=["method", "tiles", "lpips", "seconds", "seam"])
    return some.assign(picture="fig.jpg", megapixels=1.0, peak_mb=120.0)


def whole(peak=130.0):
    some = [photograph().assign(megapixels=m, peak_mb=k) for m, k in ((16.0, peak), (4.0, 125.0))]
    return pd.concat(some, ignore_index=True).assign(measured="a laptop, 1 thread")


def estimated(noise=0.9):
    rows = [("blur", 0.1, 0.2, 0.8), ("noise", 0.05, 0.1, noise)]
    some = pd.DataFrame(rows, columns=["score", "error", "spread", "correlation"])
    for name in ("error", "correlation"):
        some[f"{name}_low"], some[f"{name}_high"] = some[name] * 0.9, some[name] * 1.1
    return some.assign(data="held-out scenes", n=96)


def files(n2=140_000):
    rows = [
        ("adapters/osediff-teacher", 314_000, 3_700_000),
        ("adapters/osediff-N2", n2, 1_700_000),
    ]
    some = pd.DataFrame(rows, columns=["name", "parameters", "of"])
    return some.assign(megabytes=some.parameters * 2e-6)


CASES = {
    "over seeds": (
        lambda: readings.over_seeds(differences(), differences(), OURS),
        lambda: readings.over_seeds(differences(spread=0.2), differences(), OURS),
        [
            "3 seeds of the training: on held-out scenes -0.2 (-0.21 to -0.19) against bicubic",
            "In 2 of these 4 the seeds leave more",
        ],
    ),
    "adapters": (
        lambda: readings.adapters(files()),
        lambda: readings.adapters(files(510_000)),
        [
            "8% (adapters/osediff-N2) to 8% (adapters/osediff-teacher)",
            "to 30% (adapters/osediff-N2",
        ],
    ),
    "the tiles of a photograph": (
        lambda: readings.photograph_of_tiles(photo_tiles()),
        lambda: readings.photograph_of_tiles(photo_tiles(2.0, 500.0)),
        [
            "88 tiles take 4 (3.9 to 4.1) s around N2",
            "eager, teacher, teacher VAE) would take 400 s",
        ],
    ),
    "each photograph": (
        lambda: readings.each_photograph(each(), OURS),
        lambda: readings.each_photograph(each(0.2, 0.3), OURS),
        [
            "smaller on cat.png, larger on creek.jpg and not told apart on fig.jpg",
            "larger on creek.jpg and not told apart on cat.png and fig.jpg",
        ],
    ),
    "estimated": (
        lambda: readings.estimated(estimated()),
        lambda: readings.estimated(estimated(0.3)),
        ["least sure of blur", "least sure of noise"],
    ),
    "without VSD": (
        lambda: readings.without_vsd(differences(), OURS, ("600 steps", "600 steps")),
        lambda: readings.without_vsd(differences(), OURS, ("40 steps", "600 steps")),
        [
            "LPIPS changes by -0.2 (-0.25 to -0.15) (better) and PSNR changes by -0.4",
            "No comparison: without VSD 40 steps, with it 600 steps",
        ],
    ),
    "twice as long": (
        lambda: readings.longer(differences(-0.3), differences(0.02), OURS, (1200, 600)),
        lambda: readings.longer(differences(-0.3), differences(-0.1), OURS, (1200, 600)),
        [
            "on held-out photographs by +0.02 (-0.03 to +0.07) (undecided), which leaves -0.3"
            " (-0.35 to -0.25) against bicubic's (better). No gain of it is seen.",
            "1200 steps in place of 600 change LPIPS on held-out scenes by -0.1 (-0.15 to -0.05)",
        ],
    ),
    "not twice as long": (
        lambda: readings.longer(differences(), differences(), OURS, (1200, 600)),
        lambda: readings.longer(differences(), differences(), OURS, (80, 600)),
        ["It helps on held-out scenes", "No comparison: 80 steps are not twice 600."],
    ),
    "a photograph at its full size": (
        lambda: readings.whole_photograph(whole()),
        lambda: readings.whole_photograph(whole(500.0)),
        ["in 130 MB, 1.04 times what 4 megapixels", "in 500 MB, 4.00 times what"],
    ),
    "no photograph at its full size": (
        lambda: readings.whole_photograph(whole()),
        lambda: readings.whole_photograph(whole()[:0]),
        ["16 megapixels is 416 tiles", "This run has no such row"],
    ),
    "photograph": (
        lambda: readings.photograph(photograph()),
        lambda: readings.photograph(photograph(0.7)),
        ["smaller than bicubic's 0.6", "larger than bicubic's 0.6"],
    ),
    "gain": (
        lambda: readings.gain(damage(), G, 999),
        lambda: readings.gain(damage(90), G, 999),
        ["met at t = 220", "met at t = 90"],
    ),
    "lesson": (
        lambda: readings.lesson(0.1, 0.08, 12),
        lambda: readings.lesson(0.1, 0.11, 12),
        ["fell, from 0.1 to 0.08", "did not fall, from 0.1 to 0.11"],
    ),
    "differences": (
        lambda: readings.differences(differences(), OURS),
        lambda: readings.differences(differences(0.01, 0.3), OURS),
        ["1 of 2 systems trained alike (released: 600 steps)", "0 of 2 systems trained alike"],
    ),
    "the untrained": (
        lambda: readings.differences(differences(), OURS),
        lambda: readings.differences(differences(0.4), "S3Diff on N2"),
        [
            "change it by +0.1 (+0.05 to +0.15) (untrained). Trained otherwise: 1",
            "Trained otherwise: 2",
        ],
    ),
    "ceiling": (
        lambda: readings.ceiling(table()),
        lambda: readings.ceiling(table(24.0)),
        ["The ceiling is not what decides", "no backbone can win on PSNR"],
    ),
    "answer": (
        lambda: readings.answer(differences(), differences(), OURS, 0.3, 0.5),
        lambda: readings.answer(differences(0.4), differences(0.01), OURS, 0.3, 0.5),
        ["(smaller; PSNR -0.4", "(larger; PSNR -0.4"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_two_tables_are_read_as_two_sentences(name):
    sentences.check(*CASES[name])


def test_the_figures_are_drawn_from_these_tables():
    fig = charts.differences(differences())
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()][0] == f"{OURS}\n(600 steps)"
    fig = charts.gain(G, damage(), {"OSEDiff": 999, "HYPIR": 200})
    assert any("met at t = 220" in t.get_text() for t in fig.axes[0].texts)
    assert charts.colour("OSEDiff on teacher, t = 9") != charts.colour(OURS)


def test_a_seam_that_bicubic_has_as_well_is_not_the_tiles():
    assert "the tiles add 5%" in readings.photograph(photograph())
    assert "the tiles add nothing" in readings.photograph(photograph(control=1.1))
    some = pd.concat([photograph(control=1.2).assign(megapixels=m) for m in (16.0, 4.0)])
    said = readings.whole_photograph(some.reset_index(drop=True).assign(measured="a laptop"))
    assert "1.20 times at the same places" in said and "the tiles add nothing" in said


def test_what_would_decide_follows_from_what_varies():
    assert readings.each_photograph(each(), OURS).endswith("more photographs.")
    assert readings.each_photograph(each(0.2), OURS).endswith("more crops of each.")
    names = [t.get_text() for t in charts.each_photograph(each(), [OURS]).axes[0].get_yticklabels()]
    assert names == ["cat.png", "fig.jpg", "creek.jpg"]
