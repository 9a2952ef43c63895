"""Blocks: the stages a student U-Net is made of, built from diffusers' own ResNet and transformer
blocks. `surgery` says what a stage reads and emits.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn
from diffusers.models.upsampling import Upsample2D
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from nanosd_lib.networks.arch import Arch

BLOCK = {
    "E1": ("down_blocks", 0),
    "E2": ("down_blocks", 1),
    "E3": ("down_blocks", 2),
    "E4": ("down_blocks", 3),
}
BLOCK |= {
    "D4": ("up_blocks", 0),
    "D3": ("up_blocks", 1),
    "D2": ("up_blocks", 2),
    "D1": ("up_blocks", 3),
}
STAGE_DEPTH = {"E1": 0, "D1": 0, "E2": 1, "D2": 1, "E3": 2, "D3": 2, "E4": 3, "D4": 3}
_R_SLOTS = {
    1: (2,),
    2: (0, 2),
    3: (0, 1, 2),
}  # which of a decoder's three ResNet blocks a code keeps


def slots(stage: str, code: str) -> dict[int, bool]:
    """Index of each kept ResNet block in the teacher's stage -> whether a transformer block follows
    it.
    """
    pairs = [bool(a) for _, a in re.findall("(R)(A?)", code)]
    keep = range(len(pairs)) if stage[0] == "E" else _R_SLOTS[len(pairs)]
    return dict(zip(keep, pairs, strict=True))


class Stage(nn.Module):
    """The ResNet and transformer blocks of one stage under the teacher's own parameter names;
    dropped ones are None.
    """

    resnets: Any  # module lists with None where a code has no block
    attentions: Any
    downsamplers: Any
    upsamplers: Any
    _gradient_checkpointing_func: Any
    has_cross_attention = True
    gradient_checkpointing = False  # as in the stock blocks: recompute the ResNet blocks backwards

    def __init__(
        self, stage: str, code: str, inputs: tuple[int, ...], out: int, config: dict
    ) -> None:
        super().__init__()
        self.stage, self.code, self.slots = stage, code, slots(stage, code)
        groups, eps = config["norm_num_groups"], config["norm_eps"]
        heads = config["heads"][STAGE_DEPTH[stage]]
        resnet = dict(
            out_channels=out,
            temb_channels=config["temb"],
            groups=groups,
            eps=eps,
            non_linearity=config["act_fn"],
        )
        attention = dict(
            in_channels=out,
            cross_attention_dim=config["cross_attention_dim"],
            norm_num_groups=groups,
            use_linear_projection=config["use_linear_projection"],
            upcast_attention=config["upcast_attention"],
        )
        n = range(len(inputs))
        found: list[Any] = [
            ResnetBlock2D(in_channels=inputs[i], **resnet) if i in self.slots else None for i in n
        ]
        self.resnets = nn.ModuleList(found)
        looking: list[Any] = [
            Transformer2DModel(heads, out // heads, **attention) if self.slots.get(i) else None
            for i in n
        ]
        self.attentions = nn.ModuleList(looking)

    def block(self, i: int, x: Tensor, temb: Tensor, text: Tensor | None, **kwargs) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            x = self._gradient_checkpointing_func(self.resnets[i], x, temb)
        else:
            x = self.resnets[i](x, temb)
        return (
            x
            if self.attentions[i] is None
            else self.attentions[i](x, encoder_hidden_states=text, return_dict=False, **kwargs)[0]
        )


class EncoderStage(Stage):
    """hidden (N, C_in, H, W) -> last, (first, last[, down]) with C_out channels; `down` is (N,
    C_out, H/2, W/2).

    A T2I-Adapter's residual (N, C_out, H, W) is added to last, as in `CrossAttnDownBlock2D`. A
    stage without a transformer block also takes one of down's size, as `DownBlock2D` does.
    """

    def __init__(
        self, stage: str, code: str, inputs: int, out: int, down: bool, config: dict
    ) -> None:
        super().__init__(stage, code, (inputs, out), out, config)
        padding = config["downsample_padding"]
        op = (
            [Downsample2D(out, use_conv=True, out_channels=out, padding=padding, name="op")]
            if down
            else None
        )
        self.downsamplers = nn.ModuleList(op) if op else None

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        encoder_attention_mask: Tensor | None = None,
        additional_residuals: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, seen = hidden_states, []
        for i in self.slots:
            x = self.block(
                i,
                x,
                temb,
                encoder_hidden_states,
                attention_mask=attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
                encoder_attention_mask=encoder_attention_mask,
            )
            seen.append(x)
        late = additional_residuals is not None and self.is_late(additional_residuals, x)
        if additional_residuals is not None and not late:
            seen[-1] = x = x + additional_residuals
        skips: tuple[Tensor, ...] = (seen[0], seen[-1])
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            x = x + additional_residuals if late else x
            skips = (*skips, x)
        return x, skips

    def is_late(self, residual: Tensor, last: Tensor) -> bool:
        """Whether an adapter's residual belongs behind the downsampler of a stage without A."""
        other_size = residual.shape[-2:] != last.shape[-2:]
        return other_size and self.downsamplers is not None and "A" not in self.code


