"""SD 1.5's configurations, as its public files state them: U-Net, autoencoder, text encoder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from nanosd_lib.networks import precision

VAE = dict(  # Stable Diffusion 1.5's autoencoder, as its public configuration states it
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
CLIP = dict(  # its text encoder, CLIP ViT-L/14
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    projection_dim=768,
    hidden_act="quick_gelu",
)


@precision.single()
def autoencoder() -> AutoencoderKL:
    """SD 1.5's autoencoder at full size on the meta device: shapes and counts, no memory."""
    with torch.device("meta"):
        return AutoencoderKL(**VAE)


SD15 = dict(  # Stable Diffusion 1.5's U-Net, as its public configuration states it
    sample_size=64,
    block_out_channels=(320, 640, 1280, 1280),
    cross_attention_dim=768,
    attention_head_dim=8,
    norm_num_groups=32,
)
TOKENS = 77


@precision.single()
def unet() -> UNet2DConditionModel:
    """SD 1.5's U-Net at full size on the meta device: shapes and counts, no memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SD15)
