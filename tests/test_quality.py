"""quality: the Frechet distance against another formula, and images that depend on their seed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from nanosd_lib.learning import sd_mini
from nanosd_lib.networks import arch, pipeline, surgery
from nanosd_lib.networks.pipeline import Sampling
from nanosd_lib.paths import ROOT
from nanosd_lib.quality import checks, extractors, judges, metrics, prior
from nanosd_lib.search import loop


def draw(n: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix / d**0.5


def frechet_by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """tr (C_a C_b)^(1/2) as the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2)."""
    ca, cb = (np.atleast_2d(np.cov(f.numpy(), rowvar=False)) for f in (a, b))
    values, vectors = np.linalg.eigh(ca)
    root = vectors * values.clip(0) ** 0.5 @ vectors.T
    cross = np.linalg.eigvalsh(root @ cb @ root).clip(0) ** 0.5
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + np.trace(ca) + np.trace(cb) - 2 * cross.sum())


def gaussian(n: int, mean: Tensor, std: Tensor, d: int, seed: int) -> Tensor:
    """Features (n, d) with exactly that sample mean and deviation in their first columns, no
    correlation, and nothing in the others.
    """
    x = draw(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return torch.nn.functional.pad(mean + std * white, (0, d - len(mean)))


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    words = judges.tokenizer()
    text = CLIPTextModel(judges.clip(words).config.text_config).eval()
    parts = AutoencoderKL(**sd_mini.VAE).eval(), text, words
    made = sd_mini.pipeline(*parts, UNet2DConditionModel(**sd_mini.UNET).eval())
    made.set_progress_bar_config(disable=True)
    return made


# ------------------------------------------------------------------------------------------ Frechet


def test_equal_sets_have_no_distance():
    a = draw(300, 16, seed=0)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet(a, a.flip(0)) == pytest.approx(0, abs=1e-6)


def test_a_shift_costs_its_square():
    a, shift = draw(300, 16, seed=0), torch.linspace(-1, 2, 16, dtype=torch.float64)
    want = float(shift.square().sum())
    assert metrics.frechet(a, a + shift) == pytest.approx(want, abs=1e-6)


def test_a_scale_costs_its_square():
    a = draw(300, 16, seed=0)
    a = a - a.mean(0)
    trace = float(a.square().sum() / 299)
    assert metrics.frechet(a, 3 * a) == pytest.approx(4 * trace, rel=1e-6)


@pytest.mark.parametrize("n, m, d", [(400, 300, 6), (40, 30, 64)])
def test_two_gaussians_of_known_distance(n, m, d):
    """Uncorrelated: shifts and differences of deviations, squared and added."""
    mean, std = torch.tensor([0.0, 1, -2]).double(), torch.tensor([1.0, 2, 0.5]).double()
    other, spread = torch.tensor([1.0, 1, 1]).double(), torch.tensor([3.0, 1, 0.5]).double()
    a, b = gaussian(n, mean, std, d, seed=1), gaussian(m, other, spread, d, seed=2)
    assert metrics.frechet(a, b) == pytest.approx(1 + 9 + 4 + 1, rel=1e-6)


@pytest.mark.parametrize("n, m, d", [(400, 400, 16), (300, 200, 32), (256, 256, 64), (32, 32, 64)])
def test_agreement_with_eigenvalues(n, m, d):
    a, b = draw(n, d, seed=1), 1.3 * draw(m, d, seed=2) + 0.2
    got = metrics.frechet(a, b)
    assert got == pytest.approx(frechet_by_eigenvalues(a, b), rel=1e-3 if n < d else 1e-6)
    assert got == pytest.approx(metrics.frechet(b, a), rel=1e-3 if n < d else 1e-6) and got > 1


@pytest.mark.parametrize("n", [2, 3, 8, 32])
@pytest.mark.parametrize("d", [1, 2, 64, 256])
@pytest.mark.parametrize("scale", [1, 100])
def test_equal_sets_of_few_images_have_no_distance(n, d, scale):
    a = scale * draw(n, d, seed=n)
    assert metrics.frechet(a, a.clone()) == 0
    nearly = metrics.frechet(a, a.flip(0))
    assert 0 <= nearly <= 1e-6 * float(a.var(0).sum())
    assert np.isfinite(loop.log_distance(nearly))


@pytest.mark.parametrize("n, d, scale", [(8, 1, 1), (3, 256, 100), (4, 64, 100)])
def test_few_pictures_of_many_features(n, d, scale):
    a, b = scale * draw(n, d, seed=1), scale * draw(n + 1, d, seed=2)
    assert metrics.frechet(a, b) == pytest.approx(frechet_by_eigenvalues(a, b), rel=1e-3)


@pytest.mark.filterwarnings("error:invalid value:RuntimeWarning")
def test_features_that_do_not_vary():
    a = torch.ones(4, 3, dtype=torch.float64)
    assert metrics.frechet(a, a + 1) == pytest.approx(3)


@pytest.mark.parametrize("n, m, d", [(400, 400, 16), (64, 50, 8)])
def test_agreement_with_clean_fid(n, m, d):
    from cleanfid.fid import frechet_distance

    a, b = draw(n, d, seed=1), draw(m, d, seed=2)
    sides = [(f.numpy().mean(0), np.cov(f.numpy(), rowvar=False)) for f in (a, b)]
    want = float(frechet_distance(*sides[0], *sides[1]))
    assert metrics.frechet(a, b) == pytest.approx(want, rel=1e-9)


def test_a_logarithm_of_no_distance_is_finite():
    assert loop.log_distance(0.0) == loop.log_distance(-1e-9) == float(np.log(1e-6))
    assert loop.log_distance(np.e**2) == pytest.approx(2)
    with pytest.raises(ValueError, match="log_distance: the distance is NaN"):
        loop.log_distance(float("nan"))


# ------------------------------------------------------------------------------------------ numbers


def test_psnr_of_a_known_difference():
    a = torch.zeros(2, 3, 8, 8)
    b = torch.stack([a[0] + 0.2, a[1] - 0.02])  # a tenth and a hundredth of the range
    assert metrics.psnr(a, b).tolist() == pytest.approx([20, 40], abs=1e-3)
    assert metrics.psnr(a, a).tolist() == pytest.approx([100, 100])


def test_cosine_of_pairs():
    a = draw(50, 8, seed=0)
    assert metrics.cosines(a, 2 * a).tolist() == pytest.approx([1] * 50)
    assert metrics.cosines(a, -a).tolist() == pytest.approx([-1] * 50)
    assert metrics.cosines(torch.eye(4), torch.eye(4).roll(1, 0)).tolist() == pytest.approx([0] * 4)


def test_spearman_of_ranks_and_ties():
    assert metrics.spearman([1, 2, 30], [-3, 5, 70]) == pytest.approx(1)
    assert metrics.spearman([1, 2, 3], [np.inf, 5, -np.inf]) == pytest.approx(-1)
    a, b = [1, 2, 2, 5, 4], [3, 1, 2, 9, 9]  # by hand: ranks 1 2.5 2.5 5 4 and 3 1 2 4.5 4.5
    assert metrics.spearman(a, b) == pytest.approx(6 / 9.5)
    table = pd.DataFrame({"a": a, "b": b}, index=[5, 3, 1, 2, 4])
    assert metrics.spearman(table.a, table.b) == metrics.spearman(torch.tensor(a), tuple(b))
    for flat in ([2, 2, 2, 2, 2], [np.inf] * 5):
        assert np.isnan(metrics.spearman(flat, b)) and np.isnan(metrics.spearman(b, flat))


def test_a_protocol_says_everything():
    p = Sampling(steps=8, guidance=7.5, seed=3)
    assert p.protocol(256) == "mini-clip, n=256, 8 steps, cfg 7.5, seed 3"
    assert p.but(guidance=3.0).protocol(256).endswith("cfg 3, seed 3")
    assert p.but(batch=8) != p == p.but()


# ----------------------------------------------------------------------------------------- features


def test_an_unknown_extractor_is_refused_in_one_line():
    with pytest.raises(ValueError, match="features 'vgg': use mini-clip or inception-2015") as err:
        extractors.extractor("vgg")
    assert "\n" not in str(err.value)


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="git checkout data/mini-clip") as err:
        extractors.extractor("mini-clip")
    assert "\n" not in str(err.value)


def test_features_do_not_depend_on_the_batch():
    look = lambda x: x.flatten(1)[:, :5]  # noqa: E731
    x = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = extractors.features(look, x, batch=2)
    assert got.dtype == torch.float64 and torch.equal(got, look(x).double())


class Layers(torch.nn.Module):
    """2048 numbers of a picture where the real network would have its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.where: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.where.append(x.device.type)
        return torch.nn.functional.adaptive_avg_pool2d(x, (32, 64)).mean(1).flatten(1)


