"""Backends: convert -> quantise -> profile, one small interface for every device (paper, surgery
step: alternatives are profiled on the target hardware).

A backend turns a network and its inputs into files (`prepare`, once) and into a call that is timed
(`load`, `time`). A device cloud is one more subclass: upload in `prepare`, ask for one timed run in
`time`.
"""

from __future__ import annotations

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

Builder = Callable[[torch.dtype, str], tuple[nn.Module, dict[str, Any]]]  # dtype, device


class Backend(ABC):
    """One way to run a network on one device."""

    name: str

    def missing(self) -> str:
        """Why it cannot run here and what to do, in one line; '' where it can."""
        return ""

    def prepare(self, build: Builder, folder: Path) -> None:  # noqa: B027, not all need it
        """Convert into `folder`, once; finished files are kept."""

    @abstractmethod
    def load(self, build: Builder, folder: Path) -> Callable[[], object]:
        """A call that runs the network once."""

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3


@dataclass(frozen=True)
class Eager(Backend):
    """PyTorch itself: eager or compiled, in any dtype; on a GPU timed by its own events."""

    name: str = "eager"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    channels_last: bool = False
    compiled: bool = False

    def missing(self) -> str:
        if self.device == "cuda" and not torch.cuda.is_available():
            return f"{self.name}: no GPU that torch can use"
        return ""

    def load(self, build: Builder, folder: Path) -> Callable[[], object]:
        net, inputs = build(self.dtype, self.device)
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)
        if self.compiled:
            net = cast(nn.Module, torch.compile(net))

        def call() -> object:
            with torch.no_grad():
                return net(**inputs)

        return call

    def time(self, call: Callable[[], object]) -> float:
        if self.device != "cuda":
            return super().time(call)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """ONNX Runtime on the CPU, in float32 or, with `int8`, in static 8-bit QDQ: weights per channel
    and signed, activations unsigned, ranges from `calibration` random inputs (latency needs no
    better ones).
    """

    name: str = "ort-fp32"
    int8: bool = False
    calibration: int = 1

    def missing(self) -> str:
        absent = [m for m in ("onnx", "onnxruntime", "onnxscript") if not _installed(m)]
        return f"{self.name}: {absent[0]} is not installed: run `make env`" if absent else ""

    def prepare(self, build: Builder, folder: Path) -> None:
        plain, small = folder / "fp32", folder / "int8"
        if not (plain / "done").exists():
            net, inputs = build(torch.float32, "cpu")
            _export(net, inputs, plain)
        if self.int8 and not (small / "done").exists():
            _quantise(plain, small, build, self.calibration)

    def load(self, build: Builder, folder: Path) -> Callable[[], object]:
        session = _session(folder / ("int8" if self.int8 else "fp32") / "model.onnx")
        _, inputs = build(torch.float32, "cpu")
        feed = _feed(session, flat(inputs))
        return lambda: session.run(None, feed)


CPU = {
    b.name: b
    for b in (
        Eager(),
        Eager("eager-bf16", torch.bfloat16),
        OnnxRuntime(),
        OnnxRuntime("ort-int8", int8=True),
    )
}
CUDA = {
    b.name: b
    for b in (
        Eager("cuda-bf16", torch.bfloat16, "cuda"),
        Eager("cuda-bf16-channels-last", torch.bfloat16, "cuda", channels_last=True),
        Eager("cuda-bf16-compiled", torch.bfloat16, "cuda", compiled=True),
    )
}
BACKENDS: dict[str, Backend] = {**CPU, **CUDA}


def choose(names: list[str] | tuple[str, ...]) -> list[Backend]:
    """The backends of these names; ValueError for one that does not exist or cannot run here."""
    for name in names:
        if name not in BACKENDS:
            raise ValueError(f"backend {name!r} does not exist: use some of {', '.join(BACKENDS)}")
        if reason := BACKENDS[name].missing():
            raise ValueError(f"backend {reason}")
    return [BACKENDS[name] for name in names]


# ------------------------------------------------------------------------------------ ONNX Runtime
def flat(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Keyword arguments with tuples taken apart: {"skips": (a, b)} -> {"skips.0": a, ...}."""
    out: dict[str, Any] = {}
    for key, value in inputs.items():
        many = isinstance(value, tuple)
        out |= {f"{key}.{i}": v for i, v in enumerate(value)} if many else {key: value}
    return out


class _Flat(nn.Module):
    """A network with tensors in, tensors out, as an exporter wants it."""

    def __init__(self, net: nn.Module, inputs: dict[str, Any]) -> None:
        super().__init__()
        self.net = net
        self.sizes = {k: len(v) if isinstance(v, tuple) else None for k, v in inputs.items()}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        left, kwargs = list(tensors), {}
        for key, n in self.sizes.items():
            kwargs[key] = left.pop(0) if n is None else tuple(left.pop(0) for _ in range(n))
        out = self.net(**kwargs)
        out = getattr(out, "sample", out)
        return (out,) if torch.is_tensor(out) else (out[0], *out[1])


def _export(net: nn.Module, inputs: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = flat(inputs)
    with torch.no_grad():
        torch.onnx.export(
            _Flat(net, inputs).eval(),
            tuple(tensors.values()),
            folder / "model.onnx",
            input_names=[k.replace(".", "_") for k in tensors],
            opset_version=18,
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    (folder / "done").touch()


def _quantise(plain: Path, small: Path, build: Builder, calibration: int) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Random(CalibrationDataReader):
        def __init__(self) -> None:
            session = _session(plain / "model.onnx")
            _, inputs = build(torch.float32, "cpu")
            self.feeds = iter([_feed(session, flat(inputs))] * calibration)

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    small.mkdir(parents=True, exist_ok=True)
    quantize_static(
        plain / "model.onnx",
        small / "model.onnx",
        Random(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    (small / "done").touch()


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    wanted = {i.name for i in session.get_inputs()}
    named = {k.replace(".", "_"): v.numpy() for k, v in inputs.items()}
    return {k: v for k, v in named.items() if k in wanted}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
