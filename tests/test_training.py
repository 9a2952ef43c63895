"""training: stopped and resumed is never stopped; what is left is the average."""

from __future__ import annotations

import copy
import multiprocessing
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
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


def run(work, model=None, stop=-1, decay=0.999, **kwargs):
    model = model or net()
    loss = Loss(model, stop)
    how = fit.Schedule(STEPS, 1e-2, decay=decay)
    log = fit.fit("toy", model, loss, how, work, **{"every": 5, "pause": 0} | kwargs)
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
    assert len(loss.seen) == STEPS - stop  # from the last checkpoint on: here after each step
    assert same(whole.state_dict(), again.state_dict())
    assert timeless(log) == timeless(again_log)
    files = [load_file(tmp_path / d / "toy.safetensors") for d in ("whole", "stopped")]
    assert same(*files)  # optimiser state and last weights as well


class Slow(Loss):
    def __call__(self, g: torch.Generator) -> torch.Tensor:
        time.sleep(0.01)  # a kill lands in the middle of steps
        return super().__call__(g)


def slowly(work: Path) -> None:
    model = net()
    fit.fit("toy", model, Slow(model), fit.Schedule(150, 1e-2), work, every=5, pause=0)


def test_a_process_that_is_killed_and_resumed_ends_where_one_would_that_was_not(tmp_path):
    """kill -9, three times, wherever it strikes: in a step, or while a checkpoint is written."""
    server = multiprocessing.get_context("forkserver")  # autograd may not be forked once it ran
    server.set_forkserver_preload([fit.__name__])
    whole = server.Process(target=slowly, args=(tmp_path / "whole",))
    whole.start()
    whole.join()
    path, kills, code = tmp_path / "killed" / "toy.safetensors", 0, None
    while code != 0:
        process = server.Process(target=slowly, args=(path.parent,))
        before = path.stat().st_mtime_ns if path.exists() else 0
        process.start()
        while process.is_alive() and kills < 3:
            if path.exists() and path.stat().st_mtime_ns != before:
                time.sleep(0.1 * (kills + 1))
                process.kill()
                process.join()
                kills += process.exitcode == -signal.SIGKILL
                break
        process.join()
        code = process.exitcode
        assert code in (0, -signal.SIGKILL)
    assert kills == 3
    assert same(*(load_file(tmp_path / d / "toy.safetensors") for d in ("whole", "killed")))


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
    how = fit.Schedule(STEPS, 1e-3)
    log = fit.fit("toy", model, lambda g: 0 * total() + next(values), how, tmp_path, every=5)
    assert [row["loss"] for row in log] == [2, 7, 12, 17, 21]


def test_a_loss_may_have_been_propagated_already(tmp_path):
    one, two = net(), net()
    inner = Loss(two)

    def propagated(g):
        loss = inner(g)
        loss.backward()
        return loss.detach()

    fit.fit("toy", one, Loss(one), fit.Schedule(6, 1e-2), tmp_path / "one")
    fit.fit("toy", two, propagated, fit.Schedule(6, 1e-2), tmp_path / "two")
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
    with pytest.raises(OSError, match=r"a.safetensors cannot be written \(disk full\)") as error:
        fit.save(path, {"x": torch.zeros(2)}, step=2)
    assert "\n" not in str(error.value)
    assert torch.equal(load_file(path)["x"], torch.ones(2)) and not list(tmp_path.glob("*.tmp"))


def test_several_losses_are_recorded_and_one_is_minimised(tmp_path):
    one, two = net(), net()
    plain = Loss(two)

    def several(g):
        loss = plain(g)
        return {"loss": loss, "half": loss.detach() / 2}

    log = fit.fit("toy", one, Loss(one), fit.Schedule(6, 1e-2), tmp_path / "one", every=2)
    both = fit.fit("toy", two, several, fit.Schedule(6, 1e-2), tmp_path / "two", every=2)
    assert same(one.state_dict(), two.state_dict())
    assert [r["half"] for r in both] == pytest.approx([r["loss"] / 2 for r in log], rel=1e-6)
    assert both[0]["first"]["half"] == pytest.approx([x / 2 for x in both[0]["first"]["loss"]])


@pytest.mark.parametrize("until", [1, 7])
def test_until_is_the_beginning_of_the_same_training(tmp_path, until):
    """Bit for bit; no checkpoint is read or written."""
    whole, _, log = run(tmp_path / "whole", decay=0.0)
    begun, loss, short = run(tmp_path / "short", decay=0.0, until=until)
    assert short[0]["first"]["loss"] == log[0]["first"]["loss"][:until] and len(loss.seen) == until
    assert not list((tmp_path / "short").glob("*")) and short[-1]["step"] == until
    _, loss, _ = run(tmp_path / "whole", until=until)  # beside a finished checkpoint
    assert len(loss.seen) == until


def test_checkpoints_follow_the_clock(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, stop=20, pause=3600)
    assert not list(tmp_path.glob("*"))  # an hour had not passed


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path):
    model, values = net(), iter([1.0, 0.5, float("nan")])
    total = lambda: sum(p.sum() for p in model.parameters())  # noqa: E731
    loss = lambda g: 0 * total() + next(values)  # noqa: E731
    with pytest.raises(FloatingPointError, match="toy: loss of step 3 is nan; the last check") as e:
        fit.fit("toy", model, loss, fit.Schedule(9, 1e-3), tmp_path, pause=0)
    assert "\n" not in str(e.value)
    assert fit._resume(tmp_path / "toy.safetensors", *_parts(net(), 9)).step == 2


def _parts(model, steps):
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    return model, ema, torch.optim.AdamW(model.parameters()), fit.Schedule(steps, 1e-3)


def test_tensors_that_changed_places_are_never_loaded(tmp_path):
    """Two of one shape exchanged: names and shapes say nothing."""
    wide = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    run(tmp_path, wide)
    file = tmp_path / "toy.safetensors"
    with safe_open(file, "pt") as f:
        meta = f.metadata()
    tensors = load_file(file)
    one, two = "net.0.weight", "net.1.weight"
    tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, file, metadata=meta)
    with pytest.raises(ValueError, match="its tensors are not those that were written: remove it"):
        run(tmp_path, wide)


def test_another_networks_checkpoint_is_refused(tmp_path):
    run(tmp_path)
    other = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.SiLU(), nn.Linear(9, 2))
    with pytest.raises(ValueError, match=r"toy.safetensors is the checkpoint of another network"):
        run(tmp_path, other)
    renamed = nn.Sequential(nn.Identity(), *net())
    with pytest.raises(ValueError, match="another network"):
        run(tmp_path, renamed)
    (tmp_path / "toy.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no checkpoint that can be read: remove it"):
        run(tmp_path)


def test_another_schedule_starts_anew_and_says_so(tmp_path, capsys):
    run(tmp_path)
    _, loss, _ = run(tmp_path, decay=0.5)
    assert len(loss.seen) == STEPS
    assert "another schedule (decay 0.999, now 0.5): started anew" in capsys.readouterr().out


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
