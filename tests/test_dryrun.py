"""dryrun: every stage of the study with random weights, a plan, and nothing in the results."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from nanosd_lib import paths
from nanosd_lib.networks import counting, pipeline, sd15
from nanosd_lib.recipes import dry_study, dryrun, random_weights
from nanosd_lib.runs import layout, notebook, profiles


@pytest.fixture(scope="module")
def random_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "teacher"
    random_weights.random_pipeline(folder, **random_weights.configs(profiles.load("smoke")))
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    torch.set_num_threads(1)
    return dryrun.plan(profiles.load("smoke"), tmp_path_factory.mktemp("dry"), "cpu")


def test_the_plan_names_every_stage(table):
    assert list(table.columns) == dryrun.COLUMNS
    named = {
        "vae-moments",
        "vae-student",
        "vae-compare",
        "latents-slim",
        "codesign",
        "teacher",
        "fwkd",
        "search",
        "align",
        "osediff",
        "sensitivity",
        "reference",
        "latents-train",
    }
    assert named | {"check-vae", "prompts", "check-frechet"} <= set(table.stage)
    body = table[~table.stage.isin(["teacher", "all stages"])]
    assert body[["peak_memory_gb", "disk_gb", "gpu_hours", "cpu_hours", "tflop"]].gt(0).all().all()
    assert body.basis.str.contains("random weights").all()
    total = table.set_index("stage").loc["all stages"]
    assert total.gpu_hours == pytest.approx(body.gpu_hours.sum())
    assert total.paper_gpu_hours == 750


@pytest.fixture(scope="module")
def study(random_teacher):
    pipe = pipeline.load_teacher(str(random_teacher))
    made = dry_study.DryStudy(pipe, profiles.load("smoke"), random_teacher.parent)
    made.latents("heldout"), made.latents("train"), made.reference(), made.vae_moments()
    return made


def test_counted_work_is_what_torch_counts_in_the_stage(study):
    """The formula that scales a stage agrees with operations counted while it runs (what the
    judges' small networks do is left out of it).
    """
    steps = {s.name: s for s in study.steps()}
    ours = ("vae-moments", "vae-student", "vae-compare", "latents-slim", "codesign", "osediff")
    for name in ("check-vae", "reference", "prior", "search", *ours):
        counted = 2e9 * sum(counting.flops(steps[name].call))
        assert steps[name].done == pytest.approx(counted, rel=0.25), name


def test_fwkds_formula(study):
    (step,) = [s for s in study.steps() if s.name == "fwkd"]
    assert step.done == pytest.approx(2e9 * sum(counting.flops(step.call)), rel=0.1)


def test_random_weights_never_enter_the_results(random_teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    run = notebook.open_run("02_toy", "smoke", 0, {"teacher.path": str(random_teacher)})
    assert run.random
    attempts = {
        "toy": lambda: run.table("toy", pd.DataFrame({"a": [1]})),
        "params-n1": lambda: run.record("params-n1", 1.0, "toy"),
        layout.LEDGER: lambda: run.ledger(pd.DataFrame({"a": [1]})),
        "picture": lambda: run.figure("picture", quality_figure()),
    }
    for name, attempt in attempts.items():
        with pytest.raises(ValueError, match=f"^{name}: this teacher's weights are random"):
            attempt()
    assert not list(tmp_path.rglob("*.csv")) and not list(tmp_path.rglob("*.png"))
    assert not notebook.open_run("02_toy", "smoke").random


def quality_figure():
    import matplotlib.pyplot as plt

    return plt.figure()


def test_sd15_is_planned_at_its_real_size():
    size = random_weights.configs(profiles.load("sd15"))
    assert size == {"unet": sd15.SD15, "vae": sd15.VAE, "clip": sd15.CLIP}
    assert 2e9 * sum(counting.gmac(sd15.unet())) == pytest.approx(dryrun.SD15_FLOP, rel=1e-3)


def test_no_space_and_unknown_profiles_are_one_line(capsys, monkeypatch):
    assert dryrun.main(["--profile", "sd16"]) == 2
    assert "profile 'sd16' does not exist" in capsys.readouterr().err
    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(paths.shutil, "disk_usage", lambda _: usage)
    assert dryrun.main(["--profile", "sd15"]) == 2
    assert "no disk space for the dry run: 16.0 GB wanted" in capsys.readouterr().err
