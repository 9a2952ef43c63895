"""The dry run: every stage of the study once, at the teacher's real size with random weights, and a
plan of what the whole would take.

`make dryrun PROFILE=sd15` needs no weights, no network and no GPU. It saves a random pipeline in a
temporary folder, loads it as the real one is loaded, and calls the study's own stage functions for
one image, one step or one batch. What they make is thrown away; times and memory stay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nanosd_lib import (
    arch,
    artifacts,
    builders,
    codesign,
    cost,
    data,
    distill,
    evaluate,
    layout,
    profiles,
    quality,
    sensitivity,
    vae,
    work,
)
from nanosd_lib.arch import NANOSD
from nanosd_lib.provenance import ROOT

A100_LATENTS = 115  # a second: SD 1.5's U-Net at 64x64, eager, batch 16; public figure, not ours
PAPER_HOURS = {"fwkd": 360, "all stages": 750}  # A100 hours, article
SD15_FLOP = 0.8033e12  # one of its passes, counted on the meta device (a test holds this)
COLUMNS = ["stage", "notebook", "peak_memory_gb", "disk_gb", "gpu_hours", "paper_gpu_hours"]
COLUMNS += ["cpu_hours", "seconds", "tflop", "basis"]
MARK = "The weights in this folder are random: what they give is no result.\n"


@dataclass(frozen=True)
class Step:
    """One stage: the call, how much work it does (flop), how much the study plans, and by which
    factor its files grow.
    """

    name: str
    notebook: str
    call: Callable[[], dict]
    done: float
    planned: float
    files: float = 1.0


# ------------------------------------------------------------------------------------- the pipeline


def configs(profile: profiles.Profile) -> dict[str, dict]:
    """Configurations of U-Net, VAE and text encoder: SD 1.5's own, or those of a local teacher."""
    if not profile.teacher.local:
        return {"unet": cost.SD15, "vae": builders.VAE, "clip": builders.CLIP}
    folder = ROOT / profile.teacher.path
    return {
        "unet": UNet2DConditionModel.load_config(folder / "unet"),
        "vae": AutoencoderKL.load_config(folder / "vae"),
        "clip": CLIPTextConfig.from_pretrained(folder / "text_encoder").to_dict(),
    }


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


# --------------------------------------------------------------------------------------- the stages


