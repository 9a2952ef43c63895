"""The computations of notebook 04: which one, with which numbers, on which inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from nanosd_lib.data import splits
from nanosd_lib.hardware import tile
from nanosd_lib.learning import vae_student
from nanosd_lib.networks import pipeline, surgery, vae
from nanosd_lib.networks.arch import Arch
from nanosd_lib.networks.vae import Autoencoder
from nanosd_lib.quality import autoencoders, codesign, uncertainty
from nanosd_lib.recipes import drawn, members, shared, surrogates, trained
from nanosd_lib.recipes.surrogates import Taught
from nanosd_lib.recipes.trained import Kind, Member, Plain, Settings, Trained
from nanosd_lib.runs.cache import Later
from nanosd_lib.runs.notebook import Artifact, Run
from nanosd_lib.runs.provenance import canonical

WITNESSED = 32  # held-out pictures of each kind, of which a release tells a student's error
STEP = 200  # of the schedule's 1000: how noisy the latents of `codesign.denoised` are


def moments(run: Run, pipe: StableDiffusionPipeline, what: Plain) -> Artifact:
    """Training pictures and the teacher's mean and standard deviation of each."""
    keys, mine = shared.photographs(run, pipe)
    how = {"device": pipe.device, "pipe": pipe, "mine": mine}
    return run.cached("vae-moments", vae_student.moments, what, keys, **how)


def seeds(run: Run) -> list[int]:
    """Seeds of the students of this run: as many as the profile wants, no run has another's."""
    n = run.profile.vae.seeds
    return [run.seed * n + k for k in range(n)]


def costs(run: Run, pipe: StableDiffusionPipeline) -> pd.DataFrame:
    """Parameters and multiply-adds of the autoencoders at the size the pipeline works at."""
    return tile.vae_costs(pipe.vae, pipeline.side(pipe))


def equal_steps(run: Run, pipe: StableDiffusionPipeline, kind: str) -> int:
    """Steps that cost a student of that kind as many multiply-adds as the slim one's: three passes
    (one forward, two for the gradient) of the student, and LPIPS with a gradient to one picture.
    """
    v = run.profile.vae
    gmac = tile.vae_costs(pipe.vae, v.size).groupby("model").gmac.sum()
    step = 3 * gmac + 1.5 * autoencoders.judge_gmac(v.judge, v.size)
    return round(v.steps * step["slim"] / step[kind])


@dataclass(frozen=True)
class Student(Kind):
    """Distillation of one autoencoder (paper, method step 4): of a kind, from a seed; of the
    ablation where it says what is left out ("nothing", or a term).
    """

    kind: str = "slim"
    seed: int = 0
    without: str = ""

    def member(self, run: Run) -> Member:
        v = run.profile.vae
        weights = v.weights | ({self.without: 0.0} if self.without in v.weights else {})
        name = f"vae/{self.kind}-{self.seed}"
        name += f"-without-{self.without}" if self.without else ""
        what = {"kind": self.kind, "weights": weights, "judge": v.judge, "size": v.size}
        return Member(name, what)

    def settings(self, run: Run, pipe: StableDiffusionPipeline) -> Settings:
        v = run.profile.vae
        steps = v.ablation_steps if self.without else equal_steps(run, pipe, self.kind)
        numbers = {"steps": steps, "batch": v.batch, "lr": v.lr, "seed": self.seed}
        train = {"scenes": v.scenes, "crops": v.crops, "seed": run.seed}
        return Settings(numbers, {"train": train, "heldout": {"n": WITNESSED, "seed": run.seed}})

    def train(
        self, run: Run, pipe, members: Sequence[Member], settings: Settings, until: int | None
    ) -> Artifact:
        (m,) = members
        what = settings.data["train"] | {"size": m.what["size"]}
        inputs: list = [run.teacher_key, canonical(what)]
        if until is None:
            made = moments(run, pipe, what)
            taught, inputs = made["moments"], [run.teacher_key, made]
        else:
            taught = Later(lambda: vae_student.moments_on_demand(pipe, **what))
        return run.cached(
            "vae-student",
            vae_student.distil,
            {**m.what, **settings.budget} | ({} if until is None else {"until": until}),
            inputs,
            quiet=until is not None,
            device=pipe.device,
            teacher=pipe.vae,
            taught=taught,
        )

    def part(self, made: Artifact, member: Member) -> tuple[dict[str, Tensor], list[Plain]]:
        rows = [{k: v for k, v in r.items() if k != "first"} for r in made["training"]["record"]]
        return made["weights"], rows

    def first(self, made: Artifact, member: Member) -> list[float]:
        return made["training"]["record"][0]["first"]["loss"]

    def data(self, run: Run, pipe, settings: Settings) -> Plain:
        train = settings.data["train"] | {"split": "train"}
        return shared.fingerprints(run, pipe, {"train": train})

    def heldout(self, run: Run, pipe, some: Sequence[Trained]) -> dict[str, float]:
        found = {}
        for t in some:
            make = functools.partial(network, pipe, t)
            errors = run.cached(
                "vae-error", vae_student.judged, t.settings.data["heldout"],
                [run.teacher_key, t.key], quiet=True, device=pipe.device, pipe=pipe,
                net=Later(make),
            )["errors"]  # fmt: skip
            found[t.member.name] = sum(errors.values()) / len(errors)
        return found

    def config(self, run: Run, pipe, member: Member) -> Plain:
        return dict(vae.KINDS[self.kind](pipe.vae).config)


