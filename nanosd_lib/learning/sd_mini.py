"""sd-mini: a Stable Diffusion with SD 1.5's topology at a tenth of its width (not in the paper: our
stand-in teacher).

`train` makes it from nothing: VAE, contrastive image-text encoder, attribute classifier, U-Net, in
that order. Every loop writes checkpoints and draws the data of step i from a generator seeded with
(seed, i), so a killed run continues where it stopped and ends with the weights it would have had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from nanosd_lib.data import miniworld, photographs, raycast
from nanosd_lib.learning import fit
from nanosd_lib.quality import judges

VAE = dict(
    sample_size=64,
    latent_channels=4,
    block_out_channels=(32, 64, 128),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
)
UNET = dict(  # SD 1.5's, every width divided by ten (a multiple of 32), a 16x16 latent
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64, 128, 128),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
    cross_attention_dim=64,
    attention_head_dim=4,
    norm_num_groups=8,
)
SCHEDULER = dict(  # SD 1.5's own
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    prediction_type="epsilon",
)


# ----------------------------------------------------------------------------------------- the data
def world(work: Path, scenes: int, crops: int, seed: int) -> tuple[Tensor, list[str]]:
    """Training pictures as uint8 (N, 3, 64, 64) with captions: renders first, then photograph
    crops; cached in work.
    """
    path = work / f"world-{scenes}-{crops}-{seed}.safetensors"
    batch = miniworld.sample(scenes, seed)
    patch, patch_text = photographs.crops("train", crops, seed)
    if not path.exists():
        pixels = torch.cat([raycast.render(batch, progress=True)[0], patch])
        fit.save(path, {"pixels": ((pixels + 1) * 127.5).round().clamp(0, 255).byte()})
    return load_file(path)["pixels"], miniworld.captions(batch) + patch_text


def to_float(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


# ---------------------------------------------------------------------------------------------- VAE
def train_vae(
    pixels: Tensor, scenes: int, steps: int, work: Path, seed: int, batch: int = 16
) -> tuple[AutoencoderKL, list]:
    """KL-VAE on half renders, half crops: L1 + MSE + 1e-6 KL, bfloat16 autocast; sets the latents'
    scaling factor.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(**VAE)
    n = len(pixels)

    def loss_of(g: torch.Generator) -> Tensor:
        i = torch.cat(
            [
                torch.randint(scenes, (batch // 2,), generator=g),
                torch.randint(scenes, n, (batch // 2,), generator=g),
            ]
        )
        x = to_float(pixels[i])
        noise = torch.randn(batch, 4, 16, 16, generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(x).latent_dist
            y = vae.decode(latent.mean + latent.std * noise).sample.float()
        kl = latent.kl().float().mean()
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-6 * kl

    log = fit.fit("vae", vae, loss_of, steps, 1.5e-3, work, seed)
    g = fit.rng(seed, steps)
    i = torch.randint(scenes, (256,), generator=g)
    with torch.no_grad():
        std = vae.encode(to_float(pixels[i])).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / float(std), 5))
    return vae.eval(), log


# ------------------------------------------------------------------------------------------- judges
def train_clip(
    pixels: Tensor, text: list[str], steps: int, work: Path, seed: int, batch: int = 128
) -> tuple[CLIPModel, CLIPTokenizer, list]:
    """Contrastive training on renders and crops; its text tower becomes sd-mini's text encoder."""
    torch.manual_seed(seed)
    words = judges.tokenizer()
    net, ids = judges.clip(words), judges.tokens(words, text)

    def loss_of(g: torch.Generator) -> Tensor:
        i = torch.randint(len(ids), (batch,), generator=g)
        same = (ids[i][:, None] == ids[i][None]).all(-1).float()
        image = net.get_image_features(to_float(pixels[i])).pooler_output
        return judges.contrastive_loss(
            image, net.get_text_features(ids[i]).pooler_output, net.logit_scale, same
        )

    log = fit.fit("mini-clip", net, loss_of, steps, 1e-3, work, seed)
    return net.eval(), words, log


def train_classifier(
    pixels: Tensor, scenes: miniworld.Scenes, steps: int, work: Path, seed: int
) -> tuple[judges.AttributeClassifier, list]:
    """Shape and colour from one-object renders alone, with a little noise so that it reads shapes,
    not pixels.
    """
    torch.manual_seed(seed)
    net, single = judges.AttributeClassifier(), (scenes.shape[:, 1] < 0).nonzero()[:, 0]

    def loss_of(g: torch.Generator) -> Tensor:
        i = single[torch.randint(len(single), (64,), generator=g)]
        x = to_float(pixels[i])
        shape, colour = net(x + 0.05 * torch.randn(x.shape, generator=g))
        return F.cross_entropy(shape, scenes.shape[i, 0]) + F.cross_entropy(
            colour, scenes.colour[i, 0]
        )

    return net, fit.fit("classifier", net, loss_of, steps, 1e-3, work, seed)


# -------------------------------------------------------------------------------------------- U-Net
@torch.no_grad()
def _latents(vae: AutoencoderKL, pixels: Tensor, work: Path) -> Tensor:
    """Scaled latent means (N, 4, 16, 16) of all training pictures; cached in work."""
    path = work / "latents.safetensors"
    if not path.exists():
        out = []
        for x in tqdm(pixels.split(64), desc="latents", mininterval=5):
            with torch.autocast("cpu", torch.bfloat16):
                out.append(vae.encode(to_float(x)).latent_dist.mean.float())
        fit.save(path, {"latents": torch.cat(out) * vae.config.scaling_factor})
    return load_file(path)["latents"]


@torch.no_grad()
def _embeddings(encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    return torch.cat([encoder(i).last_hidden_state for i in ids.split(256)])


def train_unet(
    latents: Tensor,
    text: Tensor,
    empty: Tensor,
    share: float,
    scenes: int,
    steps: int,
    work: Path,
    seed: int,
    batch: int = 32,
) -> tuple[UNet2DConditionModel, list]:
    """Epsilon prediction (Ho et al. 2020) with min-SNR-5 weights (Hang et al. 2023) and 10 % empty
    prompts.

    latents (N, 4, 16, 16), text (N, 24, 64), empty (1, 24, 64); `share` of every batch are renders.
    """
    torch.manual_seed(seed)
    unet, scheduler = UNet2DConditionModel(**UNET), DDIMScheduler(**SCHEDULER)
    abar, n, k = scheduler.alphas_cumprod, len(latents), round(batch * share)
    weight = (abar / (1 - abar)).clamp(max=5) / (abar / (1 - abar))

    def loss_of(g: torch.Generator) -> Tensor:
        i = torch.cat(
            [
                torch.randint(scenes, (k,), generator=g),
                torch.randint(scenes, n, (batch - k,), generator=g),
            ]
        )
        t = torch.randint(1000, (batch,), generator=g)
        noise = torch.randn(batch, *latents.shape[1:], generator=g)
        drop = torch.rand(batch, 1, 1, generator=g) < 0.1
        y = unet(
            scheduler.add_noise(latents[i], noise, t), t, torch.where(drop, empty, text[i])
        ).sample
        return (weight[t] * (y - noise).pow(2).mean((1, 2, 3))).mean()

    return unet, fit.fit("unet", unet, loss_of, steps, 1e-3, work, seed)


# ---------------------------------------------------------------------------------------- all of it
def pipeline(
    vae: AutoencoderKL, encoder: CLIPTextModel, words: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as the pipeline that `StableDiffusionPipeline.from_pretrained` loads."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=words,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train(work: Path, data: Path, budget: Any) -> dict:
    """Make data/sd-mini, data/mini-clip and data/mini-attributes; returns the training record.

    `budget` holds scenes, crops, seed, render_share and the steps of each part, as
    `profiles.TeacherTraining` does.
    Weights are shipped in float16 safetensors; checkpoints and caches stay in `work`.
    """
    scenes, seed = budget.scenes, budget.seed
    work.mkdir(parents=True, exist_ok=True)
    pixels, captions = world(work, scenes, budget.crops, seed)
    vae, vae_log = train_vae(pixels, scenes, budget.vae_steps, work, seed)
    judge, words, clip_log = train_clip(pixels, captions, budget.clip_steps, work, seed)
    classifier, classifier_log = train_classifier(
        pixels[:scenes], miniworld.sample(scenes, seed), budget.classifier_steps, work, seed
    )
    encoder = CLIPTextModel(judge.config.text_config).eval()
    encoder.load_state_dict(judge.text_model.state_dict())
    for net in (vae, judge, classifier):
        net.requires_grad_(False)
    latents = _latents(vae, pixels, work)
    text = _embeddings(encoder, judges.tokens(words, captions))
    empty = _embeddings(encoder, judges.tokens(words, [""]))
    unet, unet_log = train_unet(
        latents, text, empty, budget.render_share, scenes, budget.unet_steps, work, seed
    )
    pipeline(vae.half(), encoder.half(), words, unet.half()).save_pretrained(data / "sd-mini")
    judge.half().save_pretrained(data / "mini-clip")
    words.save_pretrained(data / "mini-clip")
    classifier.half().save_pretrained(data / "mini-attributes")
    logs = {"vae": vae_log, "mini-clip": clip_log, "classifier": classifier_log, "unet": unet_log}
    record = {
        "seed": seed,
        "scenes": scenes,
        "crops": budget.crops,
        "photographs": photographs.PHOTOGRAPHS,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "training_seconds": {k: v[-1]["seconds"] for k, v in logs.items()},
        "steps": {k: v[-1]["step"] for k, v in logs.items()},
        "loss": logs,
    }
    (data / "sd-mini" / "training.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )
    return record
