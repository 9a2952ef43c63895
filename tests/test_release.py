"""release: a member is found by what was asked, confirmed by its witness, refused otherwise."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from nanosd_lib import paths
from nanosd_lib.data import splits
from nanosd_lib.learning import fit, fwkd
from nanosd_lib.networks import arch, pipeline, surgery
from nanosd_lib.quality import following, prior
from nanosd_lib.recipes import (
    drawn,
    members,
    photographed,
    releasing,
    restoring,
    shared,
    slimming,
    standin,
    super_resolution,
    surrogates,
    trained,
)
from nanosd_lib.restoration import one_step
from nanosd_lib.runs import notebook, provenance, release
from nanosd_lib.runs.release import Absent, Refused
from nanosd_lib.views import readings_family

SHA = "ab" * 32
SMALL = {
    "fwkd.steps": 6, "fwkd.batch": 4, "fwkd.scenes": 12, "fwkd.heldout": 4,
    "family.align_steps": 3, "family.align_batch": 2, "vae.steps": 4, "vae.scenes": 8,
    "vae.crops": 4, "vae.batch": 4, "vae.ablation_steps": 3,
    "samples.steps": 1, "samples.guidance": 1.0,  # what is drawn need not be good to be the same
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "release"))
    return tmp_path / "release"


def recipe(**changes) -> dict:
    made = {
        "commit": None, "finished": "2026-01-01T00:00:00+00:00", "cpu": "any", "gpu": None,
        "threads": 1, "seconds": 1.5, "versions": {"torch": "2"}, "code": {}, "record": [],
    }  # fmt: skip
    witness = {"data": {"train.std": 1.0}, "first": [0.5, 0.25], "heldout": 0.125}
    budget = {"steps": 1500, "batch": 32, "seed": 0}
    whole = {"asked": {"code": "RA"}, "budget": budget, "data": {}, "teacher": SHA, "of": {}}
    return whole | {"witness": witness, "made": made} | changes


def toy(name="surrogates/E1-RA", **changes) -> release.Released:
    return release.publish(name, {"x": torch.arange(4.0)}, None, recipe(**changes))


# --------------------------------------------------------------------------------------- the format
def test_what_was_published_is_found_by_what_was_asked(root):
    made = toy()
    found = release.find("surrogates/E1-RA", {"code": "RA"}, SHA, {})
    assert found.key == made.key and torch.equal(found.tensors["x"], torch.arange(4.0).half())
    assert found.recipe.how == "released: 1,500 steps of batch 32, seed 0"
    table = release.listing()
    assert table.name.to_list() == ["surrogates/E1-RA"] and table.parameters[0] == 4
    assert (root / "release.csv").read_text().splitlines()[0] == ",".join(table.columns)


@pytest.mark.parametrize(
    ("asked", "teacher", "of", "why"),
    [
        ({"code": "RR"}, SHA, {}, "is another one: code"),
        ({"code": "RA"}, "cd" * 32, {}, "is of another teacher"),
        ({"code": "RA"}, SHA, {"surrogates/D1-R": SHA}, "is made of another surrogates/D1-R"),
    ],
)
def test_another_one_is_absent(root, asked, teacher, of, why):
    toy()
    with pytest.raises(Absent, match=why):
        release.find("surrogates/E1-RA", asked, teacher, of)
    with pytest.raises(Absent, match="surrogates/E1-R is not in the release"):
        release.find("surrogates/E1-R", asked, teacher, of)


def test_the_key_is_of_content_not_of_bytes(root):
    """Order in the file, its header, line ends and spaces move nothing; values, names, types do."""
    folder = toy().folder
    key, weights = release.content(folder), folder / release.WEIGHTS
    many = {"b": torch.ones(2), "a": torch.zeros(3)}
    save_file(many, weights)
    before = release.content(folder)
    save_file(dict(reversed(many.items())), weights, metadata={"format": "pt"})
    assert release.content(folder) == before != key
    for other in ({"b": torch.ones(2), "c": torch.zeros(3)}, many | {"a": torch.zeros(3).half()}):
        save_file(other, weights)
        assert release.content(folder) != before
    path = folder / "some.json"
    path.write_text('{"a": 1, "b": [2]}')
    one = provenance.content_hash(path)
    path.write_bytes(b'{\r\n "b": [2],\r\n "a": 1}\r\n')
    assert provenance.content_hash(path) == one


def test_a_flipped_bit_is_refused(root):
    folder = toy().folder
    data = bytearray((folder / release.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / release.WEIGHTS).write_bytes(data)
    with pytest.raises(
        Refused, match="surrogates/E1-RA: its weights are not what recipe.json says"
    ):
        release.read("surrogates/E1-RA")
    (folder / release.WEIGHTS).write_bytes(data[:20])
    with pytest.raises(Refused, match="is no safetensors file"):
        release.read("surrogates/E1-RA")


def test_an_edited_recipe_is_refused(root):
    folder = toy().folder
    path, text = folder / release.RECIPE, (folder / release.RECIPE).read_text()
    path.write_text(text.replace('"steps": 1500', '"steps": 150'))
    with pytest.raises(Refused, match="was edited: its digest is another: `git checkout"):
        release.read("surrogates/E1-RA")
    plain = json.loads(text)
    for change, said in (
        ({"threads": "1"}, "made.threads: Input should be a valid integer"),
        ({"extra": 1}, "made.extra: Extra inputs are not permitted"),
    ):
        path.write_text(json.dumps(plain | {"made": plain["made"] | change}))
        with pytest.raises(Refused, match=re.escape(said)) as error:
            release.read("surrogates/E1-RA")
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(Refused, match=r"recipe.json is missing"):
        release.read("surrogates/E1-RA")


def test_a_publication_that_breaks_leaves_the_member_of_before(root, monkeypatch):
    before = toy().key
    monkeypatch.setattr(release, "_write_json", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        toy(asked={"code": "RR"})
    monkeypatch.undo()
    monkeypatch.setenv("NANOSD_RELEASE", str(root))
    assert release.read("surrogates/E1-RA").key == before
    assert [p.name for p in (root / "surrogates").iterdir()] == ["E1-RA"]


@pytest.mark.parametrize(
    ("computed", "said"),
    [
        ({"data": {"train.std": 1.001}}, "the data are others: train.std is 1.001, recorded 1"),
        ({"first": [0.51]}, "loss of step 1 is 0.51, recorded 0.5: loss or start"),
        ({"first": [0.5, 0.26]}, "loss of step 2 is 0.26, recorded 0.25: rate, schedule or"),
        ({"heldout": 0.13}, "held-out error 0.13, recorded 0.125: these weights are not"),
        ({"heldout": float("nan")}, "held-out error nan"),
    ],
)
def test_a_witness_that_differs_is_named(root, computed, said):
    with pytest.raises(Refused, match=re.escape(f"surrogates/E1-RA: {said}")) as error:
        release.confirm(toy(), computed, ["nanosd_lib.learning.fwkd"])
    assert "(changed since: learning.fwkd)" in str(error.value)
    with pytest.raises(Refused, match="another machine or another torch"):
        release.confirm(toy(), computed, [])


def test_losses_after_the_first_may_have_a_bound_of_their_own(root):
    found, off = (
        toy(),
        lambda k, x: {"first": [0.5 * (1 + (k == 1) * x), 0.25 * (1 + (k == 2) * x)]},
    )
    with pytest.raises(Refused, match="loss of step 2"):
        release.confirm(found, off(2, 5e-4))
    assert release.confirm(found, off(2, 5e-4), later=1e-3) == pytest.approx(5e-4)
    for step, x in ((1, 5e-4), (2, 2e-3)):
        with pytest.raises(Refused, match=f"loss of step {step}"):
            release.confirm(found, off(step, x), later=1e-3)


def test_a_witness_that_agrees_says_by_how_much(root):
    near = {"data": {"train.std": 1.0}, "first": [0.5 * (1 + 4e-5)], "heldout": 0.125}
    assert release.confirm(toy(), near) == pytest.approx(4e-5, rel=1e-3)


# ----------------------------------------------------------------------------- trained and verified
@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A toy release of three surrogates, published by the recipe itself."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        run = open_run(patch, folder)
        kind, pipe = surrogates.Surrogates(), shared.teacher(run)
        members = [surrogates.member("E1", c) for c in ("RA", "R")]
        done = kind.train(run, pipe, members, kind.settings(run, pipe), None)
        trained.publish(run, pipe, kind, members, done, None)
    return folder


def open_run(patch, folder, **changes):
    patch.setenv("NANOSD_RELEASE", str(folder / "release"))
    patch.setenv("NANOSD_STORE", str(folder / "store"))
    patch.setenv("NANOSD_RESULTS", str(folder / "results"))
    return notebook.open_run("toy", "smoke", 0, SMALL | {"release": True} | changes)


@pytest.fixture
def there(made, tmp_path, monkeypatch):
    """A copy of it, with an empty store."""
    shutil.copytree(made / "release", tmp_path / "release")
    run = open_run(monkeypatch, tmp_path)
    return run, shared.teacher(run)


def load(run, pipe, codes=("RA", "R")):
    members = [surrogates.member("E1", c) for c in codes]
    return trained.load(run, pipe, surrogates.Surrogates(), members)


def rewritten(run, member: str, **changes) -> None:
    """Another recipe with a digest that is right: what someone does who means it."""
    path = release.root() / member / release.RECIPE
    plain = json.loads(path.read_text())
    for key, value in changes.items():
        here = plain
        *parts, last = key.split("__")
        for part in parts:
            here = here[part]
        here[last] = value
    path.write_text(json.dumps(plain | {"digest": release.digest(plain)}))


def test_a_page_takes_what_is_confirmed_and_trains_the_rest(there):
    run, pipe = there
    found = load(run, pipe, ("RA", "R", "RR"))
    ways = {name: t.how for name, t in found.items()}
    assert ways == {
        "surrogates/E1-RA": "released: 6 steps of batch 4, seed 0",
        "surrogates/E1-R": "released: 6 steps of batch 4, seed 0",
        "surrogates/E1-RR": "trained here: 6 steps of batch 4, not in the release",
    }
    gaps = [found[f"surrogates/E1-{c}"].difference for c in ("RA", "R")]
    assert all(0 <= gap < 1e-5 for gap in gaps)
    assert found["surrogates/E1-RA"].key == release.read("surrogates/E1-RA").key
    table = trained.origins(found.values()).set_index("name")
    assert table["from"].to_list() == ["release", "release", "trained here"]


def test_the_whole_set_is_one_thing_to_its_users(there):
    run, pipe = there
    taught = surrogates.taught(run, pipe, [("E1", "RA"), ("E1", "RR")])
    assert "1 of 2 released: 6 steps" in taught.how and "not in the release" in taught.how
    assert list(taught.errors.surrogate) == ["E1:RA", "E1:RR"]
    assert taught.curve.groupby("surrogate").share.max().to_list() == [1, 1]
    nets = fwkd.load(pipe.unet, [("E1", "RA"), ("E1", "RR")], taught.weights)
    batches = shared.heldout_batches(run, pipe)
    again = fwkd.errors(pipe.unet, nets, batches)
    assert taught.errors.relative_error.to_list() == pytest.approx(list(again.values()), rel=1e-5)


def test_another_way_of_teaching_is_compared_on_equal_budgets(there, tmp_path, monkeypatch):
    """The release holds E1:RA as usual, and not on half the data."""
    run, pipe = there
    usual = surrogates.taught(run, pipe, [("E1", "RA")])
    shorter = open_run(monkeypatch, tmp_path, **{"fwkd.steps": 4})
    for asked, here in ((run, False), (shorter, True)):
        one, other = surrogates.compared(asked, pipe, usual, [("E1", "RA")], fraction=0.5)
        a, b = one.trained["E1:RA"], other.trained["E1:RA"]
        assert a.settings == b.settings and a.key != b.key
        assert (a.released is None) == here and b.released is None


def test_the_switch(there, tmp_path, monkeypatch):
    run = open_run(monkeypatch, tmp_path, release=False)
    pipe = shared.teacher(run)
    (t,) = load(run, pipe, ("RA",)).values()
    assert t.how == "trained here: 6 steps of batch 4"


def test_weights_of_another_seed_are_refused(there):
    run, pipe = there
    file = release.root() / "surrogates/E1-RA" / release.WEIGHTS
    other = {k: v + 0.01 * torch.randn_like(v) for k, v in load_file(file).items()}
    save_file(other, file)
    rewritten(run, "surrogates/E1-RA", key=release.content(file.parent))
    with pytest.raises(Refused, match="surrogates/E1-RA: held-out error"):
        load(run, pipe)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget__seed": 1}, "loss of step 1"),
        ({"budget__batch": 3}, "loss of step 1"),
        ({"budget__lr": 0.5}, "loss of step 2"),
        ({"data__train__scenes": 13}, "the data are others"),
        ({"data__heldout__scenes": 5}, "the data are others"),
        ({"asked__code": "RR"}, ""),
    ],
)
def test_a_recipe_that_tells_another_story_is_refused(there, changes, said):
    run, pipe = there
    rewritten(run, "surrogates/E1-RA", **changes)
    if said:
        with pytest.raises(Refused, match=f"surrogates/E1-RA: {said}"):
            load(run, pipe, ("RA",))
    else:  # another one was asked for: this is not it
        assert "not in the release" in load(run, pipe, ("RA",))["surrogates/E1-RA"].how


def test_a_changed_loss_is_seen(there, monkeypatch):
    run, pipe = there
    real = fwkd.relative_error
    monkeypatch.setattr(fwkd, "relative_error", lambda s, t: 1.01 * real(s, t))
    with pytest.raises(Refused, match="loss of step 1 is .*: loss or start"):
        load(run, pipe, ("RA",))


def test_a_changed_data_generator_is_seen(there, monkeypatch):
    from nanosd_lib.data import raycast

    run, pipe = there
    real = raycast.render

    def darker(*args, **kwargs):
        x, depth = real(*args, **kwargs)
        return x * 0.99, depth

    monkeypatch.setattr(raycast, "render", darker)
    with pytest.raises(Refused, match="the data are others: train.scenes"):
        load(run, pipe, ("RA",))


def test_every_member_of_the_release_verified(there):
    run, pipe = there
    table = releasing.verify(run, pipe, "surrogates/E1-R").set_index("name")
    assert table.state["surrogates/E1-R"] == "confirmed"
    assert table.steps["surrogates/E1-R"] == fit.FIRST
    assert table.state["surrogates/E1-RR"] == "absent"


# ----------------------------------------------------------------------------------------- the plan
def test_groups_cover_every_member_once(there):
    run, _ = there
    names = [m.name for g in releasing.groups(run) for m in g.members]
    assert len(names) == len(set(names))
    thirty_one = {surrogates.member(s, c).name for s, c in arch.taught()}
    assert thirty_one <= set(names)
    autoencoders = [m for m in names if m.startswith("vae/")]
    assert len(autoencoders) == run.profile.vae.seeds + 1 + 5
    assert not [m for m in names if m.startswith("aligned/")]  # they wait for what they are of


def test_the_plan_says_what_is_there_absent_behind_or_damaged(there, tmp_path, monkeypatch):
    run, pipe = there
    state = lambda: releasing.plan(run, pipe, "surrogates/E1").set_index("name").state  # noqa: E731
    assert state()["surrogates/E1-RA"] == "there" and state()["surrogates/E1-RR"] == "absent"
    longer = open_run(monkeypatch, tmp_path, **{"fwkd.steps": 60})
    table = releasing.plan(longer, pipe, "surrogates/E1-RA").set_index("name")
    assert table.state["surrogates/E1-RA"] == "behind"
    assert table.why["surrogates/E1-RA"] == "steps 6, full asks 60"
    (release.root() / "surrogates/E1-RA" / release.WEIGHTS).write_bytes(b"")
    assert state()["surrogates/E1-RA"] == "damaged"
    shutil.copytree(release.root() / "surrogates/E1-R", release.root() / "surrogates/Dec1")
    assert releasing.plan(run, pipe).set_index("name").state["surrogates/Dec1"] == "orphan"


# ------------------------------------------------------------------------------------- the real one
def test_the_shipped_release_is_whole():
    """Every file of data/nanosd-mini is what its recipe says; the listing is of these."""
    root = paths.ROOT / "data" / "nanosd-mini"
    names = release.names()
    assert names and release.root() == root
    table = release.listing()
    kept = (root / "release.csv").read_text()
    assert kept == table.to_csv(index=False)
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    assert size < 100e6
    loose = [p for p in root.rglob("*.safetensors") if not (p.parent / release.RECIPE).exists()]
    assert not loose


def test_a_shipped_member_is_confirmed(tmp_path, monkeypatch):
    """The smallest stage's, two steps: what every first run does with all of them."""
    monkeypatch.setenv("NANOSD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    run = notebook.open_run("toy", "mini", 0, {"threads": 1})
    found = load(run, shared.teacher(run), ("RR", "R"))
    assert all(t.released is not None and t.difference < 1e-4 for t in found.values())


def test_the_release_folder_is_named_by_the_variable(root):
    assert release.root() == Path(root).resolve()


# ---------------------------------------------------------------------------------- the other kinds
PAIR = [str(arch.NANOSD[k]) for k in ("N5", "N7")]


def parts(run) -> surrogates.Taught:
    """What two small networks are made of, from the release."""
    codes = [arch.Arch.parse(text).stages.items() for text in PAIR]
    some = [trained.found(run, surrogates.member(s, c)) for s, c in sorted(set().union(*codes))]
    by = {"{stage}:{code}".format(**t.member.what): t for t in some}
    return surrogates.Taught(by, pd.DataFrame())


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Nine surrogates, two networks aligned of them, and two autoencoders, published."""
    folder = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        run = open_run(patch, folder)
        pipe = shared.teacher(run)
        codes = sorted(set().union(*(arch.Arch.parse(text).stages.items() for text in PAIR)))
        jobs = [(surrogates.Surrogates(), [surrogates.member(s, c) for s, c in codes])]
        alone = (
            slimming.Student(),
            slimming.Student("tiny"),
            restoring.Restoration(restoring.Backbone()),
        )
        jobs += [(k, [k.member(run)]) for k in alone]
        for one, wanted in jobs:
            done = one.train(run, pipe, wanted, one.settings(run, pipe), None)
            trained.publish(run, pipe, one, wanted, done, None)
        aligned = members.Aligned(parts(run))
        wanted = [members.member(text, aligned.taught) for text in PAIR]
        done = aligned.train(run, pipe, wanted, aligned.settings(run, pipe), None)
        trained.publish(run, pipe, aligned, wanted, done, None)
    return folder


@pytest.fixture
def whole(toys, tmp_path, monkeypatch):
    shutil.copytree(toys / "release", tmp_path / "release")
    run = open_run(monkeypatch, tmp_path)
    return run, shared.teacher(run)


def test_every_kind_is_found_confirmed_and_loads_with_diffusers(whole):
    run, pipe = whole
    for kind in ("slim", "tiny"):
        t = slimming.student(run, pipe, 0, kind)
        assert t.released is not None and t.difference < 1e-4
        net = type(slimming.network(pipe, t)).from_pretrained(release.root() / t.member.name)
        mine = slimming.network(pipe, t).state_dict()
        assert all(torch.equal(v.float(), mine[k]) for k, v in net.state_dict().items())
    n5, n7 = PAIR
    found = members.aligned(run, pipe, [n7, n5], parts(run))
    assert all(t.released is not None and t.difference < 1e-4 for t in found.values())
    net = surgery.NanoUNet.from_pretrained(release.root() / "aligned/N7")
    mine = members.network(pipe, found[n7]).state_dict()
    assert all(torch.equal(v.float(), mine[k]) for k, v in net.state_dict().items())


def test_a_network_on_the_slim_autoencoders_latents_is_a_member_of_its_own(whole, monkeypatch):
    """Replayed on those latents, and refused where they are the teacher's."""
    run, pipe = whole
    kind = members.Aligned(parts(run), slimming.student(run, pipe, 0))
    m = members.member(N5, kind.taught, kind.slim)
    done = kind.train(run, pipe, [m], kind.settings(run, pipe), None)
    trained.publish(run, pipe, kind, [m], done, None)
    t = slimming.aligned_on(run, pipe, N5, kind.taught, kind.slim)
    assert t.member.name == "aligned/N5-slim-0" and t.released is not None and t.difference < 1e-4
    another = dataclasses.replace(m, of=m.of | {"vae/slim-0": "0" * 64})
    assert trained.there(run, m) and not trained.there(run, another)
    wrong = dataclasses.replace(kind, slim=None)
    plain = dataclasses.replace(t, member=dataclasses.replace(m, of={}))  # nothing is loaded
    said = trained.witness(run, pipe, wrong, [plain], t.settings, 2)[m.name]
    with pytest.raises(Refused, match="aligned/N5-slim-0"):
        release.confirm(t.released, said, [], 1e-3)


def test_a_network_of_other_surrogates_is_absent(whole):
    """New weights of one surrogate: what was made of it is aligned here, the rest is loaded."""
    run, pipe = whole
    file = release.root() / "surrogates/D1-RRA" / release.WEIGHTS  # N7 has it, N5 has not
    save_file({k: v * 1.001 for k, v in load_file(file).items()}, file)
    rewritten(run, "surrogates/D1-RRA", key=release.content(file.parent))
    n5, n7 = PAIR
    found = members.aligned(run, pipe, PAIR, parts(run))
    assert found[n5].released is not None
    assert found[n7].how == "trained here: 3 steps of batch 2, not in the release"


def test_aligned_networks_join_the_plan_when_their_parts_are_there(whole, monkeypatch):
    run, pipe = whole
    assert surrogates.released(run) is None
    assert set(releasing.plan(run, pipe, "aligned").state) == {"waits"}
    monkeypatch.setattr(surrogates, "released", parts)
    monkeypatch.setattr(members, "NAMES", {text: members.NAMES[text] for text in PAIR})
    table = releasing.plan(run, pipe, "aligned").set_index("name")
    slim = members.member(str(arch.NANOSD["N2"]), parts(run), slimming.student(run, pipe, 0)).name
    there = {"aligned/N5": "there", "aligned/N7": "there"}
    assert table.state.to_dict() == there | {slim: "absent"}  # a slim autoencoder is there as well


def test_a_restoration_is_found_confirmed_and_loads_in_diffusers(whole):
    run, pipe = whole
    bare = restoring.Backbone()
    t = restoring.system(run, pipe, bare)
    assert t.released is not None and t.difference < 1e-4
    assert t.settings.budget["t"] == restoring.damage(run, pipe).t.iloc[-1]
    net = copy.deepcopy(pipe.unet)
    net.load_lora_adapter(
        release.root() / t.member.name, weight_name=release.WEIGHTS, prefix="unet"
    )
    x = splits.pictures("heldout", 1, 0, 0)[0]
    mine = restoring.restorer(pipe, bare, t)
    z = torch.randn(1, 4, 32, 32)
    text = pipeline.embed(pipe, [""])
    with torch.no_grad():
        a, b = (n(z, 9, encoder_hidden_states=text).sample for n in (net, mine.unet))
    torch.testing.assert_close(a, b)
    assert mine(x).shape == x.shape
    rewritten(run, t.member.name, budget=t.settings.budget | {"lr": 2e-3})
    with pytest.raises(Refused, match="loss of step 2 .*: rate, schedule or optimiser"):
        restoring.system(run, pipe, bare)


def test_a_restoration_of_another_backbone_is_absent(whole):
    run, pipe = whole
    n5 = members.aligned(run, pipe, PAIR[:1], parts(run))[PAIR[0]]
    kind = restoring.Restoration(restoring.Backbone("N5", n5))
    with pytest.raises(Absent):
        trained.found(run, kind.member(run))
    m = kind.member(run)
    assert not trained.there(run, m)
    assert m.of == {"aligned/N5": n5.key} and m.name == "adapters/osediff-N5-matched-0"


def test_the_largest_photograph_is_shipped_and_restored_again(whole, monkeypatch):
    """Here a small one, by the teacher's backbone."""
    run, pipe = whole
    b = restoring.Backbone()
    t = trained.found(run, restoring.Restoration(b).member(run))
    monkeypatch.setattr(photographed, "LARGEST", "rocket.jpg")
    monkeypatch.setattr(photographed, "SHARES", (0.6, 0.3))
    monkeypatch.setattr(photographed, "parts", lambda run: (b, t))
    assert photographed.shipped(run).empty
    assert releasing.verify(run, pipe, "photograph").state.to_list() == ["absent"]
    assert photographed.publish(run, pipe, None) == photographed.NAME
    kept = photographed.shipped(run)
    assert len(kept) == 4 and kept.measured.nunique() == 1 and (kept.psnr_y > 15).all()
    assert kept.megapixels[0] == pytest.approx(2 * kept.megapixels[2], rel=0.05)
    assert releasing.verify(run, pipe, "photograph").state.to_list() == ["confirmed"]
    assert photographed.NAME not in set(releasing.plan(run, pipe).name)
    record = kept.drop(columns="measured").replace({float("nan"): None}).to_dict("records")
    record[1]["lpips"] *= 1.1
    rewritten(run, photographed.NAME, made__record=record)
    with pytest.raises(Refused, match="lpips restored again differs by"):
        photographed.verify(run, pipe)
    other = dataclasses.replace(t, key="0" * 64)
    monkeypatch.setattr(photographed, "parts", lambda run: (b, other))
    assert photographed.shipped(run).empty  # of other adapters


# ----------------------------------------------------------------------------------- drawn pictures
N5 = PAIR[0]


def judged(run, pipe, text=N5):
    """The teacher's side and one assembled network's, as pages ask for them."""
    taught = parts(run)
    against = shared.reference(run, pipe, run.profile.search.images)
    judge = shared.judge(run, pipe, surrogates.later(pipe, taught), against, [taught.key])
    return against, judge(arch=text)


def shipped(run, pipe) -> list[str]:
    """What a run drew, put into the release."""
    judged(run, pipe)
    return drawn.publish(run, {parts(run).key}, None)


def test_drawn_pictures_are_shipped_and_only_the_first_are_drawn_again(
    whole, tmp_path, monkeypatch
):
    run, pipe = whole
    run = open_run(monkeypatch, tmp_path, **{"search.images": 20})
    assert shipped(run, pipe) == ["drawn/assembled-0-20", "drawn/teacher-0-20"]
    assert shipped(run, pipe) == []  # once
    before = judged(run, pipe)[1]["features"]["features"]
    other = open_run(monkeypatch, tmp_path / "empty", **{"search.images": 20})
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "release"))
    count: list[int] = []
    real = pipeline.generate
    monkeypatch.setattr(
        pipeline, "generate", lambda p, some, *rest: count.append(len(some)) or real(p, some, *rest)
    )
    against, made = judged(other, pipe)
    assert count == [8, 8, 8]  # the teacher's, those of other noise, the network's
    assert len(made["features"]["features"]) == 20
    torch.testing.assert_close(made["features"]["features"], before, rtol=1e-3, atol=1e-3)
    count.clear()
    judged(other, pipe, PAIR[1])  # which nobody drew
    assert sum(count) == 20


