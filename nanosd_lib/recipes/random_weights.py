"""A whole Stable Diffusion of any size with random weights, marked so that nothing it gives can be
a result.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nanosd_lib.networks import precision, sd15
from nanosd_lib.paths import ROOT
from nanosd_lib.runs import layout, profiles

MARK = "The weights in this folder are random: what they give is no result.\n"


def configs(profile: profiles.Profile) -> dict[str, dict]:
    """Configurations of U-Net, VAE and text encoder: SD 1.5's own, or those of a local teacher."""
    if not profile.teacher.local:
        return {"unet": sd15.SD15, "vae": sd15.VAE, "clip": sd15.CLIP}
    folder = ROOT / profile.teacher.path
    return {
        "unet": UNet2DConditionModel.load_config(folder / "unet"),
        "vae": AutoencoderKL.load_config(folder / "vae"),
        "clip": CLIPTextConfig.from_pretrained(folder / "text_encoder").to_dict(),
    }


@precision.single()
def random_pipeline(folder: Path, unet: dict, vae: dict, clip: dict) -> None:
    """Save a whole Stable Diffusion of these sizes with random weights (float16) and the mark that
    keeps it out of every result. The tokenizer is the bundled one: its ids are small enough.
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "data" / "sd-mini" / "tokenizer")
    tokenizer.model_max_length = clip["max_position_embeddings"]
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel.from_config(unet).half(),
        vae=AutoencoderKL.from_config(vae).half(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**clip)).half(),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    (folder / layout.RANDOM).write_text(MARK)
