"""LoRA and IP-Adapter weights on a student: its own, and the teacher's as far as the student keeps
the blocks they were trained for.

A student without E4, M and D4 numbers its decoder stages one lower than the teacher; inside a stage
every block keeps its number.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor

from nanosd_lib.networks.blocks import BLOCK

_Student: Any = object  # a mixin: UNet2DConditionModel stands beside it

_FETCH = (
    "weight_name", "use_safetensors", "local_files_only", "cache_dir", "force_download",
    "proxies", "token", "revision", "subfolder",
)  # fmt: skip
_PLACE = re.compile(r"(?<![a-z_])up_blocks\.(\d)")


# --------------------------------------------------------------------------------------------- LoRA
def map_lora(
    state_dict: dict[str, Tensor], student: UNet2DConditionModel
) -> tuple[dict[str, Tensor], list]:
    """A teacher's LoRA under the student's names, and the teacher's modules that it has no place
    for.

    Keys are diffusers' or peft's, with or without the prefix "unet."; those of a text encoder stay
    as they are. Raises ValueError for a file of another format.
    """
    if any(k.startswith("lora_unet_") for k in state_dict):
        raise ValueError(
            "LoRA: these are kohya's names: read the file with"
            " StableDiffusionPipeline.lora_state_dict(path)[0] first"
        )
    mapped: dict[str, Tensor] = {}
    left_out: dict[str, None] = {}
    for key, value in state_dict.items():
        if key.startswith("text_encoder"):
            mapped[key] = value
            continue
        name = student_name(key, student)
        if name is not None and fits(name, value, student):
            mapped[name] = value
        else:
            left_out[_module(key)] = None
    return mapped, list(left_out)


def student_name(key: str, student: UNet2DConditionModel) -> str | None:
    """A teacher's name in the student, None where its decoder stage is gone."""
    if student.arch.deep:
        return key
    if (place := _PLACE.search(key)) is None:
        return key
    i = int(place[1]) - 1
    return _PLACE.sub(f"up_blocks.{i}", key) if i >= 0 else None


def fits(key: str, value: Tensor, student: UNet2DConditionModel) -> bool:
    """Whether the student has the module of a LoRA weight, and in its shape (out, in, ...)."""
    try:
        module = student.get_submodule(_module(key).removeprefix("unet."))
    except AttributeError:
        return False
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    if weight is None or value.ndim < 2:
        return weight is not None
    if re.search(r"lora_A|lora\.down", key):
        return weight.ndim == value.ndim and value.shape[1] == weight.shape[1]
    if re.search(r"lora_B|lora\.up", key):
        return value.shape[0] == weight.shape[0]
    return True


def _module(key: str) -> str:
    """The module a LoRA weight is for, in the names of today's diffusers."""
    name = re.split(r"\.lora_|\.lora\.|\.lokr_|\.alpha$|_lora\.", key)[0]
    return re.sub(r"\.processor\.", ".", re.sub(r"to_out$", "to_out.0", name))


def is_teachers(state_dict: dict[str, Tensor], student: UNet2DConditionModel) -> bool:
    """Whether LoRA weights in peft's names are numbered as the teacher's blocks are."""
    if student.arch.deep or all(fits(k, v, student) for k, v in state_dict.items()):
        return False
    if any(re.search(r"mid_block\.|(up|down)_blocks\.3\.", k) for k in state_dict):
        return True
    if any(re.search(r"up_blocks\.0\.attentions", k) for k in state_dict):
        return False
    mapped, _ = map_lora(state_dict, student)
    return len(mapped) > sum(fits(k, v, student) for k, v in state_dict.items())


def _settings(metadata: dict | None, prefix: str, modules: list[str], student) -> dict | None:
    """A LoRA's saved settings, with the modules and patterns named as in the student."""
    if metadata is None:
        return None
    out = dict(metadata)
    for key, value in metadata.items():
        if key.endswith("target_modules"):
            out[key] = modules
        elif isinstance(value, dict):
            names = {k: student_name(k, student) for k in value}
            out[key] = {names[k]: v for k, v in value.items() if names[k] is not None}
    return out


def _say(left_out: list[str], kept: int, student) -> None:
    """One line on what a LoRA cannot bring; ValueError where it brings nothing."""
    names = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if left_out[3:] else "")
    if not kept:
        raise ValueError(
            f"LoRA: none of its modules is in the student {student.arch} ({names}):"
            " it was made for another network"
        )
    if left_out:
        warnings.warn(
            f"LoRA: {kept} modules fit the student {student.arch}, left out: {names}", stacklevel=4
        )


