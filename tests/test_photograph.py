"""photograph and restore: a picture of any size and kind, tile by tile, and what leaves."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from nanosd_lib.recipes import restore as verb
from nanosd_lib.restoration import colour, photograph, tiling, whole


class Enlarging:
    """A restoration that leaves the bicubic tile as it is, and remembers what it saw."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.seen = shift, []
        self.unet = torch.nn.Linear(1, 1)
        self.unet.config = SimpleNamespace(sample_size=32)
        self.vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1, 1)))

    def both(self, x):
        self.seen.append(x)
        return None, x + self.shift


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    smooth = np.random.default_rng(seed).integers(
        0, 256, (height // 4 + 2, width // 4 + 2, channels)
    )
    big = np.kron(smooth, np.ones((4, 4, 1)))[:height, :width]
    return big.astype(np.uint8)


def bicubic(pixels: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(x, scale_factor=4, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("rows", [(0, 12), (8, 40), (33, 91), (88, 92)])
def test_rows_of_the_enlargement_are_the_whole_ones(rows):
    x = picture(23, 9)
    want = bicubic(x)[0][:, rows[0] : rows[1]]
    torch.testing.assert_close(photograph.enlarged(x, *rows), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("step", [3, 17, 64, 500])
def test_fixing_rows_as_they_come_is_fixing_the_whole_picture(step):
    x = picture(31, 11)
    made = torch.rand(3, 124, 44, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out: list[np.ndarray] = []
    tops: list[int] = []
    fixer = photograph.Fixer(x, lambda top, rows: (tops.append(top), out.append(rows)))
    rows = made.permute(1, 2, 0).numpy()
    for top in range(0, 124, step):
        fixer(top, rows[top : top + step])
    want = colour.wavelet(made[None], bicubic(x), photograph.LEVELS)[0].clamp(-1, 1)
    levels = ((want + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.concatenate(out), levels)
    assert tops == list(np.cumsum([0, *[len(r) for r in out[:-1]]]))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (37, 61)])
def test_any_size_comes_out_four_times_as_large(size):
    x = picture(*size)
    out = photograph.restored(x, Enlarging(), progress=False)
    assert out.shape == (4 * size[0], 4 * size[1], 3) and out.dtype == np.uint8


def test_a_tint_of_the_network_is_taken_back_and_tiles_leave_no_seam():
    """A restoration that brightens everything: high bands on the damaged picture's low band."""
    x = picture(48, 64)
    plain, bright = (photograph.restored(x, Enlarging(s), progress=False) for s in (0.0, 0.3))
    assert np.abs(plain.astype(int) - bright).max() <= 1
    want = ((bicubic(x)[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    g = photograph.grid(48, 64, Enlarging())
    assert (g.columns, g.rows) == (5, 4)  # 16 pixels, a quarter shared
    assert np.abs(plain - want).mean() < 1.0  # tiles are enlarged each by itself


def test_hidden_colours_are_never_seen_and_opacity_is_kept():
    x = picture(24, 24, 4)
    x[..., :3], x[..., 3] = 90, 255
    x[8:16, 8:16] = (255, 0, 255, 0)  # a colour that nobody shall see
    one = Enlarging()
    out = photograph.restored(x, one, progress=False)
    assert out.shape == (96, 96, 4)
    assert all(float((t - (90 / 127.5 - 1)).abs().max()) < 1e-5 for t in one.seen)
    alpha = out[..., 3]
    assert alpha[48, 48] == 0 and alpha[0, 0] == 255 and len(np.unique(alpha)) > 2
    x[..., 3] = 0
    assert (photograph.beneath(x) == 255).all()


def test_memory_follows_the_width_not_the_height():
    tall = []
    for height in (160, 640):
        held = []
        fixer = photograph.Fixer(picture(height, 20), lambda top, rows: None)
        rows = np.zeros((height * 4, 80, 3), np.float32)
        for top in range(0, height * 4, 48):
            fixer(top, rows[top : top + 48])
            held.append(fixer.rows.shape[1])
        tall.append(max(held))
    assert tall[0] == tall[1] < 48 + 3 * 15


@pytest.mark.parametrize("x", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_are_refused(x):
    with pytest.raises(ValueError, match="photograph: expected"):
        photograph.restored(x, Enlarging())


def test_it_is_the_tilers_contract():
    call = photograph.tile_function(Enlarging())
    made = tiling.run(picture(20, 20), call, photograph.grid(20, 20, Enlarging()), progress=False)
    assert made.shape == (80, 80, 3)


def test_a_whole_photograph_is_measured():
    """Bicubic tiles with a small tint: no better than bicubic, no seam, time and memory counted."""
    one = Enlarging(0.02)
    made = whole.report("rocket.jpg", 0.05, "mild", 0, "mini-clip", 8, None, {"mine": one})
    table = made["table"].set_index("method")
    assert table.megapixels["mine"] == pytest.approx(0.05, rel=0.1)
    assert table.lpips["mine"] == pytest.approx(table.lpips["bicubic"], rel=0.25)
    assert table.psnr_y["mine"] == pytest.approx(table.psnr_y["bicubic"], abs=1.5)
    assert table.seam["mine"] / table.seam["bicubic"] == pytest.approx(1, abs=0.15)  # the control
    assert table.seam["mine"] < 1.5 and table.seconds["mine"] > 0 and table.peak_mb["mine"] >= 0
    assert table.tiles["mine"] > 10 and set(made["pictures"]) == {"clean", "bicubic", "mine"}


def test_a_photograph_is_read_at_its_full_size():
    assert whole.photograph_of("chelsea.png", None).shape == (300, 448, 3)
    small = whole.photograph_of("dandelion.jpg", 0.02)
    assert small.shape[0] * small.shape[1] == pytest.approx(20_000, rel=0.1)


def test_a_part_of_a_photograph_is_its_upper_rows_and_says_so():
    how = ("rocket.jpg", 0.05, "mild", 0, "mini-clip", 8, None, {"mine": Enlarging(0.02)})
    table = whole.report(*how, share=0.5)["table"]
    assert set(table.picture) == {"rocket.jpg, upper 0.5"}
    assert table.megapixels.iloc[0] == pytest.approx(0.05 / 2, rel=0.15)


def test_memory_that_was_held_before_is_seen_again():
    """Blocks that the C library keeps after they are freed."""
    blocks = lambda: [torch.ones(1_000_000) for _ in range(40)]  # noqa: E731  160 MB
    del (held := blocks())[:]  # taken, and freed
    with whole.memory() as peak:
        held = blocks()
        time.sleep(0.3)
    assert len(held) == 40 and 120 < peak[0] < 300


def test_memory_that_grows_is_seen():
    with whole.memory() as peak:
        block = np.ones(400_000_000, np.uint8)
        time.sleep(0.5)
        del block
    assert 200 < peak[0] < 900


# -------------------------------------------------------------------------------------- the verb
@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "system", lambda threads=2: Enlarging())
    return tmp_path


def saved(folder, name, mode="RGB", size=(12, 8), **how):
    path = folder / name
    image = Image.fromarray(picture(size[1], size[0])).convert(mode)
    image.save(path, **how)
    return path


@pytest.mark.parametrize("mode, name", [
    ("RGB", "a.jpg"), ("L", "a.png"), ("P", "a.png"), ("CMYK", "a.jpg"), ("1", "a.png"),
    ("I;16", "a.png"), ("LA", "a.png"), ("RGBA", "a.png"),
])  # fmt: skip
def test_every_kind_of_picture_comes_out_as_8_bits_of_srgb(files, mode, name):
    if mode == "I;16":
        Image.fromarray(picture(8, 12)[..., 0].astype(np.uint16) * 257).save(files / name)
        path = files / name
    else:
        path = saved(files, name, mode)
    out = verb.restore(path, "sr", files / "out.png", progress=False)
    with Image.open(out) as made:
        assert made.size == (48, 32) and made.mode in ("RGB", "RGBA")
        assert made.info["icc_profile"]
        assert not made.getexif()


def test_orientation_is_applied_and_transparency_kept(files):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    path = saved(files, "a.jpg", exif=exif)
    with Image.open(verb.restore(path, "sr", files / "out.png", progress=False)) as made:
        assert made.size == (32, 48)
    image = Image.fromarray(picture(8, 12)).convert("RGBA")
    image.putalpha(120)
    image.save(files / "b.png")
    with Image.open(verb.restore(files / "b.png", "sr", files / "b4.png", progress=False)) as made:
        assert made.mode == "RGBA" and made.getchannel("A").getextrema() == (120, 120)


@pytest.mark.parametrize("what, said", [
    ("truncated", "truncated"), ("empty", "empty"), ("text", "cannot"), ("folder", "folder"),
    ("missing", "missing"), ("exists", "exists: give another name"), ("ending", "end with one of"),
    ("nowhere", "there is no folder"), ("task", "TASK 'blur': use one of sr"),
    ("jpeg", "JPEG keeps no transparency"), ("large", "megapixels"),
    ("side", "WEBP holds at most 40 pixels a side: use .png"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    files, capsys, monkeypatch, what, said
):
    path, out, task = saved(files, "a.png"), files / "out.png", "sr"
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    if what == "empty":
        path.write_bytes(b"")
    if what == "text":
        path.write_text("no picture at all")
    if what == "folder":
        path = files
    if what == "missing":
        path = files / "missing.png"
    if what == "exists":
        out.write_bytes(b"mine")
    if what == "ending":
        out = files / "out.xyz"
    if what == "nowhere":
        out = files / "no" / "out.png"
    if what == "task":
        task = "blur"
    if what == "jpeg":
        image = Image.fromarray(picture(8, 12)).convert("RGBA")
        image.putalpha(9)
        image.save(path)
        out = files / "out.jpg"
    if what == "side":
        out = files / "out.webp"
        monkeypatch.setattr(verb, "SIDES", {"WEBP": 40})
    if what == "large":
        monkeypatch.setattr(verb, "LARGEST", 50)
    before = {p: p.read_bytes() for p in files.rglob("*") if p.is_file()}
    words = ["--image", str(path), "--task", task, "--out", str(out)]
    assert verb.main(words) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and said in told.err and not told.out
    assert {p: p.read_bytes() for p in files.rglob("*") if p.is_file()} == before


def test_a_full_disk_leaves_nothing(files, monkeypatch, capsys):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verb.paths, "write_atomic", full)
    path = saved(files, "a.png")
    assert verb.main(["--image", str(path), "--out", str(files / "out.png")]) == 1
    assert "No space left on device; nothing is left of it" in capsys.readouterr().err
    assert sorted(os.listdir(files)) == ["a.png"]
    few = SimpleNamespace(free=10)
    monkeypatch.setattr(verb.shutil, "disk_usage", lambda p: few)
    assert verb.main(["--image", str(path), "--out", str(files / "out.png")]) == 1
    assert "which is too little" in capsys.readouterr().err


def test_without_its_adapter_the_verb_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOSD_RELEASE", str(tmp_path / "release"))
    monkeypatch.setenv("NANOSD_RESULTS", str(tmp_path / "results"))
    path = saved(tmp_path, "a.png")
    assert verb.main(["--image", str(path), "--out", str(tmp_path / "out.png")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is not in the release: `make release ONLY=" in said
