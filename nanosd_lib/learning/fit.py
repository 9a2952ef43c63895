"""One training loop for everything that learns here: AdamW, cosine rate, moving average,
checkpoints, progress.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm.auto import tqdm

FIRST = 8  # losses that a record keeps one by one


def rng(seed: int, step: int) -> torch.Generator:
    """The generator of one step: what it draws depends on nothing that came before."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def step_of(g: torch.Generator, seed: int) -> int:
    """The step that a generator of `rng` belongs to."""
    return g.initial_seed() - seed * 1_000_003


def _cosine(step: int, steps: int, warmup: int | None = None) -> float:
    """Learning-rate factor: a linear warm-up of 200 steps or a fifth of all, then a half cosine to
    2 %.
    """
    warmup = min(200, max(1, steps // 5)) if warmup is None else max(1, warmup)
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save(path: Path, tensors: dict[str, Tensor], **meta) -> None:
    """Write safetensors whole or not at all; `meta` goes into the header as text."""
    tmp = path.with_suffix(".tmp")
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        tmp,
        metadata={k: str(v) for k, v in meta.items()},
    )
    tmp.rename(path)


def _checkpoint(
    path: Path, net: nn.Module, ema: dict, opt: torch.optim.Optimizer, step: int, log: list
) -> None:
    names: dict[Tensor, str] = {p: n for n, p in net.named_parameters()}
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()} | {
        f"ema.{k}": v for k, v in ema.items()
    }
    for p, s in opt.state.items():
        tensors |= {f"opt.{k}.{names[p]}": s[k] for k in ("exp_avg", "exp_avg_sq")}
    save(path, tensors, step=step, log=json.dumps(log))


def _resume(path: Path, net: nn.Module, ema: dict, opt: torch.optim.Optimizer) -> tuple[int, list]:
    with safe_open(path, "pt") as f:
        meta = f.metadata()
    tensors, step = load_file(path), int(meta["step"])
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    for k in ema:
        ema[k].copy_(tensors[f"ema.{k}"])
    for n, p in net.named_parameters():
        state = {
            k: tensors[f"opt.{k}.{n}"].to(p.device)
            for k in ("exp_avg", "exp_avg_sq")
            if f"opt.{k}.{n}" in tensors
        }
        if state:
            opt.state[p] = state | {
                "step": torch.tensor(float(step), dtype=torch.float32, device=p.device)
            }
    return step, json.loads(meta["log"])


def fit(
    name: str,
    net: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    steps: int,
    lr: float,
    work: Path,
    seed: int = 0,
    decay: float = 0.999,
    every: int = 200,
    clip: float | None = 1.0,
    probe: Callable[[], dict] | None = None,
    warmup: int | None = None,
    until: int | None = None,
) -> list[dict]:
    """Minimise `loss_of` over net's parameters; returns the record, an entry each `every` steps, of
    which the first holds the first eight losses: whoever trains the same sees the same.

    The weights' moving average is what is left in net. `until` stops after so many of the steps.

    A loss without a graph has already been propagated by `loss_of` (30 losses in turn need less
    memory than one sum). `decay` 0 keeps the last weights instead of an average; `clip` bounds the
    norm of net's whole gradient. `probe` is called each `every` steps and what it returns joins the
    record.

    Resumable: the checkpoint `<work>/<name>.safetensors`, written each `every` steps, holds
    weights, average, optimiser state and record; the data of step i comes from `rng(seed, i)`, so a
    resumed run ends where an uninterrupted one would.
    """
    opt = torch.optim.AdamW(
        net.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
    work.mkdir(parents=True, exist_ok=True)
    path, start = work / f"{name}.safetensors", 0
    log: list[dict] = []
    if path.exists():
        start, log = _resume(path, net, ema, opt)
    began, total, seconds = time.perf_counter(), 0.0, log[-1]["seconds"] if log else 0.0
    opt.zero_grad()  # an earlier attempt on the same network may have left some
    first: list[float] = []
    last = min(steps, until or steps)
    for step in tqdm(range(start, last), desc=name, initial=start, total=last, mininterval=2):
        for group in opt.param_groups:
            group["lr"] = lr * _cosine(step, steps, warmup)
        loss = loss_of(rng(seed, step))
        if loss.requires_grad:
            loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        opt.step()
        opt.zero_grad()
        w = min(decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in net.state_dict().items():
                ema[k].lerp_(v, 1 - w) if v.is_floating_point() else ema[k].copy_(v)
        total += float(loss.detach())
        if len(first) < FIRST:
            first.append(round(float(loss.detach()), 5))
        if (step + 1) % every == 0 or step + 1 == last:
            n = (step % every) + 1
            spent = round(seconds + time.perf_counter() - began, 1)
            log.append(
                {"step": step + 1, "loss": round(total / n, 5), "seconds": spent}
                | (probe() if probe else {})
                | ({} if log else {"first": [*first]})
            )
            total = 0.0
            _checkpoint(path, net, ema, opt, step + 1, log)
    net.load_state_dict(ema)
    return log


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
