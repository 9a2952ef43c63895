"""Every computation of the study, called for one image, one step or one batch, and what the whole
would take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from nanosd_lib.data import photographs, splits
from nanosd_lib.hardware import tile
from nanosd_lib.learning import align, fwkd, vae_student
from nanosd_lib.networks import ablation, arch, counting, pipeline, surgery, vae, work
from nanosd_lib.networks.arch import NANOSD
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.quality import autoencoders, checks, codesign, following, prior, sensitivity, tafid
from nanosd_lib.recipes import restoring
from nanosd_lib.restoration import osediff
from nanosd_lib.restoration import pairs as osediff_pairs
from nanosd_lib.runs import profiles


@dataclass(frozen=True)
class Step:
    """One computation: the call, how much work it does (flop), how much the study plans, and by
    which factor its files grow.
    """

    name: str
    notebook: str
    call: Callable[[], dict]
    done: float
    planned: float
    files: float = 1.0


class DryStudy:
    """The study's computations, each called for one image, one step or one batch."""

    student = "D1", "RA"  # the surrogate that is taught: it needs the teacher's whole pass

    def __init__(
        self, pipe: StableDiffusionPipeline, profile: profiles.Profile, scratch: Path
    ) -> None:
        self.pipe, self.profile, self.scratch = pipe, profile, scratch
        self.work = work.count(pipe, DryStudy.student)
        self.made: dict[str, Any] = {}
        # Inception's weights may not be here, and looking costs next to nothing
        self.how = Sampling(steps=1, guidance=profile.samples.guidance, batch=1)

    def latents(self, split: str) -> dict:
        self.made[split] = splits.latents(self.pipe, split, 1, 1, 0)
        return self.made[split]

    def reference(self) -> dict:
        self.made["reference"] = tafid.reference(self.pipe, 2, how=self.how)
        return self.made["reference"]

    def vae_moments(self) -> dict:
        self.made["moments"] = vae_student.moments(self.pipe, 1, 1, self.profile.vae.size, 0)
        return self.made["moments"]

    def vae_student(self) -> dict:
        v, taught = self.profile.vae, self.made["moments"]["moments"]
        judge = "mini-attributes"  # the published backbone may not be here
        how = dict(teacher=self.pipe.vae, taught=taught, size=v.size, scratch=self.scratch / "vae")
        self.made["slim"] = vae_student.distil("slim", 1, 2, v.lr, v.weights, judge, 0, **how)
        return self.made["slim"]

    @property
    def slim(self) -> vae.Autoencoder:
        return vae.load("slim", self.pipe.vae, self.made["slim"]["weights"])

    def vae_compare(self) -> dict:
        found = autoencoders.compare(self.pipe, self.slim, 1, "mini-attributes", 0)
        return {"table": found["table"], "channels": found["channels"]}

    def latents_slim(self) -> dict:
        other = pipeline.with_parts(self.pipe, vae=self.slim)
        return splits.latents_alone(other, "train", 1, 1, 0)

    def codesign(self) -> dict:
        other = pipeline.with_parts(self.pipe, vae=self.slim)
        how: dict[str, Any] = {"heldout": 1, "t": 200, "how": self.how}
        return codesign.judge(other, self.features, str(NANOSD["N2"]), **how)

    @property
    def features(self) -> torch.Tensor:
        return self.made["reference"]["features"]["teacher"]

    def of(self, split: str) -> splits.Latents:
        return splits.Latents(**self.made[split]["latents"])

    def sensitivity(self) -> dict:
        latents, way = self.of("heldout"), "removed"
        missed = sensitivity.errors(self.pipe, latents, way, 1, how=self.how)["features"]
        found = sensitivity.sensitivity(self.pipe, missed, way, self.features, how=self.how)
        return {"table": found["table"]}

    def prompts(self, n: int) -> dict:
        how: dict[str, Any] = {"kinds": ["one object"], "trained": {}}
        return following.check_prompts(self.pipe, n, self.how, **how)

    def distances(self) -> dict:
        both = self.made["reference"]["features"]
        return checks.check_frechet(self.pipe, both["teacher"], both["other"], how=self.how)

    def teach(self) -> dict:
        held = splits.heldout_batches(self.of("heldout"), self.pipe, 1, seed=0)
        how: dict[str, Any] = dict(pairs=[list(self.student)], steps=1, batch=1, seed=0)
        how |= dict(
            lr=self.profile.fwkd.lr, fraction=1.0, e3_target="D4", scratch=self.scratch / "fwkd"
        )
        return fwkd.teach(self.pipe.unet, self.of("train"), held, self.pipe.scheduler, **how)

    def judge(self) -> dict:
        nets = fwkd.surrogates(self.pipe.unet, arch.taught())
        text = str(NANOSD["N2"])
        return tafid.score_arch(text, self.pipe, nets, self.features, how=self.how)

    def align(self) -> dict:
        n2 = NANOSD["N2"]
        changed = [(s, c) for s, c in n2.stages.items() if c != arch.BASE[s]]
        how: dict[str, Any] = dict(latents=self.of("train"))
        how |= dict(surrogates=fwkd.surrogates(self.pipe.unet, changed))
        how |= dict(scratch=self.scratch / "align")
        rate = self.profile.family.align_lr
        return align.align_archs([str(n2)], 1, 1, rate, 0, pipe=self.pipe, **how)

    def osediff(self) -> dict:
        r = self.profile.restoration
        pairs = osediff_pairs.Pairs(
            **osediff_pairs.pictures(self.pipe, 1, 1, 0)["pictures"], family="mild"
        )
        net = surgery.student(str(NANOSD["N2"]), self.pipe.unet)
        how: dict[str, Any] = {"steps": 1, "batch": 1, "lr": r.lr, "seed": 0, "rank": r.rank}
        how |= {"t": 200, "weights": osediff.WEIGHTS, "guidance": self.how.guidance}
        return osediff.train(
            self.pipe, net, self.pipe.vae, pairs, self.scratch / "osediff",
            loss="mini-attributes", **how,
        )  # fmt: skip

    def steps(self) -> list[Step]:
        """Every computation with what it does here and what the profile plans (flop)."""
        p, w, pipe, s = self.profile, self.work, self.pipe, self.profile.samples.steps
        f, t, b, g = p.fwkd, p.teacher_check, p.search, p.family
        ways = [how for _, how in ablation.variants(counting.on_meta(pipe.unet))]
        variants, removed = len(ways), ways.count("removed")
        networks = (
            b.initial + 2 * 3 * b.evaluations
        )  # two problems; random search has twice as many
        family = len(NANOSD) + 2 + 2  # the two that the searches found, N2 twice in notebook 04
        train, held = f.scenes * 9 / 8, f.heldout * 5 / 4
        shots, samples = p.sensitivity.images, f.steps * f.batch
        # all thirty; and twice about a sixth of them (less data, E3's own target)
        taught = w.teaching(samples) + 2 * samples * (w.unet + 3 * w.students / 6)
        aligned = g.align_steps * g.align_batch * (w.unet + 3 * w.mean)
        both = w.encode + w.decode
        v = p.vae
        area = (v.size / pipeline.side(pipe)) ** 2
        counted = tile.vae_costs(pipe.vae, v.size).set_index(["model", "part"]).gmac
        small = 2e9 * counted["slim"] / area  # of its two parts, where the pipeline works
        # a pass and a gradient, and LPIPS of the profile's own backbone
        slim = 3 * 2e9 * counted["slim"].sum()
        seen = 1.5 * 2e9 * autoencoders.judge_gmac(v.judge, v.size)
        here = slim + 1.5 * 2e9 * autoencoders.judge_gmac("mini-attributes", v.size)
        # through both encoders, the teacher's decoder once and the student's twice
        swapped = both + small.sum() + small["decoder"]
        students = v.seeds + 1 + 5
        learned = (v.seeds + 1) * v.steps + 5 * v.ablation_steps  # one is AutoencoderTiny
        held_out = len(photographs.PHOTOGRAPHS["heldout"])
        r = p.restoration
        # weights that stay get no gradient: twice a pass; the teacher is asked three times
        restored = 2 * (w.n2 + w.unet + both) + 3 * w.unet
        restored += 1.5 * 2e9 * autoencoders.judge_gmac("mini-attributes", pipeline.side(pipe))
        systems = sum(min(seeds, r.seeds) for *_, seeds in restoring.COMPARED)
        errors = 2 * w.unet  # a teacher's and a student's pass over one noisy latent
        return [
            Step("check-vae", "00", lambda: checks.check_vae(pipe, 2, 0),
                 (2 + 2 * held_out) * both,
                 (t.reconstructions + held_out * min(64, t.reconstructions)) * both),
            Step("prompts", "00", lambda: self.prompts(1), w.images(1, 1),
                 len(following.KINDS) * w.images(t.prompts, s)),
            Step("compose", "02", lambda: checks.compose(pipe, 2, 0),
                 2 * w.mean, p.cost.compositions * w.mean),
            Step("latents-train", "03", lambda: self.latents("train"),
                 2 * w.encode, train * w.encode, train / 2),
            Step("latents-heldout", "02", lambda: self.latents("heldout"),
                 2 * w.encode, held * w.encode, held / 2),
            Step("reference", "02", self.reference,
                 2 * w.images(2, 1), 2 * w.images(shots + 2 * b.images, s), 16 / 2),
            Step("check-frechet", "00", self.distances, w.images(2, 1), w.images(shots, s)),
            Step("sensitivity", "02", self.sensitivity,
                 removed * (w.images(2, 1) + len(sensitivity.BANDS) * errors),
                 variants * (w.images(shots, s)
                             + len(sensitivity.BANDS) * p.sensitivity.pairs * errors)),
            Step("fwkd", "03", self.teach, 3 * w.unet + 5 * w.student, taught,
                 w.files),
            Step("vae-moments", "04", self.vae_moments,
                 2 * w.encode * area, (v.scenes + v.crops) * w.encode * area,
                 (v.scenes + v.crops) / 2),
            Step("vae-student", "04", self.vae_student, 2 * here,
                 learned * v.batch * (slim + seen), students),
            Step("vae-compare", "04", self.vae_compare, (1 + held_out) * swapped,
                 2 * v.heldout * students * swapped, students),
            Step("latents-slim", "04", self.latents_slim,
                 2 * small["encoder"], train * small["encoder"], train / 2),
            Step("codesign", "04", self.codesign,
                 w.images(2, 1) - 2 * w.decode + w.unet + small["encoder"] + 3 * small["decoder"],
                 8 * (w.images(b.images, s) + v.heldout * (both + w.unet)), 8),
            Step("search", "05", self.judge,
                 w.images(2, 1, w.n2), networks * w.images(b.images, s, w.mean), networks),
            Step("align", "06", self.align, w.images(2, 1, w.n2) + w.unet + 3 * w.n2,
                 family * (w.images(2 * b.images, s, w.mean) + aligned), family),
            Step("prior", "06", lambda: prior.interpolation(pipe, pairs=1, frames=2, how=self.how),
                 w.images(2, 1),
                 2 * w.images(2 * t.prompts + 4 * g.diversity + 9 * g.paths, s)
                 + w.images(3 * b.images, s)),
            Step("osediff", "07", self.osediff,
                 restored, systems * r.steps * r.batch * restored, systems),
        ]  # fmt: skip
