"""degradations: drawn from a seed, as published, and each step what its name says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nanosd_lib.data import degradations as D
from nanosd_lib.data import miniworld, raycast

X = raycast.render(miniworld.sample(3, 5))[0]


def test_a_seed_gives_one_degradation_and_another_seed_another():
    assert D.draw(D.MILD, 3) == D.draw(D.MILD, 3) != D.draw(D.MILD, 4)
    a, b = (D.apply(X[0], D.draw(D.STRONG, 3)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (3, 16, 16)
    assert not torch.equal(a, D.apply(X[0], D.draw(D.STRONG, 4)))


def test_a_batch_is_its_pictures_whatever_stands_beside_them():
    whole = D.pairs(X, "mild", 7)
    assert whole.shape == X.shape and whole.abs().max() <= 1
    alone = D.pairs(X[2:], "mild", 7, at=[2])
    assert torch.equal(alone[0], whole[2])


@pytest.mark.parametrize("family", D.FAMILIES.values(), ids=D.FAMILIES)
def test_what_is_drawn_lies_in_the_published_ranges(family):
    drawn = [D.draw(family, k) for k in range(400)]
    steps = [d.steps for d in drawn if d.steps]
    for p, some in zip((family.first, family.second), zip(*steps, strict=True), strict=True):
        for s in some:
            assert p.factor[0] <= s.factor <= p.factor[1] and p.jpeg[0] <= s.jpeg <= p.jpeg[1]
            low, high = p.noise if s.noise.kind == "gaussian" else p.poisson
            assert low <= s.noise.level <= high
            if s.blur is not None:
                assert s.blur.size % 2 and p.sizes[0] <= s.blur.size <= p.sizes[1]
                if s.blur.kind != "sinc":
                    assert all(p.sigma[0] <= x <= p.sigma[1] for x in s.blur.sigma)
        share = np.mean([s.blur is not None for s in some])
        assert share == pytest.approx(p.blurred, abs=0.08)
        smaller = np.mean([s.factor < 1 for s in some])
        assert smaller == pytest.approx(p.resized[1], abs=0.08)
    assert np.mean([not d.steps for d in drawn]) == pytest.approx(family.clean, abs=0.02)


def test_the_strong_family_harms_more_than_the_mild_one():
    x = raycast.render(miniworld.sample(24, 9))[0]
    mild, strong = (D.pairs(x, f, 0).sub(x).pow(2).mean() for f in D.FAMILIES)
    assert mild < 0.85 * strong


def test_a_gaussian_is_scipys():
    delta = torch.zeros(3, 31, 31)
    delta[:, 15, 15] = 1
    mine = D.blurred(delta, D.Blur("iso", 21, (2.0, 2.0)))[0].double().numpy()
    theirs = gaussian_filter(delta[0].double().numpy(), 2.0, radius=10)
    np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", [*D.KERNELS, "sinc"])
def test_a_kernel_keeps_the_light_and_its_symmetry(kind):
    k = D.kernel(D.Blur(kind, 13, (1.5, 1.0), 0.7, 1.3, math.pi / 3))
    assert float(k.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(k, k.flip(0, 1))  # through the middle
    assert (k.min() < 0) == (kind == "sinc")  # a filter that rings overshoots
    if kind.endswith("aniso"):
        assert not torch.allclose(k, k.T, atol=1e-4)


def test_a_plateau_is_flatter_than_a_gaussian():
    flat, bell = (
        D.kernel(D.Blur(k, 21, (3.0, 3.0), 0.0, b)) for k, b in (("plateau_iso", 2.0), ("iso", 1.0))
    )
    ratio = [float(k[10, 12] / k[10, 10]) for k in (flat, bell)]
    assert ratio[0] > ratio[1]


def test_noise_is_as_large_as_it_says():
    grey, g = torch.full((3, 200, 200), 0.5), torch.Generator().manual_seed(0)
    off = D.noisy(grey, D.Noise("gaussian", 25.5, False), g) - grey
    assert float(off.std()) == pytest.approx(0.1, rel=0.02)
    same = D.noisy(grey, D.Noise("gaussian", 25.5, True), g)
    assert torch.equal(same[0], same[1])
    step = torch.linspace(0, 1, 256).expand(3, 256, 256)  # 256 values: counts are levels
    off = (D.noisy(step, D.Noise("poisson", 1.0, False), g) - step).std(1)
    assert float(off[:, 128].mean()) == pytest.approx((0.5 / 256) ** 0.5, rel=0.1)


def test_scores_tell_blur_from_noise(monkeypatch):
    def one(sigma, level):
        blur = D.Blur("iso", 9, (sigma, sigma)) if sigma else None
        step = D.Step(blur, 1.0, "area", D.Noise("gaussian", level, False), 95)
        monkeypatch.setattr(
            D, "_drawn", lambda *where: D.Degradation(0, (step,), None, "area", True)
        )
        return D.scores(X[:1], "mild", 0, [0])[0].tolist()

    sharp, soft, noisy = one(0, 0.0), one(3.0, 0.0), one(0, 40.0)
    assert soft[0] > sharp[0] + 0.2 and abs(soft[1] - sharp[1]) < 0.1
    assert noisy[1] > sharp[1] + 0.2 and noisy[0] == sharp[0]


def test_a_clean_draw_is_only_made_smaller():
    d = D.Degradation(0, (), None, "bicubic", False)
    small = D.apply(X[0], d)
    want = torch.nn.functional.interpolate(X[:1], (16, 16), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(small, want.clamp(-1, 1), atol=1 / 127, rtol=0)


@pytest.mark.parametrize(
    "x, said",
    [(torch.zeros(3, 30, 32), "sides that 4 divides"), (torch.zeros(1, 3, 32, 32), "(3, H, W)")],
)
def test_other_shapes_are_refused(x, said):
    with pytest.raises(ValueError, match="degradations: expected a picture") as error:
        D.apply(x, D.draw(D.MILD, 0))
    assert said in str(error.value)


def test_another_family_is_refused():
    with pytest.raises(ValueError, match="family 'wild': use one of mild, strong"):
        D.pairs(X, "wild", 0)