def test_shipped_features_of_other_pictures_are_refused(whole, tmp_path, monkeypatch):
    """Those of another network under this one's label, with hashes that are right."""
    run, pipe = whole
    assert shipped(run, pipe) == ["drawn/assembled-0-8", "drawn/teacher-0-8"]
    file = release.root() / "drawn/assembled-0-8" / release.WEIGHTS
    mine = load_file(file)
    teachers = load_file(release.root() / "drawn/teacher-0-8" / release.WEIGHTS)
    (other,) = (v for k, v in teachers.items() if k.startswith("other"))
    save_file({k: other for k in mine}, file)
    rewritten(run, "drawn/assembled-0-8", key=release.content(file.parent))
    with pytest.raises(ValueError, match="pictures drawn again are not those"):
        judged(run, pipe)
    table = releasing.verify(run, pipe, "drawn/teacher").set_index("name")
    assert table.state.to_dict() == {"drawn/teacher-0-8": "confirmed"}


def test_features_of_other_parts_sampling_or_teacher_are_not_asked_for(
    whole, tmp_path, monkeypatch
):
    run, pipe = whole
    shipped(run, pipe)
    how, n, taught = shared.sampling(run)["how"], run.profile.search.images, parts(run)
    assert set(drawn.known(run, "score", how, n, [taught.key]).features) == {N5}
    nothing = [
        drawn.known(run, "score", how, n, ["0" * 64]),
        drawn.known(run, "score", how, n + 1, [taught.key]),
        drawn.known(run, "score", how.but(steps=how.steps + 1), n, [taught.key]),
        drawn.known(run, "score", how.but(seed=1), n, [taught.key]),
        drawn.known(open_run(monkeypatch, tmp_path, release=False), "score", how, n, [taught.key]),
    ]
    assert not any(k.features for k in nothing)


