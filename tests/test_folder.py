"""folder: a user's own photographs, which of them are used, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanosd_lib import paths
from nanosd_lib.data import folder, splits
from nanosd_lib.learning import vae_student
from nanosd_lib.networks import pipeline
from nanosd_lib.quality import autoencoders, checks, codesign
from nanosd_lib.recipes import shared
from nanosd_lib.runs import layout, notebook, profiles

NUMBERS = range(1, 13)
NAMES = [f"p{i}.png" for i in NUMBERS]  # p7 alone falls below the bound


def photograph(path: Path, w: int = 96, h: int = 72, colour: int = 0) -> None:
    """Columns from dark to light, and a channel that says which picture it is."""
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = np.linspace(0, 255, w), colour
    Image.fromarray(pixels).save(path)


@pytest.fixture
def own(tmp_path) -> Path:
    """Twelve pictures, each with a text file."""
    where = tmp_path / "own"
    where.mkdir()
    for i, name in zip(NUMBERS, NAMES, strict=True):
        photograph(where / name, colour=20 * i)
        (where / name).with_suffix(".txt").write_text(f"picture\nnumber {i}\n")
    return where


def table(where: Path, *rows: str, name: str = "captions.csv") -> None:
    (where / name).write_text("\n".join(["file_name,text", *rows]) + "\n", encoding="utf-8")


def scanned(where: Path, smallest: int = 64) -> folder.Photographs:
    return folder.Photographs.of(where, folder.scan(smallest, where)["pictures"])


def refused(where: Path, *words: str, smallest: int = 64) -> None:
    with pytest.raises(ValueError) as error:
        folder.scan(smallest, where)
    text = str(error.value)
    assert "\n" not in text and str(where) in text and all(w in text for w in words), text


def used(where: Path) -> dict[str, str]:
    return {file: caption for file, caption, _ in folder.scan(64, where)["pictures"]}


# ---------------------------------------------------------------------------------------- captions
def test_captions_of_text_files_stand_beside_their_pictures(own):
    found = folder.scan(64, own)
    assert {f: c for f, c, _ in found["pictures"]} == {
        f"p{i}.png": f"picture number {i}" for i in NUMBERS
    }
    assert found["said"] == "photographs: 12 of 12 pictures used\n  1 of them held out"
    assert found["passed"] == {}


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv", "Metadata.CSV"])
def test_a_table_alone_counts_where_there_is_one(own, name):
    table(own, 'p1.png,"a cup, ""full"""', "./p5.png, a cat ", name=name)
    found = folder.scan(64, own)
    assert {f: c for f, c, _ in found["pictures"]} == {"p1.png": 'a cup, "full"', "p5.png": "a cat"}
    assert found["said"].splitlines()[0] == (
        "photographs: 2 of 12 pictures used: 10 without caption (p10.png, p11.png, p12.png, ...)"
    )


