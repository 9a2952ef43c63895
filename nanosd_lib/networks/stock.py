"""Stock: what diffusers' own classes are told of a student, and what is taken from a teacher that
diffusers, torch, accelerate or peft has wrapped.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from functools import wraps
from typing import Any

from accelerate.utils import extract_model_from_parallel
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.networks.arch import Arch

_Student: Any = object  # a mixin: UNet2DConditionModel stands beside it

# settings that say nothing while the embedding they belong to is off
_IDLE = {
    "encoder_hid_dim",
    "addition_time_embed_dim",
    "addition_embed_type_num_heads",
    "projection_class_embeddings_input_dim",
    "reverse_transformer_layers_per_block",
}


# ----------------------------------------------------------------------------------------- teachers
def unwrapped(teacher: nn.Module) -> UNet2DConditionModel:
    """The U-Net inside torch.compile, DataParallel, DistributedDataParallel, accelerate or peft;
    ValueError where there is none, and where accelerate has moved its weights away.
    """
    net = teacher
    if isinstance(net, nn.Module) and not isinstance(net, UNet2DConditionModel):
        net = extract_model_from_parallel(net, keep_fp32_wrapper=True)
        inner = getattr(net, "module", getattr(net, "_orig_mod", None))
        inner = net.get_base_model() if hasattr(net, "get_base_model") else inner
        if inner is not None:
            return unwrapped(inner)
    if not isinstance(net, UNet2DConditionModel):
        kind = type(teacher).__name__
        hint = "give its .unet" if hasattr(teacher, "unet") else "take load_teacher(...).unet"
        raise ValueError(f"teacher: needs a UNet2DConditionModel of diffusers, not {kind}: {hint}")
    if any(p.is_meta for p in net.parameters()) and any(
        hasattr(m, "_hf_hook") for m in net.modules()
    ):
        raise ValueError("teacher: its weights are offloaded: call pipe.remove_all_hooks() first")
    return net


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a teacher or of a part of it under their plain names: LoRA layers that are
    fused count as fused, compiled parts by their own names.

    Raises ValueError for an unfused LoRA and for weights in float8, on which nothing runs.
    """
    lora = [m for m in module.modules() if hasattr(m, "base_layer")]
    if any(not m.merged and not m.disable_adapters for m in lora):
        raise ValueError(
            "teacher: has an unfused LoRA: keep it by fuse_lora() or drop it by unload_lora()"
        )
    state = module.state_dict()
    if any(v.dtype.itemsize == 1 and v.is_floating_point() for v in state.values()):
        raise ValueError(
            "teacher: its weights are stored in float8: load it again without layerwise casting"
        )
    plain = {k: v for k, v in state.items() if ".lora_" not in k}
    return {re.sub(r"_orig_mod\.|(?<=\.)base_layer\.", "", k): v for k, v in plain.items()}


def refuse_unusual(config: dict, own: set[str]) -> None:
    """ValueError for a setting that our stages do not read and that is not SD 1.5's."""
    theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
    for key, usual in theirs.items():
        value = config.get(key, usual.default)
        if key == "self" or key in own | _IDLE:
            continue
        if isinstance(value, (list, tuple)) and not isinstance(usual.default, tuple):
            value = value[0] if len(set(map(str, value))) == 1 else value
        value = tuple(value) if isinstance(value, list) else value
        if value != usual.default and (value or usual.default):
            raise ValueError(
                f"teacher: {key} {value!r} is not SD 1.5's ({usual.default!r}) and not supported"
            )


# ------------------------------------------------------------------------------------ configuration
class Marker(str):
    """A block type that no class of diffusers builds: it says what to do instead, also to
    `UNetMotionModel.from_unet2d`, which only asks whether "CrossAttn" is in it.
    """

    def __contains__(self, part: object) -> bool:
        raise ValueError(f"unknown block type: {self}")


