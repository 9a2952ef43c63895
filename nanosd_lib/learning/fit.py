"""One training loop for everything that learns here: AdamW, cosine rate, moving average,
checkpoints, progress.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm.auto import tqdm

FIRST = 8  # losses that a record keeps one by one
PAUSE = 120.0  # seconds between checkpoints


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: AdamW at rate `lr`, risen to in `warmup` steps (None: 200, or a
    fifth of all) and falling by half a cosine to 2 % of it.

    What is kept is the moving average of the weights (`decay` 0: the last); `clip` bounds the norm
    of the whole gradient (None: nothing does). Step i draws its data from `rng(seed, i)`.
    """

    steps: int
    lr: float
    seed: int = 0
    decay: float = 0.999
    clip: float | None = 1.0
    warmup: int | None = None

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * _cosine(step, self.steps, self.warmup)


def rng(seed: int, step: int) -> torch.Generator:
    """The generator of one step: what it draws depends on nothing that came before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _cosine(step: int, steps: int, warmup: int | None = None) -> float:
    """Learning-rate factor: a linear warm-up of 200 steps or a fifth of all, then a half cosine to
    2 %.
    """
    warmup = min(200, max(1, steps // 5)) if warmup is None else max(1, warmup)
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save(path: Path, tensors: dict[str, Tensor], **meta) -> None:
    """Write safetensors whole or not at all; `meta` goes into the header as text. OSError, in one
    line, where it cannot be written: the file of before stays.
    """
    tmp = path.with_suffix(".tmp")
    whole = {k: v.contiguous() for k, v in tensors.items()}
    try:
        save_file(whole, tmp, metadata={k: str(v) for k, v in meta.items()})
        with tmp.open("rb") as handle:
            os.fsync(handle.fileno())
        tmp.rename(path)
    except (OSError, SafetensorError) as error:
        tmp.unlink(missing_ok=True)
        raise OSError(
            f"{path.name} cannot be written ({error}); the one of before is kept"
        ) from None


@dataclass
class _State:
    """Where a training stands: all of it but weights, average and optimiser."""

    step: int = 0
    log: list[dict] | None = None
    sums: dict[str, float] | None = None  # of the losses since the last entry
    since: int = 0  # steps that they are sums of
    first: list[dict[str, float]] | None = None
    seconds: float = 0.0


def _checkpoint(
    path: Path,
    net: nn.Module,
    ema: dict,
    opt: torch.optim.Optimizer,
    state: _State,
    schedule: Schedule,
) -> None:
    names: dict[Tensor, str] = {p: n for n, p in net.named_parameters()}
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()} | {
        f"ema.{k}": v for k, v in ema.items()
    }
    for p, s in opt.state.items():
        tensors |= {f"opt.{k}.{names[p]}": s[k] for k in ("exp_avg", "exp_avg_sq")}
    told = {"state": json.dumps(asdict(state)), "schedule": json.dumps(asdict(schedule))}
    save(path, tensors, content=_content(tensors), **told)


def _content(tensors: dict[str, Tensor]) -> str:
    """A hash of which tensor has which values: two of one shape may not change places."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def _resume(
    path: Path, net: nn.Module, ema: dict, opt: torch.optim.Optimizer, schedule: Schedule
) -> _State | None:
    """Where the checkpoint left off; None, and a line that says so, where it is of another
    schedule. ValueError for what is not a checkpoint of this network.
    """
    try:
        with safe_open(path, "pt") as f:
            meta = f.metadata() or {}
        tensors, state = load_file(path), _State(**json.loads(meta["state"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path.name} is no checkpoint that can be read: remove it") from None
    if meta.get("content") != _content(tensors):
        raise ValueError(f"{path.name}: its tensors are not those that were written: remove it")
    mine = {k[4:]: v for k, v in tensors.items() if k.startswith("net.")}
    want = net.state_dict()
    for k in sorted(mine.keys() | want.keys()):
        if k not in mine or k not in want or mine[k].shape != want[k].shape:
            raise ValueError(f"{path.name} is the checkpoint of another network ({k}): remove it")
    before, now = json.loads(meta["schedule"]), asdict(schedule)
    if other := [k for k in now if before.get(k) != now[k]]:
        said = ", ".join(f"{k} {before.get(k)}, now {now[k]}" for k in other)
        print(f"{path.name}: its checkpoint is of another schedule ({said}): started anew")
        return None
    net.load_state_dict(mine)
    for k in ema:
        ema[k].copy_(tensors[f"ema.{k}"])
    for n, p in net.named_parameters():
        moments = {
            k: tensors[f"opt.{k}.{n}"].to(p.device)
            for k in ("exp_avg", "exp_avg_sq")
            if f"opt.{k}.{n}" in tensors
        }
        if moments:
            opt.state[p] = moments | {
                "step": torch.tensor(float(state.step), dtype=torch.float32, device=p.device)
            }
    return state


def fit(
    name: str,
    net: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor | dict[str, Tensor]],
    schedule: Schedule,
    work: Path,
    every: int = 200,
    probe: Callable[[], dict] | None = None,
    until: int | None = None,
    pause: float = PAUSE,
) -> list[dict]:
    """Minimise `loss_of` over net's parameters; returns the record, an entry each `every` steps
    with the mean of the losses in between, of which the first holds the first eight one by one:
    whoever trains the same sees the same. What `schedule` averages is left in net.

    Of several losses (a dict) the one named "loss" is minimised and all are recorded. A loss
    without a graph has already been propagated by `loss_of` (30 losses in turn need less memory
    than one sum). `probe` is called with each entry, and what it returns joins it.

    Resumable: the checkpoint `<work>/<name>.safetensors`, written each `pause` seconds and at the
    end, holds weights, average, optimiser state and record, so a resumed run ends where an
    uninterrupted one would. `until` stops after so many of the steps, and neither reads nor writes
    a checkpoint: the beginning of the same training, seen again.

    FloatingPointError for a loss that is no number, ValueError for a checkpoint of another network.
    """
    opt = torch.optim.AdamW(
        net.parameters(), lr=schedule.lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.safetensors"
    state = _State()
    if until is None and path.exists():
        state = _resume(path, net, ema, opt, schedule) or state
    log, first = list(state.log or []), list(state.first or [])
    sums, since = dict(state.sums or {}), state.since
    began, written = time.perf_counter(), time.perf_counter()
    last = min(schedule.steps, until or schedule.steps)
    opt.zero_grad()  # an earlier attempt on the same network may have left some
    steps = tqdm(range(state.step, last), name, initial=state.step, total=last, mininterval=2)
    for step in steps:
        for group in opt.param_groups:
            group["lr"] = schedule.rate(step)
        made = loss_of(rng(schedule.seed, step))
        losses = made if isinstance(made, dict) else {"loss": made}
        values = {k: float(v.detach()) for k, v in losses.items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(_not_a_number(name, step + 1, values["loss"], path, until))
        if losses["loss"].requires_grad:
            losses["loss"].backward()
        if schedule.clip:
            nn.utils.clip_grad_norm_(net.parameters(), schedule.clip)
        opt.step()
        opt.zero_grad()
        w = min(schedule.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in net.state_dict().items():
                ema[k].lerp_(v, 1 - w) if v.is_floating_point() else ema[k].copy_(v)
        sums = {k: sums.get(k, 0.0) + v for k, v in values.items()}
        since += 1
        if len(first) < FIRST:
            first.append(values)
        end, now = step + 1 == last, time.perf_counter()
        spent = state.seconds + now - began
        if (step + 1) % every == 0 or end:
            entry: dict[str, Any] = {"step": step + 1, "seconds": round(spent, 1)}
            entry |= {k: _digits(v / since) for k, v in sums.items()} | (probe() if probe else {})
            log.append(entry)
            sums, since = {}, 0
        if until is None and (end or now - written >= pause):
            kept = _State(step + 1, log, sums, since, first, spent)
            _checkpoint(path, net, ema, opt, kept, schedule)
            written = time.perf_counter()
    net.load_state_dict(ema)
    each = {k: [_digits(f[k]) for f in first] for k in (first[0] if first else {})}
    return [log[0] | {"first": each}, *log[1:]]


def _digits(value: float) -> float:
    """Seven digits: all that float32 holds."""
    return float(f"{value:.7g}")


def _not_a_number(name: str, step: int, value: float, path: Path, until: int | None) -> str:
    kept = until is None and path.exists()
    return f"{name}: loss of step {step} is {value}; " + (
        f"the last checkpoint is kept in {path.name}" if kept else "no checkpoint was written"
    )


class StepCounter:
    """Counts every torch optimiser step from its creation on: how a claim "without training" is
    checked.
    """

    def __init__(self) -> None:
        self.count = 0
        self._hook = register_optimizer_step_post_hook(self._one)

    def stop(self) -> int:
        """Take the hook out again; returns the count."""
        self._hook.remove()
        return self.count

    def _one(self, optimizer, args, kwargs) -> None:
        self.count += 1


def mixed(teacher: UNet2DConditionModel) -> torch.autocast:
    """Autocast to the teacher's dtype on its device; nothing at all for a float32 teacher."""
    half = teacher.dtype != torch.float32
    return torch.autocast(
        teacher.device.type, dtype=teacher.dtype if half else torch.bfloat16, enabled=half
    )
