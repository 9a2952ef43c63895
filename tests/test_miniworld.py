"""miniworld: one seed, one world; words and pictures say the same."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from nanosd_lib.data import miniworld, photographs, raycast
from nanosd_lib.quality import judges

N = 40


@pytest.fixture(scope="module")
def scenes():
    return miniworld.sample(N, seed=7)


@pytest.fixture(scope="module")
def rendered(scenes):
    return raycast.render(scenes)


@pytest.fixture(scope="module")
def words():
    return judges.tokenizer()


def test_same_seed_same_world(scenes, rendered):
    again = miniworld.sample(N, seed=7)
    assert all(torch.equal(getattr(scenes, f.name), getattr(again, f.name)) for f in fields(again))
    pictures, depth = raycast.render(again)
    assert torch.equal(pictures, rendered[0]) and torch.equal(depth, rendered[1])


def test_another_seed_another_world(rendered):
    assert not torch.equal(raycast.render(miniworld.sample(N, seed=8))[0], rendered[0])


@pytest.mark.parametrize("batch", [1, 7, N])
def test_the_batch_size_does_not_matter(scenes, rendered, batch):
    pictures, depth = raycast.render(scenes, batch=batch)
    torch.testing.assert_close(pictures, rendered[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(depth, rendered[1], rtol=0, atol=1e-4)


def test_pictures_are_bounded_and_show_something(rendered):
    pictures, depth = rendered
    assert pictures.shape == (N, 3, 64, 64) and depth.shape == (N, 1, 64, 64)
    assert pictures.min() >= -1 and pictures.max() <= 1 and pictures.isfinite().all()
    assert (pictures.flatten(1).std(1) > 0.05).all()
    assert len({p.numpy().tobytes() for p in pictures}) == N


def test_the_sky_is_far_and_all_else_nearer(rendered):
    depth = rendered[1]
    assert (depth[:, 0, 0] == raycast.FAR).all()  # above the horizon and above every object
    assert (depth[:, 0, -1] < raycast.FAR).all()
    assert depth.max() == raycast.FAR and depth.min() > 1


def test_depth_of_one_sphere_by_hand():
    one = miniworld.sample(1, seed=0, objects=1)
    full = lambda v: torch.full((1, 3), float(v))  # noqa: E731
    flat = torch.zeros(1, 3, dtype=torch.long)
    shape = torch.tensor([[miniworld.SHAPES.index("sphere"), -1, -1]])
    red = replace(one, shape=shape, colour=flat, texture=flat, x=full(0), z=full(0), r=full(1))
    picture, depth = (a[0] for a in raycast.render(red))
    # towards the sphere's centre (0, 1, 0) from the eye; the camera is tilted down by 0.2 rad
    x, y, z = (c - e for c, e in zip((0.0, 1.0, 0.0), raycast.EYE, strict=True))
    forward = -y * math.sin(0.2) + z * math.cos(0.2)
    upward = y * math.cos(0.2) + z * math.sin(0.2)
    row = int((1 - 2.1 * upward / forward) / 2 * miniworld.SIZE)
    far = math.hypot(x, y, z)
    assert depth[0, row, 32].item() == pytest.approx((far - 1) * forward / far, abs=0.03)
    r, g, b = picture[:, row, 32] / 2 + 0.5
    assert r > 2 * g and r > 2 * b
    torch.testing.assert_close(depth, depth.flip(-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_captions_name_the_objects_from_left_to_right(objects):
    scenes = miniworld.sample(200, seed=3, objects=objects)
    for i, caption in enumerate(miniworld.captions(scenes)):
        ((shape, colour, texture, x),) = (
            [getattr(scenes, k)[i].tolist() for k in ("shape", "colour", "texture", "x")],
        )
        used = sorted((k for k in range(3) if shape[k] >= 0), key=lambda k: x[k])
        assert len(used) == objects
        things, place = caption.split(" on ")
        named = [t.split()[1:] for t in things.split(" and ")]
        for k, thing in zip(used, named, strict=True):
            surface = [miniworld.TEXTURES[texture[k]]] if texture[k] else []
            colour_name = list(miniworld.COLOURS)[colour[k]]
            assert thing == [*surface, colour_name, miniworld.SHAPES[shape[k]]]
        ground = list(miniworld.GROUNDS)[scenes.ground[i]]
        assert place == f"{ground} at {list(miniworld.LIGHTS)[scenes.light[i]]}"


def test_articles_fit_their_words():
    text = " ".join(miniworld.scene_prompts(300, seed=5)).split()
    pairs = {(a, b) for a, b in zip(text, text[1:], strict=False) if a in ("a", "an")}
    assert all((a == "an") == (b[0] in "aeiou") for a, b in pairs) and ("an", "orange") in pairs


def test_the_number_of_objects_follows_its_shares():
    count = (miniworld.sample(4000, seed=1).shape >= 0).sum(1)
    share = [(count == k).float().mean().item() for k in (1, 2, 3)]
    assert share == pytest.approx([0.45, 0.40, 0.15], abs=0.03)


def test_every_word_of_a_caption_is_one_token(words):
    known = photographs.vocabulary()
    phrases = [p for split in photographs.PHOTOGRAPHS.values() for p in split.values()]
    text = miniworld.scene_prompts(500, seed=2) + [f"a photograph of {p}" for p in phrases]
    for sentence in text:
        ids = words(sentence, add_special_tokens=False).input_ids
        assert len(ids) == len(sentence.split()) <= judges.TOKENS - 2
        assert set(sentence.split()) <= set(known)
    ids = [words(w, add_special_tokens=False).input_ids for w in known]
    assert len({tuple(i) for i in ids}) == len(known)
    assert words.unk_token_id not in {i for one in ids for i in one}


def test_tokens_are_padded_to_one_length(words):
    assert judges.tokens(words, ["a red cube", ""]).shape == (2, judges.TOKENS)


def test_no_photograph_is_in_both_splits():
    train, heldout = photographs.PHOTOGRAPHS["train"], photographs.PHOTOGRAPHS["heldout"]
    assert train and heldout and not set(train) & set(heldout)
    assert not set(train.values()) & set(heldout.values())


@pytest.mark.parametrize("name", [n for s in photographs.PHOTOGRAPHS.values() for n in s])
def test_every_photograph_is_bundled(name):
    picture = photographs.photograph(name)
    assert picture.shape[0] == 3 and min(picture.shape[1:]) >= 96
    assert -1 <= picture.min() < picture.max() <= 1


def test_crops_come_from_their_split_and_are_repeatable():
    pictures, text = photographs.crops("heldout", 12, seed=4)
    again, _ = photographs.crops("heldout", 12, seed=4)
    assert pictures.shape == (12, 3, 64, 64) and torch.equal(pictures, again)
    assert pictures.abs().max() <= 1 and (pictures.flatten(1).std(1) > 0.01).all()
    named = {f"a photograph of {p}" for p in photographs.PHOTOGRAPHS["heldout"].values()}
    assert set(text) == named and len(text) == 12


def test_crops_are_of_every_scale_and_of_the_photographs_named():
    drawn = photographs.cuts("train", 400, seed=1)
    sides = torch.tensor([c.side for c in drawn]).float()
    assert sides.min() >= 96 and sides.max() <= 1024
    assert (sides < 160).float().mean() > 0.1 < (sides > 500).float().mean()
    assert {c.name for c in drawn} == set(photographs.PHOTOGRAPHS["train"])
    one = photographs.crops("heldout", 5, seed=1, names=["fig.jpg"])
    assert one[1] == ["a photograph of a fig"] * 5
    assert torch.equal(one[0], photographs.crops("heldout", 5, seed=1, names=["fig.jpg"])[0])


def test_a_crop_is_the_mean_of_what_it_covers():
    cut = photographs.Cut("fig.jpg", "", x=100, y=40, side=128, mirrored=False)
    whole = photographs.photograph("fig.jpg")[:, 40:168, 100:228][None]
    want = torch.nn.functional.avg_pool2d((whole + 1) * 127.5, 2)[0]
    assert (photographs.cut_out([cut])[0].float() - want).abs().max() <= 1
    other = photographs.Cut("fig.jpg", "", x=100, y=40, side=128, mirrored=True)
    assert torch.equal(photographs.cut_out([other])[0], photographs.cut_out([cut])[0].flip(-1))


def test_every_camera_photograph_has_an_author_and_a_licence():
    table = photographs.credits()
    files = {(p.parent.name, p.name) for p in photographs.CAMERA.glob("*/*.jpg")}
    assert set(zip(table.split, table.file, strict=True)) == files and len(files) == 13
    assert table.author.notna().all()
    assert set(table.licence) == {"CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0"}
    for split, file in files:
        assert file in photographs.PHOTOGRAPHS[split]
    said = (photographs.CAMERA.parent / "README.md").read_text(encoding="utf-8")
    assert all(row.author in said and f"`{row.file}`" in said for row in table.itertuples())


def test_a_photograph_that_is_gone_says_how_to_get_it():
    with pytest.raises(FileNotFoundError, match="git checkout data/photographs"):
        photographs.path_of("nothing.jpg")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split 'test': use one of train, heldout"):
        photographs.crops("test", 1, seed=0)