def test_what_is_looked_at_in_pictures_is_shipped_and_only_the_first_are_drawn_again(
    whole, tmp_path, monkeypatch
):
    """Answers to prompts, resemblance, diversity, paths, and an untrained network's features."""
    run, pipe = whole
    kind = members.Aligned(parts(run))
    n5 = members.member(N5, kind.taught)
    t = trained.load(run, pipe, kind, [n5])[n5.name]
    asked = {"search.images": 18, "teacher_check.prompts": 3}
    monkeypatch.setattr(prior, "WITNESSES", 4)
    monkeypatch.setattr(following, "SHOWN", 2)
    run = open_run(monkeypatch, tmp_path, **asked)

    def pages(run):
        against = shared.reference(run, pipe, run.profile.search.images)
        kept, paths = members.prior_of(run, pipe, t, "N5")
        apart = standin.distances(run, pipe, against)["table"]
        return standin.prompts(run, pipe), kept, apart, paths

    before = pages(run)
    grown = drawn.publish(run, {t.key}, None)
    sets = ["diversity-0-8", "paths-0-2", "prompts-0-3", "resemblance-0-18", "teacher-0-18"]
    assert grown == [f"drawn/{name}" for name in [*sets, "untrained-0-18"]]
    assert drawn.publish(run, {t.key}, None) == []
    other = open_run(monkeypatch, tmp_path / "empty", **asked)
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "release"))
    count: list[int] = []
    real = pipeline.generate
    monkeypatch.setattr(
        pipeline, "generate", lambda p, some, *rest: count.append(len(some)) or real(p, some, *rest)
    )
    again = pages(other)
    pairs, answers, spread, ways, others = 3 * 4, 7 * 2, 2 * 4, 2 * 9, 3 * 8
    assert sum(count) == pairs + answers + spread + ways + others
    pd.testing.assert_frame_equal(again[0]["table"], before[0]["table"])
    pd.testing.assert_frame_equal(again[0]["hits"], before[0]["hits"])
    for one, two in zip(again[1:3], before[1:3], strict=True):
        pd.testing.assert_frame_equal(one, two, rtol=0.01)  # float16 lies between
    for kind, pictures in before[0]["pictures"].items():
        torch.testing.assert_close(again[0]["pictures"][kind], pictures)
    torch.testing.assert_close(again[3]["teacher"], before[3]["teacher"])
    assert not drawn.known(
        other, "resemblance", shared.sampling(run)["how"], 18, [t.key], judge="another"
    ).features


