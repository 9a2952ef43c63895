"""backends: convert, quantise and profile give the network's own output on each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanosd_lib import paths
from nanosd_lib.hardware import backends, builders, profile
from nanosd_lib.networks.arch import NANOSD

TINY = dict(
    sample_size=8,
    block_out_channels=(8, 16, 32, 32),
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=4,
)
ROWS = ("E1:RARA", "D3:R", "rest", "deep", "net:N2")


@pytest.fixture(scope="module")
def rows():
    found = builders.rows(builders.Teachers(TINY, tokens=5), {"N2": NANOSD["N2"]})
    return {name: found[name] for name in ROWS}


@pytest.fixture(scope="module")
def converted(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    profile.convert(rows, list(backends.CPU.values()), folder)
    return folder


def eager(build) -> np.ndarray:
    out = backends.CPU["eager"].load(build, None)()
    out = getattr(out, "sample", out)
    return (out if torch.is_tensor(out) else out[0]).numpy()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind, slack", [("ort-fp32", 1e-4), ("ort-int8", 0.35)])
def test_the_converted_network_gives_the_same(rows, converted, name, kind, slack):
    folder = converted / paths.plain(name)
    ours, want = backends.CPU[kind].load(rows[name], folder)()[0], eager(rows[name])
    assert ours.shape == want.shape
    error = np.sqrt(np.mean((ours - want) ** 2)) / want.std()
    assert error < slack
    assert kind == "ort-fp32" or error > 1e-4  # eight bits do lose something


def test_every_convolution_has_eight_bit_weights(converted):
    import onnx

    plain, small = (
        onnx.load(converted / f"net_N2/{kind}/model.onnx", load_external_data=False).graph
        for kind in ("fp32", "int8")
    )
    wanted = sum(node.op_type == "Conv" for node in plain.node)
    eight = [i.name for i in small.initializer if i.data_type == onnx.TensorProto.INT8]
    assert wanted > 20 and len(eight) >= wanted


def test_eight_bit_operators_are_in_the_graph(converted):
    import onnx

    graph = onnx.load(converted / "E1_RARA/int8/model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 10 and kinds.count("DequantizeLinear") > 10


def test_conversion_is_done_once(rows, converted):
    before = (converted / "D3_R/fp32/model.onnx").stat().st_mtime_ns
    backends.CPU["ort-int8"].prepare(rows["D3:R"], converted / "D3_R")
    assert (converted / "D3_R/fp32/model.onnx").stat().st_mtime_ns == before


def test_a_half_finished_conversion_is_done_again(rows, tmp_path):
    (tmp_path / "fp32").mkdir()
    (tmp_path / "fp32/model.onnx").write_bytes(b"half")
    backends.CPU["ort-fp32"].prepare(rows["rest"], tmp_path)
    assert backends.CPU["ort-fp32"].load(rows["rest"], tmp_path)()[0].shape == (1, 4, 8, 8)


def test_backends_are_chosen_by_name():
    assert [b.name for b in backends.choose(["eager", "ort-int8"])] == ["eager", "ort-int8"]
    with pytest.raises(ValueError, match="'npu' does not exist: use some of eager, eager-bf16"):
        backends.choose(["npu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="backend cuda-bf16: no GPU that torch can use"):
        backends.choose(["cuda-bf16"])
