"""FwKD, feature-wise knowledge distillation (paper, method step 2).

Every surrogate of a stage maps the teacher stage's own input to the teacher stage's own output, L =
||O_S - O_T||^2. The thirty losses are independent, so one teacher pass serves them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.data import splits
from nanosd_lib.learning import fit
from nanosd_lib.networks import blocks, surgery
from nanosd_lib.networks.arch import BASE, STAGES
from nanosd_lib.quality import uncertainty


@dataclass
class Seen:
    """What a stage read and wrote in one teacher pass: `inputs` are its keyword arguments."""

    inputs: dict[str, object] = field(default_factory=dict)
    outputs: tuple[Tensor, ...] = ()


def _tensors(output) -> tuple[Tensor, ...]:
    """The tensors a stage hands on: an encoder's (first, last[, down]), a decoder's one."""
    return output[1] if isinstance(output, tuple) else (output,)


@contextlib.contextmanager
def captured(
    unet: UNet2DConditionModel, stages: Sequence[str] = STAGES
) -> Iterator[dict[str, Seen]]:
    """Record inputs and outputs of the teacher's stages during forward passes; every hook is gone
    afterwards.
    """
    seen = {s: Seen() for s in (*stages, "D4")}

    def hook(stage: str) -> Callable:
        def keep(module, args, kwargs, output) -> None:
            seen[stage].inputs, seen[stage].outputs = kwargs, _tensors(output)

        return keep

    handles = []
    try:
        for s in seen:
            group, i = blocks.BLOCK[s]
            handles.append(getattr(unet, group)[i].register_forward_hook(hook(s), with_kwargs=True))
        yield seen
    finally:
        for h in handles:
            h.remove()


def targets(
    seen: dict[str, Seen], stage: str, code: str, e3_target: str = "D4"
) -> tuple[Tensor, ...]:
    """The teacher's features a surrogate is taught: every distinct tensor it hands on.

    An encoder with one ResNet block has first = last and is taught last. E3 hands its output to D3,
    which in the teacher reads D4's: `e3_target` "D4" teaches that (as the public tiny-SD recipe
    does), "E3" the teacher's own E3.
    """
    out = seen[stage].outputs
    if stage[0] == "D":
        return out
    first, last, down = out
    if stage == "E3":
        last = seen["D4"].outputs[0] if e3_target == "D4" else last
        return (first, last) if code.count("R") == 2 else (last,)
    return (first, last, down) if code.count("R") == 2 else (last, down)


def outputs(surrogate: blocks.Stage, inputs: dict) -> tuple[Tensor, ...]:
    """The distinct tensors a surrogate hands on for the teacher stage's inputs."""
    out = _tensors(surrogate(**_allowed(inputs)))
    return out[1:] if surrogate.stage[0] == "E" and len(surrogate.slots) == 1 else out


def _allowed(inputs: dict) -> dict:
    """A teacher stage's inputs without what a surrogate does not take."""
    masks = ("attention_mask", "cross_attention_kwargs", "encoder_attention_mask")
    return {k: v for k, v in inputs.items() if k not in masks}