def test_restorations_are_shipped_and_only_what_is_shown_is_restored_again(
    whole, tmp_path, monkeypatch
):
    run, pipe = whole
    b, asked = restoring.Backbone(), {"restoration.heldout": 12}
    t = restoring.system(run, pipe, b)
    case = super_resolution.Case("OSEDiff", b, (t,), t.settings.budget["t"])
    first = open_run(monkeypatch, tmp_path, **asked)
    (before,) = super_resolution.judged(first, pipe, case)
    assert drawn.publish(first, {"another"}, None) == []
    assert drawn.publish(first, {t.key}, None) == ["drawn/restored-mild-0-12"]
    other = open_run(monkeypatch, tmp_path / "empty", **asked)
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "release"))
    count: list[int] = []
    real = one_step.OneStep.__call__
    monkeypatch.setattr(
        one_step.OneStep, "__call__", lambda self, x: count.append(len(x)) or real(self, x)
    )
    (again,) = super_resolution.judged(other, pipe, case)
    assert count == [8, 6]  # scenes, and a crop of each photograph
    pd.testing.assert_frame_equal(again["table"], before["table"], rtol=0.01)
    bare = super_resolution.Case("untrained", b, (), case.t)
    assert super_resolution.judged(other, pipe, bare) and count[2:] == [12, 12]


