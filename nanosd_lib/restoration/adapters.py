"""Adapters: what a restoration adds to a backbone, as LoRA of peft, in a file of its own that
diffusers' `load_lora_adapter` reads (prefix "unet" for the U-Net, "vae" for the VAE's encoder).

What an adapter file is, decided once:

- `conv_in`, which the published systems train fully, is a LoRA of full rank: as expressive as its
  weight, and it unloads like everything else. All others have one rank, at most a quarter of the
  layer's smaller width.
- Alpha equals rank in every layer: what diffusers takes where a file has no settings, so a file
  means the same with and without them.
- A file of another backbone is refused by the name of the first layer that does not fit, and one
  without layers for a part that needs some (diffusers loads nothing, with a line in a log).
- Unloading gives the base back bit for bit: nothing is fused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

PARTS = ("unet", "vae")
# no LoRA on what reads the timestep (OSEDiff), nor on the VAE's decoder, which stays as it is
_LEFT_OUT = {"unet": re.compile(r"time_emb"), "vae": re.compile(r"^(?!encoder\.|quant_conv)")}


def layers(net: nn.Module, part: str) -> dict[str, nn.Module]:
    """The layers of a part that get an adapter: convolutions and linear maps, by name. Of these
    very classes, since peft makes its matrices of a layer's own class.
    """
    kinds, left_out = (nn.Conv2d, nn.Linear), _LEFT_OUT[part]
    found = {k: m for k, m in net.named_modules() if type(m) in kinds}
    return {k: found[k] for k in sorted(found) if not left_out.search(k)}


def ranks(net: nn.Module, part: str, rank: int) -> dict[str, int]:
    """Rank of each layer: `rank`, at most a quarter of the smaller width; full for the U-Net's
    conv_in.
    """
    out: dict[str, int] = {}
    for name, layer in layers(net, part).items():
        weight: Any = layer.weight
        whole = part == "unet" and name == "conv_in"
        full, narrow = min(len(weight), weight[0].numel()), min(weight.shape[:2])
        out[name] = full if whole else max(1, min(rank, narrow // 4))
    return out


def add(net: Any, part: str, rank: int, name: str) -> list[str]:
    """Add a new adapter, which changes nothing yet, and freeze all else; the names of its layers.

    ValueError for a part that is neither "unet" nor "vae".
    """
    if part not in PARTS:
        raise ValueError(f"adapters: part {part!r}: use one of {', '.join(PARTS)}")
    each = ranks(net, part, rank)
    net.requires_grad_(False)
    net.add_adapter(config(each), adapter_name=name)
    return list(each)


def config(each: Mapping[str, int]) -> LoraConfig:
    """peft's settings of layers of these ranks: alpha equal to rank, B at zero."""
    common = max(set(each.values()), key=list(each.values()).count)
    pattern = {f"^{re.escape(k)}$": r for k, r in each.items() if r != common}
    return LoraConfig(
        r=common, lora_alpha=common, rank_pattern=pattern, alpha_pattern=dict(pattern),
        target_modules=list(each), init_lora_weights="gaussian",
    )  # fmt: skip


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name."""
    return {k: p for k, p in net.named_parameters() if p.requires_grad}


def weights(name: str, **parts: nn.Module | None) -> dict[str, Tensor]:
    """The adapter of that name in its parts (unet=, vae=), as a file holds it."""
    out: dict[str, Tensor] = {}
    for part, net in parts.items():
        if net is not None and name in getattr(net, "peft_config", {}):
            state = get_peft_model_state_dict(net, adapter_name=name)
            out |= {f"{part}.{k}": v.detach().cpu() for k, v in state.items()}
    return out


def load(source: str | Path | Mapping[str, Tensor], name: str, **parts: Any) -> dict[str, int]:
    """Load an adapter file (or its tensors) into the parts given (unet=, vae=): the number of
    layers of each. It alone is active afterwards.

    ValueError, in one line, for a file without layers, for one made for another backbone, for a
    part that the file has and nobody gave, and for a name in use; nothing is loaded then.
    """
    state = dict(source) if isinstance(source, Mapping) else load_file(source)
    what = "adapter" if isinstance(source, Mapping) else Path(source).name
    counted = {}
    for part in PARTS:
        mine = {k for k in state if k.startswith(f"{part}.")}
        names = {re.split(r"\.lora_[AB]\.", k.removeprefix(f"{part}."))[0] for k in mine}
        if not names:
            if part == "unet":
                raise ValueError(f"{what}: it holds no layer of a U-Net: is it an adapter file?")
            continue
        if parts.get(part) is None:
            raise ValueError(f"{what}: it has {len(names)} layers for the {part}: give {part}=")
        _check(what, part, parts[part], state, sorted(names), name)
        counted[part] = len(names)
    for part in counted:
        own = {k: v for k, v in state.items() if k.startswith(f"{part}.")}
        load_part(own, part, parts[part], name)
    return counted


def load_part(state: dict[str, Tensor], part: str, net: Any, name: str) -> None:
    """Load what is for one part, unchecked; it alone is active there afterwards."""
    with warnings.catch_warnings():  # several adapters beside each other are meant
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        net.load_lora_adapter(state, prefix=part, adapter_name=name)
    net.set_adapter(name)


def _check(what: str, part: str, net: nn.Module, state, names: list[str], name: str) -> None:
    if name in getattr(net, "peft_config", {}):
        raise ValueError(f"{what}: the {part} has an adapter {name!r} already: unload it first")
    for layer in names:
        try:
            base = net.get_submodule(layer)
        except AttributeError:
            base = None
        weight: Any = getattr(getattr(base, "base_layer", base), "weight", None)
        a, b = (state.get(f"{part}.{layer}.lora_{x}.weight") for x in "AB")
        fits = weight is not None and a is not None and b is not None
        if not fits or _outer(a, b) != (weight.shape[1:], weight.shape[0]):
            raise ValueError(
                f"{what}: {part}.{layer} does not fit this network: it was made for another one"
            )


def _outer(a: Any, b: Any) -> tuple:
    return a.shape[1:], b.shape[0]


def unload(name: str, **parts: Any) -> None:
    """Take an adapter away; the base is what it was, bit for bit. Where it was active and others
    are loaded, the last of these is.
    """
    for net in parts.values():
        if net is not None and name in getattr(net, "peft_config", {}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
                net.delete_adapters(name)
