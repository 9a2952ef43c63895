"""The smoke run: every notebook through the runner, and the numbers that it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import heads
import nbformat
import pandas as pd
import psutil
import pytest
from test_safety import BLOCKED

from nanosd_lib import paper
from nanosd_lib.networks import arch
from nanosd_lib.studies import compare, drift, stale

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def runner(*words: str, results: Path, **kwargs):
    """A smoke run in which every socket but local ones refuses to connect."""
    results.mkdir(exist_ok=True)
    (results / "sitecustomize.py").write_text(BLOCKED)
    env = os.environ | {"NANOSD_RESULTS": str(results), "PYTHONPATH": str(results)}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "nanosd_lib.cli", *words, "--profile", "smoke"]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole smoke run whose kernel is killed in notebook 03, and then started again."""
    results = tmp_path_factory.mktemp("results")
    first = runner("reproduce", results=results)
    state, folder = results / "smoke" / "run.json", results / "smoke"
    victim, deadline = None, time.monotonic() + 600
    while victim is None and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        report = json.loads(state.read_text()) if state.exists() else {"notebooks": {}}
        if report["notebooks"].get("03_fwkd", {}).get("state") == "running":
            if list((results / "store").glob("latents-train-*")):  # in the middle of its stages
                kernels = psutil.Process(first.pid).children(recursive=True)
                victim = next((c for c in kernels if c.ppid() != first.pid), None)
    if victim is None:
        first.kill()
        pytest.fail(f"notebook 03 was never in the middle of its stages:\n{first.communicate()[0]}")
    os.kill(victim.pid, signal.SIGKILL)
    killed = first.communicate(timeout=600)[0]
    broken = json.loads(state.read_text())
    second = runner("reproduce", results=results)
    resumed = second.communicate(timeout=1200)[0]
    books = {p.stem: p.read_text() for p in (folder / "notebooks").glob("*.ipynb")}
    claims = (folder / "claims.csv").read_bytes() if second.returncode == 0 else b""
    third = runner("run", "--nb", "05", results=results)
    again = third.communicate(timeout=600)[0]
    return {
        "folder": folder,
        "killed": (first.returncode, killed, broken),
        "resumed": (second.returncode, resumed),
        "again": (third.returncode, again),
        "claims": claims,
        "books": books,
    }


@pytest.fixture(scope="module")
def twin(study, tmp_path_factory):
    """Notebook 03 of the same study from scratch, undisturbed: only measurements are shared."""
    results = tmp_path_factory.mktemp("twin")
    return drift.study(results, study["folder"].parent / "device", "--nb", "03", verb="run")


def io(study, name: str) -> dict[str, list[str]]:
    return json.loads((study["folder"] / "io" / f"{name}.json").read_text())


def table(study, name: str) -> pd.DataFrame:
    return pd.read_csv(study["folder"] / "tables" / f"{name}.csv")