class DecoderStage(Stage):
    """hidden (N, C_prev, H, W) and skips (entry, first, last) -> (N, C_out, 2H, 2W), or (N, C_out,
    H, W) in D1.

    `resolution_idx`, its place among the U-Net's decoder stages, is what FreeU goes by.
    """

    resolution_idx: int | None = None

    def __init__(
        self, stage: str, code: str, prev: int, out: int, entry: int, up: bool, config: dict
    ) -> None:
        super().__init__(stage, code, (prev + out, 2 * out, out + entry), out, config)
        self.reduce = nn.Conv2d(prev, out, 1) if 0 not in self.slots and prev != out else None
        self.upsamplers = (
            nn.ModuleList([Upsample2D(out, use_conv=True, out_channels=out)]) if up else None
        )
        if self.reduce is not None and not self.reduce.weight.is_meta:
            average_channels(self.reduce)

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, Tensor, Tensor],
        temb: Tensor,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        upsample_size: tuple[int, int] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        x = hidden_states if self.reduce is None else self.reduce(hidden_states)
        for i in self.slots:
            x = self.block(
                i,
                torch.cat(self.freeu(x, res_hidden_states_tuple[2 - i]), dim=1),
                temb,
                encoder_hidden_states,
                attention_mask=attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
                encoder_attention_mask=encoder_attention_mask,
            )
        return x if self.upsamplers is None else self.upsamplers[0](x, upsample_size)

    def freeu(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (N, C, H, W) and skip (N, C', H, W) as FreeU weighs them while it is enabled."""
        factors = {k: getattr(self, k, None) for k in ("s1", "s2", "b1", "b2")}
        if not all(factors.values()):
            return x, skip
        return apply_freeu(self.resolution_idx, x, skip, **factors)


def average_channels(conv: nn.Conv2d) -> None:
    """Start a 1x1 convolution as the mean of neighbouring channels: the reduction that learns
    nothing yet.
    """
    out, prev = conv.weight.shape[:2]
    with torch.no_grad():
        conv.weight.copy_(
            torch.eye(out, dtype=torch.float32).repeat_interleave(prev // out, 1)[..., None, None]
            * out
            / prev
        )
        if conv.bias is not None:
            conv.bias.zero_()


def encoder(stage: str, code: str, a: Arch, widths: tuple[int, ...], config: dict) -> EncoderStage:
    """Stage E1-E4 at the given widths; the deepest one has no downsampler."""
    i = STAGE_DEPTH[stage]
    return EncoderStage(
        stage, code, widths[max(i - 1, 0)], widths[i], down=i < (3 if a.deep else 2), config=config
    )


def decoder(stage: str, code: str, widths: tuple[int, ...], config: dict) -> DecoderStage:
    """Stage D4-D1 at the given widths."""
    i = STAGE_DEPTH[stage]
    return DecoderStage(
        stage,
        code,
        widths[min(i + 1, 3)],
        widths[i],
        widths[max(i - 1, 0)],
        up=i > 0,
        config=config,
    )


def mid(widths: tuple[int, ...], config: dict) -> UNetMidBlock2DCrossAttn:
    return UNetMidBlock2DCrossAttn(
        in_channels=widths[3],
        temb_channels=config["temb"],
        resnet_eps=config["norm_eps"],
        resnet_act_fn=config["act_fn"],
        resnet_groups=config["norm_num_groups"],
        num_attention_heads=config["heads"][3],
        cross_attention_dim=config["cross_attention_dim"],
        use_linear_projection=config["use_linear_projection"],
        upcast_attention=config["upcast_attention"],
    )


# ------------------------------------------------------------------------------------------ removal
class Nothing(tuple):
    """The blocks of a mid block that is not there; one line for who asks for the first."""

    def __getitem__(self, i):
        raise ValueError(
            "this student has no mid block, which self-attention guidance and others look into:"
            ' take one that keeps M, such as surgery.student("RA RA R R | RAR | RR RARA RARA RARA",'
            " teacher)"
        )


class NoMid(nn.Module):
    """Where a student has no mid block: hands its input (N, C, H, W) on."""

    attentions = resnets = Nothing()

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        return x


def match_channels(x: Tensor, out: int) -> Tensor:
    """(N, C, H, W) -> (N, out, H, W) without parameters: neighbours averaged, or repeated."""
    n, c, h, w = x.shape
    if c >= out:
        return x.view(n, out, c // out, h, w).mean(2)
    return x.repeat_interleave(out // c, 1)


class Bridge(nn.Module):
    """A removed stage: the shortest thing of its shapes, without a parameter (our assumption).

    Channels are averaged or repeated, resolution changes by averaging or by repeating pixels, and a
    decoder's bridge leaves the skips unread. An adapter's residual is added as in an encoder stage.
    """

    has_cross_attention = True

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        last = stage.resnets[max(stage.slots)]
        self.out, self.encoder = last.out_channels, stage.stage[0] == "E"
        self.resamples = (stage.downsamplers if self.encoder else stage.upsamplers) is not None
        self.resnets = [None] * 3  # how many skips a decoder stage is handed

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        upsample_size: tuple[int, int] | None = None,
        additional_residuals: Tensor | None = None,
        **kwargs,
    ):
        x = match_channels(hidden_states, self.out)
        if not self.encoder:
            how = dict(size=upsample_size) if upsample_size is not None else dict(scale_factor=2.0)
            return nn.functional.interpolate(x, **how) if self.resamples else x
        x = x if additional_residuals is None else x + additional_residuals
        down = (nn.functional.avg_pool2d(x, 2, ceil_mode=True),) if self.resamples else ()
        return (down[0] if down else x), (x, x, *down)
