"""hardware: the whole profile at a small width: every row, every backend, resumed, read again."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from test_backends import TINY

from nanosd_lib import paths
from nanosd_lib.hardware import backends, builders, memory, photo_tiles, profile, report
from nanosd_lib.networks import sd15
from nanosd_lib.networks.arch import CHOICES, NANOSD, Arch
from nanosd_lib.recipes import device_profile

VAE = sd15.VAE | dict(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, sample_size=64)
CLIP = sd15.CLIP | dict(
    vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=5,
)  # fmt: skip
NETWORKS = {"SD1.5": NANOSD["SD1.5"], "N7": NANOSD["N7"]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hardware")
    device_profile.measure(
        ("eager",), 1, folder / "work", folder / "hardware/cpu", TINY, NETWORKS, (VAE, CLIP), 5
    )
    return folder


def table(folder, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"hardware/cpu/{name}.csv")


def test_thirty_six_stages_on_each_backend(measured):
    stages = table(measured, "stages")
    for _, rows in stages.groupby("backend"):
        pairs = {(r.stage, r.code) for r in rows.itertuples()}
        assert pairs == {(s, c) for s in CHOICES for c in CHOICES[s]} and len(rows) == 36
    assert (stages.ms_low <= stages.ms_median).all() and (stages.ms_median <= stages.ms_high).all()
    assert stages["rounds"].eq(1).all() and stages.ms_median.gt(0).all()


def test_networks_rest_and_traces(measured):
    assert set(table(measured, "networks").model) == set(NETWORKS)
    assert set(table(measured, "rest").row) == {"rest", "deep"}
    traces = table(measured, "traces").set_index("row")
    assert len(traces) == 36 + 2 + len(NETWORKS) and traces.peak_activation_mb.gt(0).all()
    assert traces.roofline_ms["E1:RARA"] > traces.roofline_ms["E1:R"]


def test_stages_and_the_rest_make_up_the_network(measured):
    """Operations of SD 1.5's stages, of the deep ones and of the rest add up to the whole."""
    gmac = table(measured, "traces").set_index("row").gmac
    six = sum(gmac[f"{s}:{c}"] for s, c in NANOSD["SD1.5"].stages.items() if s in CHOICES)
    assert six + gmac["deep"] + gmac["rest"] == pytest.approx(gmac["net:SD1.5"], rel=1e-3)


def test_memory_of_the_parts(measured):
    memory = table(measured, "memory").set_index(["component", "format"])
    for component in ("text encoder", "VAE encoder", "U-Net", "VAE decoder"):
        weights = memory.loc[component].weights_mb
        assert weights["fp32"] == pytest.approx(2 * weights["fp16"], rel=1e-4)
        assert weights["fp16"] > weights["int8"] > weights["int4"] > weights["fp32"] / 8
    assert memory.peak_activation_mb["U-Net", "fp32"] > memory.peak_activation_mb["U-Net", "fp16"]


def test_parts_of_the_pipeline(tmp_path, monkeypatch):
    parts, out = (TINY, VAE, CLIP), tmp_path / "hardware" / "cpu"
    device_profile.pipeline(("eager",), 1, tmp_path / "work", out, parts)
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    table, protocol = report.read_pipeline()
    rows = set(zip(table.component, table.model, table.backend, strict=True))
    assert len(table) == len(rows) == 1 + 3 + 2 + 3 and table.ms_median.gt(0).all()
    assert {m for c, m, _ in rows if c == "VAE decoder"} == {"teacher", "slim", "tiny"}
    assert {m for c, m, _ in rows if c == "U-Net"} == {"teacher", "slim"}
    assert protocol["rounds"] == 1 and protocol["weights"] == "random"
    builds = builders.components(*parts)
    for part, shape in (("encoder", (1, 8, 8, 8)), ("decoder", (1, 3, 64, 64))):
        for model in ("teacher", "slim"):
            net, inputs = builds[f"VAE {part}", model](torch.float32, "cpu")
            assert net(**inputs).shape == shape
    new = ("text encoder|teacher", "VAE encoder|slim", "VAE decoder|tiny")  # no stage of a U-Net
    found = {name: builds[tuple(name.split("|"))] for name in new}
    onnx = backends.choose(("ort-fp32",))
    profile.convert(found, onnx, tmp_path)
    assert profile.profile(found, onnx, 1, tmp_path).ms_median.gt(0).tolist() == [True] * 3


