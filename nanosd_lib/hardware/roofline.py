"""Roofline: what a call multiplies, moves and keeps alive, operation by operation, and the latency
that two constants of a machine would give it (Williams, Waterman and Patterson, 2009; the paper has
no such model).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Machine:
    """Peak of a float32 matrix product (flop/s) and of a copy (bytes/s, read plus written)."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Trace:
    """What one call did: (flop, bytes read and written) of each operation; peak live activations.

    Activations are every tensor the call makes, and its inputs; weights are not. What a kernel
    allocates for itself while it runs is not seen.
    """

    ops: tuple[tuple[float, int], ...]
    peak_bytes: int

    @property
    def moved_bytes(self) -> int:
        return sum(b for _, b in self.ops)

    def roofline_ms(self, machine: Machine) -> float:
        """Sum over operations of the slower of its two limits."""
        return 1e3 * sum(max(f / machine.flops, b / machine.bandwidth) for f, b in self.ops)


def trace(call: Callable[[], object], inputs: object = ()) -> Trace:
    """Run `call` under a recorder; `inputs` are tensors that live from its start."""
    with torch.no_grad(), _Recorder(inputs) as seen:
        call()
    return Trace(tuple(seen.ops), seen.peak)


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: object) -> None:
        super().__init__()
        self.ops: list[tuple[float, int]] = []
        self.live: dict[int, tuple[int, object]] = {}
        self.now = self.peak = 0
        self._hold(inputs)

    def _hold(self, values: object) -> None:
        for t in tree_leaves(values):
            if not torch.is_tensor(t):
                continue
            storage = t.untyped_storage()
            key = storage._cdata
            if key not in self.live:
                size = storage.nbytes()
                self.live[key] = (size, weakref.ref(storage, partial(self._gone, key)))
                self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, reference: object) -> None:
        size, _ = self.live.pop(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not _is_view(func):
            read = sum(_bytes(t) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t))
            wrote = sum(_bytes(t) for t in tree_leaves(out) if torch.is_tensor(t))
            count = flop_registry.get(func._overloadpacket)
            self.ops.append(
                (float(count(*args, **kwargs, out_val=out)) if count else 0.0, read + wrote)
            )
            self._hold(out)
        return out


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _is_view(func) -> bool:
    """Operations whose result is another look at an argument: nothing is moved."""
    if func._overloadpacket is torch.ops.aten._unsafe_view:  # one in all but its schema
        return True
    returns = [r.alias_info for r in func._schema.returns]
    return any(a is not None and not a.is_write for a in returns)


def measure_machine(size: int = 2048, megabytes: int = 256, repeats: int = 7) -> Machine:
    """The two constants of this machine, the best of a few tries each, with torch's own threads."""
    a, b = (torch.randn(size, size, dtype=torch.float32) for _ in range(2))
    x, y = (make(megabytes * 2**18, dtype=torch.float32) for make in (torch.zeros, torch.empty))
    multiply = min(_seconds(lambda: a @ b) for _ in range(repeats))
    copy = min(_seconds(lambda: y.copy_(x)) for _ in range(repeats))
    return Machine(2 * size**3 / multiply, 2 * 4 * x.numel() / copy)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
