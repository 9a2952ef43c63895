"""work: counted operations agree with a count by hand, layer by layer, of the things themselves."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from nanosd_lib.networks import arch, counting, surgery, work


def by_hand(net: nn.Module, call) -> float:
    """Floating-point operations of a call: two for each weight at each place it is used, and for
    each product of queries with keys and of scores with values.
    """
    total, handles = 0.0, []

    def used(layer, args, out):
        nonlocal total
        places = out.numel() / out.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        total += 2 * places * layer.weight.numel()

    def looked(layer, args, kwargs, out):
        nonlocal total
        x, text = args[0], kwargs.get("encoder_hidden_states")
        queries = x.shape[-2:].numel() if x.ndim == 4 else x.shape[1]
        keys = queries if text is None else text.shape[1]
        total += 2 * 2 * len(x) * queries * keys * layer.inner_dim

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(used))
        if isinstance(layer, Attention):
            handles.append(layer.register_forward_hook(looked, with_kwargs=True))
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return total


@pytest.fixture(scope="module")
def counted(sd_mini):
    pipe = sd_mini
    return pipe, work.count(pipe)


def test_a_pass_of_the_unet_and_of_the_vae(counted):
    pipe, w = counted
    inputs = counting.network_inputs(pipe.unet, 1, pipe.tokenizer.model_max_length)
    picture, z = torch.zeros(1, 3, 64, 64), inputs["sample"]
    assert by_hand(pipe.unet, lambda: pipe.unet(**inputs)) == pytest.approx(w.unet)
    assert by_hand(pipe.vae, lambda: pipe.vae.encode(picture)) == pytest.approx(w.encode)
    assert by_hand(pipe.vae, lambda: pipe.vae.decode(z)) == pytest.approx(w.decode)


def whole(meta, a: arch.Arch, tokens: int) -> float:
    """By hand, one pass of that network."""
    net = surgery.student(a, meta)
    return by_hand(net, lambda: net(**counting.network_inputs(net, 1, tokens)))


def test_the_mean_of_the_space(counted):
    """Eight networks in which each code of a stage stands as often as the others have the space's
    mean, since a network costs the sum of its stages.
    """
    pipe, w = counted
    meta, tokens = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length
    codes = [{s: c[i % len(c)] for s, c in arch.CHOICES.items()} for i in range(8)]
    mean = sum(whole(meta, arch.Arch(**c), tokens) for c in codes) / 8
    assert w.mean == pytest.approx(mean)
    assert w.n2 == pytest.approx(whole(meta, arch.NANOSD["N2"], tokens))
    assert w.n2 < w.mean < w.unet


def test_thirty_surrogates(counted):
    pipe, w = counted
    meta, tokens, total = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length, 0.0
    for stage, code in arch.alternatives():
        net = surgery.surrogate(stage, code, meta)
        inputs = counting.stage_inputs(meta, stage, 1, tokens, "meta")
        total += by_hand(net, lambda net=net, inputs=inputs: net(**inputs))
    assert w.students == pytest.approx(total)
    assert w.teaching(10) == 10 * (w.unet + 3 * w.students)
    assert w.images(3, 5) == 3 * (10 * w.unet + w.decode)
