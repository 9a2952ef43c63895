"""S3Diff (Zhang et al. 2024): one-step super-resolution whose LoRA is guided by how the picture was
damaged. Two scores, of blur and of noise, give each block of the network an r x r matrix between
the two of its LoRA; an L2, a perceptual and an adversarial loss; a negative prompt at test.

Where this is not the published training: the estimator of the scores learns beside the adapters, on
the drawn degradations themselves (published: another system's, pretrained); the matrices begin at
the identity (published: near zero, beside a B of zero, from where little moves); the discriminator
looks through our judge network's features (published: DINO's) and takes its step together with the
generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nanosd_lib.data import degradations
from nanosd_lib.learning import fit
from nanosd_lib.networks import pipeline, vae
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import extractors
from nanosd_lib.restoration import adapters, one_step
from nanosd_lib.restoration.lesson import NAME, Lesson
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.pairs import Pairs

WEIGHTS = {"l2": 2.0, "lpips": 5.0, "gan": 0.5}  # as published
GUIDANCE = 1.07  # at test, as published: a second pass of the U-Net
NEGATIVE = "blur noise"  # the published one lists flaws; ours may be any words that are no caption
NEGATIVES = 0.05  # share of training pictures whose prompt is that, and whose target is the damage
FREQUENCIES = 64  # of a score's Fourier features, as published
SMALLER = 4  # the estimator looks at the damaged picture at its own size


class Estimator(nn.Module):
    """Damaged pictures (N, 3, H, W) at their full size -> scores (N, 2) of blur and noise in 0 .. 1
    (`degradations.scores`), from the picture at its own size and its Laplacian.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, 2))

    def forward(self, damaged: Tensor) -> Tensor:
        x = F.interpolate(damaged, scale_factor=1 / SMALLER, mode="bicubic")
        fine = F.conv2d(
            F.pad(x, [1] * 4, mode="replicate").flatten(0, 1)[:, None],
            degradations.LAPLACIAN.to(x),
        ).view(x.shape)
        seen = self.body(torch.cat([x, fine], 1))
        return self.head(torch.cat([seen.mean((2, 3)), seen.std((2, 3))], 1)).sigmoid()


class Modulation(nn.Module):
    """Scores (N, 2) -> a matrix (N, r, r) for each block; the identity before it has learned."""

    frequencies: Tensor

    def __init__(self, blocks: list[str], rank: int, width: int = 64) -> None:
        super().__init__()
        self.blocks, self.rank = blocks, rank
        powers = torch.linspace(0, 5, FREQUENCIES)
        self.register_buffer("frequencies", 2**powers * math.pi, persistent=False)
        self.embedding = nn.Embedding(len(blocks), width)
        self.scores = nn.Sequential(nn.Linear(4 * FREQUENCIES, width), nn.SiLU())
        self.out = nn.Linear(2 * width, rank * rank)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scores: Tensor) -> dict[str, Tensor]:
        angles = scores[..., None] * self.frequencies
        seen = self.scores(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))
        out = {}
        for i, name in enumerate(self.blocks):
            where = self.embedding.weight[i].expand(len(seen), -1)
            change = self.out(torch.cat([seen, where], 1)).unflatten(1, (self.rank, self.rank))
            out[name] = torch.eye(self.rank, device=change.device) + change
        return out


def block_of(layer: str) -> str:
    """The block whose matrix a layer has: a stage of the U-Net as *this* network numbers it, its
    middle, its ends; the VAE's encoder by its own.
    """
    parts = layer.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return ".".join(parts[:2])
    if parts[:2] == ["encoder", "down_blocks"]:
        return ".".join(parts[:3])
    return parts[0] if parts[0] != "encoder" or parts[1].isdigit() else ".".join(parts[:2])


def blocks_of(unet: nn.Module, net: nn.Module) -> list[str]:
    """Every block of both parts, in the order of their names."""
    found = [f"unet.{block_of(k)}" for k in adapters.layers(unet, "unet")]
    found += [f"vae.{block_of(k)}" for k in adapters.layers(net, "vae")]
    return list(dict.fromkeys(found))