@pytest.fixture
def layers(monkeypatch, tmp_path) -> Layers:
    """clean-fid's own wrapper, which asserts 299x299, around layers that need no download."""
    base = torch.nn.Module()
    base.layers = Layers()
    monkeypatch.setattr(torch.jit, "load", lambda path: base)
    monkeypatch.setattr("cleanfid.inception_torchscript.check_download_inception", lambda fpath: 0)
    monkeypatch.setattr(extractors, "INCEPTION", tmp_path)
    return base.layers


@pytest.mark.parametrize("size", [64, 299, 512])
def test_inception_features_are_those_clean_fid_takes_from_files(layers, tmp_path, size):
    from cleanfid import fid
    from cleanfid.features import build_feature_extractor
    from PIL import Image

    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for picture, file in zip(x, files, strict=True):
        levels = ((picture + 1) / 2).mul(255).round().byte()
        Image.fromarray(levels.permute(1, 2, 0).numpy()).save(file)
    cpu = torch.device("cpu")
    model = build_feature_extractor("clean", device=cpu, use_dataparallel=False)
    with torch.no_grad():
        want = fid.get_files_features(files, model, num_workers=0, device=cpu, verbose=False)
    got = extractors.features(extractors.extractor("inception-2015"), x, batch=2)
    assert got.shape == (3, 2048) and torch.equal(got, torch.from_numpy(want).double())


