"""latents: scaled once where pictures become latents, unscaled once where they become pictures."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from nanosd_lib.data import splits
from nanosd_lib.learning import vae_student
from nanosd_lib.networks import pipeline, vae
from nanosd_lib.quality import autoencoders, codesign, metrics

FACTOR = 0.5  # the bundled teacher's own is so near 1 that a forgotten one would not show


@pytest.fixture(scope="module")
def pipe(sd_mini):
    """The bundled teacher under another scaling factor."""
    net = copy.deepcopy(sd_mini.vae)
    net.register_to_config(scaling_factor=FACTOR)
    return pipeline.with_parts(sd_mini, vae=net)


@pytest.fixture(scope="module")
def x(pipe):
    return splits.pictures("heldout", 3, 1, 0)[0]


@pytest.fixture(scope="module")
def posterior(pipe, x):
    """The autoencoder's own, unscaled."""
    with torch.no_grad():
        return pipe.vae.encode(x).latent_dist


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)


def test_encoded_pictures_are_scaled(pipe, x, posterior):
    assert posterior.mean.std() > 0.3  # or any factor would do
    close(pipeline.encode(pipe, x, batch=3), FACTOR * posterior.mean)


def test_latents_of_a_split_are_scaled(pipe, posterior):
    close(splits.latents(pipe, "heldout", 3, 1, 0)["latents"]["z"], FACTOR * posterior.mean)
    close(splits.latents_alone(pipe, "heldout", 3, 1, 0)["latents"]["z"], FACTOR * posterior.mean)


def test_what_a_vae_student_is_taught_is_scaled(pipe):
    taught = vae_student.moments(pipe, 3, 1, pipeline.side(pipe), 0)["moments"]
    with torch.no_grad():
        own = pipe.vae.encode(splits.pictures("train", 3, 1, 0)[0]).latent_dist
    close(taught["mean"].float(), FACTOR * own.mean, atol=1e-3)
    close(taught["std"].float(), FACTOR * own.std, atol=1e-5)


def test_moments_and_latents_of_an_autoencoder_are_scaled(pipe, x, posterior):
    for mean, std in (vae.encoded(pipe.vae, x), autoencoders.latents(pipe.vae, x, batch=3)):
        close(mean.detach(), FACTOR * posterior.mean)
        close(std.detach(), FACTOR * posterior.std)


def test_pictures_of_scaled_latents_are_the_autoencoders_own(pipe, posterior):
    with torch.no_grad():
        want = pipe.vae.decode(posterior.mean).sample
        close(vae.decoded(pipe.vae, FACTOR * posterior.mean), want)
    close(autoencoders.pictures(pipe.vae, FACTOR * posterior.mean), want.clamp(-1, 1))


def test_a_pipelines_own_pictures_are_those_of_its_last_latents(pipe):
    """diffusers unscales by itself; what judges latents must do the same."""
    prompts, z = ["a red cube on sand at noon"], pipeline.noise(pipe, 1, 0)
    drawn = pipeline.Sampling(steps=2, guidance=3.0)
    how = dict(num_inference_steps=2, guidance_scale=3.0, output_type="latent")
    last = pipe(prompts, latents=z, **how).images
    made = pipeline.generate(pipe, prompts, drawn, z=z)
    close(autoencoders.pictures(pipe.vae, last), made, atol=1e-4)


def test_one_step_denoising_reads_and_returns_scaled_latents(pipe):
    """A U-Net that knows the latents finds unit noise in what it is given, and leaves no error but
    the autoencoder's own.
    """
    shown = splits.heldout_pictures(pipe, 4, 0)["held-out scenes"]
    with torch.no_grad():
        own = pipe.vae.encode(shown).latent_dist.mean
        want = metrics.psnr(shown, pipe.vae.decode(own).sample.clamp(-1, 1)).mean()
    found = []

    def knows(noisy, t, encoder_hidden_states):
        a = pipe.scheduler.alphas_cumprod[t]
        found.append((noisy - a.sqrt() * FACTOR * own) / (1 - a).sqrt())
        return SimpleNamespace(sample=found[-1])

    knows.config = pipe.unet.config
    beside = dict(unet=knows, device=pipe.device, vae_scale_factor=pipe.vae_scale_factor)
    made = SimpleNamespace(**pipe.components | beside)
    assert float(codesign.denoised(made, 4, 200, 0).mean()) == pytest.approx(float(want), abs=0.01)
    assert float(found[0].std()) == pytest.approx(1, abs=0.05)


def test_a_student_begins_at_the_teachers_average_moments(posterior):
    how = dict(encoder_blocks=(0, 1), decoder_blocks=(1, 0), norm_num_groups=4)
    net = vae.SlimVAE(block_out_channels=(8, 8), scaling_factor=FACTOR, **how)
    torch.nn.init.zeros_(net.encoder[-1].weight)
    taught = {"mean": FACTOR * posterior.mean, "std": FACTOR * posterior.std}
    vae_student._begin_at(net, taught)
    with torch.no_grad():
        mean, std = vae.encoded(net, torch.zeros(1, 3, 8, 8))
    close(mean[0, :, 0, 0], taught["mean"].mean((0, 2, 3)))
    close(std[0, :, 0, 0], taught["std"].mean((0, 2, 3)))


def test_one_sampling_is_looked_at_on_its_way(sd_mini):
    """What the U-Net expects comes nearer to the picture drawn; the latent loses its noise."""
    how = pipeline.Sampling(steps=8, guidance=3.0, seed=4)
    seen = pipeline.stages(sd_mini, "a red cube on grass at noon", how, shown=4)
    (drawn,) = pipeline.generate(sd_mini, ["a red cube on grass at noon"], how)
    assert seen["t"].tolist() == sorted(seen["t"].tolist(), reverse=True) and len(seen["t"]) == 4
    assert seen["noisy"].shape == seen["expected"].shape == (4, 3, 64, 64)
    near = metrics.psnr(seen["expected"], drawn.expand(4, -1, -1, -1))
    assert near[-1] > 30 > near[0] and (near.diff() > 0).all()
    rough = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))  # noqa: E731
    assert rough(seen["noisy"])[0] > 2 * rough(seen["noisy"])[-1]
