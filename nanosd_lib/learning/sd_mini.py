"""sd-mini: a Stable Diffusion with SD 1.5's topology at a tenth of its width and less (not in the
paper: our stand-in teacher).

`train` makes it from nothing: VAE, contrastive image-text encoder, attribute classifier, U-Net.
Every loop writes checkpoints and draws the data of step i from a generator seeded with (seed, i),
so a killed run continues where it stopped and ends with the weights it would have had.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from nanosd_lib.data import miniworld, photographs
from nanosd_lib.data.world import World, to_float
from nanosd_lib.learning import deep, fit
from nanosd_lib.networks import precision
from nanosd_lib.quality import judges

VAE = dict(
    sample_size=64,
    latent_channels=4,
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
UNET = dict(  # SD 1.5's topology, narrow on top: 16 channels of 32x32, so that depth has to work
    sample_size=32,
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 48, 96, 96),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
    cross_attention_dim=64,
    attention_head_dim=(1, 2, 4, 4),  # heads, as in SD 1.5's own configuration
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


@dataclass(frozen=True)
class Lesson:
    """A network, the loss of one step, and the learning rate: what `fit` needs of each part."""

    name: str
    net: Any
    loss_of: Callable[[torch.Generator], Tensor]
    lr: float

    @precision.single()
    def learn(self, steps: int, work: Path, seed: int, until: int | None = None) -> list[dict]:
        schedule = fit.Schedule(steps, self.lr, seed)
        return fit.fit(self.name, self.net, self.loss_of, schedule, work, until=until)


# ---------------------------------------------------------------------------------------------- VAE
def recoloured(x: Tensor, g: torch.Generator) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] with other gains and offsets, a quarter with other channels:
    what few photographs cannot show.
    """
    gain = 1 + 0.4 * (torch.rand(len(x), 3, 1, 1, generator=g) - 0.5)
    offset = 0.4 * (torch.rand(len(x), 3, 1, 1, generator=g) - 0.5)
    order = torch.rand(len(x), 3, generator=g).argsort(1)
    order[torch.rand(len(x), generator=g) > 0.25] = torch.arange(3)
    return (x.gather(1, order[..., None, None].expand_as(x)) * gain + offset).clamp(-1, 1)


@precision.single()
def vae_lesson(pixels: Tensor | World, scenes: int, seed: int, batch: int = 16) -> Lesson:
    """KL-VAE on half renders, half recoloured crops: L1 + MSE + 1e-6 KL, bfloat16 autocast."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**VAE)
    n, side = len(pixels), vae.config.sample_size // 2

    def loss_of(g: torch.Generator) -> Tensor:
        one = torch.randint(scenes, (batch // 2,), generator=g)
        two = torch.randint(scenes, n, (batch // 2,), generator=g)
        x = torch.cat([to_float(pixels[one]), recoloured(to_float(pixels[two]), g)])
        noise = torch.randn(batch, 4, side, side, generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(x).latent_dist
            y = vae.decode(latent.mean + latent.std * noise).sample.float()
        kl = latent.kl().float().mean()
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-6 * kl

    return Lesson("vae", vae, loss_of, 1.5e-3)


@torch.no_grad()
def scaled(vae: AutoencoderKL, pixels: Tensor, scenes: int, g: torch.Generator) -> AutoencoderKL:
    """The VAE with the scaling factor that gives latents of 256 renders unit deviation."""
    i = torch.randint(scenes, (256,), generator=g)
    std = vae.encode(to_float(pixels[i])).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / float(std), 5))
    return vae.eval()


# ------------------------------------------------------------------------------------------- judges
@precision.single()
def clip_lesson(
    pixels: Tensor | World, words: CLIPTokenizer, text: list[str], seed: int, batch: int = 128
) -> Lesson:
    """Contrastive training on renders and crops; its text tower is where sd-mini's text encoder
    begins.
    """
    torch.manual_seed(seed)
    net, ids = judges.clip(words), judges.tokens(words, text)

    def loss_of(g: torch.Generator) -> Tensor:
        i = torch.randint(len(ids), (batch,), generator=g)
        same = (ids[i][:, None] == ids[i][None]).all(-1).float()
        image = net.get_image_features(to_float(pixels[i])).pooler_output
        return judges.contrastive_loss(
            image, net.get_text_features(ids[i]).pooler_output, net.logit_scale, same
        )

    return Lesson("mini-clip", net, loss_of, 1e-3)


@precision.single()
def classifier_lesson(
    pixels: Tensor | World, drawn: miniworld.Scenes, seed: int, batch: int = 64
) -> Lesson:
    """Every attribute of renders alone, with a little noise so that it reads shapes, not pixels."""
    torch.manual_seed(seed)
    net, answers = judges.AttributeClassifier(), judges.attributes(drawn)

    def loss_of(g: torch.Generator) -> Tensor:
        i = torch.randint(len(drawn), (batch,), generator=g)
        x = to_float(pixels[i])
        told = net(x + 0.05 * torch.randn(x.shape, generator=g))
        parts = [
            F.cross_entropy(v.flatten(0, -2), answers[k][i].flatten()) for k, v in told.items()
        ]
        return torch.stack(parts).sum()

    return Lesson("classifier", net, loss_of, 1e-3)


# -------------------------------------------------------------------------------------------- U-Net
@torch.no_grad()
def encoded(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Scaled latent means (N, 4, 32, 32) of uint8 pictures."""
    with torch.autocast("cpu", torch.bfloat16):
        z = vae.encode(to_float(pixels)).latent_dist.mean.float()
    return z * vae.config.scaling_factor