def test_features_are_looked_at_where_the_run_is(layers):
    look = extractors.extractor("inception-2015", "meta")  # stands for a GPU
    with pytest.raises(NotImplementedError, match="meta tensor"):  # which could hand them back
        look(torch.zeros(2, 3, 64, 64))
    assert layers.where == ["meta"]


def test_every_measure_asks_the_features_it_is_told(pipe, monkeypatch):
    asked = []

    def noted(name, device="cpu"):
        asked.append((name, str(device)))
        return lambda x: x.flatten(1)[:, :3]

    monkeypatch.setattr(extractors, "extractor", noted)
    how = Sampling(steps=1, guidance=1.0, batch=4, features="inception-2015")
    prior.diversity(pipe, 1, 2, how)
    prior.interpolation(pipe, 1, 3, how)
    prior.resemblance(pipe, pipe.unet, 2, "mini-attributes", how)
    seen = [torch.rand(4, 3, dtype=torch.float64) for _ in range(2)]
    apart = checks.check_frechet(pipe, *seen, how)
    assert set(asked) == {("inception-2015", "cpu")} and apart["extractor"] == "inception-2015"


def test_the_teacher_resembles_itself_and_its_control_does_not(pipe):
    """A student that is the teacher: no distance, cosine one, as much detail."""
    how = Sampling(steps=2, guidance=3.0, batch=2)
    pairs = prior.resemblance(pipe, pipe.unet, 3, "mini-attributes", how)["pairs"]
    assert len(pairs) == 3 == pairs.prompt.nunique()
    assert pairs.lpips_near.max() < 1e-5 and pairs.cosine_near.min() > 1 - 1e-5
    assert (pairs.lpips_far > 0.05).all() and (pairs.cosine_far < 0.999).all()
    np.testing.assert_allclose(pairs.detail, pairs.detail_teacher, rtol=1e-4)