def test_tables_as_other_programs_write_them(own):
    text = "text,id,file_name\r\n" + "a cat,1,p1.png\r\n\r\n,,\r\n" + '"two\nlines",2,p5.png\r\n'
    (own / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert used(own) == {"p1.png": "a cat", "p5.png": "two lines"}


def test_an_accent_is_one_whichever_way_it_is_written(own):
    (own / "p1.png").rename(own / "cafe\u0301.png")
    (own / "p1.txt").rename(own / "caf\u00e9.txt")
    assert used(own)["cafe\u0301.png"] == "picture number 1"
    table(own, "caf\u00e9.png,a bar", "p5.png,a cat")
    assert used(own) == {"cafe\u0301.png": "a bar", "p5.png": "a cat"}


def test_what_is_passed_over_is_counted_and_named(own):
    (own / "p1.txt").unlink()
    data = (own / "p2.png").read_bytes()
    (own / "p2.png").write_bytes(data[: len(data) // 2])
    photograph(own / "p3.png", 1, 1)
    (own / "p4.png").write_bytes(b"")
    (own / "p6.heic").write_bytes(b"\0\0\0 ftypheic")  # an ending known, a format not here
    (own / "p6.png").unlink()
    for name in ("notes.md", "README.txt", ".p7.png", "p9.png.part"):
        (own / name).write_bytes(b"\0")  # no pictures and no captions of any
    found = folder.scan(64, own)
    whole = sorted(set(NAMES) - {f"p{i}.png" for i in (1, 2, 3, 4, 6)})
    assert [f for f, _, _ in found["pictures"]] == whole
    first, _, *reasons = found["said"].splitlines()
    assert first == (
        "photographs: 7 of 12 pictures used: 1 without caption (p1.png),"
        " 3 unreadable (p2.png, p4.png, p6.heic), 1 too small (p3.png)"
    )
    assert len(reasons) == 4 and str(own) not in found["said"]
    assert "picture p2.png cannot be read, it is damaged, cut off" in reasons[0]
    assert "p3.png is 1x1 pixels and 64 on its shorter side are wanted: bring" in reasons[1]


def test_a_long_report_is_cut(own):
    for name in NAMES[2:]:
        (own / name).write_bytes(b"GIF89a")
    lines = folder.scan(64, own)["said"].splitlines()
    assert len(lines) == 9 and lines[-1] == "  and 4 more"


# ----------------------------------------------------------------------------------------- refused
def test_folders_that_are_none(own, tmp_path):
    refused(tmp_path / "nothing", "is no folder here")
    refused(own / "p1.png", "is a file: name the folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no pictures (.jpg .jpeg", "name another one")
    refused(tmp_path, "those in folders below must be moved up")


def test_folders_that_leave_too_few(own, tmp_path):
    for text in own.glob("*.txt"):
        text.unlink()
    refused(own, "0 of 12 pictures used: 12 without caption", "write captions.csv with the columns")
    table(own, "p1.png,a cat")
    refused(own, "1 of 12 pictures used")
    photograph(own / "p1.jpg")
    table(own, "p1.png,a cat", "p1.jpg,a cat")  # one picture in two formats is one
    refused(own, "two are needed, one of them to hold out")
    (own / "captions.csv").unlink()
    photograph(own / "p3.png", 1, 1)
    table(own, "p3.png,a dot")
    refused(own, "1 too small (p3.png)", "p3.png is 1x1 pixels", "bring a larger copy")


@pytest.mark.parametrize(
    "rows, words",
    [
        (["p1.png,a cat", "q1.png,a dog"], "line 3 names 'q1.png', and no such picture is beside"),
        (["P1.png,a cat"], "line 2 names 'P1.png'.*(did you mean p1.png?)"),
        (["sub/p1.png,a cat"], "names 'sub/p1.png'"),
        (["/etc/p1.png,a cat"], "names '/etc/p1.png'"),
        (["p1.txt,a cat"], "names 'p1.txt'"),
        ([",a cat"], "line 2 names ''"),
        (["p1.png,a cat", "p2.png,a dog", "p1.png,a cat"], "line 4 names p1.png a second time"),
        (["p1.png,a cat", "./p1.png,a dog"], "line 3 names p1.png a second time"),
        (["p1.png,"], "line 2: the caption of p1.png is empty: write one, or delete"),
        (['p1.png,"  "'], "line 2: the caption of p1.png is empty"),
        (["p1.png,a cat, sleeping"], "line 2 has 3 cells and the first line 2.*double quotes"),
        (["p1.png"], "line 2 has 1 cells and the first line 2"),
        (['p1.png,"a cat'], "line 2 is no row of a table"),
        (['p1.png,"a" cat'], "line 2 is no row of a table"),
    ],
)
def test_tables_that_are_wrong(own, rows, words):
    table(own, *rows)
    refused(own, str(own / "captions.csv"), *words.split(".*"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has the columns (none) where file_name and text are wanted"),
        ("\n", "has the columns (none)"),
        ("p1.png,a cat\n", "has the columns p1.png, a cat where"),
        ("file_name;text\np1.png;a cat\n", "has the columns file_name;text where"),
        ("file_name,caption\np1.png,a cat\n", "has the columns file_name, caption where"),
        ("file_name,text,text\np1.png,a,b\n", "once each"),
        ('"file\nname",text\np1.png,a\n', "has the columns file name, text where"),
    ],
)
def test_tables_without_the_columns(own, text, words):
    (own / "metadata.csv").write_text(text)
    refused(own, str(own / "metadata.csv"), words)


def test_two_tables(own):
    table(own, "p1.png,a cat")
    table(own, "p1.png,a cat", name="metadata.csv")
    refused(own, "holds captions.csv and metadata.csv: keep one")


@pytest.mark.parametrize("name", ["captions.csv", "p1.txt"])
@pytest.mark.parametrize("how", ["latin-1", "utf-16", "utf-16-le"])
def test_captions_that_are_not_utf_8(own, name, how):
    (own / name).write_bytes("file_name,text\np1.png,un café\n".encode(how))
    refused(own, f"{own / name} is not UTF-8: save it again")


def test_text_files_that_are_wrong(own):
    photograph(own / "p1.jpg")
    refused(own, f"{own / 'p1.txt'} would be the caption of p1.jpg and p1.png: rename all but one")
    (own / "p1.jpg").unlink()
    (own / "p1.TXT").write_text("a cat")
    refused(own, "two captions of p1.png: delete p1.txt")
    (own / "p1.TXT").unlink()
    for text in ("", " \n\t"):
        (own / "p1.txt").write_text(text)
        refused(own, f"{own / 'p1.txt'}, the caption of p1.png, is empty: write one, or delete")


@pytest.mark.parametrize("name", ["a\nb.png", "a\udcff.png"])
def test_names_that_no_line_can_show(own, name):
    photograph(own / "p1.png")
    (own / "p1.png").rename(own / name)
    refused(own, "holds a file named", "rename it")


def test_names_of_screenshots_and_symbols_are_names(own):
    for name in ("at 9.41\u202fAM.png", "\U0001f469\u200d\U0001f680.png"):
        photograph(own / name)
        (own / name).with_suffix(".txt").write_text("a screen")
    assert len(used(own)) == 14


# ------------------------------------------------------------------------------------------ splits
def test_a_picture_keeps_its_split_whatever_comes_beside_it(own):
    before = {f: s for f, _, s in folder.scan(64, own)["pictures"]}
    assert [f for f, s in before.items() if s == "heldout"] == ["p7.png"]
    for i in range(300):
        photograph(own / f"a{i}.png", 64, 64)
        (own / f"a{i}.txt").write_text("another")
    after = {f: s for f, _, s in folder.scan(64, own)["pictures"]}
    assert before.items() <= after.items()
    assert 15 <= sum(s == "heldout" for s in after.values()) <= 50


def test_neither_split_is_ever_empty(own):
    """Where the bound leaves one without a picture, the nearest goes there."""
    by_hash = sorted(NAMES, key=folder._share)
    assert folder._share(by_hash[0]) < folder.HELD_OUT < folder._share(by_hash[1])
    for i in range(11):
        made = folder._splits(by_hash[i:])
        assert [n for n, s in made.items() if s == "heldout"] == [by_hash[i]]
    low = [n for n in (f"q{i}.png" for i in range(200)) if folder._share(n) < folder.HELD_OUT]
    assert sorted(folder._splits(low[:5]).values()).count("train") == 1
    assert len(set(folder._splits(["p7.png", "p7.jpg", "P7.tif", "p1.png"]).values())) == 2
    assert folder._share("p7.png") == folder._share("P7.jpg")


# ------------------------------------------------------------------------------------------- crops
def crops(mine, split, n, side=64, seed=0, few=4):
    batches, text = folder.crops(mine, split, n, side, seed, few)
    parts = list(batches)
    assert all(len(x) <= few for x in parts)
    return torch.cat(parts), text


def number(x: torch.Tensor) -> list[int]:
    return ((x[:, 2].mean((1, 2)) + 1) * 127.5 / 20).round().int().tolist()


def test_crops_go_with_their_captions_and_come_from_their_split(own):
    mine = scanned(own)
    for split, known in (("train", set(NUMBERS) - {7}), ("heldout", {7})):
        x, text = crops(mine, split, 25)
        assert x.shape == (25, 3, 64, 64) and x.abs().max() <= 1
        assert text == [f"picture number {i}" for i in number(x)] and set(number(x)) == known
    x, _ = crops(mine, "train", 25)
    assert {number(x).count(i) for i in set(number(x))} == {2, 3}
    few, _ = crops(mine, "train", 5)
    assert len(set(number(few))) == 5


def test_crops_are_drawn_from_the_seed_at_the_pictures_own_resolution(own):
    mine = scanned(own)
    x, text = crops(mine, "train", 40)
    again, same = crops(mine, "train", 40, few=7)
    other, _ = crops(mine, "train", 40, seed=1)
    assert torch.equal(x, again) and text == same and not torch.equal(x, other)
    # a crop spans at least 64 of the 96 columns and at most 72: nothing is enlarged or squeezed
    span = x[:, 0, 0, -1] - x[:, 0, 0, 0]
    assert 2 * 60 / 95 < span.min() < span.max() < 2 * 72 / 95
    assert len({round(float(v), 3) for v in x[:, 0, 0, 0]}) > 20  # and it moves
    whole, _ = crops(mine, "train", 11, side=72)
    assert whole.shape[-1] == 72
    with pytest.raises(ValueError, match="split 'test': use one of train, heldout"):
        folder.crops(mine, "test", 1, 64, 0, 1)


def test_a_picture_that_changed_since_the_scan_is_named(own):
    mine = scanned(own)
    photograph(own / "p7.png", 40, 40)
    with pytest.raises(ValueError, match="p7.png is 40x40 pixels and 64 .* are wanted"):
        crops(mine, "heldout", 1)
    (own / "p7.png").unlink()
    with pytest.raises(ValueError, match="p7.png: there is no such file"):
        crops(mine, "heldout", 1)


def test_pictures_are_read_as_everywhere_else(own):
    """Turned by EXIF, transparent over white: `pictures.read` decides."""
    turned = Image.open(own / "p1.png").rotate(90, expand=True)
    exif = Image.Exif()
    exif[274] = 6  # shown turned to the right
    turned.save(own / "p1.png", exif=exif)
    Image.new("RGBA", (80, 80), (0, 0, 0, 0)).save(own / "p7.png")
    mine = scanned(own)
    x, text = crops(mine, "train", 11)
    across = x[text.index("picture number 1"), 0, 0]
    assert (across.diff() > 0).all()  # dark to light, left to right
    assert (crops(mine, "heldout", 2)[0] > 0.999).all()


# -------------------------------------------------------------------------------------- in a study
def test_what_is_learned_and_judged_are_the_folders_pictures(own, sd_mini):
    mine = scanned(own)
    made = splits.latents(sd_mini, "train", 9, 4, 0, mine)["latents"]
    x, text = crops(mine, "train", 13, seed=splits.SEEDS["train"], few=64)
    assert torch.equal(made["z"], pipeline.encode(sd_mini, x))
    assert torch.equal(made["text"], pipeline.embed(sd_mini, text))
    alone = splits.latents_alone(sd_mini, "train", 9, 4, 0, mine)["latents"]
    assert torch.equal(alone["z"], made["z"])
    taught = vae_student.moments(sd_mini, 4, 3, 72, 0, mine)["moments"]
    assert taught["pixels"].shape == (7, 3, 72, 72) and len(taught["mean"]) == 7
    found = checks.check_vae(sd_mini, 4, 0, mine)["examples"]
    ((file, _),) = mine.splits["heldout"]
    scenes, held = found["held-out scenes"], found[file]
    assert number(held) == [7] * 4 and scenes.shape == held.shape == (4, 3, 64, 64)
    shown = autoencoders.compare(sd_mini, None, 2, "mini-attributes", 0, mine)
    assert number(shown["examples"]["held-out photographs"]) == [7] * 2
    counted = shown["table"].set_index("pictures").n
    assert counted["held-out photographs"] == 1 and counted["held-out scenes"] == 2
    assert (
        codesign.denoised(sd_mini, 2, 200, 0, mine) != codesign.denoised(sd_mini, 2, 200, 0)
    ).all()


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    for name in ("RESULTS", "STORE", "DEVICE"):
        monkeypatch.setenv(f"NANOSD_{name}", str(tmp_path / name))

    def opened(where: Path | None) -> notebook.Run:
        shared._content.cache_clear()  # as in the next notebook
        shared._told.cache_clear()
        changed = {"fwkd.scenes": 8, "device": "cpu", "photographs": where and str(where)}
        return notebook.open_run("03_fwkd", "smoke", 0, changed)

    return opened


def test_a_smoke_run_learns_from_the_folder_it_names(own, run_of, sd_mini, capsys):
    plain = shared.latents(run_of(None), sd_mini, "train")
    assert "photographs:" not in capsys.readouterr().out
    (own / "p1.txt").unlink()
    one = shared.latents(run_of(own), sd_mini, "train")
    said = capsys.readouterr().out
    assert said.count("photographs: 11 of 12 pictures used: 1 without caption (p1.png)") == 1
    assert len(one["latents"]["z"]) == len(plain["latents"]["z"]) == 9
    assert not torch.equal(one["latents"]["z"], plain["latents"]["z"])
    moved = own.rename(own.with_name("elsewhere"))
    assert shared.latents(run_of(moved), sd_mini, "train").key == one.key
    assert "11 of 12 pictures used" in capsys.readouterr().out  # said though nothing is computed
    (moved / "p2.txt").write_text("another caption")
    other = shared.latents(run_of(moved), sd_mini, "train")
    assert other.key != one.key
    assert not torch.equal(other["latents"]["text"], one["latents"]["text"])


def test_pictures_below_the_teachers_resolution_are_never_enlarged(own, run_of, sd_mini):
    run = run_of(own)
    assert run.profile.vae.size == pipeline.side(sd_mini) == 64
    photograph(own / "p2.png", 63, 400)
    (_, found), mine = shared.photographs(run, sd_mini)
    assert found["passed"].keys() == {"p2.png"} and len(mine.splits["train"]) == 10


@pytest.mark.parametrize("profile", profiles.NAMES)
def test_every_profile_takes_a_folder_and_names_none(own, profile):
    assert profiles.load(profile).photographs is None
    assert profiles.load(profile, {"photographs": str(own)}).photographs == str(own)
    for wrong in ("", 3, ["a"], {"a": 1}):
        with pytest.raises(ValueError, match="photographs"):
            profiles.load(profile, {"photographs": wrong})


def test_a_missing_folder_is_refused_before_anything_runs(own, monkeypatch):
    file = str(own / "p1.png")
    for wrong, words in (("no/such/folder", "is no folder here"), (file, "is a file: name the")):
        with pytest.raises(ValueError, match=words) as error:
            layout.check_run("smoke", 0, {"photographs": wrong})
        assert "\n" not in str(error.value) and wrong in str(error.value)
    monkeypatch.setenv("HOME", str(own.parent))
    assert layout.photographs("~/own") == own
    assert layout.photographs("data") == paths.ROOT / "data"
