"""One-step restoration: what every such system has in common. A damaged picture's latent is taken
for a noisy one, the U-Net is asked once, and the expected clean latent is decoded.

    gain(alphas)                     # (1000,) how much an error of the U-Net is multiplied by
    t = matched(alphas, 0.55)        # the timestep whose gain is the distance of damaged and clean
    system = OneStep(unet, vae, text, t, alphas[t])
    restored = system(damaged)       # (N, 3, H, W) in [-1, 1], damaged already at its full size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from nanosd_lib.networks import pipeline, surgery, vae
from nanosd_lib.networks.vae import Autoencoder

PUBLISHED = 999  # the timestep of OSEDiff and S3Diff


def alphas(pipe: StableDiffusionPipeline) -> Tensor:
    """The kept share of signal power at each timestep, abar_t (T,), in float64 and of the schedule
    alone: schedulers clip, shift, and hold a state.
    """
    betas = pipe.scheduler.betas.double().cpu()
    return torch.cumprod(1 - betas, 0)


def gain(abar: Tensor) -> Tensor:
    """g(t) = sqrt((1 - abar) / abar): by how much an error of the predicted noise is multiplied in
    the latent x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar).
    """
    return ((1 - abar) / abar).sqrt()


def distance(damaged: Tensor, clean: Tensor) -> Tensor:
    """Root of the mean square between latents (N, C, h, w) of the same pictures: (N,)."""
    return (damaged.double() - clean.double()).pow(2).mean((1, 2, 3)).sqrt()


def matched(abar: Tensor, rms: float) -> int:
    """The timestep whose gain is nearest to the distance of damaged and clean latents: there the
    damage is as large as the noise that the U-Net expects (OMGSR's rule for equal signals). Here
    that is the mean over pictures of each one's own distance, so that few bad ones do not decide.
    """
    return int((gain(abar) - rms).abs().argmin())


@dataclass
class OneStep:
    """A restoration of one step: any U-Net of SD's kind around any VAE.

    At the published timestep the U-Net reads the damaged latent z as it is; where the timestep is
    matched, sqrt(abar) z, since z then stands for the clean latent and noise of gain g(t) (not in
    the papers: our assumption), so that x0 = z - g(t) eps.
    """

    unet: UNet2DConditionModel | surgery.NanoUNet
    vae: Autoencoder
    text: Tensor  # (1, T, D): of the empty prompt
    t: int
    abar: float

    @property
    def published(self) -> bool:
        return self.t == PUBLISHED

    def latent(self, damaged: Tensor) -> Tensor:
        """The restored latent (N, C, h, w) of damaged pictures; the mean of the encoder is taken,
        where OSEDiff draws from its posterior.
        """
        z = vae.encoded(self.vae, damaged)[0]
        signal, noise = self.abar**0.5, (1 - self.abar) ** 0.5
        x = z if self.published else signal * z
        text = self.text.expand(len(z), -1, -1).to(x.dtype)
        eps = self.unet(x, self.t, encoder_hidden_states=text).sample
        return (x - noise * eps) / signal

    def both(self, damaged: Tensor) -> tuple[Tensor, Tensor]:
        """The restored latent and the picture that it decodes to, not clipped."""
        z = self.latent(damaged)
        return z, vae.decoded(self.vae, z)

    @torch.no_grad()
    def __call__(self, damaged: Tensor, batch: int = 16) -> Tensor:
        """Restored pictures (N, 3, H, W) in [-1, 1], on the CPU."""
        where = next(self.unet.parameters())
        made = [
            self.both(x.to(where.device, where.dtype))[1].float().cpu()
            for x in damaged.split(batch)
        ]
        return torch.cat(made).clamp(-1, 1)


def of(
    pipe: StableDiffusionPipeline, unet: UNet2DConditionModel, net: Autoencoder, t: int
) -> OneStep:
    """The system at a timestep, its prompt empty: never the truth's caption."""
    return OneStep(unet, net, pipeline.embed(pipe, [""]), t, float(alphas(pipe)[t]))