def network(pipe: StableDiffusionPipeline, t: Trained) -> Autoencoder:
    """A trained autoencoder, frozen."""
    return vae.load(t.member.what["kind"], pipe.vae, t.tensors)


def student(
    run: Run, pipe: StableDiffusionPipeline, seed: int, kind: str = "slim", without: str = ""
) -> Trained:
    """A student distilled with the profile's weights, from the release or here; of the ablation
    where `without` says what is left out ("nothing", or a term).
    """
    one = Student(kind, seed, without)
    m = one.member(run)
    return trained.load(run, pipe, one, [m])[m.name]


def compared(
    run: Run, pipe: StableDiffusionPipeline, t: Trained | None = None, swaps: bool = True
) -> Artifact:
    """Held-out pictures through a trained student and its swaps, or through the teacher."""
    v = run.profile.vae
    net = None if t is None else network(pipe, t)
    keys, mine = shared.photographs(run, pipe)
    what, seen = {"n": v.heldout, "seed": run.seed}, {"pipe": pipe, "mine": mine}
    taught = run.cached("vae-heldout", autoencoders.encoded, what, keys, quiet=True, **seen)
    keys += [taught] if t is None else [taught, t.key]
    how = what | {"judge": v.judge} | ({} if swaps else {"parts": ["both"]})
    seen |= {"student": net, "taught": taught}
    return run.cached("vae-compare", autoencoders.compare, how, keys, quiet=True, **seen)


def scores(
    judged: dict[tuple[str, int], Artifact],
    counted: pd.DataFrame,
    ms: pd.DataFrame,
    trained: dict[str, str],
    how: str,
) -> pd.DataFrame:
    """The rows of vae.csv: `judged` maps (model, seed) to what `compared` found; `trained` and
    `how` say how each model was trained, and how all were measured.

    ms holds component, model, ms_median; a whole autoencoder costs what its two parts cost, and
    a swap is charged the part that was swapped.
    """
    ms = ms.assign(part=ms.component.str.removeprefix("VAE ")).set_index(["model", "part"])
    spent = counted.set_index(["model", "part"]).assign(ms_median=ms.ms_median)
    rows = []
    for (model, seed), found in judged.items():
        for r in found["table"].itertuples():
            parts = ["encoder", "decoder"] if r.part == "both" else [r.part]
            c = spent.loc[model].loc[parts].sum()
            said = f"{r.pictures}, n={r.n}, {how}" + (
                f", {trained[model]}" if model in trained else ""
            )
            row = {"model": model, "part": r.part, "params": int(c.params), "gmac": c.gmac}
            row |= {"ms_median": c.ms_median, "psnr": r.psnr, "psnr_low": r.psnr_low}
            row |= {"psnr_high": r.psnr_high, "ssim": r.ssim, "lpips": r.lpips}
            rows.append(row | {"latent_corr": r.latent_corr, "seed": seed, "protocol": said})
    return pd.DataFrame(rows)


def profile(
    run: Run,
    pipe: StableDiffusionPipeline,
    text: str,
    vaes: dict[str, Autoencoder],
    batch: int,
) -> pd.DataFrame:
    """Latency of the parts of the pipeline on this machine, in one interleaved run; the slim U-Net
    is the network of that arch.
    """
    c = run.profile.cost
    how = {"arch": text, "batch": batch, "repeats": c.repeats, "warmup": c.warmup}
    return run.cached(
        "tile-ms",
        tile.profile_tile,
        how,
        [run.teacher_key],
        quiet=True,
        measured=True,
        pipe=pipe,
        vaes={"teacher": pipe.vae} | vaes,
    )["table"]


