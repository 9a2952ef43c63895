"""VAE slimming (paper, method step 4): a student of fixed width that stands wherever the teacher's
autoencoder stands, and its distillation with four terms.

    x (3, 512, 512) -> encoder, 64 channels everywhere -> mean, log-variance (4, 64, 64) each
    z (4, 64, 64)   -> decoder, 64 channels everywhere -> picture (3, 512, 512)

The paper gives the width, the order inside a block and two parameter counts (2.0 M and 1.3 M). How
many blocks stand at which resolution it does not say; `LAYOUTS` is our assumption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from nanosd_lib.networks import precision, stock

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny
__all__ = ["Block", "Layout", "ModelMixin", "SlimVAE"]  # pipelines look for ModelMixin beside it


@dataclass(frozen=True)
class Layout:
    """Channels, and blocks at each resolution from the picture's down to the latent's, and up."""

    width: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]


# by the number of resolutions. SD 1.5's sum is what the printed parameters ask for; where its
# blocks stand is our assumption: few where a block is dear, most at the latent's resolution
LAYOUTS = {
    4: Layout(64, (1, 3, 6, 16), (10, 4, 2, 1)),  # SD 1.5: 2.04 M and 1.37 M parameters
    2: Layout(24, (0, 4), (3, 1)),  # sd-mini: fewer, or their mere number would cost the time
}


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Halving(nn.Conv2d):
    """(N, width, h, w) -> (N, width, h // 2, w // 2): of odd sizes the last row or column is left
    out, so that latents have the size of AutoencoderKL's, which pads on the other side.
    """

    def __init__(self, width: int):
        super().__init__(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        return super().forward(x[..., : h - h % 2, : w - w % 2] if h % 2 or w % 2 else x)


class Block(nn.Module):
    """Conv, norm, activation, conv (paper), around them an identity (our assumption)."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)
        self.norm, self.act = nn.GroupNorm(groups, width), nn.SiLU()
        nn.init.zeros_(self.second.weight)  # every block begins as the identity
        if self.second.bias is not None:
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, width, h, w)
        return x + self.second(self.act(self.norm(self.first(x))))


def _encoder(inputs: int, outputs: int, width: int, groups: int, blocks: tuple[int, ...]):
    layers: list[nn.Module] = [_conv(inputs, width)]
    for i, n in enumerate(blocks):
        layers += [Halving(width)] if i else []
        layers += [Block(width, groups) for _ in range(n)]
    return nn.Sequential(*layers, _conv(width, outputs))


def _decoder(inputs: int, outputs: int, width: int, groups: int, blocks: tuple[int, ...]):
    layers: list[nn.Module] = [_conv(inputs, width)]
    for i, n in enumerate(blocks):
        layers += [nn.Upsample(scale_factor=2), _conv(width, width)] if i else []
        layers += [Block(width, groups) for _ in range(n)]
    return nn.Sequential(*layers, _conv(width, outputs))


class SlimVAE(stock.Saved, AutoencoderKL):
    """The student: `encode(x).latent_dist`, `decode(z).sample`, slicing, tiling, saving and loading
    are AutoencoderKL's own; encoder and decoder are these.

    ValueError where the widths differ, or a layout has another number of resolutions.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        encoder_blocks: tuple[int, ...] = LAYOUTS[4].encoder,
        decoder_blocks: tuple[int, ...] = LAYOUTS[4].decoder,
        latent_channels: int = 4,
        norm_num_groups: int = 16,
        sample_size: int = 512,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = False,
        use_quant_conv: bool = False,
        use_post_quant_conv: bool = False,
    ):
        super(AutoencoderKL, self).__init__()  # its own __init__ would build the wide networks
        width, levels = block_out_channels[0], len(block_out_channels)
        if set(block_out_channels) != {width}:
            raise ValueError(f"block_out_channels = {block_out_channels}: one width is wanted")
        if not len(encoder_blocks) == len(decoder_blocks) == levels:
            raise ValueError(
                f"encoder_blocks = {encoder_blocks}, decoder_blocks = {decoder_blocks}:"
                f" {levels} resolutions are wanted, as in block_out_channels"
            )
        self.register_to_config(**stock.described_vae(levels, self.class_name))
        z = latent_channels
        self.encoder = _encoder(in_channels, 2 * z, width, norm_num_groups, encoder_blocks)
        self.decoder = _decoder(z, out_channels, width, norm_num_groups, decoder_blocks)
        self.quant_conv = self.post_quant_conv = None
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size = sample_size
        self.tile_latent_min_size = sample_size >> (levels - 1)
        self.tile_overlap_factor = 0.25


def layout_of(teacher: AutoencoderKL) -> Layout:
    """The row of `LAYOUTS` for this teacher."""
    levels = len(teacher.config.block_out_channels)
    if levels not in LAYOUTS:
        raise ValueError(f"a VAE of {levels} resolutions has no layout: use one of {list(LAYOUTS)}")
    return LAYOUTS[levels]


@precision.single()
def slim(teacher: AutoencoderKL) -> SlimVAE:
    """An untrained student for this teacher, with its resolutions and its scaling factor;
    ValueError where no layout has as many resolutions.
    """
    c, layout = teacher.config, layout_of(teacher)
    levels, width = len(c.block_out_channels), layout.width
    return SlimVAE(
        block_out_channels=(width,) * levels,
        encoder_blocks=layout.encoder,
        decoder_blocks=layout.decoder,
        latent_channels=c.latent_channels,
        norm_num_groups=max(1, width // 4),
        sample_size=c.sample_size,
        scaling_factor=c.scaling_factor,
    )


@precision.single()
def tiny(teacher: AutoencoderKL) -> AutoencoderTiny:
    """diffusers' AutoencoderTiny (the layout of TAESD) at the student's width, untrained: no
    variance, and latents that are already scaled.
    """
    c = teacher.config
    widths = (layout_of(teacher).width,) * len(c.block_out_channels)
    blocks = (1, *(3,) * (len(widths) - 1))
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        latent_channels=c.latent_channels,
    )


KINDS: dict[str, Callable[[AutoencoderKL], Autoencoder]] = {"slim": slim, "tiny": tiny}


def load(kind: str, teacher: AutoencoderKL, weights: dict[str, Tensor]) -> Autoencoder:
    """A trained student, frozen, on the teacher's device and in its dtype."""
    net = KINDS[kind](teacher)
    net.load_state_dict(weights)
    return net.to(next(teacher.parameters())).eval().requires_grad_(False)


def encoded(vae: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scaled mean and standard deviation (N, C, h, w) of pictures; AutoencoderTiny has no such
    deviation.
    """
    k, out = vae.config.scaling_factor, vae.encode(x)
    if not hasattr(out, "latent_dist"):
        return out.latents * k, None
    return out.latent_dist.mean * k, out.latent_dist.std * k


def decoded(vae: Autoencoder, z: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) of scaled latents."""
    return vae.decode(z / vae.config.scaling_factor).sample