def latents(vae: AutoencoderKL, pixels: Tensor, work: Path) -> Tensor:
    """Those of all training pictures; cached in work."""
    path = work / "latents.safetensors"
    if not path.exists():
        parts = tqdm(pixels.split(64), desc="latents", mininterval=5)
        fit.save(path, {"latents": torch.cat([encoded(vae, x) for x in parts])})
    return load_file(path)["latents"]


@dataclass(frozen=True)
class Encoded:
    """The latents of a world, encoded when they are asked for."""

    vae: AutoencoderKL
    pixels: World

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: Tensor) -> Tensor:
        return encoded(self.vae, self.pixels[i])


class Taught(nn.Module):
    """What the U-Net's lesson trains."""

    def __init__(
        self, unet: UNet2DConditionModel, text: CLIPTextModel, below: deep.Supervision
    ) -> None:
        super().__init__()
        self.unet, self.text, self.below = unet, text, below


@precision.single()
def unet_lesson(
    z: Tensor | Encoded,
    ids: Tensor,
    none: Tensor,
    encoder: CLIPTextModel,
    budget: Any,
    batch: int = 32,
) -> Lesson:
    """Epsilon prediction (Ho et al. 2020) with min-SNR-5 weights (Hang et al. 2023), 10 % empty
    prompts, `deep`'s two measures, and the text encoder learning with it (it was trained to tell
    pictures apart, not to say which colour belongs to which shape).

    z (N, 4, 32, 32) of renders, then crops; ids (N, 24), none (1, 24). `render_share` of every
    batch are renders, none of which holds a pair of `miniworld.UNSEEN`; the lesson trains `Taught`.
    """
    torch.manual_seed(budget.seed)
    layout = torch.channels_last  # a tenth faster on two cores
    unet = UNet2DConditionModel(**UNET).to(memory_format=layout)
    scheduler, below = DDIMScheduler(**SCHEDULER), deep.Supervision(unet)
    seen = ~miniworld.unseen(miniworld.sample(budget.scenes, budget.seed)).any(1)
    renders, n = seen.nonzero()[:, 0], len(z)
    k = round(batch * budget.render_share)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight = snr.clamp(max=5) / snr

    def loss_of(g: torch.Generator) -> Tensor:
        some = renders[torch.randint(len(renders), (k,), generator=g)]
        i = torch.cat([some, torch.randint(budget.scenes, n, (batch - k,), generator=g)])
        t = torch.randint(1000, (batch,), generator=g)
        clean = z[i].float()
        noise = torch.randn(clean.shape, generator=g)
        drop = torch.rand(batch, 1, generator=g) < 0.1
        off = float(torch.rand(1, generator=g)) < budget.attention_off
        noisy = scheduler.add_noise(clean, noise, t).to(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16), deep.without_top_attention(unet, off):
            text = encoder(torch.where(drop, none, ids[i])).last_hidden_state
            y = unet(noisy, t, text).sample
        error = (weight[t] * (y.float() - noise).pow(2).mean((1, 2, 3))).mean()
        return error + budget.deep_supervision * below(clean)

    return Lesson("unet", Taught(unet, encoder.train(), below), loss_of, 1e-3)


