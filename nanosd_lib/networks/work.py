"""Work: floating-point operations of the study's parts, counted; what plans and comparisons of cost
are made of.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from nanosd_lib.networks import arch, counting, pipeline, precision
from nanosd_lib.networks.arch import NANOSD


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one pass, batch 1."""

    unet: float
    encode: float
    decode: float
    mean: float  # of a network of the search space
    n2: float
    student: float  # the surrogate that the dry run teaches
    students: float  # all thirty
    files: float  # parameters of all thirty over that one's

    def teaching(self, samples: float) -> float:
        """FwKD of all thirty on that many samples: one teacher pass; a pass and a gradient each."""
        return samples * (self.unet + 3 * self.students)

    def images(self, n: float, steps: int, unet: float | None = None) -> float:
        """n images with classifier-free guidance: two passes a step, one decoding."""
        return n * (2 * steps * (self.unet if unet is None else unet) + self.decode)


def counted(pipe: StableDiffusionPipeline) -> dict:
    """`count`, as a run keeps it."""
    return {"work": asdict(count(pipe))}


@precision.single()
def count(pipe: StableDiffusionPipeline, student: tuple[str, str] = ("E1", "RA")) -> Work:
    """Counted by torch on the meta device; `student` is the surrogate of `Work.student`."""
    meta, tokens = counting.on_meta(pipe.unet), pipe.tokenizer.model_max_length
    table = counting.stage_table(meta, tokens).set_index(["stage", "code"])
    stages = 2e9 * (table.gmac_linear + table.gmac_attention)
    own = table.params[student]
    nets = {"six": arch.Arch(**arch.BASE), "n2": NANOSD["N2"]}
    nets = counting.counts(nets, meta, tokens).set_index("model")
    nets = 2e9 * (nets.gmac_linear + nets.gmac_attention)
    base = sum(stages[s, c] for s, c in arch.BASE.items())
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(pipe.vae.config)
        picture = torch.empty(1, 3, pipeline.side(pipe), pipeline.side(pipe))
        size = pipe.unet.config.sample_size
        latent = torch.empty(1, vae.config.latent_channels, size, size)
    return Work(
        unet=2e9 * sum(counting.gmac(meta, tokens)),
        encode=2e9 * sum(counting.flops(lambda: vae.encode(picture))),
        decode=2e9 * sum(counting.flops(lambda: vae.decode(latent))),
        mean=nets["six"] - base + stages.groupby("stage").mean().sum(),
        n2=nets["n2"],
        student=stages[student],
        students=stages.sum() - base,
        files=(table.params.sum() - sum(table.params[s, c] for s, c in arch.BASE.items())) / own,
    )
