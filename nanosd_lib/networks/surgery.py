"""Network surgery: a student U-Net of any `Arch` from any Stable-Diffusion-type U-Net of diffusers.

The interface of a stage, once for all 32,768 networks:

    an encoder stage emits   first, last [, down]
    a decoder stage reads    entry, first, last    of the encoder stage at its resolution

`first` and `last` are what the encoder's first and last ResNet block (with its transformer block)
gave, `down` is last, downsampled, and `entry` is what entered the encoder stage: conv_in's output
or the `down` before it. An encoder with one ResNet block has first = last.

Decoder block r0 reads last, r1 reads first, r2 reads entry, with the teacher's channel counts. A
decoder of three keeps r0 r1 r2, of two r0 r2, of one r2 alone, behind a 1x1 convolution where the
hidden channels it receives are not those it was built for (our assumption: the paper does not
explain one-R decoders).

Every stage thus emits tensors of fixed shapes and reads three of fixed shapes, whatever its code:
any choice composes with any other. With all originals and E4-M-D4 the rule is SD 1.5's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy as shallow
from typing import cast

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from nanosd_lib.networks import stock
from nanosd_lib.networks.arch import BASE, STAGES, Arch
from nanosd_lib.networks.blocks import (
    BLOCK,
    Bridge,
    DecoderStage,
    NoMid,
    Stage,
    average_channels,
    decoder,
    encoder,
    mid,
)
from nanosd_lib.networks.lora import TeacherAdapters

__all__ = ["ModelMixin", "NanoUNet"]  # pipelines look for ModelMixin beside a network of ours


class NanoUNet(TeacherAdapters, stock.Calls, UNet2DConditionModel):
    """A `UNet2DConditionModel` whose stages follow an `Arch`: same call, same output, same saving
    and loading.

    `block_out_channels` and `attention_head_dim` are the teacher's four, or the first three where
    the arch lacks E4, M, D4, as the configuration then says; `removed` names the stages that
    `without` took out. Raises ValueError for an arch that does not parse, and for widths on which
    E4-M-D4 cannot be left out.
    """

    _no_split_modules = [*UNet2DConditionModel._no_split_modules, "EncoderStage", "DecoderStage"]

    @register_to_config
    def __init__(
        self,
        arch: str = "R RA RA | RARA RARA RR",
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        cross_attention_dim: int = 768,
        attention_head_dim: int | tuple[int, ...] = 8,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        act_fn: str = "silu",
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        center_input_sample: bool = False,
        downsample_padding: int = 1,
        use_linear_projection: bool = False,
        upcast_attention: bool = False,
        removed: tuple[str, ...] = (),
    ) -> None:
        a = Arch.parse(arch)
        if len(block_out_channels) == 3 and not a.deep:
            block_out_channels = (*block_out_channels, block_out_channels[2])
        if len(block_out_channels) != 4 or block_out_channels[2] != block_out_channels[3]:
            raise ValueError(
                f"block_out_channels {tuple(block_out_channels)}: NanoSD surgery needs four widths,"
                " the last two equal, as in SD 1.5"
            )
        depth = 4 if a.deep else 3
        widths = tuple(block_out_channels)
        one, heads = isinstance(attention_head_dim, int), _heads(attention_head_dim)
        frame = dict(
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            act_fn=act_fn,
            downsample_padding=downsample_padding,
        )
        frame |= dict(
            cross_attention_dim=cross_attention_dim,
            use_linear_projection=use_linear_projection,
            upcast_attention=upcast_attention,
        )
        device = torch.get_default_device()
        # the stock blocks are never allocated, and the plainest: ours replace them below, and what
        # the configuration says of them
        with torch.device("meta"):
            super().__init__(
                sample_size=sample_size,
                in_channels=in_channels,
                out_channels=out_channels,
                block_out_channels=widths[:depth],
                down_block_types=("DownBlock2D",) * depth,
                up_block_types=("UpBlock2D",) * depth,
                mid_block_type=None,
                attention_head_dim=heads[:depth],
                flip_sin_to_cos=flip_sin_to_cos,
                freq_shift=freq_shift,
                center_input_sample=center_input_sample,
                **frame,
            )
        self.register_to_config(
            block_out_channels=widths[:depth],
            attention_head_dim=attention_head_dim if one else heads[:depth],
            removed=tuple(removed),
            **stock.described(a, tuple(removed), self.class_name),
        )
        config = _built_with(frame, heads, widths)
        self.down_blocks = nn.ModuleList(
            encoder(s, c, a, widths, config) for s, c in a.stages.items() if s[0] == "E"
        )
        self.up_blocks = nn.ModuleList(
            decoder(s, c, widths, config) for s, c in a.stages.items() if s[0] == "D"
        )
        self.mid_block = mid(widths, config) if a.deep else NoMid()
        for i, stage in enumerate(self.up_blocks):
            cast(DecoderStage, stage).resolution_idx = i
        for name in removed:
            self._bridge(name)
        for module in (self.conv_in, self.time_embedding, self.conv_norm_out, self.conv_out):
            module.to_empty(device=device)
            for m in module.modules():
                if hasattr(m, "reset_parameters") and device.type != "meta":
                    m.reset_parameters()

    @property
    def arch(self) -> Arch:
        return Arch.parse(self.config.arch)

    def stage(self, name: str) -> Stage:
        """The module of stage E1 ... D1."""
        group, i = BLOCK[name]
        return getattr(self, group)[i - (group == "up_blocks" and not self.arch.deep)]

    def _bridge(self, name: str) -> None:
        """Put a `Bridge` in the place of a stage, `NoMid` in that of M."""
        if name == "M":
            self.mid_block = NoMid()
            return
        group, gone = BLOCK[name][0], self.stage(name)
        blocks = [Bridge(block) if block is gone else block for block in getattr(self, group)]
        setattr(self, group, nn.ModuleList(blocks))


def _heads(attention_head_dim: int | tuple[int, ...]) -> tuple[int, ...]:
    """One number of heads for each of the four depths."""
    if isinstance(attention_head_dim, int):
        return (attention_head_dim,) * 4
    return tuple(attention_head_dim)


def _built_with(frame: dict, heads: tuple[int, ...], widths: tuple[int, ...]) -> dict:
    """What every stage of a network is built with."""
    return frame | {"heads": heads, "temb": 4 * widths[0]}


# -------------------------------------------------------------------------------------- inheritance
def settings(teacher: UNet2DConditionModel) -> dict:
    """The teacher's configuration as `NanoUNet` takes it; ValueError where it is not of Stable
    Diffusion's type.
    """
    c = stock.unwrapped(teacher).config
    if (
        tuple(c.down_block_types) != ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
        or c.layers_per_block != 2
    ):
        raise ValueError(
            "teacher: needs SD 1.5's blocks (three CrossAttnDownBlock2D, one DownBlock2D,"
            f" two layers each), not {tuple(c.down_block_types)}"
        )
    if (
        c.class_embed_type
        or c.addition_embed_type
        or c.time_cond_proj_dim
        or c.encoder_hid_dim_type
    ):
        raise ValueError(
            "teacher: class, addition and time-condition embeddings are not SD 1.5's"
            " and not supported"
        )
    own = NanoUNet._get_init_keys(NanoUNet) - {"arch", "removed"}
    stock.refuse_unusual(c, own | {"down_block_types", "layers_per_block"})
    return {k: c[k] for k in own if k in c}


def teacher_name(name: str, deep: bool) -> str:
    """Where a student's parameter stands in the teacher: the same name, one decoder block later
    without D4.
    """
    return (
        name if deep else re.sub(r"^up_blocks\.(\d)", lambda m: f"up_blocks.{int(m[1]) + 1}", name)
    )


def inherit(
    student: nn.Module, teacher: UNet2DConditionModel, deep: bool, copy: bool = True
) -> list[str]:
    """Copy the teacher's weights into the student, or let it hold the very same tensors; returns
    the parameters it has none for (1x1 reductions only).
    """
    source = stock.weights(teacher)
    state = {
        k: source[teacher_name(k, deep)]
        for k in student.state_dict()
        if teacher_name(k, deep) in source
    }
    missing = student.load_state_dict(state, strict=False, assign=not copy).missing_keys
    if strangers := [k for k in missing if ".reduce." not in k]:
        raise ValueError(
            f"teacher: has no weights for {strangers[0]} and {len(strangers) - 1} others"
        )
    return missing


def student(arch: Arch | str, teacher: UNet2DConditionModel) -> NanoUNet:
    """A new U-Net of this arch with the teacher's weights wherever it keeps a block; the teacher is
    untouched. It may be compiled, parallel, prepared by accelerate, or hold a fused LoRA.
    """
    a, teacher = Arch.parse(str(arch)), stock.unwrapped(teacher)
    p = next(teacher.parameters())
    with torch.device(p.device):
        net = NanoUNet(arch=str(a), **settings(teacher))
    net = net.to(p)  # made in torch's default dtype; by a dtype, diffusers would warn
    if p.device.type != "meta":
        inherit(net, teacher, a.deep)
    return net.eval()


def borrow(arch: Arch | str, teacher: UNet2DConditionModel) -> NanoUNet:
    """A student made of the teacher's own tensors: nothing is copied, so it is for looking and
    measuring, not for training.
    """
    a, teacher = Arch.parse(str(arch)), stock.unwrapped(teacher)
    p = next(teacher.parameters())
    with torch.device("meta"):
        net = NanoUNet(arch=str(a), **settings(teacher))
    for stage in net.up_blocks:
        if stage.reduce is not None:
            stage.reduce.to_empty(device=p.device).to(p.dtype)
            average_channels(stage.reduce)
    inherit(net, teacher, a.deep, copy=False)
    return net.eval()


def without(net: NanoUNet, stage: str) -> NanoUNet:
    """A network that lacks one stage (E1 ... D1, E4, M, D4) and shares everything else with `net`,
    which is untouched: M is skipped, any other stage becomes a `Bridge` of its shapes.

    Saved and loaded like any other. Raises ValueError for a stage that is not there.
    """
    gone = tuple(net.config.removed)
    if stage not in net.arch.stages or stage in gone:
        left = ", ".join(s for s in net.arch.stages if s not in gone)
        raise ValueError(f"without {stage!r}: this network has {left}")
    other = shallow(net)
    other._modules, gone = net._modules.copy(), (*gone, stage)
    other._bridge(stage)
    layout = stock.described(net.arch, gone, net.class_name)
    other.register_to_config(removed=gone, **layout)
    return other


def surrogate(stage: str, code: str, teacher: UNet2DConditionModel) -> Stage:
    """One stage of that code alone, at the teacher's widths and with the teacher's weights where it
    keeps a block.
    """
    teacher = stock.unwrapped(teacher)
    p, a, s = next(teacher.parameters()), Arch(**(BASE | {stage: code})), settings(teacher)
    config = _built_with(s, _heads(s["attention_head_dim"]), s["block_out_channels"])
    with torch.device("meta"):
        if stage[0] == "E":
            part: Stage = encoder(stage, code, a, s["block_out_channels"], config)
        else:
            part = decoder(stage, code, s["block_out_channels"], config)
            part.resolution_idx = BLOCK[stage][1] - 1  # a network of such stages has no D4
    part = part.to_empty(device=p.device).to(p.dtype)
    if getattr(part, "reduce", None) is not None:
        average_channels(cast(nn.Conv2d, part.reduce))
    group, i = BLOCK[stage]
    source = stock.weights(getattr(teacher, group)[i])
    part.load_state_dict({k: source[k] for k in part.state_dict() if k in source}, strict=False)
    return part


def assemble(
    arch: Arch, teacher: UNet2DConditionModel, surrogates: Mapping[str, nn.Module] | nn.ModuleDict
) -> NanoUNet:
    """A student whose changed stages are the trained surrogates, named "E1:RA"; no training (paper,
    step 3). An original that was taught too (`arch.EXTRA`) takes its own place, unless the network
    keeps E4, M and D4, with which the teacher's own is right.

    Raises KeyError naming the surrogate that is not there.
    """
    net = student(arch, teacher)
    for stage in STAGES:
        code = getattr(arch, stage)
        name = f"{stage}:{code}"
        if code != BASE[stage] or (name in surrogates and not arch.deep):
            net.stage(stage).load_state_dict(surrogates[name].state_dict())
    return net