def text_encoder(judge: CLIPModel) -> CLIPTextModel:
    """A text encoder of its own that begins as the judge's text tower."""
    encoder = CLIPTextModel(judge.config.text_config)
    encoder.load_state_dict(judge.text_model.state_dict())
    return encoder


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


@precision.single()
def train(work: Path, data: Path, budget: Any) -> dict:
    """Make data/sd-mini, data/mini-clip and data/mini-attributes; returns the training record.

    `budget` is a `profiles.TeacherTraining`. Weights are shipped in float16 safetensors;
    checkpoints and caches stay in `work`.
    """
    seed, world = budget.seed, World(budget.scenes, budget.crops, budget.seed)
    work.mkdir(parents=True, exist_ok=True)
    pixels, words = world.kept(work), judges.tokenizer()
    lesson = vae_lesson(pixels, world.scenes, seed)
    logs = {"vae": lesson.learn(budget.vae_steps, work, seed)}
    vae = scaled(lesson.net, pixels, world.scenes, fit.rng(seed, budget.vae_steps))
    lesson = clip_lesson(pixels, words, world.captions, seed)
    logs["mini-clip"] = lesson.learn(budget.clip_steps, work, seed)
    judge = lesson.net.eval()
    lesson = classifier_lesson(pixels[: world.scenes], world.drawn, seed)
    logs["classifier"] = lesson.learn(budget.classifier_steps, work, seed)
    classifier = lesson.net
    for net in (vae, judge, classifier):
        net.requires_grad_(False)
    ids, none = (judges.tokens(words, text) for text in (world.captions, [""]))
    lesson = unet_lesson(latents(vae, pixels, work), ids, none, text_encoder(judge), budget)
    logs["unet"] = lesson.learn(budget.unet_steps, work, seed)
    taught = lesson.net
    taught.below.close()
    unet = taught.unet.to(memory_format=torch.contiguous_format).eval()
    encoder = taught.text.eval().requires_grad_(False)
    pipeline(vae.half(), encoder.half(), words, unet.half()).save_pretrained(data / "sd-mini")
    judge.half().save_pretrained(data / "mini-clip")
    words.save_pretrained(data / "mini-clip")
    classifier.half().save_pretrained(data / "mini-attributes")
    return _record(data / "sd-mini" / "training.json", logs, budget)


def _record(path: Path, logs: dict[str, list[dict]], budget: Any) -> dict:
    """What was trained on what, how long, and the losses that `replay` can be held against."""
    record = {
        "seed": budget.seed,
        "scenes": budget.scenes,
        "crops": budget.crops,
        "photographs": photographs.PHOTOGRAPHS,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "training_seconds": {k: v[-1]["seconds"] for k, v in logs.items()},
        "steps": {k: v[-1]["step"] for k, v in logs.items()},
        "first": {k: v[0].pop("first")["loss"] for k, v in logs.items()},
        "first_200": {k: v[0]["loss"] for k, v in logs.items()},
        "loss": logs,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


@precision.single()
def replay(part: str, steps: int, budget: Any, data: Path, work: Path) -> dict:
    """The first steps of one part's training again ("vae", "mini-clip", "classifier", "unet"), from
    nothing but the recipe and the shipped weights of the parts before it: {"first": losses of the
    first eight steps, "loss": mean of all}. They are what `training.json` records, up to rounding.
    """
    world = World(budget.scenes, budget.crops, budget.seed)
    words = CLIPTokenizer.from_pretrained(data / "mini-clip")  # of the shipped token ids
    if part == "vae":
        lesson = vae_lesson(world, world.scenes, budget.seed)
    elif part == "mini-clip":
        lesson = clip_lesson(world, words, world.captions, budget.seed)
    elif part == "classifier":
        lesson = classifier_lesson(world, world.drawn, budget.seed)
    else:
        vae = AutoencoderKL.from_pretrained(data / "sd-mini" / "vae", torch_dtype=torch.float32)
        judge = CLIPModel.from_pretrained(data / "mini-clip", dtype=torch.float32)
        z = Encoded(vae.eval().requires_grad_(False), world)
        ids, none = (judges.tokens(words, text) for text in (world.captions, [""]))
        lesson = unet_lesson(z, ids, none, text_encoder(judge), budget)
    whole = getattr(budget, f"{part.removeprefix('mini-')}_steps")
    begun = lesson.learn(whole, work, budget.seed, until=steps)[0]
    return {"first": begun["first"]["loss"], "loss": begun["loss"]}
