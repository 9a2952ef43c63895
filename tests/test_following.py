"""following: prompts are of the kind they claim, and what is recognised is what is shown."""

from __future__ import annotations

import pytest
import torch

from nanosd_lib.data import miniworld, raycast
from nanosd_lib.networks import pipeline
from nanosd_lib.quality import following, judges


@pytest.fixture(scope="module")
def trained():
    return following.trained_captions(4000, 0)


@pytest.mark.parametrize("kind", following.KINDS)
def test_scenes_are_of_their_kind(kind, trained):
    scenes, want = following.scenes_of(kind, 12, 0, trained), following.KINDS[kind]
    assert len(scenes) == 12 and ((scenes.shape >= 0).sum(1) == want.objects).all()
    assert (miniworld.unseen(scenes).any(1) == want.unseen).all()
    known = {c in trained for c in miniworld.captions(scenes)}
    assert want.known is None or known == {want.known}
    assert not want.unseen or known == {False}


def test_the_teacher_never_learned_from_an_unseen_pair(trained):
    pairs = [f"{colour} {shape}" for shape, colour in miniworld.UNSEEN]
    assert len(trained) > 1000 and not any(p in caption for p in pairs for caption in trained)


def test_unseen_pairs_are_found_in_every_slot():
    scenes = miniworld.sample(2000, 3)
    found = miniworld.unseen(scenes)
    assert found.any(0).all() and not found[scenes.shape < 0].any()
    words = miniworld.captions(scenes)
    pairs = [f"{colour} {shape}" for shape, colour in miniworld.UNSEEN]
    assert found.any(1).tolist() == [any(p in caption for p in pairs) for caption in words]


def test_a_kind_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(following, "MOST", 1)
    with pytest.raises(ValueError, match="fewer than 5 of the kind 'two objects, trained caption'"):
        following.scenes_of("two objects, trained caption", 5, 0, frozenset())


def test_prompts_are_those_of_their_seed():
    draws = [following.scenes_of("one object", 8, seed, frozenset()) for seed in (0, 0, 1)]
    texts = [miniworld.captions(d) for d in draws]
    assert texts[0] == texts[1] != texts[2]


def test_renders_are_recognised_and_other_prompts_are_not():
    net, scenes = judges.classifier(), miniworld.sample(64, 5, objects=2)
    right = judges.recognised(judges.answers(net, raycast.render(scenes)[0]), scenes)
    other = judges.recognised(
        judges.answers(net, raycast.render(scenes)[0]), scenes[torch.arange(64).roll(1)]
    )
    assert set(right) == {"shape", "colour", "texture", "ground", "light", "both"}
    assert all(hits.shape == (64,) for hits in right.values())
    assert right["both"].float().mean() > 0.9 > 0.2 > other["both"].float().mean()
    assert torch.equal(right["both"], right["shape"] & right["colour"])


def test_an_object_too_many_is_no_right_shape():
    net, two = judges.classifier(), miniworld.sample(32, 5, objects=2)
    drawn = raycast.render(two)[0]
    two.shape[:, 1] = -1  # asked for the left one alone
    assert judges.recognised(judges.answers(net, drawn), two)["shape"].float().mean() < 0.1


def test_the_table_says_what_the_pipeline_drew(sd_mini, monkeypatch):
    """A pipeline that draws exactly what it is asked scores as the classifier on renders."""
    kinds = ["one object", "two objects, unseen pair"]
    asked = {k: following.scenes_of(k, 16, 0, frozenset()) for k in kinds}
    known = {c: s[i : i + 1] for s in asked.values() for i, c in enumerate(miniworld.captions(s))}
    draw = lambda pipe, text, *rest: raycast.render(miniworld.joined([known[c] for c in text]))[0]  # noqa: E731
    monkeypatch.setattr(pipeline, "generate", draw)
    how = pipeline.Sampling(steps=1, guidance=1.0, batch=4)
    found = following.check_prompts(
        sd_mini, 16, how, kinds=[*kinds, "two objects, trained caption"], trained={}
    )
    table = found["table"].set_index(["kind", "attribute"])
    for kind in kinds:
        row = table.loc[kind, "both"]
        assert row.value > 0.85 > 0.4 > row.chance and row.n == 16
        assert row.value_low < row.value <= row.value_high
        assert len(found["captions"][kind]) == 8 and found["pictures"][kind].shape == (8, 3, 64, 64)
    assert set(found["pictures"]) == set(
        kinds
    )  # no captions were trained on: that kind is left out
    seen = following.check_classifier(16, 0)["table"].set_index(["kind", "attribute"])
    assert seen.loc["renders of 1 objects", "both"].value == 1 and seen.chance.isna().all()