def test_spread_and_paths_keep_a_number_for_each(pipe):
    how = Sampling(steps=1, guidance=1.0, batch=4)
    spread = prior.diversity(pipe, 2, 3, how)["spread"]["spread"]
    assert spread.shape == (2,) and (spread > 0).all()
    gaps = prior.interpolation(pipe, 2, 3, how)["gaps"]
    assert all(x.shape == (2,) for x in gaps.values())
    assert ((gaps["largest_over_mean"] >= 1) & (gaps["largest_over_mean"] <= 2)).all()


def test_detail_is_the_power_of_what_is_fine():
    """A checkerboard is all above half Nyquist, a slow wave all below; a scale comes in squared."""
    board = torch.ones(8, 8)
    board[::2, ::2] = board[1::2, 1::2] = -1
    wave = torch.cos(torch.arange(8) * 2 * torch.pi / 8).repeat(8, 1)
    x = torch.stack([board, 0.5 * board, wave])[:, None].repeat(1, 3, 1, 1)
    assert metrics.detail(x).tolist() == pytest.approx([1, 0.25, 0], abs=1e-9)


# ------------------------------------------------------------------------------------------- images


def fake_pipe(size: int, channels: int) -> SimpleNamespace:
    config = SimpleNamespace(sample_size=size, in_channels=channels)
    return SimpleNamespace(unet=SimpleNamespace(config=config))


def test_noise_of_an_image_depends_on_seed_and_number_alone():
    one = fake_pipe(8, 4)
    ten = pipeline.noise(one, 10, seed=3)
    assert ten.shape == (10, 4, 8, 8) and torch.equal(ten[:4], pipeline.noise(one, 4, seed=3))
    assert not torch.equal(ten, pipeline.noise(one, 10, seed=4))
    assert len({z.numpy().tobytes() for z in ten}) == 10
    assert abs(float(pipeline.noise(one, 64, 0).std()) - 1) < 0.02


def test_images_do_not_depend_on_the_batch(pipe):
    prompts = ["a red cube", "a blue cone", "an orange sphere"]
    how = Sampling(steps=2, guidance=3.0, seed=1, batch=3)
    whole = pipeline.generate(pipe, prompts, how)
    parts = pipeline.generate(pipe, prompts, how.but(batch=2))
    assert whole.shape == (3, 3, 64, 64) and whole.abs().max() <= 1
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-3)
    given = pipeline.generate(pipe, prompts, how, z=pipeline.noise(pipe, 3, 1))
    assert torch.equal(whole, given)
    other = pipeline.generate(pipe, prompts, how.but(seed=2))
    assert float((whole - other).abs().max()) > 0.01


def test_another_unet_in_the_same_pipeline(pipe):
    student = surgery.student(arch.NANOSD["N2"], pipe.unet)
    other = pipeline.with_parts(pipe, unet=student)
    assert other.unet is student and pipe.unet is not student
    assert all(v is pipe.components[k] for k, v in other.components.items() if k != "unet")


def test_the_bundled_teacher_and_its_judges(sd_mini):
    made = sd_mini
    assert not any(p.requires_grad for p in made.unet.parameters())
    assert {p.dtype for p in made.unet.parameters()} == {torch.float32}
    assert type(made.scheduler).__name__ == "DPMSolverMultistepScheduler"
    how = Sampling(steps=4, guidance=3.0)
    x = pipeline.generate(made, ["a red cube on sand at noon"] * 4, how)
    f = extractors.features(extractors.extractor("mini-clip"), x)
    assert f.shape == (4, 64) and bool(f.isfinite().all())
    g = torch.Generator().manual_seed(0)
    noisy = [(x + s * torch.randn(x.shape, generator=g)).clamp(-1, 1) for s in (0, 0.1, 1)]
    apart = [extractors.perceptual(x, y) for y in noisy]
    assert (apart[0] == 0).all() and (apart[0] < apart[1]).all() and (apart[1] < apart[2]).all()
    assert np.isfinite(metrics.frechet(f, f.roll(1, 0)))