def test_the_protocol_says_what_was_done(measured):
    protocol = json.loads((measured / "hardware/cpu/protocol.json").read_text())
    assert protocol["weights"] == "random" and protocol["rounds"] == 1
    assert protocol["gflops"] > 0 and protocol["machine"]["cpu"]


def test_a_run_that_was_stopped_measures_only_what_is_missing(tmp_path, monkeypatch):
    found = builders.rows(builders.Teachers(TINY, 5), {})
    found = {k: found[k] for k in ("E1:R", "rest")}
    timed = []

    class Counting(backends.Eager):
        def time(self, call):
            timed.append(1)
            if len(timed) == 3:
                raise KeyboardInterrupt
            return super().time(call)

    for attempt in range(2):
        try:
            result = profile.profile(found, [Counting()], 3, tmp_path)
        except KeyboardInterrupt:
            assert attempt == 0
    assert len(timed) == 2 * 3 + 1 and result["rounds"].eq(3).all()


def test_a_half_written_sample_does_not_count(tmp_path):
    found = {"rest": builders.rows(builders.Teachers(TINY, 5), {})["rest"]}
    profile.profile(found, [backends.Eager()], 2, tmp_path)
    log = tmp_path / "samples.jsonl"
    log.write_text(log.read_text()[:-9])
    assert profile.profile(found, [backends.Eager()], 2, tmp_path)["rounds"].eq(2).all()


def test_rows_borrow_the_teachers_tensors():
    teachers = builders.Teachers(TINY, 5)
    net, _ = builders.rows(teachers, {})["E2:RA"](torch.float32, "cpu")
    teacher = teachers(torch.float32, "cpu")
    theirs = teacher.down_blocks[1].resnets[0].conv1.weight
    assert net.resnets[0].conv1.weight.data_ptr() == theirs.data_ptr()


def test_packed_weights_are_counted():
    net = torch.nn.Linear(128, 10)
    mb = memory.packed_mb(net)
    assert mb["fp32"] == pytest.approx(4 * 1290 / 1e6) and mb["fp16"] == mb["fp32"] / 2
    assert mb["int8"] == pytest.approx((1280 + 2 * 10 + 2 * 10) / 1e6)
    assert mb["int4"] == pytest.approx((640 + 2 * 2 * 10 + 2 * 10) / 1e6)


def test_own_measurements_come_before_the_reference(measured, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOSD_RESULTS", str(measured))
    assert len(report.read()["stages"]) == 36
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path))
    assert report.read()["where"] == "results/reference/hardware/cpu"
    with pytest.raises(FileNotFoundError, match="no hardware profile of 'npu'.*make hardware"):
        report.read("npu")


def test_the_reference_was_measured_at_full_width():
    found = report.read()
    networks = builders.NETWORKS
    assert set(found["networks"].model) == set(networks)
    assert {"eager", "ort-fp32", "ort-int8"} <= set(found["stages"].backend)
    gmac = found["traces"].set_index("row").gmac
    assert gmac["net:SD1.5"] == pytest.approx(401.64, abs=0.01)
    assert gmac["net:N2"] == pytest.approx(184.66, abs=0.01)


def test_bad_choices_are_one_line(capsys, monkeypatch):
    assert device_profile.main(["--backends", "npu"]) == 2
    assert capsys.readouterr().err.startswith("error: backend 'npu' does not exist")
    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(paths.shutil, "disk_usage", lambda _: usage)
    assert device_profile.main(["--backends", "eager"]) == 2
    assert "no disk space for the converted networks" in capsys.readouterr().err


def test_the_family_as_networks():
    assert builders.NETWORKS["six originals"] == Arch.parse("RARA RARA RARA | RARARA RARARA RARARA")


def test_every_tile_of_a_photograph_goes_through_each_system():
    seen = {"one": [], "two": []}

    def system(name):
        return lambda x: seen[name].append(tuple(x.shape)) or x

    table = photo_tiles.timed(21, 8, 16, 2, {k: system(k) for k in seen})["table"]
    assert list(table.name) == ["one", "two"] and (table.ms_low <= table.ms_high).all()
    whole = [(8, 3, 16, 16), (8, 3, 16, 16), (5, 3, 16, 16)]
    assert seen["one"] == [(8, 3, 16, 16), *whole, *whole]  # one batch to warm up, two rounds