def test_what_another_profile_drew_is_not_shipped(whole, tmp_path, monkeypatch):
    """In the same store, with other steps: a set is of one sampling."""
    run, pipe = whole
    judged(run, pipe)
    other = open_run(monkeypatch, tmp_path, **{"samples.steps": run.profile.samples.steps + 1})
    assert drawn.publish(other, {parts(run).key}, None) == []
    assert drawn.publish(run, {parts(run).key}, None) == [
        "drawn/assembled-0-8",
        "drawn/teacher-0-8",
    ]
    judged(other, pipe)
    assert drawn.publish(other, {parts(run).key}, None) == []  # what is there stays


def test_what_another_code_drew_is_not_shipped(whole, monkeypatch):
    run, pipe = whole
    judged(run, pipe)
    monkeypatch.setattr(provenance, "hash_of", lambda module: "another")
    assert drawn.publish(run, {parts(run).key}, None) == []


def test_many_pictures_are_drawn_by_whoever_fills_a_release_and_known_to_all_others(
    whole, tmp_path, monkeypatch
):
    """Page 06 shows them where all of its networks' lie there, and draws none itself."""
    run, pipe = whole
    kind = members.Aligned(parts(run))
    m = members.member(N5, kind.taught)
    some = {"N5": trained.load(run, pipe, kind, [m])[m.name]}
    asked = {"family.many": 20}
    run = open_run(monkeypatch, tmp_path, **asked)
    lacking = members.many(run, pipe, some)
    assert lacking.against is None and lacking.table.empty
    assert "no larger sets" in readings_family.more_pictures(lacking.table)
    drawn_ = members.many(run, pipe, some, fill=True)
    drawn.publish(run, {some["N5"].key}, None)
    other = open_run(monkeypatch, tmp_path / "empty", **asked)
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "release"))
    again = members.many(other, pipe, some)
    pd.testing.assert_frame_equal(again.table, drawn_.table, rtol=1e-3)  # float16 lies between
    (row,) = again.table.itertuples()
    assert (row.n, row.model) == (20, "NanoSD5") and row.tafid_low < row.tafid < row.tafid_high
    said = readings_family.more_pictures(again.table)
    far = readings_family.more_pictures(again.table.assign(tafid_low=1e6, tafid_high=1e7))
    assert "On 20 pictures" in said and "surely further from them" in far
    none = members.many(open_run(monkeypatch, tmp_path, **{"family.many": None}), pipe, some)
    assert none.table.empty
    alone = open_run(monkeypatch, tmp_path / "alone", release=False, **asked)
    assert len(members.many(alone, pipe, some).table) == 1