class DryStudy:
    """The study's stages, each called for one image, one step or one batch."""

    student = "E1", "RA"  # the surrogate that is taught

    def __init__(
        self, pipe: StableDiffusionPipeline, profile: profiles.Profile, scratch: Path
    ) -> None:
        self.pipe, self.profile, self.scratch = pipe, profile, scratch
        self.work, self.made = work.count(pipe, DryStudy.student), {}
        self.one = dict(steps=1, guidance=profile.samples.guidance, batch=1, seed=0)
        # Inception's weights may not be here, and looking costs next to nothing
        self.judged = self.one | {"features": "mini-clip"}

    def latents(self, split: str) -> dict:
        self.made[split] = data.latents(self.pipe, split, 1, 1, 0)
        return self.made[split]

    def reference(self) -> dict:
        self.made["reference"] = evaluate.reference(self.pipe, 2, **self.judged)
        return self.made["reference"]

    def vae_moments(self) -> dict:
        self.made["moments"] = vae.moments(self.pipe, 1, 1, self.profile.vae.size, 0)
        return self.made["moments"]

    def vae_student(self) -> dict:
        v, taught = self.profile.vae, self.made["moments"]["moments"]
        judge = "mini-attributes"  # the published backbone may not be here
        how = dict(teacher=self.pipe.vae, taught=taught, size=v.size, scratch=self.scratch / "vae")
        self.made["slim"] = vae.distil("slim", 1, 2, v.lr, v.weights, judge, 0, **how)
        return self.made["slim"]

    @property
    def slim(self) -> vae.Autoencoder:
        return vae.load("slim", self.pipe.vae, self.made["slim"]["weights"])

    def vae_compare(self) -> dict:
        found = codesign.compare(self.pipe, self.slim, 1, "mini-attributes", 0)
        return {"table": found["table"], "channels": found["channels"]}

    def latents_slim(self) -> dict:
        other = quality.with_parts(self.pipe, vae=self.slim)
        return data.latents_alone(other, "train", 1, 1, 0)

    def codesign(self) -> dict:
        other, how = quality.with_parts(self.pipe, vae=self.slim), {"heldout": 1, "t": 200}
        return codesign.judge(other, self.features, str(NANOSD["N2"]), **how, **self.judged)

    @property
    def features(self) -> torch.Tensor:
        return self.made["reference"]["features"]["teacher"]

    def of(self, split: str) -> data.Latents:
        return data.Latents(**self.made[split]["latents"])

    def sensitivity(self) -> dict:
        found = sensitivity.sensitivity(
            self.pipe, self.of("heldout"), 1, self.features, **self.judged
        )
        return {"table": found["table"]}

    def teach(self) -> dict:
        held = evaluate.heldout_batches(self.of("heldout"), self.pipe, 1)
        how = dict(pairs=[list(self.student)], steps=1, batch=1, lr=self.profile.fwkd.lr, seed=0)
        how |= dict(fraction=1.0, e3_target="D4", scratch=self.scratch / "fwkd")
        return distill.teach(self.pipe.unet, self.of("train"), held, self.pipe.scheduler, **how)

    def judge(self) -> dict:
        nets = distill.surrogates(self.pipe.unet, list(arch.alternatives()))
        text = str(NANOSD["N2"])
        return evaluate.score_arch(text, self.pipe, nets, self.features, **self.judged)

    def align(self) -> dict:
        n2 = NANOSD["N2"]
        changed = [(s, c) for s, c in n2.stages.items() if c != arch.BASE[s]]
        how = dict(surrogates=distill.surrogates(self.pipe.unet, changed), latents=self.of("train"))
        how |= dict(teacher_features=self.features, scratch=self.scratch / "align")
        rate = self.profile.family.align_lr
        return evaluate.align_arch(str(n2), 1, rate, 1, pipe=self.pipe, **how, **self.judged)

    def steps(self) -> list[Step]:
        """Every stage with what it does here and what the profile plans (flop)."""
        p, w, pipe, s = self.profile, self.work, self.pipe, self.profile.samples.steps
        f, t, b, g = p.fwkd, p.teacher_check, p.search, p.family
        variants = len(sensitivity.variants(cost.on_meta(pipe.unet)))
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
        area = (v.size / data.side(pipe)) ** 2
        counted = codesign.vae_costs(pipe.vae, v.size).set_index(["model", "part"]).gmac
        small = 2e9 * counted["slim"] / area  # of its two parts, where the pipeline works
        # a pass and a gradient, and LPIPS of the profile's own backbone
        slim = 3 * 2e9 * counted["slim"].sum()
        seen = 1.5 * 2e9 * codesign.judge_gmac(v.judge, v.size)
        here = slim + 1.5 * 2e9 * codesign.judge_gmac("mini-attributes", v.size)
        # through both encoders, the teacher's decoder once and the student's twice
        swapped = both + small.sum() + small["decoder"]
        students = v.seeds + 1 + 5
        learned = (v.seeds + 1) * v.steps + 5 * v.ablation_steps  # one is AutoencoderTiny
        errors = 2 * w.unet  # a teacher's and a student's pass over one noisy latent
        return [
            Step("check-vae", "00", lambda: evaluate.check_vae(pipe, 2, 0),
                 4 * both, 2 * t.reconstructions * both),
            Step("check-prompts", "00", lambda: evaluate.check_prompts(pipe, n=1, **self.one),
                 w.images(1, 1), w.images(t.prompts, s)),
            Step("check-frechet", "00", lambda: evaluate.check_frechet(pipe, n=2, **self.one),
                 2 * w.images(2, 1), 2 * w.images(t.frechet, s)),
            Step("compose", "02", lambda: evaluate.compose(pipe, 2, 0),
                 2 * w.mean, p.cost.compositions * w.mean),
            Step("latents-train", "03", lambda: self.latents("train"),
                 2 * w.encode, train * w.encode, train / 2),
            Step("latents-heldout", "02", lambda: self.latents("heldout"),
                 2 * w.encode, held * w.encode, held / 2),
            Step("reference", "02", self.reference,
                 2 * w.images(2, 1), 2 * w.images(shots + 2 * b.images, s), 16 / 2),
            Step("sensitivity", "02", self.sensitivity,
                 variants * (w.images(2, 1) + errors),
                 variants * (w.images(shots, s) + p.sensitivity.pairs * errors)),
            Step("fwkd", "03", self.teach, 3 * w.unet + 5 * w.student, taught,
                 w.files),
            Step("vae-moments", "04", self.vae_moments,
                 2 * w.encode * area, (v.scenes + v.crops) * w.encode * area,
                 (v.scenes + v.crops) / 2),
            Step("vae-student", "04", self.vae_student, 2 * here,
                 learned * v.batch * (slim + seen), students),
            Step("vae-compare", "04", self.vae_compare, 2 * swapped,
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
            Step("prior", "06", lambda: evaluate.interpolation(pipe, pairs=1, frames=2, **self.one),
                 w.images(2, 1), 2 * w.images(t.prompts // 2 + 16 + 36, s)),
        ]  # fmt: skip


# ----------------------------------------------------------------------------------------- the plan


@contextmanager
def peak_memory(every: float = 0.05):
    """[bytes]: the largest resident memory of this process (or of the GPU) inside the block."""
    peak, done, me = [0], threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], me.memory_info().rss)
            done.wait(every)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        if torch.cuda.is_available():
            peak[0] = torch.cuda.max_memory_allocated()


def plan(profile: profiles.Profile, work_folder: Path, device: str) -> pd.DataFrame:
    """One row for each stage: what it took here, and what the profile's budget would take.

    stage, notebook, peak_memory_gb (of the dry run), disk_gb, gpu_hours, paper_gpu_hours,
    cpu_hours, seconds (of the dry run), tflop (planned), basis.
    """
    folder = work_folder / "teacher"
    began = time.perf_counter()
    with peak_memory() as peak:
        random_pipeline(folder, **configs(profile))
        pipe = quality.load_teacher(str(folder), profile.dtype, device)
    study = DryStudy(pipe, profile, work_folder)
    row = _row("teacher", "all", peak[0], time.perf_counter() - began, _bytes(folder))
    rows = [row | {"basis": "random weights, saved in float16 and loaded"}]
    rate = A100_LATENTS * SD15_FLOP
    for step in study.steps():
        print(f"dry run: {step.name}", flush=True)
        began = time.perf_counter()
        with peak_memory() as peak:
            values = step.call()
        spent = time.perf_counter() - began
        kept = artifacts.write(work_folder / "store" / step.name, "0" * 64, values, {}).bytes
        here = spent * step.planned / step.done / 3600
        row = _row(step.name, step.notebook, peak[0], spent, kept * step.files)
        row |= {"tflop": step.planned / 1e12, "gpu_hours": step.planned / rate / 3600}
        basis = f"counted operations at {rate / 1e12:.0f} Tflop/s (A100, public figure)"
        if device == "cuda":
            row["gpu_hours"], basis = here, "measured on this GPU at batch 1, scaled by operations"
        else:
            row["cpu_hours"] = here
        rows.append(row | {"basis": f"random weights; {basis}"})
    table = pd.DataFrame(rows)
    total = table.drop(columns=["stage", "notebook", "basis"]).sum().to_dict()
    total |= {"stage": "all stages", "notebook": "all", "basis": "sum; of memory the largest"}
    total["peak_memory_gb"] = table.peak_memory_gb.max()
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    table["paper_gpu_hours"] = table.stage.map(PAPER_HOURS)
    return table[COLUMNS]


def _row(name: str, notebook: str, peak: float, seconds: float, disk: float) -> dict[str, Any]:
    row = {"stage": name, "notebook": notebook, "seconds": seconds, "gpu_hours": 0.0}
    row |= {"cpu_hours": 0.0, "tflop": 0.0}
    return row | {"peak_memory_gb": peak / 1e9, "disk_gb": disk / 1e9}


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nanosd_lib.dryrun", description=__doc__)
    parser.add_argument("--profile", default="sd15")
    options = parser.parse_args(argv)
    try:
        profile = profiles.load(options.profile)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(min(profile.threads, psutil.cpu_count(logical=False) or 1))
        temporary = Path(tempfile.gettempdir())
        layout.check_space(temporary, 16e9 if not profile.teacher.local else 1e9, "the dry run")
        with tempfile.TemporaryDirectory(prefix="nanosd-dryrun-") as folder:
            table = plan(profile, Path(folder), device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = layout.results_root() / f"plan_{profile.name}.csv"
    layout.write_atomic(out, table.to_csv(index=False, float_format="%.4g").encode())
    print(table.drop(columns=["basis", "notebook"]).round(2).to_string(index=False))
    print(f"the plan is in {layout.shown(out)}; basis of its hours: its last column")
    return 0


if __name__ == "__main__":
    sys.exit(main())