TABLES = {
    "teacher": [
        "check", "kind", "value", "value_low", "value_high", "beside", "n", "protocol",
    ],
    "surrogates": [
        "stage", "code", "params", "relative_error", "relative_error_low", "relative_error_high",
        "kept",
    ],
    "e3_target": ["taught", "tafid", "tafid_low", "tafid_high", "cosine_low", "floor"],
    "prior": ["measure", "model", "value", "value_low", "value_high", "n"],
    "sentences": ["step", "sentence"],
    "ledger_summary": ["evidence", "fails", "differs", "undecided", "holds", "reproduced"],
    "contradictions": ["sources", "say", "arithmetic", "rows"],
    "search_trials": [
        "arch", "params", "latency", "tafid", "tafid_low", "tafid_high", "direction", "order",
    ],
    "family": ["model", "arch", "params", "latency_ms", "tafid_aligned", "tafid_paper"],
    "sensitivity": [
        "removed", "band", "eps_error", "eps_error_low", "eps_error_high", "tafid", "tafid_low",
        "tafid_high", "floor",
    ],
    "sensitivity_cost": [
        "removed", "how", "params_saved", "ms_saved", "eps_error", "eps_error_low",
        "eps_error_high", "tafid", "tafid_low", "tafid_high", "floor",
    ],
    "teacher_candidates": ["trial", "steps", "validation_loss", "E3_removed", "outcome"],
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
    "stages": ["stage", "code", "ms_median", "ms_low", "ms_high"],
    "vae": [
        "model", "part", "params", "gmac", "ms_median", "psnr", "psnr_low", "psnr_high", "ssim",
        "lpips", "latent_corr",
        "seed", "protocol",
    ],
    "vae_ablation": ["left_out", "pictures", "psnr", "ssim", "lpips", "latent_corr", "seed"],
    "codesign": [
        "unet", "vae", "aligned", "tafid", "tafid_low", "tafid_high", "floor", "psnr_denoised_low",
        "psnr", "ms_tile",
    ],
    "pipeline_time": ["geometry", "configuration", "component", "ms_median"],
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_their_columns(study, name):
    made = table(study, name)
    assert len(made) and set(TABLES[name]) <= set(made)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_page_says_what_it_reads_and_writes(study, name):
    page = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    heads.check(page.cells[0].source, io(study, name))


def test_the_numbering_is_an_order(study):
    """Whatever a notebook reads, a notebook of a smaller number has written."""
    written: set[str] = set()
    for name in NOTEBOOKS:
        assert set(io(study, name)["reads"]) <= written, name
        written |= set(io(study, name)["writes"])


def test_a_finished_study_is_of_this_code_and_knows_what_it_took(study):
    report = json.loads((study["folder"] / "run.json").read_text())
    assert stale.pages(study["folder"]) == {}
    for name, entry in report["notebooks"].items():
        assert entry["commit"] == report["git"]["commit"] and entry["finished"], name
        assert entry["computed_seconds"] >= entry["seconds"] > 0, name
    loaded = report["notebooks"]["05_bayesian_search"]  # run again on a full store
    assert loaded["computed_seconds"] > 1.5 * loaded["seconds"]
    assert "every page of this run is of this code" in study["books"]["11_results_tables"]


def test_a_killed_kernel_is_never_green(study):
    code, text, report = study["killed"]
    assert code == 1 and "03_fwkd failed" in text
    assert report["state"] == "failed" and report["notebooks"]["03_fwkd"]["state"] != "ok"
    assert report["notebooks"]["05_bayesian_search"]["state"] == "not run"


def test_the_next_run_finishes_and_prints_the_ledger(study):
    code, text = study["resumed"]
    assert code == 0, text[-3000:]
    assert "the ledger: " in text and "; counted: " in text and "; not run: " in text
    report = json.loads((study["folder"] / "run.json").read_text())
    assert report["state"] == "ok"
    assert {k for k, v in report["notebooks"].items() if v["state"] == "ok"} == set(NOTEBOOKS)


def test_the_next_run_pays_only_for_what_was_unfinished(study):
    books = study["resumed"][1] and study["books"]
    assert ": computed in" not in books["00_start_here"] + books["02_block_surgery"]
    assert "cached fwkd: computed in" in books["03_fwkd"]


def test_no_stage_is_computed_twice(study):
    """Run again on a full store, a notebook only loads, and says so."""
    assert study["again"][0] == 0, study["again"][1][-3000:]
    book = (study["folder"] / "notebooks" / "05_bayesian_search.ipynb").read_text()
    assert ": loaded (" in book and ": computed in" not in book
    assert (study["folder"] / "claims.csv").read_bytes() == study["claims"]


def test_two_runs_of_a_notebook_are_equal(study, twin):
    """One was killed in its middle and resumed, the other not: tables and page are equal. The whole
    study is compared by `test_two_runs_from_scratch_are_equal`, every night.
    """
    ours = [p.name for p in (twin / "tables").glob("*.csv")]
    assert len(ours) >= 5
    assert all(drift.tables(study["folder"], twin)[name] for name in ours)
    assert drift.notebooks(twin, study["folder"]) == {"03_fwkd.ipynb": True}
    records = [(f / "records" / "03_fwkd.json").read_bytes() for f in (twin, study["folder"])]
    assert records[0] == records[1]


@pytest.mark.nightly
def test_two_runs_from_scratch_are_equal(study, tmp_path):
    """One was killed and resumed, the other not: claims bit-equal, tables and notebooks equal."""
    whole = drift.study(tmp_path, study["folder"].parent / "device")
    moved = drift.ledgers(study["folder"], whole)
    moved = moved[moved.label != "bit-equal"]
    assert moved.empty, moved.to_string()
    assert (whole / "claims.csv").read_bytes() == study["claims"]
    assert [name for name, same in drift.tables(study["folder"], whole).items() if not same] == []
    books = drift.notebooks(study["folder"], whole)
    assert [name for name, same in books.items() if not same] == []


def test_what_was_cached_reaches_no_machinery_and_one_kind_reaches_fwkd(study):
    """By the manifests that the run left: what an edit would compute again."""
    kinds: dict[str, set[str]] = {}
    for root in ("store", "device"):
        for path in (study["folder"].parent / root).glob("*/manifest.json"):
            parts = json.loads(path.read_text())["parts"]
            kinds.setdefault(parts["function"], set()).update(parts["source"])
    assert len(kinds) > 20
    reached = set().union(*kinds.values())
    assert not {m for m in reached if m.split(".")[1] in ("runs", "recipes", "views")}

    def touched(module: str) -> set[str]:
        return {kind for kind, source in kinds.items() if f"nanosd_lib.{module}" in source}

    own = {f"nanosd_lib.learning.fwkd.{name}" for name in ("teach", "judged")}
    assert touched("learning.fwkd") == own
    assert len(touched("quality.tafid")) == 7 and len(touched("networks.arch")) > 10


def test_exact_claims_are_reproduced_at_any_scale(study):
    ledger = pd.read_csv(study["folder"] / "claims.csv").set_index("id")
    assert len(ledger) == len(paper.claims()) and ledger.verdict.notna().all()
    sure = [f"params-{k}" for k in ("sd15", "tinysd", "hand-tuned", "n1", "n2", "n3", "n4", "n5")]
    sure += ["params-n6", "params-n7", "ablation-params", "space-size", "combinations-compose"]
    sure += ["tiles-poster", "tiles-article", "photo-latency-w4", "sd15-int8-memory"]
    sure += ["vae-encoder-params", "vae-decoder-params"]
    sure += ["decision-space"]
    sure += ["options-per-stage", "family-range", "smallest-is-model-7", "sr-s3diff-gmacs"]
    assert ledger.verdict[sure].eq("reproduced").all(), ledger.verdict[sure]
    assert ledger.verdict["string-tinysd-printed"] == "differs"
    assert ledger.loc["params-tinysd", "ours"] == pytest.approx(323.384964, abs=1e-3)


def test_a_row_is_recorded_or_waits_for_a_table_and_never_both(study):
    ledger = pd.read_csv(study["folder"] / "claims.csv").set_index("id")
    waits = {c.id for c in paper.claims() if c.waits}
    assert set(ledger.index[ledger.verdict == "not run"]) == waits


def test_every_verdict_follows_from_the_digits_of_its_row(study):
    ledger = pd.read_csv(study["folder"] / "claims.csv").set_index("id")
    for claim in paper.claims():
        assert paper.again(ledger.loc[claim.id], claim) == ledger.verdict[claim.id], claim.id
    numbers = ledger[ledger.evidence.isin(["trained", "timed"]) & ledger.low.notna()]
    assert ((numbers.low <= numbers.ours) & (numbers.ours <= numbers.high)).all()
    assert ledger.evidence.notna().all() and ledger.protocol[ledger.ours.notna()].notna().all()


def test_the_search_trains_nothing(study):
    assert "0 optimiser steps were taken on any network" in study["books"]["05_bayesian_search"]


def test_a_run_compared_with_itself_agrees_in_every_row(study):
    text, found = compare.report(study["folder"], study["folder"])
    assert found.verdict_same.all() and set(found.numbers) == {"equal"}


def test_teacher_table(study):
    t = table(study, "teacher").set_index(["check", "kind"])
    psnr = t.loc["VAE PSNR (dB)"]
    assert psnr.value["held-out scenes"] > 31 and psnr.value["held-out photographs"] > 30
    assert psnr.n["held-out photographs"] == len(psnr) - 2 == 6  # photographs, not crops
    assert (psnr.value > psnr.beside).all()  # bicubic
    moved = t.loc["VAE colour error"]
    assert (moved.value_low <= moved.value).all() and (moved.value <= moved.value_high).all()
    both = t.loc["prompts, both"]
    assert both.value["renders of 1 objects"] > 0.98 and both.value["renders of 2 objects"] > 0.95
    drawn = both.drop(index=[k for k in both.index if k.startswith("renders")])
    assert len(drawn) == 5 and (drawn.value_low > drawn.beside).all()  # chance
    frechet = t.loc["Frechet distance"]
    assert frechet.value_low["untrained network to renders"] > frechet.value["teacher to renders"]
    assert (frechet.value_low < frechet.value).all() and frechet.n.nunique() == 1


def test_surrogates_and_search_tables(study):
    surrogates = table(study, "surrogates")
    assert len(surrogates) == 30 and surrogates.relative_error.gt(0).all()
    curve = table(study, "fwkd_curve")
    by = curve.pivot(index="step", columns="surrogate", values="relative_error")
    first, last = by.iloc[0], by.iloc[-1]
    assert (last < first).mean() > 0.8  # ten small steps teach nearly all of them something
    trials = table(study, "search_trials")
    assert set(trials.direction) == {"latency", "params"} and trials.tafid.gt(0).all()
    for _, t in trials.groupby(["direction", "search"]):
        assert t.arch.is_unique and t.hypervolume.is_monotonic_increasing
        assert all(str(arch.Arch.parse(a)) == a for a in t.arch)


def test_family_and_sensitivity_tables(study):
    family = table(study, "family")
    assert set(arch.NANOSD) - {"SD1.5"} <= {m.replace("NanoSD", "N") for m in family.model}
    assert family[["latency_ms", "tafid_assembled", "tafid_aligned"]].gt(0).all().all()
    sensitivity = table(study, "sensitivity_cost").set_index(["removed", "how"])
    removed = sensitivity.xs("removed", level="how")
    six, idle = removed.loc[list(arch.STAGES)], removed.loc[["E4", "M"]]
    assert six.eps_error.min() > 100 * idle.eps_error.max() and six.eps_error.max() > 0.1
    assert six.tafid.min() > idle.tafid.max() and sensitivity.floor.gt(1e-3).all()
    assert removed.params_saved_share["E4+M+D4"] == pytest.approx(0.39, abs=0.02)
    bands = table(study, "sensitivity").groupby("removed").band.agg(list)
    assert len(bands) == 10 and all(set(b) == {"all", "early", "middle", "late"} for b in bands)


def test_tables_at_sd15s_width(study):
    stages = table(study, "stages_sd15")
    assert stages.groupby("backend").size().eq(36).all()
    assert {"eager", "ort-fp32", "ort-int8"} <= set(stages.backend)
    family = table(study, "family_sd15")
    gmac = family.drop_duplicates("model").set_index("model").gmac
    known = {"SD1.5": 401.6, "NanoSD2": 184.7, "NanoSD4": 164.8}
    assert gmac[list(known)].to_dict() == pytest.approx(known, abs=0.05)
    assert family.set_index("model").params["SD1.5"].eq(859_520_964).all()
    assert family[family.model == "SD1.5"].ratio_to_sd15.eq(1).all()
    predicted = table(study, "latency_prediction").set_index(["target", "predictor", "strings"])
    model = "attention by resolution"
    assert predicted.r2["htp_ms", model, "corrected"] == pytest.approx(0.997, abs=0.001)
    assert predicted.loo_max["ane_ms", model, "corrected"] == pytest.approx(5.3, abs=0.1)
    assert predicted.r2["htp_ms", model, "as printed"] == pytest.approx(0.905, abs=0.002)
    assert {"SD 1.5", "sd-mini"} == set(table(study, "additivity").width)


def test_vae_and_codesign_tables(study):
    table_ = table(study, "vae")
    assert table_[["params", "gmac", "ms_median", "psnr", "lpips"]].gt(0).all().all()
    assert set(table_.model) == {"teacher", "slim", "tiny"}
    assert table_[table_.model == "slim"].seed.nunique() == 2  # the smoke profile's
    gmac = table_.groupby(["model", "part"]).gmac.first()
    assert gmac["teacher", "both"] > 5 * gmac["slim", "both"]
    pairs = table(study, "codesign").set_index(["unet", "vae", "aligned"])
    assert len(pairs) == 8 and abs(pairs.tafid["teacher", "teacher", "no"]) < 1e-3
    others = pairs.drop(("teacher", "teacher", "no"))  # hardly trained: far above the floor
    assert (others.tafid > others.floor).all() and pairs.floor.gt(0).all()
    left_out = set(table(study, "vae_ablation").left_out)
    assert left_out == {"nothing", "latent", "kl", "reconstruction", "perceptual"}
    totals = table(study, "pipeline_total").set_index(["geometry", "configuration"])
    full = totals.loc["SD 1.5, 512 pixels, eager"]
    assert full.ratio["both slim"] < full.ratio["slim VAE"] < full.ratio["slim U-Net"] < 1
    assert full.vae_share["slim U-Net"] > full.vae_share["teacher"] > 0.5


def test_the_tiled_pipeline_is_exact_and_flat(study):
    streamed = table(study, "streaming")
    assert streamed.output_megapixels.max() == 12 and streamed.largest_difference.max() <= 1e-6
    assert streamed.peak_mb.max() < 1.1 * streamed.peak_mb.min()
    rough = table(study, "blending").set_index(["blending", "overlap"]).roughness
    cut, blended = rough["none", 16], rough.drop("none", level="blending")
    assert cut > 1.1 * blended.max()  # the same overlap without blending is the control
    assert blended.sub(1).abs().max() < 0.1 < rough["none", 0] - 1  # no seam at their own borders


def test_papermill_alone_runs_a_notebook(tmp_path):
    env = os.environ | {"NANOSD_RESULTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    out = tmp_path / "out.ipynb"
    words = ["papermill", "notebooks/01_tiling_analysis.ipynb", str(out), "-p", "profile", "smoke"]
    kernel = ["-k", "python3", "--cwd", "notebooks"]
    done = subprocess.run(
        [sys.executable, "-m", *words, *kernel], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "smoke" / "tables" / "tiling.csv").exists()