def relative_error(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Mean over features of ||O_S - O_T||^2 / ||O_T - mean O_T||^2: 1 is as good as a constant.

    The paper writes the plain square; dividing by the teacher's variance puts thirty losses on one
    scale.
    """
    parts = [
        (s.float() - t.float()).pow(2).mean() / (t.float().var() + 1e-8)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


def surrogates(teacher: UNet2DConditionModel, pairs: Sequence[Sequence[str]]) -> nn.ModuleDict:
    """One untrained surrogate per (stage, code), named "E1:RA", each with the teacher's weights
    where it keeps a block.
    """
    return nn.ModuleDict({f"{s}:{c}": surgery.surrogate(s, c, teacher) for s, c in pairs})


def _stages(nets: nn.ModuleDict) -> Iterator[blocks.Stage]:
    """The surrogates themselves, as what they are."""
    return (cast(blocks.Stage, net) for net in nets.values())


class _Enough(Exception):
    """The last stage that is looked at has run."""


@torch.no_grad()
def look(
    teacher: UNet2DConditionModel, batch: dict[str, Tensor], stages: Collection[str] = STAGES
) -> dict[str, Seen]:
    """One teacher pass over a noisy batch, all stages captured; it ends behind the last of those in
    `stages` (E3 is taught what D4 hands on).
    """
    order = ["E1", "E2", "E3", "D4", "D3", "D2", "D1"]
    last = max(("D4" if s == "E3" else s for s in stages), key=order.index)

    def stop(*args) -> None:
        raise _Enough

    with captured(teacher) as seen:
        group, i = blocks.BLOCK[last]
        end = getattr(teacher, group)[i].register_forward_hook(stop)
        with contextlib.suppress(_Enough):
            try:
                teacher(batch["x"], batch["t"], encoder_hidden_states=batch["text"])
            finally:
                end.remove()
    return seen


def distil(
    teacher: UNet2DConditionModel,
    pairs: Sequence[Sequence[str]],
    draw: Callable[[torch.Generator], dict[str, Tensor]],
    steps: int,
    lr: float,
    scratch: Path,
    seed: int = 0,
    e3_target: str = "D4",
    probe: Callable[[nn.ModuleDict], dict] | None = None,
    until: int | None = None,
) -> tuple[nn.ModuleDict, list[dict]]:
    """Teach all surrogates in one shared teacher pass a step; each keeps its own gradient norm
    below 1, so none depends on which others are taught beside it. The record holds the mean loss
    and each surrogate's own ("E1:RA").

    `probe` looks at the surrogates after each quarter of the steps; what it returns joins the
    record. Weights are float32 whatever the teacher's dtype; a teacher in bfloat16 means autocast.
    `until` is `fit.fit`'s.
    """
    nets = surrogates(teacher, pairs).float()
    needed = {stage for stage, _ in pairs}

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        seen, each = look(teacher, draw(g), needed), {}
        for key, net in zip(nets, _stages(nets), strict=True):
            want = targets(seen, net.stage, net.code, e3_target)
            with fit.mixed(teacher):
                loss = relative_error(outputs(net, seen[net.stage].inputs), want)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            each[key] = loss.detach()
        return {"loss": torch.stack(list(each.values())).mean()} | each

    look_at = (lambda: probe(nets)) if probe else None
    schedule = fit.Schedule(steps, lr, seed, decay=0.0, clip=None, warmup=steps // 20)
    every = max(1, steps // 4)
    record = fit.fit("fwkd", nets, loss_of, schedule, scratch, every, look_at, until)
    return nets.eval(), record


def teach(
    teacher: UNet2DConditionModel,
    train: splits.Latents,
    heldout: Sequence[dict[str, Tensor]],
    scheduler,
    pairs: list[list[str]],
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    fraction: float,
    e3_target: str,
    scratch: Path,
    until: int | None = None,
) -> dict:
    """The FwKD stage: weights of every surrogate in float16, its held-out error at the start and
    after each quarter (curve: step, surrogate, relative_error) and the record of the losses.

    A random `fraction` of the training latents is used (the paper: 25 % is enough). With `until`
    nothing is held out: the first losses alone are wanted.
    """
    order = torch.randperm(len(train), generator=fit.rng(seed, steps))
    drawn = order[: max(1, round(fraction * len(train)))]
    where = {"device": teacher.device, "among": drawn}
    draw = lambda g: splits.noisy(train, scheduler, batch, g, **where)  # noqa: E731

    how = (steps, lr, scratch, seed, e3_target)
    if until:
        return {"record": distil(teacher, pairs, draw, *how, until=until)[1]}

    def seen(nets: nn.ModuleDict) -> dict:
        return {"errors": errors(teacher, nets, heldout, e3_target)}

    start = seen(surrogates(teacher, pairs))["errors"]
    nets, record = distil(teacher, pairs, draw, *how, probe=seen)
    along = [(0, start), *((r["step"], r.pop("errors")) for r in record)]
    rows = [(step, k, v) for step, found in along for k, v in found.items()]
    return {
        "weights": {k: v.half() for k, v in nets.state_dict().items()},
        "curve": pd.DataFrame(rows, columns=["step", "surrogate", "relative_error"]),
        "record": record,
    }


def judged(
    pairs: list[list[str]],
    e3_target: str,
    teacher: UNet2DConditionModel,
    nets: nn.ModuleDict,
    heldout: Sequence[dict[str, Tensor]],
) -> dict[str, pd.DataFrame]:
    """Held-out errors of finished surrogates in both definitions of `errors_each`, each with an
    interval over the held-out latents.
    """
    some = nn.ModuleDict({f"{s}:{c}": nets[f"{s}:{c}"] for s, c in pairs})
    each = errors_each(teacher, some, heldout, e3_target)
    return {"errors": pd.DataFrame([{"surrogate": k, **_named(v)} for k, v in each.items()])}


def _named(each: dict[str, Tensor]) -> dict[str, float]:
    """Each number between its `_low` and `_high`."""
    found: dict[str, float] = {}
    for name, x in each.items():
        found |= uncertainty.mean(x).named(name)
    return found


def load(
    teacher: UNet2DConditionModel, pairs: Sequence[Sequence[str]], weights: dict[str, Tensor]
) -> nn.ModuleDict:
    """The surrogates with the weights of a finished FwKD stage."""
    nets = surrogates(teacher, pairs)
    nets.load_state_dict(weights)
    return nets.eval().requires_grad_(False)


def read_later(seen: dict[str, Seen], stage: str) -> tuple[Tensor, ...]:
    """The teacher's tensors that later stages read where this stage stands: a decoder's one; first,
    last and downsampled of an encoder; of E3 what D3 reads: D4's output, and E3's last and first.
    """
    if stage == "E3":
        first, last, _ = seen["E3"].outputs
        return seen["D4"].outputs[0], last, first
    return seen[stage].outputs


def handed_on(net: blocks.Stage, inputs: dict) -> tuple[Tensor, ...]:
    """A surrogate's tensors in the places of `read_later`, also where one stands for two: one block
    has first = last, and E3's last is what D3 reads twice.
    """
    out = _tensors(net(**_allowed(inputs)))
    return (out[1], out[1], out[0]) if net.stage == "E3" else out


def within(t: Tensor) -> Tensor:
    """The variance of features (N, C, H, W) around the mean of each channel, mean over channels."""
    t = t.float()
    return (t - t.mean((0, 2, 3), keepdim=True)).pow(2).mean()


def constants(seen: dict[str, Seen]) -> dict[str, float]:
    """The relative error of each stage's best guess that knows nothing of the picture: one constant
    for each channel. (One for a whole tensor has 1.)
    """
    each = {s: targets(seen, s, BASE[s]) for s in STAGES}
    return {
        s: sum(float(within(t) / (t.float().var() + 1e-8)) for t in some) / len(some)
        for s, some in each.items()
    }


@torch.no_grad()
def errors_each(
    teacher: UNet2DConditionModel,
    nets: nn.ModuleDict,
    batches: Sequence[dict[str, Tensor]],
    e3_target: str = "D4",
) -> dict[str, dict[str, Tensor]]:
    """Held-out errors of each surrogate, of every latent, (N,), on the teacher's own inputs.

    relative_error: what is taught, before the mean over a batch. read_error: one
    definition for all codes of a stage: ||O_S - O_T||^2 over all that later stages read (also what
    a code cannot produce), each divided by the variance around the channels' means: 1 is as good as
    a constant for each channel (both ours: the paper writes the plain square).
    """
    found: dict[str, dict[str, list[Tensor]]] = {
        k: {"relative_error": [], "read_error": []} for k in nets
    }
    for batch in batches:
        seen = look(teacher, batch, {net.stage for net in _stages(nets)})
        for key, net in zip(nets, _stages(nets), strict=True):
            with fit.mixed(teacher):
                got = handed_on(net, seen[net.stage].inputs)
            taught = targets(seen, net.stage, net.code, e3_target)
            mine = got[-len(taught) :] if net.stage != "E3" else (got[2], got[0])[-len(taught) :]
            pairs = zip(mine, taught, strict=True)
            parts = [_square(s, t) / (t.float().var() + 1e-8) for s, t in pairs]
            found[key]["relative_error"].append(torch.stack(parts).mean(0).cpu())
            pairs = zip(got, read_later(seen, net.stage), strict=True)
            parts = [_square(s, t) / (within(t) + 1e-8) for s, t in pairs]
            found[key]["read_error"].append(torch.stack(parts).mean(0).cpu())
    return {k: {name: torch.cat(v) for name, v in both.items()} for k, both in found.items()}


def errors(
    teacher: UNet2DConditionModel,
    nets: nn.ModuleDict,
    batches: Sequence[dict[str, Tensor]],
    e3_target: str = "D4",
) -> dict[str, float]:
    """Held-out relative error of each surrogate: the mean of what `errors_each` gives."""
    each = errors_each(teacher, nets, batches, e3_target)
    return {k: float(v["relative_error"].mean()) for k, v in each.items()}


def _square(s: Tensor, t: Tensor) -> Tensor:
    return (s.float() - t.float()).pow(2).mean((1, 2, 3))