# ---------------------------------------------------------------------------------------- co-design
def aligned_on(run: Run, pipe, text: str, taught: Taught, t: Trained) -> Trained:
    """The network of that arch aligned on the latents of a slim VAE."""
    m = members.member(text, taught, t)
    return trained.load(run, pipe, members.Aligned(taught, t), [m])[m.name]


def combinations(
    run: Run,
    pipe: StableDiffusionPipeline,
    t: Trained,
    text: str,
    taught: Taught,
    against: Artifact,
    draw: int,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[tuple[str, str, str], Artifact]]:
    """unet, vae, aligned, tafid, floor, psnr_denoised, protocol for either U-Net with either VAE;
    the slim U-Net (of that arch) as assembled, aligned on the teacher's latents, and on the slim
    VAE's. Also the first pictures of each, and by (unet, vae, aligned) all that was measured.
    """
    nets = surrogates.later(pipe, taught)
    other = pipeline.with_parts(pipe, vae=network(pipe, t))
    begin, mine = shared.photographs(run, pipe)
    assembled = lambda: surgery.assemble(Arch.parse(text), pipe.unet, nets.value())  # noqa: E731
    unets: dict = {("teacher", "no"): (lambda: pipe.unet, [])}
    unets["slim", "no"] = (assembled, [taught.key])
    both = {
        "teacher's latents": members.aligned(run, pipe, [text], taught)[text],
        "slim latents": aligned_on(run, pipe, text, taught, t),
    }
    for kind, one in both.items():
        unets["slim", kind] = (functools.partial(members.network, pipe, one), [one.key])
    rows, seen, each = [], {}, {}
    drawing = shared.sampling(run, draw)
    how = {"heldout": run.profile.vae.heldout, "t": STEP, **drawing}
    cases = [(*u, v) for u in unets for v in ("teacher", "slim")]
    for unet, aligned, name in tqdm(cases, desc="co-design"):
        net, made_of = unets[unet, aligned]
        base = {"teacher": pipe, "slim": other}[name]
        whole = Later(functools.partial(_around, base, net))
        parts = [*made_of, t.key] if name == "slim" else made_of
        known = drawn.known(run, "codesign", drawing["how"], shared.images(against), parts)
        found = run.cached(
            "codesign", codesign.judge, how | {"arch": text},
            [*begin, against, *parts, *known.keys(text)], quiet=True, pipe=whole,
            teacher_features=against["features"]["teacher"], mine=mine,
            known=Later(functools.partial(known.features.get, text)),
        )  # fmt: skip
        s = found["scores"]
        measured = {k: v for k, v in s.items() if k.startswith("tafid")}
        measured |= uncertainty.mean(found["psnr"]["psnr"]).named("psnr_denoised")
        rows.append({"unet": unet, "vae": name, "aligned": aligned, **measured})
        each[unet, name, aligned] = found
        label = f"{unet} U-Net, {name} VAE" + ("" if aligned == "no" else f", aligned on {aligned}")
        seen[label] = found["pictures"]["pictures"]
    floor = against["floor"]
    table = pd.DataFrame(rows).assign(floor=floor["tafid"], protocol=floor["protocol"])
    table["trained"] = [both[r["aligned"]].how if r["aligned"] in both else "" for r in rows]
    return table, seen, each


def _around(pipe: StableDiffusionPipeline, make: Callable[[], UNet2DConditionModel]):
    """The pipeline around a U-Net that is made now."""
    return pipeline.with_parts(pipe, unet=make())


def with_costs(
    run: Run, table: pd.DataFrame, times: pd.DataFrame, judged: dict[str, Artifact]
) -> pd.DataFrame:
    """`combinations` with psnr (of the same pictures through the VAE alone) and ms_tile (the whole
    pipeline; rows of `tile.pipeline_time`).
    """
    same = f"part == 'both' and pictures == '{splits.judged(run.profile.photographs)}'"
    psnr = {k: a["table"].query(same).psnr.item() for k, a in judged.items()}
    ms = tile.whole(times).set_index("configuration").ms
    names = {pair: name for name, pair in tile.CONFIGURATIONS.items()}
    pairs = zip(table.unet, table.vae, strict=True)
    return table.assign(psnr=table.vae.map(psnr), ms_tile=[ms[names[p]] for p in pairs])