@dataclass
class S3Diff(OneStep):
    """A restoration that looks at the damage first. `given`: scores (1, 2) for whatever comes,
    where a picture is restored in parts: one pair for the picture, so that no border shows.
    """

    estimator: Estimator = field(default_factory=Estimator)
    modulation: Modulation = field(default_factory=lambda: Modulation([], 1))
    negative: Tensor | None = None  # (1, T, D): None for one pass of the U-Net
    given: Tensor | None = None

    def __post_init__(self) -> None:
        self._now: dict[str, Tensor] = {}
        for part, net in (("unet", self.unet), ("vae", self.vae)):
            for name, module in net.named_modules():
                if name.endswith(f".lora_A.{NAME}"):
                    layer = name.removesuffix(f".lora_A.{NAME}")
                    self._hook(module, f"{part}.{block_of(layer)}")

    def _hook(self, module: nn.Module, block: str) -> None:
        def turn(_: nn.Module, args: tuple, out: Tensor) -> Tensor:
            matrix, rank = self._now.get(block), self.modulation.rank
            width = out.shape[1] if out.ndim == 4 else out.shape[-1]
            if matrix is None or width > rank:  # conv_in's own rank is full: nothing between
                return out
            m = matrix[:, :width, :width].to(out.dtype)
            m = m.repeat(len(out) // len(m), 1, 1)
            return torch.einsum("nij,njhw->nihw" if out.ndim == 4 else "nij,n...j->n...i", m, out)

        module.register_forward_hook(turn)

    @contextmanager
    def guided(self, scores: Tensor) -> Iterator[None]:
        """Every pass inside is of pictures with these scores (N, 2)."""
        self._now = self.modulation(scores)
        try:
            yield
        finally:
            self._now = {}

    def scored(self, damaged: Tensor) -> Tensor:
        """(N, 2): seen in each picture, or given for all."""
        seen = self.estimator(damaged.float()) if self.given is None else self.given
        return seen.expand(len(damaged), -1)

    def latent(self, damaged: Tensor) -> Tensor:
        with self.guided(self.scored(damaged)):
            return self.step(damaged, self.text, self.negative)

    def step(self, damaged: Tensor, text: Tensor, negative: Tensor | None = None) -> Tensor:
        """The restored latent with texts (N or 1, T, D), guided away from a negative one."""
        z = vae.encoded(self.vae, damaged)[0]
        signal, noise = self.abar**0.5, (1 - self.abar) ** 0.5
        x = z if self.published else signal * z
        texts = [text.expand(len(z), -1, -1).to(x.dtype)]
        if negative is not None:
            texts.append(negative.expand(len(z), -1, -1).to(x.dtype))
        told = self.unet(
            torch.cat([x] * len(texts)), self.t, encoder_hidden_states=torch.cat(texts)
        ).sample.chunk(len(texts))
        eps = told[0] if negative is None else told[1] + GUIDANCE * (told[0] - told[1])
        return (x - noise * eps) / signal

    @torch.no_grad()
    def look(self, tiles: Tensor) -> None:
        """Take the mean scores of these damaged tiles for the whole picture."""
        self.given = self.estimator(tiles.float()).mean(0, keepdim=True)


class Heads(nn.Module):
    """The discriminator: a logit for each place of each of the frozen activations."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Conv2d(w, 1, 1) for w in widths)

    def forward(self, seen: list[Tensor]) -> list[Tensor]:
        return [head(x) for head, x in zip(self.each, seen, strict=True)]


def adversarial(logits: list[Tensor], real: bool) -> Tensor:
    """Cross-entropy of logits at every level against one answer, the mean over levels."""
    each = [F.binary_cross_entropy_with_logits(x, torch.full_like(x, float(real))) for x in logits]
    return torch.stack(each).mean()


def system(
    pipe: StableDiffusionPipeline, unet: UNet2DConditionModel, net: Autoencoder, t: int, rank: int
) -> S3Diff:
    """S3Diff around copies of a U-Net and a VAE, with new adapters that do nothing yet."""
    unet, net = copy.deepcopy(unet).float(), copy.deepcopy(net).float()
    blocks = blocks_of(unet, net)
    adapters.add(unet, "unet", rank, NAME)
    adapters.add(net, "vae", rank, NAME)
    return _around(pipe, unet, net, t, Modulation(blocks, rank), Estimator())


def _around(pipe, unet, net, t: int, modulation: Modulation, estimator: Estimator) -> S3Diff:
    text = pipeline.embed(pipe, [""])
    parts = (estimator.to(pipe.device), modulation.to(pipe.device))
    return S3Diff(unet, net, text, t, float(one_step.alphas(pipe)[t]), *parts)


def train(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    pairs: Pairs,
    scratch: Path,
    until: int | None = None,
    **numbers: Any,
) -> dict:
    """Train adapters, modulation, estimator and discriminator of one system: all but the last in
    float16, and the record of every loss. unet and net stay as they are; `numbers` are `Lesson`'s,
    of which `guidance` is the test's and decides nothing here. With `until`, the record alone.
    """
    n = Lesson(**numbers)
    torch.manual_seed(n.seed)  # of what begins at random
    one = system(pipe, unet, net, n.t, n.rank)
    perceptual, look = extractors.lpips_over(n.loss), extractors.activations(n.loss)
    perceptual, look = perceptual.to(pipe.device), look.to(pipe.device)
    with torch.no_grad():
        some = look(pairs.pixels[torch.arange(1)].float().to(pipe.device) / 127.5 - 1)
    heads = Heads([x.shape[1] for x in some]).to(pipe.device)
    negative = pipeline.embed(pipe, [NEGATIVE])

    def loss_of(g: torch.Generator) -> dict[str, Tensor]:
        b = pairs.draw(n.batch, n.seed, g)
        clean, damaged, scores = (x.to(pipe.device) for x in (b.clean, b.damaged, b.scores))
        flawed = (torch.rand(n.batch, generator=g) < NEGATIVES).to(pipe.device).view(-1, 1, 1, 1)
        seen = one.estimator(damaged)
        with one.guided(seen.detach()):
            text = torch.where(flawed[..., 0], negative, one.text)
            with fit.mixed(pipe.unet):
                y = vae.decoded(one.vae, one.step(damaged, text)).float()
        want = torch.where(flawed, damaged, clean)
        parts = {"l2": F.mse_loss(y, want), "lpips": perceptual(y, want).mean()}
        frozen = {k: p.detach() for k, p in heads.named_parameters()}
        kept = ~flawed.view(-1)  # whose target is the damage is not told to look real
        if kept.any():
            parts["gan"] = adversarial(functional_call(heads, frozen, (look(y[kept]),)), True)
            with torch.no_grad():
                fake, real = look(y[kept]), look(clean[kept])
            judge = adversarial(heads(real), True) + adversarial(heads(fake), False)
        else:
            parts["gan"] = judge = y.new_zeros(())
        estimate = F.mse_loss(seen, scores)
        whole = n.whole(parts)
        more = {"discriminator": judge, "estimator": estimate}
        told = {k: v.detach() for k, v in (parts | more).items()}
        return {"loss": whole + judge + estimate, **told}

    parts: dict[str, nn.Module] = {"unet": one.unet, "vae": one.vae, "heads": heads}
    parts |= {"modulation": one.modulation, "estimator": one.estimator}

    def kept() -> dict[str, Tensor]:
        out = adapters.weights(NAME, unet=one.unet, vae=one.vae)
        for name in ("modulation", "estimator"):
            out |= {f"s3diff.{name}.{k}": v for k, v in parts[name].state_dict().items()}
        return out

    return n.learn("s3diff", parts, loss_of, scratch, until, kept)


def restorer(
    pipe: StableDiffusionPipeline,
    unet: UNet2DConditionModel,
    net: Autoencoder,
    t: int,
    weights: dict[str, Tensor],
) -> S3Diff:
    """damaged (N, 3, H, W) -> restored, of trained weights around copies of backbone and VAE, with
    the negative prompt: two passes of the U-Net.
    """
    unet, net = copy.deepcopy(unet), copy.deepcopy(net)
    blocks = blocks_of(unet, net)
    whole = {k: v.float() for k, v in weights.items()}
    adapters.load({k: v for k, v in whole.items() if not k.startswith("s3diff.")}, NAME,
                  unet=unet, vae=net)  # fmt: skip
    rank = math.isqrt(len(whole["s3diff.modulation.out.bias"]))
    parts: dict[str, Any] = {"modulation": Modulation(blocks, rank), "estimator": Estimator()}
    for name, part in parts.items():
        start = f"s3diff.{name}."
        part.load_state_dict(
            {k.removeprefix(start): v for k, v in whole.items() if k.startswith(start)}
        )
    for part in (unet, net, *parts.values()):
        part.eval().requires_grad_(False)
    one = _around(pipe, unet, net, t, parts["modulation"], parts["estimator"])
    one.negative = pipeline.embed(pipe, [NEGATIVE])
    return one
