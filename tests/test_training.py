"""training: stopped and resumed is never stopped; what is left is the average."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nanosd_lib.learning import fit

STEPS = 23


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 2))


class Stopped(Exception):
    pass


class Loss:
    """Regression on data drawn from the step's generator; raises at call `stop`, keeps weights."""

    def __init__(self, model: nn.Module, stop: int = -1) -> None:
        self.model, self.stop, self.seen = model, stop, []

    def __call__(self, g: torch.Generator) -> torch.Tensor:
        if len(self.seen) == self.stop:
            raise Stopped
        self.seen.append(copy.deepcopy(self.model.state_dict()))
        x = torch.randn(16, 4, generator=g)
        return (self.model(x) - x[:, :2].sin()).pow(2).mean()


def run(work, model=None, stop=-1, **kwargs):
    model = model or net()
    loss = Loss(model, stop)
    log = fit.fit("toy", model, loss, STEPS, 1e-2, work, every=5, **kwargs)
    return model, loss, log


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(log):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log]


@pytest.mark.parametrize("stop", [3, 5, 14, 22])
@pytest.mark.parametrize("decay", [0.999, 0.0])
def test_a_resumed_run_ends_where_an_uninterrupted_one_would(tmp_path, stop, decay):
    whole, _, log = run(tmp_path / "whole", decay=decay)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop=stop, decay=decay)
    again, loss, again_log = run(tmp_path / "stopped", decay=decay)
    assert len(loss.seen) == STEPS - stop // 5 * 5  # from the last checkpoint on
    assert same(whole.state_dict(), again.state_dict())
    assert timeless(log) == timeless(again_log)
    files = [load_file(tmp_path / d / "toy.safetensors") for d in ("whole", "stopped")]
    assert same(*files)  # optimiser state and last weights as well


def test_a_finished_run_is_loaded_not_run_again(tmp_path):
    first, _, log = run(tmp_path)
    again, loss, again_log = run(tmp_path)
    assert loss.seen == [] and again_log == log
    assert same(first.state_dict(), again.state_dict())


def test_the_moving_average_is_what_is_left(tmp_path):
    model, loss, _ = run(tmp_path, decay=0.9)
    kept = load_file(tmp_path / "toy.safetensors")
    last = {k[4:]: v for k, v in kept.items() if k.startswith("net.")}
    want = {k: v.clone() for k, v in loss.seen[0].items()}
    for step, weights in enumerate([*loss.seen[1:], last]):
        w = min(0.9, (1 + step) / (10 + step))
        floats = [k for k, v in want.items() if v.is_floating_point()]
        want |= {k: w * want[k] + (1 - w) * weights[k] for k in floats if "running" not in k}
    got = model.state_dict()
    for name, _ in model.named_parameters():
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(got[name], last[name])
    assert got["1.num_batches_tracked"] == STEPS


def test_decay_0_keeps_the_last_weights(tmp_path):
    model, _, _ = run(tmp_path, decay=0.0)
    kept = load_file(tmp_path / "toy.safetensors")
    assert same(model.state_dict(), {k[4:]: v for k, v in kept.items() if k.startswith("net.")})


def test_it_learns_and_says_so(tmp_path):
    _, _, log = run(tmp_path, probe=lambda: {"extra": 1})
    assert [row["step"] for row in log] == [5, 10, 15, 20, 23]
    assert log[-1]["loss"] < log[0]["loss"] and all(row["extra"] == 1 for row in log)
    assert [row["seconds"] for row in log] == sorted(row["seconds"] for row in log)


def test_the_record_holds_mean_losses(tmp_path):
    values = iter(range(STEPS))
    model = net()
    total = lambda: sum(p.sum() for p in model.parameters())  # noqa: E731
    log = fit.fit(
        "toy", model, lambda g: 0 * total() + next(values), STEPS, 1e-3, tmp_path, every=5
    )
    assert [row["loss"] for row in log] == [2, 7, 12, 17, 21]


def test_a_loss_may_have_been_propagated_already(tmp_path):
    one, two = net(), net()
    inner = Loss(two)

    def propagated(g):
        loss = inner(g)
        loss.backward()
        return loss.detach()

    fit.fit("toy", one, Loss(one), 6, 1e-2, tmp_path / "one")
    fit.fit("toy", two, propagated, 6, 1e-2, tmp_path / "two")
    assert same(one.state_dict(), two.state_dict())


def test_what_a_step_draws_depends_on_seed_and_step_alone():
    draw = lambda *a: torch.rand(4, generator=fit.rng(*a))  # noqa: E731
    assert torch.equal(draw(1, 2), draw(1, 2))
    seen = {tuple(draw(seed, step).tolist()) for seed in range(4) for step in range(50)}
    assert len(seen) == 200


@pytest.mark.parametrize("steps", [1, 3, 40, 1000, 7000])
def test_the_rate_rises_falls_and_ends_near_two_percent(steps):
    rate = [fit._cosine(i, steps) for i in range(steps)]
    top = rate.index(max(rate))
    assert max(rate) == 1 and top <= min(200, steps / 4) and rate[0] > 0
    assert rate[: top + 1] == sorted(rate[: top + 1]) and rate[top:] == sorted(rate[top:])[::-1]
    assert min(rate[top:]) >= 0.02 and (steps < 1000 or rate[-1] < 0.021)


def test_an_unfinished_checkpoint_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    fit.save(path, {"x": torch.ones(2)}, step=1)

    def breaks(tensors, where, metadata):
        where.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(fit, "save_file", breaks)
    with pytest.raises(OSError):
        fit.save(path, {"x": torch.zeros(2)}, step=2)
    assert torch.equal(load_file(path)["x"], torch.ones(2))


def test_optimiser_steps_are_counted(tmp_path):
    counter = fit.StepCounter()
    assert counter.count == 0
    with torch.no_grad():
        net()(torch.zeros(2, 4))
    assert counter.count == 0
    run(tmp_path)
    assert counter.count == STEPS
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    torch.optim.SGD([p], lr=0.1).step()
    assert counter.count == STEPS + 1
