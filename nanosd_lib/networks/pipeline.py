"""A Stable Diffusion pipeline: loaded, given other parts, drawing pictures, encoding text and
pictures.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from tqdm.auto import tqdm

from nanosd_lib.paths import ROOT

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)
DTYPES = ("float32", "bfloat16", "float16", "float64")


class Sampling(BaseModel):
    """How pictures are drawn and looked at: whatever draws takes it whole, and forgets no part."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    steps: int
    guidance: float
    seed: int = 0
    batch: int = 64
    features: str = "mini-clip"

    def protocol(self, images: int) -> str:
        """What a table's protocol column says of so many pictures."""
        how = f"{self.steps} steps, cfg {self.guidance:g}, seed {self.seed}"
        return f"{self.features}, n={images}, {how}"

    def but(self, **changed: Any) -> Sampling:
        """The same with something changed."""
        return Sampling(**(self.model_dump() | changed))


def load_teacher(
    path: str, dtype: str = "float32", device: str = "cpu", variant: str | None = None
) -> StableDiffusionPipeline:
    """The teacher's pipeline from a folder, with DPM-Solver++ 2M for sampling in few steps.

    Raises FileNotFoundError or NotADirectoryError where the folder holds no pipeline, ValueError
    for a dtype that is none of `DTYPES`.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    pipe = StableDiffusionPipeline.from_pretrained(
        pipeline_folder(path),
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
        variant=variant,
        local_files_only=True,
    ).to(device)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    for net in (pipe.unet, pipe.vae, pipe.text_encoder):
        net.eval().requires_grad_(False)
    return pipe


def pipeline_folder(path: str | Path) -> Path | str:
    """The folder of a saved pipeline, from here or from the repository's root; the name of a
    repository whose files are in the Hugging Face cache stays as it is.

    Raises FileNotFoundError, NotADirectoryError in one line.
    """
    where = Path(path).expanduser()
    where = ROOT / where if (ROOT / where).exists() else where
    if where.is_file():
        raise NotADirectoryError(
            f"{path} is a file: give the folder that save_pretrained wrote (a single checkpoint"
            " becomes one by StableDiffusionPipeline.from_single_file(...).save_pretrained(...))"
        )
    if not where.is_dir():
        if cached(str(path)):
            return str(path)
        raise FileNotFoundError(f"no such folder: {path}")
    if not (where / "model_index.json").is_file():
        above = (where.parent / "model_index.json").is_file()
        hint = f"give {where.parent}" if above else "give a folder of StableDiffusionPipeline"
        raise FileNotFoundError(f"{path} holds no pipeline (no model_index.json): {hint}")
    return where


def cached(name: str) -> bool:
    """Whether a repository's pipeline is in the Hugging Face cache; False for what is no name."""
    try:
        return isinstance(try_to_load_from_cache(name, "model_index.json"), str)
    except HFValidationError:
        return False


def with_parts(pipe: Pipeline, **parts: Any) -> Pipeline:
    """The same kind of pipeline, with the same settings, around another U-Net (unet=), another VAE
    (vae=), or any other of its parts; nothing is copied.
    """
    own, kind = pipe.components, type(pipe)  # from_pipe would cast the parts to float32
    asked = inspect.signature(kind.__init__).parameters.keys() - own.keys()
    settings = {k: v for k, v in (vars(pipe) | dict(pipe.config)).items() if k in asked}
    other = kind(**own | settings | parts)
    other.set_progress_bar_config(disable=True)
    return other


def noise(pipe: StableDiffusionPipeline, n: int, seed: int) -> Tensor:
    """Initial latents (n, 4, h, w): image i depends on (seed, i) alone, whatever the batch size."""
    size, c = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    draws = [torch.Generator().manual_seed(seed * 100_003 + i) for i in range(n)]
    return torch.cat(
        [torch.randn(1, c, size, size, generator=g, dtype=torch.float32) for g in draws]
    )


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    how: Sampling,
    desc: str = "images",
    z: Tensor | None = None,
) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1], image i from noise (how.seed, i) or from the given latents z;
    ValueError where these are not as many as the prompts.
    """
    z = noise(pipe, len(prompts), how.seed) if z is None else z
    if len(z) != len(prompts):
        raise ValueError(f"generate: {len(prompts)} prompts and {len(z)} latents: one for each")
    z, out = z.to(pipe.device, pipe.unet.dtype), []
    for i in tqdm(range(0, len(prompts), how.batch), desc=desc, leave=False):
        made = pipe(
            prompts[i : i + how.batch],
            latents=z[i : i + how.batch],
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            output_type="pt",
        )
        out.append(made.images.float().cpu())
    return torch.cat(out) * 2 - 1


@torch.no_grad()
def stages(
    pipe: StableDiffusionPipeline, prompt: str, how: Sampling, shown: int = 5
) -> dict[str, Tensor]:
    """One sampling, looked at on the way: at `shown` steps the decoded noisy latent x_t and the
    picture that the U-Net expects there, (x_t - sqrt(1 - abar) eps) / sqrt(abar), both (K, 3, H, W)
    in [-1, 1], and "t" (K,).
    """
    text, seen = embed(pipe, ["", prompt]), []
    wanted = {round(i) for i in torch.linspace(0, how.steps - 2, shown).tolist()}

    def look(pipe, i, t, state):
        if i in wanted:
            x, later = state["latents"], pipe.scheduler.timesteps[i + 1]
            empty, asked = pipe.unet(torch.cat([x, x]), later, text).sample.chunk(2)
            eps, a = empty + how.guidance * (asked - empty), pipe.scheduler.alphas_cumprod
            share = a.to(x.device)[int(later)]
            seen.append((int(later), x, (x - (1 - share).sqrt() * eps) / share.sqrt()))
        return state

    pipe(
        prompt,
        latents=noise(pipe, 1, how.seed).to(pipe.device, pipe.unet.dtype),
        num_inference_steps=how.steps,
        guidance_scale=how.guidance,
        output_type="latent",
        callback_on_step_end=look,
    )
    t, noisy, clean = zip(*seen, strict=True)
    latents = [torch.cat(z) / pipe.vae.config.scaling_factor for z in (noisy, clean)]
    made = [pipe.vae.decode(z).sample.float().cpu().clamp(-1, 1) for z in latents]
    return {"t": torch.tensor(t), "noisy": made[0], "expected": made[1]}


def sized(pictures: Tensor, side: int) -> Tensor:
    """Pictures (N, C, H, W) brought to side x side, smoothed where they shrink; the same tensor
    where they have it.
    """
    if pictures.shape[-2:] == (side, side):
        return pictures
    resize = nn.functional.interpolate
    return resize(pictures, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


@torch.no_grad()
def embed(pipe: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """Last hidden state (N, T, D) of the pipeline's text encoder."""
    ids = pipe.tokenizer(
        prompts,
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return torch.cat(
        [pipe.text_encoder(i.to(pipe.device)).last_hidden_state for i in ids.split(256)]
    )


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, pictures: Tensor, batch: int = 64) -> Tensor:
    """Scaled latent means of pictures (N, 3, H, W) in [-1, 1]."""
    parts = tqdm(pictures.split(batch), desc="encode", leave=False)
    z = torch.cat(
        [pipe.vae.encode(x.to(pipe.device, pipe.vae.dtype)).latent_dist.mean for x in parts]
    )
    return z * pipe.vae.config.scaling_factor


def side(pipe: StableDiffusionPipeline) -> int:
    """Pixels on a side of the pictures this teacher makes."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor
