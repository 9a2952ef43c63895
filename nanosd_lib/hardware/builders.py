"""The rows that a hardware profile measures: builders of stages, networks and pipeline parts at SD
1.5's width, each with the inputs of one tile. Weights are random: latency does not depend on them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from nanosd_lib.hardware.backends import Builder
from nanosd_lib.networks import counting, precision, sd15, surgery, vae
from nanosd_lib.networks.arch import ABLATION, BASE, CHOICES, NANOSD, STAGES, Arch
from nanosd_lib.networks.sd15 import CLIP, VAE

NETWORKS = NANOSD | {"N1 + E4, M, D4": ABLATION, "six originals": Arch(**BASE)}


class Teachers:
    """One random U-Net for each (dtype, device): every row borrows its tensors."""

    def __init__(self, config: dict[str, Any], tokens: int = sd15.TOKENS) -> None:
        self.config, self.tokens = config, tokens
        self._made: dict[tuple, UNet2DConditionModel] = {}

    @precision.single()
    def __call__(self, dtype: torch.dtype, device: str) -> UNet2DConditionModel:
        key = dtype, device
        if key not in self._made:
            torch.manual_seed(0)
            net = UNet2DConditionModel(**self.config)
            self._made[key] = net.to(device, dtype).eval().requires_grad_(False)
        return self._made[key]


class Rest(nn.Module):
    """What every network has besides its stages: time embedding, first and last convolution."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.embed, self.first, self.last = unet.time_embedding, unet.conv_in, unet.conv_out
        self.time, self.norm, self.act = unet.time_proj, unet.conv_norm_out, unet.conv_act

    def forward(self, sample: Tensor, timestep: Tensor, hidden_states: Tensor):
        temb = self.embed(self.time(timestep).to(sample.dtype))
        return self.last(self.act(self.norm(hidden_states))), (self.first(sample), temb)


class Deep(nn.Module):
    """E4, M and D4, with E3's downsampler and D4's upsampler, which go with them."""

    def __init__(self, unet: surgery.NanoUNet) -> None:
        super().__init__()
        parts: tuple[Any, ...] = unet.stage("E3").downsamplers[0], unet.mid_block
        self.down, self.mid = parts
        self.e4, self.d4 = unet.stage("E4"), unet.stage("D4")

    def forward(self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor):
        entry = self.down(hidden_states)
        x, (first, last, *_) = self.e4(entry, temb, encoder_hidden_states)
        x = self.mid(x, temb, encoder_hidden_states=encoder_hidden_states)
        return self.d4(x, (entry, first, last), temb, encoder_hidden_states)


def rows(teachers: Teachers, networks: dict[str, Arch] = NETWORKS) -> dict[str, Builder]:
    """Name -> builder of (network, inputs): the 36 stages "E1:RA", "rest", "deep", and networks
    "net:N2".
    """
    found: dict[str, Builder] = {}
    for stage in STAGES:
        for code in CHOICES[stage]:
            found[f"{stage}:{code}"] = _stage_builder(teachers, stage, code)
    found["rest"] = _rest_builder(teachers)
    found["deep"] = _deep_builder(teachers)
    for name, a in networks.items():
        found[f"net:{name}"] = _network_builder(teachers, a)
    return found


def _stage_builder(teachers: Teachers, stage: str, code: str) -> Builder:
    def build(dtype: torch.dtype, device: str) -> tuple[nn.Module, dict]:
        teacher = teachers(dtype, device)
        net = surgery.borrow(Arch(**(BASE | {stage: code})), teacher).stage(stage)
        return net, counting.stage_inputs(teacher, stage, 1, teachers.tokens, device)

    return build


def _rest_builder(teachers: Teachers) -> Builder:
    def build(dtype: torch.dtype, device: str) -> tuple[nn.Module, dict]:
        teacher = teachers(dtype, device)
        inputs = counting.network_inputs(teacher, 1, teachers.tokens)
        inputs.pop("encoder_hidden_states")
        w, size = teacher.config.block_out_channels[0], teacher.config.sample_size
        g = torch.Generator().manual_seed(1)
        hidden = torch.randn(1, w, size, size, generator=g, dtype=torch.float32).to(
            inputs["sample"]
        )
        return Rest(teacher), inputs | {"hidden_states": hidden}

    return build


def _deep_builder(teachers: Teachers) -> Builder:
    def build(dtype: torch.dtype, device: str) -> tuple[nn.Module, dict]:
        teacher = teachers(dtype, device)
        inputs = counting.stage_inputs(teacher, "D3", 1, teachers.tokens, device)
        inputs.pop("res_hidden_states_tuple")
        return Deep(surgery.borrow(NANOSD["SD1.5"], teacher)), inputs

    return build


def _network_builder(teachers: Teachers, a: Arch) -> Builder:
    def build(dtype: torch.dtype, device: str) -> tuple[nn.Module, dict]:
        teacher = teachers(dtype, device)
        return surgery.borrow(a, teacher), counting.network_inputs(teacher, 1, teachers.tokens)

    return build


def components(
    config: dict[str, Any] = sd15.SD15, vae_config: dict = VAE, clip: dict = CLIP
) -> dict[tuple[str, str], Builder]:
    """(component, model) -> builder of a pipeline's parts with random weights and the inputs of one
    tile: text encoder, VAE encoder and decoder (teacher, slim, tiny), U-Net (teacher, slim: N2).
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    @precision.single()
    def text(dtype: torch.dtype, device: str) -> tuple[nn.Module, dict]:
        torch.manual_seed(0)
        net = CLIPTextModel(CLIPTextConfig(**clip)).to(device, dtype).eval()
        ids = torch.zeros(1, clip["max_position_embeddings"], dtype=torch.long, device=device)
        return net, {"input_ids": ids}

    teachers = Teachers(config, clip["max_position_embeddings"])
    found: dict[tuple[str, str], Builder] = {("text encoder", "teacher"): text}
    for model in ("teacher", *vae.KINDS):
        found["VAE encoder", model] = _vae_builder(vae_config, model, "encoder")
    for model, name in (("teacher", "SD1.5"), ("slim", "N2")):
        found["U-Net", model] = _network_builder(teachers, NANOSD[name])
    for model in ("teacher", *vae.KINDS):
        found["VAE decoder", model] = _vae_builder(vae_config, model, "decoder")
    return found


def _vae_builder(config: dict, model: str, part: str) -> Builder:
    @precision.single()
    def build(dtype: torch.dtype, device: str) -> tuple[nn.Module, dict]:
        torch.manual_seed(0)
        net = AutoencoderKL(**config)
        net = net if model == "teacher" else vae.KINDS[model](net)
        module = getattr(net, part)
        if model == "teacher":
            around = (module, net.quant_conv), (net.post_quant_conv, module)
            module = nn.Sequential(*around[part == "decoder"])
        side = config["sample_size"]
        latent = config["latent_channels"], side >> (len(config["block_out_channels"]) - 1)
        channels, side = (3, side) if part == "encoder" else latent
        x = torch.randn(1, channels, side, side, dtype=torch.float32)
        key = "x" if model == "tiny" else "input"
        return module.to(device, dtype).eval(), {key: x.to(device, dtype)}

    return build