class TeacherAdapters(_Student):
    """`load_lora_adapter`, `set_adapters` and `load_ip_adapter` of a student: as in
    `UNet2DConditionModel`, and what was made for the teacher is renumbered.
    """

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict, prefix: str | None = "transformer", **kwargs
    ) -> None:
        """As in diffusers. A teacher's LoRA is mapped; what has no place in the student is named in
        a warning, and a ValueError says where nothing has.
        """
        how = {k: kwargs.pop(k, None) for k in _FETCH}
        how["use_safetensors"] = how["use_safetensors"] is not False  # what save_lora_adapter wrote
        state, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            metadata=kwargs.pop("metadata", None),
            **how,
        )
        start = f"{prefix}." if prefix else ""
        state = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if state and not any(".lora_" in k or ".lokr_" in k for k in state):
            state = convert_unet_state_dict_to_peft(state)
        teachers = is_teachers(state, self)
        if teachers:
            state, left_out = map_lora(state, self)
            self._lora_of_teacher(kwargs, start)
        else:
            left_out = list({_module(k): None for k, v in state.items() if not fits(k, v, self)})
            state = {k: v for k, v in state.items() if fits(k, v, self)}
        modules = list({_module(k): None for k in state})
        if left_out:
            _say(left_out, len(modules), self)
        if teachers or left_out:
            metadata = _settings(metadata, start, modules, self) if teachers else metadata
        state = {start + k: v for k, v in state.items()}
        super().load_lora_adapter(state, prefix=prefix, metadata=metadata, **kwargs)

    def _lora_of_teacher(self, kwargs: dict, start: str) -> None:
        """The network alphas of a teacher's LoRA under the student's names."""
        if alphas := kwargs.get("network_alphas"):
            names = {k: student_name(k, self) for k in alphas}
            kwargs["network_alphas"] = {names[k]: v for k, v in alphas.items() if names[k]}

    def set_adapters(self, adapter_names, weights=None) -> None:
        """As in diffusers; weights by block, {"down": 1, "up": {"block_0": [0.5, 1]}}, count the
        student's own blocks and the transformer blocks that it keeps in them.
        """
        many = weights if isinstance(weights, list) else [weights]
        spread = [by_block(w, self) if isinstance(w, dict) else w for w in many]
        super().set_adapters(adapter_names, spread if isinstance(weights, list) else spread[0])

    def _convert_ip_adapter_attn_to_diffusers(self, state_dicts, **kwargs):
        states = [s | {"ip_adapter": ip_weights(s["ip_adapter"], self)} for s in state_dicts]
        return super()._convert_ip_adapter_attn_to_diffusers(states, **kwargs)

    def _load_ip_adapter_loras(self, state_dicts):
        states = [s | {"ip_adapter": ip_weights(s["ip_adapter"], self)} for s in state_dicts]
        return super()._load_ip_adapter_loras(states)


def transformers_of(student: UNet2DConditionModel) -> dict[str, list[int]]:
    """The transformer blocks of a student: "down_blocks.0" -> their numbers, "mid_block" -> [0]."""
    groups = {"down_blocks": student.down_blocks, "up_blocks": student.up_blocks}
    blocks = {f"{g}.{i}": b for g, group in groups.items() for i, b in enumerate(group)}
    blocks |= {"mid_block": student.mid_block} if student.mid_block.attentions else {}
    kept = {k: getattr(b, "attentions", None) or () for k, b in blocks.items()}
    return {k: [i for i, a in enumerate(v) if a is not None] for k, v in kept.items()}


def by_block(scales: dict, student: UNet2DConditionModel, default: float = 1.0) -> dict[str, float]:
    """Adapter weights by block as diffusers' pipelines take them -> weight of each transformer
    block; ValueError for a block that is not there, and for a list of another length.
    """
    out: dict = {}
    known = {"mid", "down", "up"}
    for name, numbers in transformers_of(student).items():
        way, _, i = name.partition("_blocks.")
        way = way.removesuffix("_block")
        given = scales.get(way, default)
        if isinstance(given, dict):
            _known(set(given), {f"block_{j}" for j in range(len(student.down_blocks))}, way)
            given = given.get(f"block_{i}", default)
        given = given if isinstance(given, list) else [given]
        given = given * len(numbers) if len(given) == 1 else given
        if len(given) != len(numbers):
            raise ValueError(f"adapter weights: {name} has {len(numbers)} transformer blocks")
        out |= {f"{name}.attentions.{j}": w for j, w in zip(numbers, given, strict=True)}
    _known(set(scales), known if student.mid_block.attentions else known - {"mid"}, "this student")
    return out


def _known(given: set, known: set, where: str) -> None:
    if strange := sorted(given - known):
        raise ValueError(f"adapter weights: {where} has no {strange[0]!r}: use {sorted(known)}")


# --------------------------------------------------------------------------------------- IP-Adapter
def ip_weights(weights: dict[str, Tensor], student: UNet2DConditionModel) -> dict[str, Tensor]:
    """An IP-Adapter's weights under the student's numbers.

    They are numbered by attention layer, two for each transformer block, in the order down, up,
    mid. Those of the student's own count stay; those of the teacher's sixteen are picked. Raises
    ValueError for another count.
    """
    teacher = [(s, i) for s in ("E1", "E2", "E3") for i in range(2)]
    teacher += [(s, i) for s in ("D3", "D2", "D1") for i in range(3)] + [("M", 0)]
    kept = _kept_transformers(student)
    count = len({k.split(".")[0] for k in weights if ".to_k_ip" in k})
    if count == len(kept):
        return weights
    if count != len(teacher):
        raise ValueError(
            f"IP-Adapter: made for {count} transformer blocks; the student {student.arch} has"
            f" {len(kept)}, its teacher {len(teacher)}"
        )
    places = {teacher.index(k): j for j, k in enumerate(kept)}
    split = [(int(k.split(".")[0]), k.partition(".")[2], v) for k, v in weights.items()]
    return {f"{2 * places[n // 2] + n % 2}.{k}": v for n, k, v in split if n // 2 in places}


def _kept_transformers(student: UNet2DConditionModel) -> list[tuple[str, int]]:
    """(stage, number) of each transformer block of a student in diffusers' order."""
    shift = 0 if student.arch.deep else 1
    stage = {f"{g}.{i - shift if g == 'up_blocks' else i}": s for s, (g, i) in BLOCK.items()}
    stage["mid_block"] = "M"
    return [(stage[k], i) for k, numbers in transformers_of(student).items() for i in numbers]
