"""The committed reference run: whole, in line with the ledger, and what the README shows."""

from __future__ import annotations

import json

import nbformat
import pandas as pd
import pytest

from nanosd_lib import paper
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout, reference

FOLDER = reference.REFERENCE
TABLES = {
    "teacher": ["metric", "value", "floor", "protocol"],
    "surrogates": ["stage", "code", "params", "relative_error", "kept"],
    "search_trials": ["arch", "params", "latency", "tafid", "direction", "order"],
    "family": ["model", "arch", "params", "latency_ms", "tafid_aligned", "tafid_paper"],
    "sensitivity": ["removed", "params_saved", "ms_saved", "eps_error", "tafid", "floor"],
    "stages_sd15": [
        "stage", "code", "params", "gmac_linear", "gmac_attention", "peak_activation_mb",
        "backend", "ms_median", "ms_low", "ms_high",
    ],
    "family_sd15": [
        "model", "arch", "params", "params_printed", "gmac", "backend", "ms_median",
        "ratio_to_sd15", "htp_ms", "ane_ms",
    ],
    "latency_prediction": [
        "predictor", "target", "spearman", "r2", "loo_mean", "loo_max", "strings",
    ],
    "additivity": ["model", "backend", "ms_median", "sum_of_stages_ms", "relative_error"],
    "tiling": ["width", "height", "tile", "overlap", "columns", "rows", "tiles"],
    "plan_sd15": ["stage", "peak_memory_gb", "disk_gb", "gpu_hours", "basis"],
    "stages": ["stage", "code", "ms_median", "ms_low", "ms_high"],
    "vae": [
        "model", "part", "params", "gmac", "ms_median", "psnr", "ssim", "lpips", "latent_corr",
        "seed", "protocol",
    ],
    "vae_ablation": ["left_out", "pictures", "psnr", "ssim", "lpips", "latent_corr", "seed"],
    "codesign": ["unet", "vae", "aligned", "tafid", "floor", "psnr", "ms_tile"],
    "pipeline_time": ["geometry", "configuration", "component", "ms_median"],
}  # fmt: skip


def test_readme_shows_the_reference_run():
    text = (ROOT / "README.md").read_text()
    assert text == reference.refreshed(text), "the README is stale: run `make reference`"


def test_the_run_is_whole_and_judges_every_claim():
    run = json.loads((FOLDER / "run.json").read_text())
    assert run["state"] == "ok" and run["profile"] == "mini" and run["verb"] == "reproduce"
    ledger = pd.read_csv(FOLDER / layout.LEDGER)
    assert set(ledger.id) == {c.id for c in paper.claims()} and ledger.verdict.notna().all()
    names = {p.stem for p in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert (
        {p.stem for p in (FOLDER / "notebooks").glob("*.ipynb")} == names == set(run["notebooks"])
    )


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_their_columns(name):
    table = pd.read_csv(FOLDER / "tables" / f"{name}.csv")
    assert len(table) and set(TABLES[name]) <= set(table)


def test_executed_notebooks_ran_to_the_end_and_name_no_machine():
    for path in (FOLDER / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        code = [c for c in book.cells if c.cell_type == "code" and c.source.strip()]
        assert all(c.execution_count for c in code), path.name
        assert not any(o.output_type == "error" for c in code for o in c.outputs), path.name
        text = path.read_text()
        assert not any(f"/{p}/" in text for p in ("home", "tmp", "root")), path.name


def test_the_reference_stays_small():
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    assert size < 30e6
    weights = sum(p.stat().st_size for p in (ROOT / "data").rglob("*.safetensors"))
    assert weights < 40e6


def test_the_slim_vae_keeps_the_teachers_latents_and_pictures():
    """Three seeds, scenes and photographs: at most 1.5 dB below the teacher, correlation 0.95."""
    table = pd.read_csv(FOLDER / "tables" / "vae.csv")
    table["pictures"] = table.protocol.str.split(",").str[0]
    teacher = table[table.model == "teacher"].set_index("pictures").psnr
    whole = table[(table.model == "slim") & (table.part == "both")]
    assert whole.groupby("pictures").seed.nunique().to_dict() == dict.fromkeys(teacher.index, 3)
    assert (whole.psnr - whole.pictures.map(teacher)).min() >= -1.5
    assert whole.latent_corr.min() >= 0.95


def test_the_slim_vae_is_smaller_and_was_faster_in_both_halves():
    """Five times fewer multiply-adds, three times less time: sd-mini, and SD 1.5's geometry."""
    small = pd.read_csv(FOLDER / "tables" / "vae_speed.csv")
    large = pd.read_csv(FOLDER / "tables" / "vae_sd15.csv")
    for table in (small, large):
        slim = table[table.model == "slim"]
        assert set(slim.part) == {"encoder", "decoder"}
        assert slim.fewer_macs.min() >= 5 and slim.faster.min() >= 3, slim.to_string()
