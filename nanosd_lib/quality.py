"""Image quality without training: tAFID, the Frechet distance between a student's and the teacher's
images.

Paper, search step: both generate from the same prompts and the same noise. Every number names its
protocol; the plain name tAFID is kept for Inception features, numbers over other features say
which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from nanosd_lib.judges import AttributeClassifier

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Protocol:
    """How images were made and looked at; `str` is what a table's protocol column says."""

    features: str
    images: int
    steps: int
    guidance: float
    seed: int

    def __str__(self) -> str:
        how = f"{self.steps} steps, cfg {self.guidance:g}, seed {self.seed}"
        return f"{self.features}, n={self.images}, {how}"


def load_teacher(
    path: str, dtype: str = "float32", device: str = "cpu", variant: str | None = None
) -> StableDiffusionPipeline:
    """The teacher's pipeline from a folder, with DPM-Solver++ 2M for sampling in few steps."""
    where = ROOT / path if (ROOT / path).is_dir() else path
    pipe = StableDiffusionPipeline.from_pretrained(
        where,
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


def with_parts(pipe: StableDiffusionPipeline, **parts: nn.Module) -> StableDiffusionPipeline:
    """The same pipeline around another U-Net (unet=), another VAE (vae=); nothing is copied."""
    other = StableDiffusionPipeline(**(pipe.components | parts), requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def noise(pipe: StableDiffusionPipeline, n: int, seed: int) -> Tensor:
    """Initial latents (n, 4, h, w): image i depends on (seed, i) alone, whatever the batch size."""
    size, c = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    draws = [torch.Generator().manual_seed(seed * 100_003 + i) for i in range(n)]
    return torch.cat([torch.randn(1, c, size, size, generator=g) for g in draws])


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    protocol: Protocol,
    batch: int = 64,
    desc: str = "images",
    z: Tensor | None = None,
) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1], image i from noise (protocol.seed, i) or from the given
    latents z.
    """
    z = noise(pipe, len(prompts), protocol.seed) if z is None else z
    z, out = z.to(pipe.device, pipe.unet.dtype), []
    for i in tqdm(range(0, len(prompts), batch), desc=desc, leave=False):
        made = pipe(
            prompts[i : i + batch],
            latents=z[i : i + batch],
            num_inference_steps=protocol.steps,
            guidance_scale=protocol.guidance,
            output_type="pt",
        )
        out.append(made.images.float().cpu())
    return torch.cat(out) * 2 - 1


# ----------------------------------------------------------------------------------------- features


def extractor(name: str) -> Callable[[Tensor], Tensor]:
    """Pictures (N, 3, H, W) in [-1, 1] -> features (N, D): "mini-clip" (D = 64) or "inception-2015"
    (D = 2048).

    Raises FileNotFoundError where the weights are not on this machine; nothing is downloaded here.
    """
    if name == "mini-clip":
        from transformers import CLIPModel

        folder = ROOT / "data" / "mini-clip"
        if not folder.is_dir():
            raise FileNotFoundError(
                "data/mini-clip is missing: bring it back with `git checkout data/mini-clip`"
            )
        net = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        side = net.config.vision_config.image_size
        return lambda x: net.get_image_features(sized(x, side)).pooler_output
    if name == "inception-2015":
        return _inception()
    raise ValueError(f"features {name!r}: use mini-clip or inception-2015")


def _inception() -> Callable[[Tensor], Tensor]:
    from cleanfid.features import build_feature_extractor

    if not Path("/tmp/inception-2015-12-05.pt").exists():  # where clean-fid 0.1.35 looks for it
        raise FileNotFoundError(
            "features inception-2015: clean-fid's weights are not cached;"
            " run clean-fid once online, or use mini-clip"
        )
    net = build_feature_extractor("clean", device=torch.device("cpu"), use_dataparallel=False)
    return lambda x: torch.as_tensor(net((x + 1) * 127.5))


def sized(pictures: Tensor, side: int) -> Tensor:
    """Pictures (N, C, H, W) brought to side x side, smoothed where they shrink; the same tensor
    where they have it.
    """
    if pictures.shape[-2:] == (side, side):
        return pictures
    resize = nn.functional.interpolate
    return resize(pictures, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)


@torch.no_grad()
def looked_at(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    protocol: Protocol,
    batch: int,
    desc: str = "images",
    keep: int = 16,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) of `generate`'s images and the first `keep` of them: no more are held than a
    batch at a time.
    """
    z, look = noise(pipe, len(prompts), protocol.seed), extractor(protocol.features)
    seen, kept = [], []
    for i in tqdm(range(0, len(prompts), batch), desc=desc, leave=False):
        made = generate(pipe, prompts[i : i + batch], protocol, batch, "batch", z[i : i + batch])
        seen.append(features(look, made))
        kept.append(made[: max(0, keep - i)])
    return torch.cat(seen), torch.cat(kept)