def described(a: Arch, removed: tuple[str, ...], loader: str) -> dict:
    """The entries of a student's configuration that diffusers' own classes read: true wherever they
    can build the network, and otherwise a block type that says what to do instead.

    diffusers repeats an unknown block type in its error, so this is what the reader sees.
    """
    do = f"load it with {loader}; make a ControlNet of its teacher"
    no = Marker(f"a stock block for this student ({do})")
    down = [code for s, code in a.stages.items() if s[0] == "E"]
    up = [code for s, code in a.stages.items() if s[0] == "D"]
    layers = [code.count("R") for code in down]
    even = len(set(layers)) == 1 and not any(s[0] == "E" for s in removed)
    same = even and not removed and layers[0] == 2 and set(up) <= {"RARARA", "RRR"}
    mid = "UNetMidBlock2DCrossAttn" if a.deep and "M" not in removed else None
    return dict(
        down_block_types=tuple(_kind(code, "Down") if even else no for code in down),
        up_block_types=tuple(_kind(code, "Up") if same else no for code in up),
        mid_block_type=mid if mid or same else no,
        layers_per_block=layers[0] if even else tuple(layers),
    )


def described_vae(levels: int, loader: str) -> dict:
    """The same of a slim VAE, which no class of diffusers can build."""
    no = (f"a stock block for this VAE (load it with {loader})",) * levels
    return dict(down_block_types=no, up_block_types=no)


def _kind(code: str, way: str) -> str:
    return f"CrossAttn{way}Block2D" if "A" in code else f"{way}Block2D"


# ---------------------------------------------------------------------------------------- residuals
def fitted(
    a: Arch, down: tuple[Tensor, ...], mid: Tensor
) -> tuple[tuple[Tensor, ...], Tensor | int]:
    """A ControlNet's residuals as a student of this arch reads them: one per tensor of its encoder.

    Taken are the student's own (conv_in, then first, last[, down] of each stage), those of a stock
    network (one per ResNet block, where first is last) and the teacher's twelve, of which E4's and
    the mid block's have no place in a student without them: left out, with a warning. Raises
    ValueError for any other number.
    """
    index = _stock_index(a)
    own, stock = len(index), 1 + max(index)
    if len(down) == own:
        return tuple(down), mid
    if len(down) == stock:
        return tuple(down[i] for i in index), mid
    if len(down) == 12 and not a.deep:
        warnings.warn(
            "ControlNet of the teacher: its residuals of E4 and of the mid block are left out,"
            " this student has neither",
            stacklevel=3,
        )
        return tuple(down[:own]), mid.new_zeros(())
    raise ValueError(
        f"ControlNet: {len(down)} residuals, but {a} takes {own}"
        f"{f', {stock}' if stock != own else ''}{'' if a.deep else ' or the 12 of its teacher'}"
    )


def _stock_index(a: Arch) -> list[int]:
    """For each tensor of a student's encoder, its number among those of a stock network."""
    codes, index = [code for s, code in a.stages.items() if s[0] == "E"], [0]
    for code in codes:
        first = index[-1] + 1
        last = first + code.count("R") - 1
        index += [first, last, last + 1]
    return index[:-1]  # the deepest stage is not downsampled


class Saved(_Student):
    """What a network of ours does besides diffusers' own when it is saved and loaded."""

    @property
    def class_name(self) -> str:
        """Module and class, as one writes them to load this network."""
        return f"{type(self).__module__}.{type(self).__name__}"

    def to_json_string(self) -> str:
        """The configuration, which names this class in full for those who load it elsewhere."""
        config = json.loads(super().to_json_string()) | {"_class_name": self.class_name}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs):
        """Ignore, without a warning, the stock model's settings that a saved configuration also
        holds.
        """
        own = cls._get_init_keys(cls)
        return super().extract_init_dict(
            {k: v for k, v in config_dict.items() if k in own or k[0] == "_"}, **kwargs
        )


class Calls(Saved):
    """What a student does besides `UNet2DConditionModel` when it is called and when it is saved."""

    @wraps(UNet2DConditionModel.forward)
    def forward(self, *args, **kwargs):
        down, middle = "down_block_additional_residuals", "mid_block_additional_residual"
        if len(args) > 8:  # residuals given by place
            names = list(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
            args, kwargs = (), dict(zip(names, args, strict=False)) | kwargs
        adapter = down if kwargs.get(middle) is None else "down_intrablock_additional_residuals"
        for key in {adapter, "down_intrablock_additional_residuals"}:
            if kwargs.get(key) is not None:  # E4's has no place where its stage is gone
                kwargs[key] = list(kwargs[key])[: len(self.down_blocks)]
        if kwargs.get(down) is not None and kwargs.get(middle) is not None:
            residuals = fitted(self.arch, kwargs[down], kwargs[middle])
            kwargs |= dict(zip((down, middle), residuals, strict=True))
        return super().forward(*args, **kwargs)
