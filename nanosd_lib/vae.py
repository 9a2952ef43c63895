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
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from nanosd_lib import data, quality, training

Autoencoder = AutoencoderKL | AutoencoderTiny
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
    3: Layout(32, (0, 1, 4), (3, 1, 1)),  # sd-mini: fewer, or their mere number would cost the time
}
TERMS = ("latent", "kl", "reconstruction", "perceptual")


# ------------------------------------------------------------------------------------- the networks


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class Block(nn.Module):
    """Conv, norm, activation, conv (paper), around them an identity (our assumption)."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)
        self.norm, self.act = nn.GroupNorm(groups, width), nn.SiLU()
        nn.init.zeros_(self.second.weight)  # every block begins as the identity
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, width, h, w)
        return x + self.second(self.act(self.norm(self.first(x))))


def _encoder(inputs: int, outputs: int, width: int, groups: int, blocks: tuple[int, ...]):
    layers = [_conv(inputs, width)]
    for i, n in enumerate(blocks):
        layers += [_conv(width, width, stride=2)] if i else []
        layers += [Block(width, groups) for _ in range(n)]
    return nn.Sequential(*layers, _conv(width, outputs))


def _decoder(inputs: int, outputs: int, width: int, groups: int, blocks: tuple[int, ...]):
    layers = [_conv(inputs, width)]
    for i, n in enumerate(blocks):
        layers += [nn.Upsample(scale_factor=2), _conv(width, width)] if i else []
        layers += [Block(width, groups) for _ in range(n)]
    return nn.Sequential(*layers, _conv(width, outputs))


class SlimVAE(AutoencoderKL):
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


# ------------------------------------------------------------------------------ one way to use them


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


def standard_kl(mean: Tensor, std: Tensor, scale: float) -> Tensor:
    """KL divergence to the standard normal of each picture's unscaled posterior: (N,)."""
    m, s = mean / scale, std / scale
    return 0.5 * (m.pow(2) + s.pow(2) - 1 - 2 * s.log()).sum((1, 2, 3))


# ---------------------------------------------------------------------------------------- the data


@torch.no_grad()
def moments(pipe, scenes: int, crops: int, size: int, seed: int) -> dict:
    """Training pictures as uint8 (N, 3, 64, 64), and the teacher's scaled mean and standard
    deviation of each at size x size, once for every student that learns from them.
    """
    x, _ = data.pictures("train", scenes, crops, seed)
    means, stds = [], []
    for some in x.split(256 if size <= 64 else 8):
        some = quality.sized(some, size).to(pipe.device, pipe.vae.dtype)
        mean, std = encoded(pipe.vae, some)
        means.append(mean.half().cpu())
        stds.append(std.half().cpu())
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).byte()
    mean, std = torch.cat(means).contiguous(), torch.cat(stds).contiguous()
    return {"moments": {"pixels": pixels, "mean": mean, "std": std}}


# ------------------------------------------------------------------------------------- distillation


def terms(
    net: Autoencoder,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    g: torch.Generator,
    perceptual: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The four losses of one batch of pictures x (N, 3, H, W) with the teacher's scaled moments.

    The first half of the batch is decoded from the teacher's latents, the other half from the
    student's own, which also teaches the encoder. Latent matching: squared errors of mean and of
    standard deviation, each over the teacher's mean square, so that the small one counts. KL: of
    the student's posterior to the standard normal, summed over a latent. Reconstruction: absolute
    and squared difference to the picture itself, which is what sd-mini's teacher was trained on.
    The paper names the terms; their forms are our assumption.
    """
    m, s = encoded(net, x)
    noise = torch.randn(mean.shape, generator=g).to(mean)
    k, zero = len(x) // 2, x.new_zeros(())
    own = m[k:] + (std if s is None else s)[k:] * noise[k:]
    y = decoded(net, torch.cat([mean[:k] + std[:k] * noise[:k], own])).float()
    relative = lambda a, b: (a.float() - b).pow(2).mean() / b.pow(2).mean()  # noqa: E731
    scale = net.config.scaling_factor
    return {
        "latent": relative(m, mean) + (zero if s is None else relative(s, std)),
        "kl": zero if s is None else standard_kl(m.float(), s.float(), scale).mean(),
        "reconstruction": (y - x).abs().mean() + (y - x).pow(2).mean(),
        "perceptual": perceptual(y, x).mean(),
    }


@torch.no_grad()
def _begin_at(net: SlimVAE, taught: dict[str, Tensor]) -> None:
    """Start the encoder at the teacher's average mean and log-variance: from anywhere else the
    standard deviations of the first steps, which are exponentials, may be astronomical.
    """
    k, average = net.config.scaling_factor, lambda v: v.float().mean((0, 2, 3))
    mean, std = (average(taught[n]).to(net.device) / k for n in ("mean", "std"))
    net.encoder[-1].bias.copy_(torch.cat([mean, 2 * std.log()]))


def distil(
    kind: str,
    steps: int,
    batch: int,
    lr: float,
    weights: dict[str, float],
    judge: str,
    seed: int,
    teacher: AutoencoderKL,
    taught: dict[str, Tensor],
    size: int,
    scratch: Path,
) -> dict:
    """Train a student of that kind: its weights, and every term along the way.

    weights: one for each of `TERMS`, 0 leaves it out; judge: the backbone of the perceptual term;
    taught: what `moments` returns. Weights are float32 under bfloat16 autocast, which is 1.7 times
    as fast here (narrow U-Nets are slower that way).
    """
    torch.manual_seed(seed)
    net, perceptual = KINDS[kind](teacher).to(teacher.device).train(), quality.lpips_over(judge)
    perceptual = perceptual.to(teacher.device)
    if kind == "slim":
        _begin_at(net, taught)
    seen: list[dict[str, float]] = []

    def loss_of(g: torch.Generator) -> Tensor:
        i = torch.randint(len(taught["pixels"]), (batch,), generator=g)
        x = quality.sized(taught["pixels"][i].float() / 127.5 - 1, size).to(teacher.device)
        mean, std = (taught[k][i].float().to(teacher.device) for k in ("mean", "std"))
        with torch.autocast(teacher.device.type, torch.bfloat16):
            parts = terms(net, x, mean, std, g, perceptual)
        seen.append({k: float(v.detach()) for k, v in parts.items()})
        return sum(weights[k] * v for k, v in parts.items() if weights[k])

    def probe() -> dict:
        means = {k: sum(s[k] for s in seen) / len(seen) for k in TERMS}
        seen.clear()
        return means

    every = max(1, steps // 8)
    record = training.fit("vae", net, loss_of, steps, lr, scratch, seed, every=every, probe=probe)
    return {"weights": dict(net.state_dict()), "training": {"record": record}}