@torch.no_grad()
def features(look: Callable[[Tensor], Tensor], pictures: Tensor, batch: int = 128) -> Tensor:
    """Features (N, D) in float64."""
    return torch.cat([look(x) for x in pictures.split(batch)]).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between two feature sets (N, D), (M, D): clean-fid's own implementation."""
    from cleanfid.fid import frechet_distance

    (ma, ca), (mb, cb) = ((f.numpy().mean(0), np.cov(f.numpy(), rowvar=False)) for f in (a, b))
    return float(frechet_distance(ma, ca, mb, cb))


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine similarity of paired features (N, D)."""
    return float(torch.nn.functional.cosine_similarity(a, b).mean())


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of pictures (N, 3, H, W) in [-1, 1]."""
    return -10 * torch.log10(((a - b) / 2).pow(2).mean((1, 2, 3)).clamp_min(1e-10))


def classifier() -> AttributeClassifier:
    """The attribute classifier that `make teacher` trains on renders alone."""
    folder = ROOT / "data" / "mini-attributes"
    return (
        AttributeClassifier.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )


def lpips_over(backbone: str, trained: bool = True) -> nn.Module:
    """LPIPS (Zhang et al. 2018) of the `lpips` package, frozen: pictures (N, 3, H, W) in [-1, 1]
    twice -> (N, 1, 1, 1).

    "mini-attributes": over the classifier's activations and without LPIPS's learned weights (the
    package's own baseline); never the plain name. "lpips-vgg": the published one, whose backbone
    must be cached (FileNotFoundError otherwise), or has random weights where `trained` is False.
    """
    import lpips

    if backbone == "lpips-vgg" and not trained:
        return lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    if backbone == "lpips-vgg":
        cached = Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"
        if not cached.exists():
            raise FileNotFoundError(
                "perceptual lpips-vgg: torchvision's VGG-16 weights are not cached;"
                " run lpips once online, or use mini-attributes"
            )
        return lpips.LPIPS(net="vgg", verbose=False).requires_grad_(False)
    if backbone != "mini-attributes":
        raise ValueError(f"perceptual {backbone!r}: use mini-attributes or lpips-vgg")

    class Activations(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = classifier().body

        def forward(self, x: Tensor) -> list[Tensor]:
            seen = []
            for layer in self.body:
                x = layer(x)
                if isinstance(layer, nn.SiLU):
                    seen.append(x)
            return seen

    class OverClassifier(lpips.LPIPS):
        def __init__(self) -> None:
            nn.Module.__init__(self)  # its own would build a backbone that has to be downloaded
            self.net, self.scaling_layer = Activations(), nn.Identity()
            self.version, self.lpips, self.spatial = "0.1", False, False
            self.L = sum(isinstance(layer, nn.SiLU) for layer in self.net.body)

    return OverClassifier().eval().requires_grad_(False)


@torch.no_grad()
def perceptual(
    a: Tensor, b: Tensor, backbone: str = "mini-attributes", device: str | torch.device = "cpu"
) -> Tensor:
    """`lpips_over` of paired pictures (N, 3, H, W), a few at a time on that device: (N,)."""
    few = max(1, 64 * 64**2 // a[0, 0].numel())
    net, parts = lpips_over(backbone).to(device), zip(a.split(few), b.split(few), strict=True)
    return torch.cat([net(x.to(device), y.to(device)).flatten().cpu() for x, y in parts])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of pictures (N, 3, H, W) in [-1, 1]: (N,), by
    scikit-image, as in Wang et al. 2004 (Gaussian window, sigma 1.5).
    """
    from skimage.metrics import structural_similarity

    how = dict(channel_axis=0, data_range=2, gaussian_weights=True, sigma=1.5)
    how["use_sample_covariance"] = False
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return torch.tensor([structural_similarity(x, y, **how) for x, y in pairs])
