"""roofline: what a call allocates, moves and multiplies is what one would count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanosd_lib.hardware import roofline
from nanosd_lib.hardware.roofline import Machine, trace


def test_live_memory_is_followed():
    x = torch.ones(1000)

    def call():
        a = x * 2  # x, a
        b = a + 1  # x, a, b
        del a
        return b.view(10, 100)[0].clone()  # x, b, 100 numbers

    assert trace(call, [x]).peak_bytes == 3 * 4000


def test_moved_bytes_leave_views_out():
    x = torch.ones(1000)
    seen = trace(lambda: (x * 2).view(10, 100).t(), [x])
    assert seen.ops == ((0.0, 8000),) and seen.moved_bytes == 8000


def test_a_linear_layer():
    net, x = nn.Linear(30, 20, bias=False), torch.ones(7, 30)
    seen = trace(lambda: net(x), [x])
    assert [f for f, _ in seen.ops if f] == [2 * 7 * 30 * 20]
    assert seen.peak_bytes == 4 * (7 * 30 + 7 * 20)  # the weights are no activations


def test_a_linear_layer_on_tokens_moves_its_tensors_once():
    """What torch does with shapes around the product is no traffic."""
    net, x = nn.Linear(30, 20, bias=False), torch.ones(2, 7, 30)
    assert trace(lambda: net(x), [x]).moved_bytes == 4 * (2 * 7 * 30 + 30 * 20 + 2 * 7 * 20)


def test_convolutions_are_counted_as_by_hand():
    """Two flop for each weight at each place; norm and activation count nothing."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1))
    seen = trace(lambda: net(torch.ones(2, 3, 9, 9)))
    by_hand = [2 * 2 * 7 * 7 * (8 * 3 * 3 * 3), 2 * 2 * 7 * 7 * (4 * 8)]
    assert [f for f, _ in seen.ops if f] == by_hand


def test_attention_is_counted():
    q = torch.ones(1, 2, 64, 8)
    seen = trace(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert sum(f for f, _ in seen.ops) == 2 * 2 * 2 * 64 * 64 * 8


def test_the_slower_limit_of_each_operation_counts():
    seen = roofline.Trace(((1e9, 10), (0.0, int(1e9))), 0)
    assert seen.roofline_ms(Machine(flops=1e9, bandwidth=1e9)) == pytest.approx(2000)
    assert seen.roofline_ms(Machine(flops=1e12, bandwidth=1e9)) == pytest.approx(1001)


def test_the_two_constants_are_measured():
    machine = roofline.measure_machine(size=128, megabytes=4, repeats=2)
    assert machine.flops > 1e8 and machine.bandwidth > 1e8