def test_what_is_no_pipeline_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "sd.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, word in (
        ("data/nothing", "^no such folder: data/nothing$"),
        ("~/sd", "^no such folder: ~/sd$"),
        ("", "holds no pipeline"),
        (tmp_path / "no/such/place", "^no such folder"),
        (tmp_path / "sd.safetensors", "is a file: give the folder"),
        ("~/empty", "~/empty holds no pipeline"),
        ("data/sd-mini/unet", "give .*data/sd-mini$"),
    ):
        with pytest.raises((FileNotFoundError, NotADirectoryError), match=word) as err:
            pipeline.load_teacher(path)
        assert "\n" not in str(err.value)
    for dtype in ("fp16", "float8", "int8", "nn", torch.float8_e4m3fn):
        with pytest.raises(ValueError, match="use one of float32, bfloat16, float16"):
            pipeline.load_teacher("data/sd-mini", dtype)


def test_a_teacher_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sd").symlink_to(ROOT / "data/sd-mini")
    assert pipeline.load_teacher("~/sd", torch.float16).unet.dtype == torch.float16


# ------------------------------------------------------------------------------------- other judges


def test_lpips_over_the_classifier_is_lpipss_construction():
    """Unit-normalised activations, squared differences, summed over channels and layers."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 64, 64, generator=g) * 2 - 1
    want, x, y = torch.zeros(3), a, b
    for layer in judges.classifier().body:
        x, y = layer(x), layer(y)
        if isinstance(layer, torch.nn.SiLU):
            u, v = (torch.nn.functional.normalize(h, dim=1) for h in (x, y))
            want += (u - v).pow(2).sum(1).mean((1, 2))
    net = extractors.lpips_over("mini-attributes")
    torch.testing.assert_close(net(a, b).flatten(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extractors.perceptual(a, b), want, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in net.parameters())
    a.requires_grad_()
    net(a, b).sum().backward()  # as a loss it reaches the picture
    assert a.grad.abs().max() > 0 and a.grad.isfinite().all()


def test_lpips_that_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="weights of its backbone are not cached.*mini-attributes"
    ):
        extractors.lpips_over("lpips-vgg")
    with pytest.raises(
        ValueError, match="perceptual 'vgg': use one of mini-attributes, mini-clip, lpips-vgg"
    ):
        extractors.lpips_over("vgg")


def test_ssim():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 32, 32, generator=g) * 2 - 1
    assert metrics.ssim(x, x).tolist() == pytest.approx([1, 1])
    noisy = [(x + s * torch.randn(x.shape, generator=g)).clamp(-1, 1) for s in (0.05, 0.5)]
    near, far = (metrics.ssim(x, y) for y in noisy)
    assert (near > far).all() and (far < 0.9).all()
    assert metrics.ssim(x, x.flip(-1)).max() < 0.5


def test_half_precision_is_widened():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 32, 32, generator=g) * 2 - 1
    for kind in (torch.float16, torch.bfloat16):
        a, b = x.to(kind), x.flip(-1).to(kind)
        assert metrics.psnr(a, a).tolist() == [100, 100]
        for metric in (metrics.psnr, metrics.ssim, extractors.perceptual):
            assert torch.equal(metric(a, b), metric(a.float(), b.float()))
    assert extractors.perceptual(x.double(), x.double()).tolist() == [0, 0]


# --------------------------------------------------------------------------------- what is refused


def one_line(call, *words: str) -> None:
    with pytest.raises(ValueError) as err:
        call()
    text = str(err.value)
    assert "\n" not in text and all(w in text for w in words), text


X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
NOT_A_NUMBER = torch.full_like(X, torch.nan)


METRICS = {
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "frechet": metrics.frechet,
    "cosines": metrics.cosines,
    "perceptual": extractors.perceptual,
}


@pytest.mark.parametrize("metric", ["psnr", "ssim", "perceptual"])
@pytest.mark.parametrize(
    "other, words",
    [
        (X[:1], "pairs (N, 3, H, W) of one shape, got (4, 3, 16, 16) and (1, 3, 16, 16)"),
        (X[:3], "and (3, 3, 16, 16)"),
        (X[..., :15], "and (4, 3, 16, 15)"),
        (X[:, :1], "and (4, 1, 16, 16)"),
        (X[0], "expected shape (N, 3, H, W), got (3, 16, 16)"),
        (X[:0], "got (0, 3, 16, 16)"),
        (X.to(torch.uint8), "expected a tensor of floats (N, 3, H, W), got torch.uint8"),
        (X.numpy(), "got float32"),
        (None, "got NoneType"),
        (X * 127.5 + 127.5, "in [-1, 1], got"),
        (X * 1.1, "else clamp"),
        (NOT_A_NUMBER, "NaN"),
    ],
)
def test_pairs_of_pictures(metric, other, words):
    one_line(lambda: METRICS[metric](X, other), f"{metric}: ", words)
    one_line(lambda: METRICS[metric](other, X), f"{metric}: ")


@pytest.mark.parametrize("metric", ["psnr", "ssim", "perceptual"])
def test_channels_stand_second(metric):
    last = X.permute(0, 2, 3, 1)
    one_line(lambda: METRICS[metric](last, last), "expected pairs (N, 3, H, W)")


def test_ssim_names_its_window():
    one_line(lambda: metrics.ssim(X[..., :8, :8], X[..., :8, :8]), "window is 11x11", "are 8x8")
    one_line(lambda: metrics.ssim(X[..., :10], X[..., :10]), "are 16x10")
    assert metrics.ssim(X[..., :11, :11], X[..., :11, :11]).tolist() == pytest.approx([1] * 4)


F = draw(4, 8, seed=0)


@pytest.mark.parametrize("metric", ["frechet", "cosines"])
@pytest.mark.parametrize(
    "other, words",
    [
        (F[:, :7], "got (4, 8) and (4, 7)"),
        (F[0], "expected shape (N, D), got (8,)"),
        (X, "expected shape (N, D), got (4, 3, 16, 16)"),
        (F[:0], "got (0, 8)"),
        (F.long(), "expected a tensor of floats (N, D), got torch.int64"),
        (F.numpy(), "got float64"),
        (F * torch.nan, "NaN"),
        (F / 0, "infinite"),
    ],
)
def test_sets_of_features(metric, other, words):
    one_line(lambda: METRICS[metric](F, other), f"{metric}: ", words)
    one_line(lambda: METRICS[metric](other, F), f"{metric}: ")


@pytest.mark.parametrize(
    "a, b, words",
    [
        ([1, 2, 3], [1, 2], "expected two columns of one length, at least 2, got (3,) and (2,)"),
        ([1, 2, 3], [[1, 2, 3]], "got (3,) and (1, 3)"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], "got (2, 2)"),
        ([], [], "at least 2"),
        ([1], [2], "at least 2"),
        ([1, 2, np.nan], [1, 2, 3], "NaN in a column: leave these pairs out first"),
        ([1, 2, 3], [1, None, 3], "NaN in a column"),
        (pd.Series([1, 2]), pd.Series([1, 2], [1, 0]), "labelled differently: align them first"),
        (pd.Series([1, 2]), pd.Series([1, 2, 3]), "labelled differently"),
    ],
)
def test_paired_columns(a, b, words):
    one_line(lambda: metrics.spearman(a, b), "spearman: ", words)
    one_line(lambda: metrics.spearman(b, a), "spearman: ")


def test_as_many_latents_as_prompts(pipe):
    z = pipeline.noise(pipe, 2, 0)
    one_line(
        lambda: pipeline.generate(pipe, ["a", "b", "c"], Sampling(steps=1, guidance=3.0), z=z),
        "generate: 3 prompts and 2 latents",
    )


def test_numbers_of_features():
    one_line(lambda: metrics.frechet(F[:1], F), "at least 2 pictures a side, got 1 and 4")
    one_line(lambda: metrics.frechet(F[:1], F[:1]), "at least 2 pictures")
    one_line(lambda: metrics.cosines(F[:1], F), "pairs (N, D) of one shape")
    assert metrics.cosines(F[:1], F[:1]).tolist() == pytest.approx([1])
