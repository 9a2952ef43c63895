"""Figures: what a reader must be able to read in them."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from nanosd_lib.views import charts, figures, ledger, pages, vae_figures

NAMES = [f"NanoSD{k}" for k in range(1, 9)]
CROWD = pd.Series([10.0, 10.1, 10.2, 10.3, 11.0, 20.0, 20.1, 40.0])
TAFID = pd.Series([2.0, 2.1, 2.0, 2.2, 2.1, 5.0, 5.1, 9.0])


def boxes(ax):
    ax.figure.canvas.draw()
    named = [t for t in ax.texts if t.get_text() in NAMES]
    return {t.get_text(): t.get_window_extent() for t in named}, ax.get_window_extent()


def family() -> pd.DataFrame:
    table = pd.DataFrame({"model": NAMES, "latency_ms": CROWD, "floor": 2.5})
    for when, factor in (("assembled", 2), ("aligned", 1)):
        for end, k in (("", 1), ("_low", 0.8), ("_high", 1.2)):
            table[f"tafid_{when}{end}"] = TAFID * factor * k
    return table.assign(alignment=["released: 600 steps"] * 7 + ["trained here: 60 steps"])


def removed() -> pd.DataFrame:
    table = pd.DataFrame({"removed": NAMES, "how": ["removed", "one R"] * 4, "floor": 2.5})
    costs = {"params_saved_share": CROWD / 50, "ms_saved": CROWD}
    return table.assign(**costs, tafid=TAFID, tafid_low=TAFID * 0.8, tafid_high=TAFID * 1.2)


def judged() -> pd.DataFrame:
    table = pd.DataFrame({"model": NAMES, "latency": CROWD, "tafid": TAFID})
    others = table.assign(model="", group="EHVI", latency=CROWD + 0.05, front=True)
    return pd.concat([table.assign(group="paper's table", front=False), others])


@pytest.mark.parametrize(
    "figure",
    [
        lambda: charts.before_after(family()),
        lambda: charts.removal(removed()),
        lambda: charts.pareto({"ms": (judged(), "latency")}, "tAFID", 2.5),
        lambda: figures.scatter(removed(), "ms_saved", "tafid", "removed"),
    ],
    ids=["before_after", "removal", "pareto", "scatter"],
)
def test_names_of_crowded_points_can_be_read(figure):
    for ax in figure().axes:
        named, inside = boxes(ax)
        assert set(named) == set(NAMES)
        over = [(a, b) for a, b in itertools.combinations(named, 2) if named[a].overlaps(named[b])]
        assert not over
        assert all(box.x0 >= inside.x0 and box.x1 <= inside.x1 for box in named.values())


def test_what_was_aligned_for_less_is_hollow():
    ax = charts.before_after(family()).axes[0]
    fill = {c.get_label(): c.lines[0].get_markerfacecolor() for c in ax.containers}
    assert fill["aligned for less, 95 % interval"] == "white"
    assert fill["aligned, 95 % interval"] != "white"
    alike = charts.before_after(family().assign(alignment="released: 600 steps")).axes[0]
    assert not any("less" in c.get_label() for c in alike.containers)


def test_seeds_of_one_student_can_be_told_apart():
    record = [{"step": s, "latent": 1 / s, "kl": s} for s in (1, 2, 3)]
    fig = vae_figures.terms({"slim, seed 0": record, "slim, seed 1": record}, ("latent", "kl"))
    first, second = fig.axes[0].lines
    assert first.get_color() == second.get_color() and first.get_alpha() != second.get_alpha()


def test_tables_of_pages_say_interval_and_control():
    r = {"model": "slim", "params": 98075, "ms_median": 42.0, "ssim": 0.9, "lpips": 0.1}
    psnr = {"psnr": 31.0, "psnr_low": 29.0, "psnr_high": 33.0}
    rows = [
        r | psnr | {"latent_corr": c, "pictures": "scenes", "seed": k}
        for k, c in ((0, 0.9), (1, 0.8))
    ]
    rows.append(rows[0] | {"model": "teacher", "latent_corr": None, "psnr": 32.0})
    shown = pages.autoencoders(pd.DataFrame(rows), {"slim": 2}).data
    assert shown.model.to_list() == ["slim (mean of 2 seeds)", "teacher"]
    assert shown["PSNR, dB"][0] == "31.0 (29.0 to 33.0)"
    assert shown["correlation of latents"].to_list() == ["0.850", "–"]
    timed = {"part": "encoder", "params": 4000, "fewer_macs": 8.0, "model": ["teacher", "slim"]}
    ends = {"faster": 3.0, "faster_low": 2.7, "faster_high": 3.3}
    each = [pd.DataFrame(timed | ends | {"batch": k}) for k in (8, 1)]
    shown = pages.speeds(pd.concat(each)).data
    assert shown.to_dict("records") == [
        {
            "half": "encoder", "model": "slim", "parameters": "4,000",
            "multiply-adds, times fewer": "8.0", "times as fast, batch 8": "3.00 (2.70 to 3.30)",
            "times as fast, batch 1": "3.00 (2.70 to 3.30)",
        }
    ]  # fmt: skip
    rows = [("roofline", "htp_ms", "published", "as printed"), ("roofline", "eager", "stages", "x")]
    fits = pd.DataFrame(rows, columns=["predictor", "target", "rows", "strings"]).assign(r2=0.5)
    assert pages.explained(fits).data.index.to_list() == [
        ("nine printed, Hexagon", "as printed"),
        ("36 stages here, eager", "counted"),
    ]
    errors = pd.DataFrame({"stage": ["E1", "E1", "D1"], "code": ["R", "RA", "R"]})
    ends = {"relative_error": 0.2, "relative_error_low": 0.1, "relative_error_high": 0.3}
    wide = pages.surrogates(errors.assign(**ends)).data
    assert wide.index.to_list() == ["E1", "D1"] and wide.columns.to_list() == ["RA", "R"]
    assert wide.loc["D1", "R"] == "0.2 (0.1 to 0.3)" and pd.isna(wide.loc["D1", "RA"])
    cost = removed().assign(ms_saved_low=0.0, ms_saved_high=40.0)
    saved = pages.costs(cost).data
    assert len(saved) == len(NAMES) and saved["removed", "tAFID"].iloc[0] == "2 (1.6 to 2.4)"
    table = family().assign(arch=NAMES, params=1e6, tafid_paper=[None] * 8, htp_ms_paper=27)
    table = table.assign(latency_low=CROWD - 1, latency_high=CROWD + 1)
    some = pages.family(table, dict.fromkeys(NAMES, 600))
    assert some.caption.endswith("tAFID 2.5") and some.data.ms[0] == "10 (9 to 11)"
    assert set(some.data["tAFID in the paper"]) == {"–"} and set(some.data.steps) == {600}


@pytest.mark.parametrize(
    ("ours", "unit", "said"),
    [
        ((0.333, 0.2, 0.4), "share", "33.3 [20, 40] %"),
        ((7, 7, 7), "model", "NanoSD7"),
        ((0.989, 0.91, 1.03), "ratio", "0.989 [0.91, 1.03] times"),
        ((float("nan"),) * 3, "share", ""),
    ],
)
def test_a_row_of_the_ledger_names_its_unit(ours, unit, said):
    row = pd.Series(dict(zip(("ours", "low", "high"), ours, strict=True)) | {"unit": unit})
    assert ledger.with_interval(row) == said
    assert ledger.printed(row.ours, unit) in ("33.3 %", "NanoSD7", "0.989", "")
