"""work: counted operations agree with what torch counts while the thing runs."""

from __future__ import annotations

import pytest
import torch

from nanosd_lib.networks import arch, counting, surgery
from nanosd_lib.recipes import work


@pytest.fixture(scope="module")
def counted(sd_mini):
    pipe = sd_mini
    return pipe, work.count(pipe)


def test_a_pass_of_the_unet_and_of_the_vae(counted):
    pipe, w = counted
    inputs = counting.network_inputs(pipe.unet, 1, pipe.tokenizer.model_max_length)
    with torch.no_grad():
        assert 2e9 * sum(counting.flops(lambda: pipe.unet(**inputs))) == pytest.approx(
            w.unet, rel=1e-3
        )
        picture = torch.zeros(1, 3, 64, 64)
        counted_ = 2e9 * sum(counting.flops(lambda: pipe.vae.encode(picture)))
        assert counted_ == pytest.approx(w.encode, rel=1e-3)


def test_the_mean_of_the_space(counted):
    pipe, w = counted
    space = arch.space()
    some = [space[i] for i in torch.randperm(len(space))[:12].tolist()]
    table = counting.counts({str(a): a for a in some}, counting.on_meta(pipe.unet), 24)
    mean = 2e9 * (table.gmac_linear + table.gmac_attention).mean()
    assert w.mean == pytest.approx(mean, rel=0.25)
    assert w.n2 < w.mean < w.unet


def test_thirty_surrogates(counted):
    pipe, w = counted
    meta = counting.on_meta(pipe.unet)
    total = 0.0
    for stage, code in arch.alternatives():
        net = surgery.borrow(arch.Arch(**(arch.BASE | {stage: code})), meta).stage(stage)
        inputs = counting.stage_inputs(meta, stage, 1, pipe.tokenizer.model_max_length, "meta")
        total += 2e9 * sum(counting.flops(lambda net=net, inputs=inputs: net(**inputs)))
    assert w.students == pytest.approx(total)
    assert w.teaching(10) == 10 * (w.unet + 3 * w.students)
    assert w.images(3, 5) == 3 * (10 * w.unet + w.decode)
