"""pictures: every kind of file gives the values that it holds, or one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from nanosd_lib.data import levels, pictures

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # row y reads as y, all the way along
LEVELS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, 1)
SMALL = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def grey(x: np.ndarray) -> np.ndarray:
    """The one channel of a picture whose three are equal."""
    assert x.dtype == np.uint8 and x.shape[2] == 3
    assert (x == x[..., :1]).all()
    return x[..., 0]


def png(bits: int, colour: int, rows: list[bytes], width: int, *chunks: tuple[bytes, bytes]):
    """A PNG by hand: Pillow writes neither 48-bit colour nor grey of 2 or 4 bits."""

    def packed(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed(*p) for p in parts)


@pytest.fixture
def file(tmp_path):
    """A function that saves whatever is given under a name and returns the path."""

    def save(name: str, what, **how):
        path = tmp_path / name
        if isinstance(what, bytes):
            path.write_bytes(what)
        elif isinstance(what, Image.Image):
            what.save(path, **how)
        else:
            tifffile.imwrite(path, what, **how)
        return path

    return save


def refused(path, *words: str, **how) -> None:
    with pytest.raises(ValueError) as err:
        pictures.read(path, **how)
    text = str(err.value)
    assert "\n" not in text and f"picture {path}" in text
    assert all(w in text for w in words), text


# ------------------------------------------------------------------------------------------- depth


def test_8_bits_are_read_as_they_are(file):
    assert (grey(pictures.read(file("a.png", Image.fromarray(LEVELS)))) == LEVELS).all()
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert (pictures.read(file("b.png", Image.fromarray(colour))) == colour).all()
    assert (pictures.read(file("b.tif", Image.fromarray(colour))) == colour).all()


def test_16_bit_grey_has_256_levels_in_order(file):
    assert (grey(pictures.read(file("a.png", Image.fromarray(RAMP)))) == LEVELS).all()
    for order in "<>":
        path = file(f"a{ord(order)}.tif", RAMP.astype(f"{order}u2"), byteorder=order)
        assert (grey(pictures.read(path)) == LEVELS).all()


def test_16_bit_pgm(file):
    path = file("a.pgm", b"P5 3 1 65535 " + struct.pack(">3H", 0, 32768, 65535))
    assert grey(pictures.read(path)).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("rows", [np.stack([RAMP, RAMP[::-1], RAMP.T], -1)])
def test_16_bit_colour_has_256_levels(file, rows):
    want = rows >> 8
    raw = png(16, 2, [r.astype(">u2").tobytes() for r in rows], 256)
    assert (pictures.read(file("a.png", raw)) == want).all()
    assert (pictures.read(file("a.tif", rows, photometric="rgb")) == want).all()
    apart = np.ascontiguousarray(rows.transpose(2, 0, 1))
    path = file("b.tif", apart, photometric="rgb", planarconfig="separate")
    assert (pictures.read(path) == want).all()


def test_white_may_be_zero(file):
    for x in (LEVELS, RAMP, (RAMP / 65535).astype(np.float32)):
        got = grey(pictures.read(file(f"{x.dtype}.tif", x, photometric="miniswhite")))
        assert np.abs(got.astype(int) - (255 - LEVELS)).max() <= (x.dtype.kind == "f")


def test_narrow_and_signed_integers(file):
    assert grey(pictures.read(file("a.pgm", b"P5 2 1 255 \x00\xff"))).tolist() == [[0, 255]]
    half = np.array([[0, 16384, 32767]], np.int16)
    assert grey(pictures.read(file("a.tif", half))).tolist() == [[0, 128, 255]]
    assert grey(pictures.read(file("b.tif", half.astype(">i2"), byteorder=">")))[0, 1] == 128
    quarter = np.array([[0, 64, 127]], np.int8)
    assert grey(pictures.read(file("c.tif", quarter))).tolist() == [[0, 129, 255]]
    refused(file("d.tif", -half), "from -32767 to 0", "white=")
    refused(file("e.tif", -quarter), "from -127 to 0")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind, full", [("i4", 2**31 - 1), ("u4", 2**32 - 1)])
def test_32_bit_integers(file, kind, full, order):
    x = np.linspace(0, full, 256, dtype=np.float64).astype(f"{order}{kind}")[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = grey(pictures.read(file("a.tif", x, byteorder=order)))
    assert np.abs(got[0].astype(int) - np.arange(256)).max() <= 1 and got[0, -1] == 255
    narrow = RAMP.astype(x.dtype)
    with pytest.warns(UserWarning, match="up to 65535: 65535 is taken for white"):
        got = grey(pictures.read(file("b.tif", narrow, byteorder=order)))
    assert (got == LEVELS).all()
    with pytest.warns(UserWarning, match="255 is taken for white"):
        got = grey(pictures.read(file("c.tif", LEVELS.astype(x.dtype), byteorder=order)))
    assert (got == LEVELS).all()


def test_white_is_what_the_user_says(file):
    x = np.array([[0, 2048, 4095]], np.uint16)
    path = file("a.tif", x)
    assert grey(pictures.read(path)).tolist() == [[0, 8, 15]]
    assert grey(pictures.read(path, white=4095)).tolist() == [[0, 128, 255]]
    path = file("b.tif", x.astype(np.float32))
    refused(path, "from 0 to 4095 and 0 to 1 is wanted", "white=")
    assert grey(pictures.read(path, white=4095)).tolist() == [[0, 128, 255]]
    refused(path, "0 to 4000 is wanted", white=4000)
    with pytest.raises(ValueError, match="white -1 must be a positive number"):
        pictures.read(path, white=-1)


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8"])
def test_floats_span_0_to_1(file, kind):
    x = (np.arange(256) / 255)[None].astype(kind)
    path = file("a.tif", x, byteorder=kind[0])
    assert grey(pictures.read(path)).tolist() == [list(range(256))]
    colour = np.repeat(x[..., None], 3, -1)
    path = file("b.tif", colour, photometric="rgb", byteorder=kind[0])
    assert grey(pictures.read(path)).tolist() == [list(range(256))]
    for bad, words in ((np.nan, "NaN"), (np.inf, "infinite"), (-0.1, "-0."), (1.1, "to 1.")):
        x[0, 3] = bad
        refused(file("c.tif", x, byteorder=kind[0]), words)


def test_1_bit(file):
    x = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    for name in ("a.png", "a.tif", "a.bmp", "a.pbm"):
        assert grey(pictures.read(file(name, x))).tolist() == [[0, 255], [255, 0]]


# ------------------------------------------------------------------------------------- orientation


TURNED = {
    1: [[0, 40, 80], [120, 160, 200]],
    2: [[80, 40, 0], [200, 160, 120]],
    3: [[200, 160, 120], [80, 40, 0]],
    4: [[120, 160, 200], [0, 40, 80]],
    5: [[0, 120], [40, 160], [80, 200]],
    6: [[120, 0], [160, 40], [200, 80]],
    7: [[200, 80], [160, 40], [120, 0]],
    8: [[80, 200], [40, 160], [0, 120]],
}


@pytest.mark.parametrize("orientation", TURNED)
def test_every_orientation(file, orientation):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    for name, how in (("a.png", {}), ("a.tif", {}), ("a.webp", dict(lossless=True))):
        path = file(name, Image.fromarray(SMALL).convert("RGB"), exif=exif, **how)
        assert grey(pictures.read(path)).tolist() == TURNED[orientation]
    large = np.kron(SMALL, np.ones((16, 16), np.uint8))
    got = pictures.read(file("a.jpg", Image.fromarray(large), exif=exif, quality=100))
    assert np.abs(grey(got)[8::16, 8::16].astype(int) - TURNED[orientation]).max() <= 2


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["<u1", "<u2", ">u2", "<f4", ">f4", "<f8"])
def test_every_orientation_of_deep_tiffs(file, orientation, kind):
    x = SMALL.astype(kind) * (257 if "u2" in kind else 1)
    x = x / np.array(255, x.dtype) if "f" in kind else x
    tag = [(pictures.ORIENTATION, 3, 1, orientation, True)]
    path = file("a.tif", x.astype(kind), extratags=tag, byteorder=kind[0])
    assert grey(pictures.read(path)).tolist() == TURNED[orientation]


def test_orientation_of_palettes_inks_and_deep_pngs(file):
    """Pillow maps such TIFFs into memory wrongly when it is given their name."""
    palette = Image.fromarray(SMALL // 40, "P")
    palette.putpalette([40 * (i // 3) for i in range(18)])
    path = file("p.tif", palette, tiffinfo={pictures.ORIENTATION: 6})
    assert grey(pictures.read(path)).tolist() == TURNED[6]
    inks = Image.fromarray(255 - np.dstack([SMALL] * 3 + [np.full_like(SMALL, 255)]), "CMYK")
    path = file("c.tif", inks, tiffinfo={pictures.ORIENTATION: 6})
    assert grey(pictures.read(path)).tolist() == TURNED[6]
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    path = file("d.png", Image.fromarray(SMALL.astype(np.uint16) * 257), exif=exif)
    assert grey(pictures.read(path)).tolist() == TURNED[6]


def test_damaged_exif_is_no_reason_to_refuse_a_picture(file):
    path = file("a.jpg", Image.fromarray(LEVELS), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pictures.read(path).shape == (256, 256, 3)


# ---------------------------------------------------------------------------------------- opacity


RED, GREEN = (255, 0, 0), (0, 255, 0)
OVER_WHITE = [[(255, 0, 0), (255, 255, 255), (127, 255, 127)]]  # green: hidden, then half there
KEPT = [[(255, 0, 0, 255), (255, 255, 255, 0), (0, 255, 0, 128)]]


def rgba() -> Image.Image:
    return Image.fromarray(np.array([[(*RED, 255), (*GREEN, 0), (*GREEN, 128)]], np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_rgba(file, name):
    how = dict(lossless=True, exact=True) if name.endswith("webp") else {}
    path = file(name, rgba(), **how)
    assert pictures.read(path).tolist() == np.array(OVER_WHITE).tolist()
    assert pictures.read(path, alpha="keep").tolist() == np.array(KEPT).tolist()
    refused(path, "not opaque", "alpha='blend'", alpha="refuse")


def test_opacity_of_palettes(file):
    x = Image.new("P", (3, 1))
    x.putpalette([*RED, *GREEN, *GREEN])
    x.putdata([0, 1, 2])
    path = file("bytes.png", x, transparency=bytes([255, 0, 128]))
    assert pictures.read(path).tolist() == np.array(OVER_WHITE).tolist()
    for name in ("index.png", "index.gif"):
        got = pictures.read(file(name, x, transparency=1), alpha="keep")
        assert got[0, 1].tolist() == [255, 255, 255, 0] and got[0, 0].tolist() == [*RED, 255]
    opaque = pictures.read(file("opaque.png", x), alpha="refuse")
    assert opaque.tolist() == [[list(RED), list(GREEN), list(GREEN)]]
    path = file("pa.tif", rgba().convert("PA"))
    assert pictures.read(path).tolist()[0][:2] == [list(RED), [255] * 3]


def test_opacity_of_grey(file):
    x = Image.fromarray(np.array([[(10, 255), (20, 0), (30, 128)]], np.uint8), "LA")
    for name in ("a.png", "a.tif"):
        assert grey(pictures.read(file(name, x))).tolist() == [[10, 255, 142]]
    raw = png(16, 4, [struct.pack(">4H", 256 * 10, 65535, 256 * 20, 0)], 2)
    assert grey(pictures.read(file("b.png", raw))).tolist() == [[10, 255]]
    deep = np.array([[(2560, 65535), (5120, 0)]], np.uint16)
    path = file("b.tif", deep, photometric="minisblack", extrasamples=["unassalpha"])
    assert grey(pictures.read(path)).tolist() == [[10, 255]]


def test_opacity_in_floats_and_premultiplied(file):
    x = np.array([[(1, 0, 0, 1), (0, 1, 0, 0), (0, 1, 0, 0.5)]], np.float32)
    path = file("a.tif", x, photometric="rgb", extrasamples=["unassalpha"])
    assert pictures.read(path).tolist() == np.array(OVER_WHITE).tolist()
    x[..., :3] *= x[..., 3:]
    for y in (x, np.rint(x * 255).astype(np.uint8)):
        path = file(f"{y.dtype}.tif", y, photometric="rgb", extrasamples=["assocalpha"])
        assert np.abs(pictures.read(path).astype(int) - OVER_WHITE).max() <= 1


@pytest.mark.parametrize(
    "bits, colour, row, key, want",
    [
        (1, 0, b"\x40", (1,), [0, 255, 0, 0]),
        (2, 0, b"\x1b", (1,), [0, 255, 170, 255]),
        (4, 0, b"\x12\x3f", (2,), [17, 255, 51, 255]),
        (8, 0, bytes([1, 2, 3, 4]), (2,), [1, 255, 3, 4]),
        (16, 0, struct.pack(">4H", 0, 256, 257, 65535), (257,), [0, 1, 255, 255]),
        (8, 2, bytes([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]), (2, 2, 2), [1, 255, 3, 4]),
        (16, 2, struct.pack(">12H", *[9] * 3, *[700] * 3, *[800] * 3, *[65535] * 3), (700,) * 3,
         [0, 255, 3, 255]),
    ],
)  # fmt: skip
def test_a_transparent_colour(file, bits, colour, row, key, want):
    path = file("a.png", png(bits, colour, [row], 4, (b"tRNS", struct.pack(f">{len(key)}H", *key))))
    assert grey(pictures.read(path)).tolist() == [want]
    kept = pictures.read(path, alpha="keep")
    assert (kept[..., 3] == 0).sum() == 1


def test_opaque_pictures_have_full_opacity(file):
    got = pictures.read(file("a.png", Image.fromarray(SMALL)), alpha="keep")
    assert got.shape == (2, 3, 4) and (got[..., 3] == 255).all() and (got[..., 0] == SMALL).all()
    with pytest.raises(ValueError, match="alpha 'drop' does not exist: use one of blend, keep, re"):
        pictures.read("a.png", alpha="drop")


# ----------------------------------------------------------------------------------------- colours


def flat(mode: str, colour: tuple[int, ...]) -> Image.Image:
    return Image.new(mode, (16, 16), colour)


def test_cmyk(file):
    for name in ("a.tif", "a.jpg"):
        got = pictures.read(file(name, flat("CMYK", (255, 0, 0, 0))))
        assert np.abs(got.astype(int) - (0, 255, 255)).max() <= 2


def test_ycbcr(file):
    x = flat("RGB", (200, 30, 60))
    for name in ("a.tif", "a.jpg"):
        got = pictures.read(file(name, x.convert("YCbCr")))
        assert np.abs(got.astype(int) - (200, 30, 60)).max() <= 3


def test_lab(file):
    """Values from the CIE formulae at D50: L* = 53.585 is the grey 128."""
    for lab, want in {(255, 0, 0): (255,) * 3, (137, 0, 0): (128,) * 3}.items():
        x = np.full((4, 4, 3), lab, np.uint8)
        got = pictures.read(file("a.tif", x, photometric="cielab"))
        assert np.abs(got.astype(int) - want).max() <= 2
    got = pictures.read(file("b.tif", np.full((4, 4, 3), (138, 81, 70), np.uint8), photometric=8))
    assert np.abs(got.astype(int) - RED).max() <= 6  # sRGB's red is L* 54.3, a* 80.8, b* 69.9


def swapped_profile() -> bytes:
    """sRGB with its red and green primaries exchanged: the colours must come out exchanged."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = {bytes(icc[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(icc[131])}
    r, g = table[b"rXYZ"], table[b"gXYZ"]
    icc[r + 4 : r + 12], icc[g + 4 : g + 12] = icc[g + 4 : g + 12], icc[r + 4 : r + 12]
    return bytes(icc)


def test_a_colour_profile_is_converted(file):
    for name in ("a.png", "a.tif", "a.jpg", "a.webp"):
        path = file(name, flat("RGB", RED), icc_profile=swapped_profile())
        assert np.abs(pictures.read(path).astype(int) - GREEN).max() <= 3
    path = file("b.png", rgba(), icc_profile=swapped_profile())
    assert pictures.read(path, alpha="keep")[0, ::2].tolist() == [[*GREEN, 255], [*RED, 128]]
    palette = flat("RGB", RED).convert("P")
    path = file("c.png", palette, icc_profile=swapped_profile())
    assert np.abs(pictures.read(path).astype(int) - GREEN).max() <= 1


def grey_profile(gamma: float) -> bytes:
    """A version 2 profile of grey with that gamma, from the specification's fields."""
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + d50,
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(256 * gamma)),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"g" + bytes(81),
        b"cprt": b"text\0\0\0\0none",
    }
    start, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table, body = table + name + struct.pack(">II", start + len(body), len(value)), body + value
    head = (
        struct.pack(">I4xI", start + len(body), 0x02100000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    )
    return head.ljust(68, b"\0") + d50 + bytes(48) + table + body


def test_a_grey_profile_is_converted(file):
    """Linear grey: a quarter and a half of the light are 137 and 188 in sRGB."""
    x, icc = np.array([[0, 64, 128, 255]], np.uint8), grey_profile(1.0)
    opaque = np.dstack([x, np.full_like(x, 255)])
    for image in (x, x.astype(np.uint16) * 257, opaque):
        path = file("a.png", Image.fromarray(image), icc_profile=icc)
        assert grey(pictures.read(path)).tolist() == [[0, 137, 188, 255]]


def test_an_srgb_profile_changes_nothing(file):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert (pictures.read(file("a.png", Image.fromarray(x), icc_profile=icc)) == x).all()
    got = pictures.read(file("b.png", Image.fromarray(RAMP), icc_profile=icc))
    assert (grey(got) == LEVELS).all()


@pytest.mark.parametrize("icc", [b"nonsense" * 40, None])
def test_a_profile_that_does_not_fit_is_said(file, icc):
    icc = icc or ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    path = file("a.png", flat("RGB", RED), icc_profile=icc)
    with pytest.warns(UserWarning, match="a.png has a colour profile that cannot be used.*sRGB"):
        assert pictures.read(path)[0, 0].tolist() == list(RED)


def test_the_first_of_several_frames_is_read_and_said(file):
    frames = [flat("RGB", c) for c in (RED, GREEN, (0, 0, 255))]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        how = dict(lossless=True) if name.endswith("webp") else {}
        path = file(name, frames[0], save_all=True, append_images=frames[1:], **how)
        with pytest.warns(UserWarning, match=f"{name} holds 3 frames or pages: only the first"):
            assert pictures.read(path)[0, 0].tolist() == list(RED)
    pages = np.zeros((2, 4, 4), np.float64)
    with pytest.warns(UserWarning, match="holds 2 frames or pages"):
        assert pictures.read(file("b.tif", pages, photometric="minisblack")).shape == (4, 4, 3)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif", "a.webp", "a.bmp"])
def test_cut_off_files(file, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = file(name, Image.fromarray(noise)).read_bytes()
    refused(file(name, b""), "empty (0 bytes)", "fetch it again")
    for share in (0.02, 0.3, 0.6, 0.9):
        refused(file(name, whole[: int(share * len(whole))]), "export it")


@pytest.mark.parametrize(
    "kind, texts, megabytes",
    [(k, 1, 3) for k in ("tEXt", "zTXt", "iTXt", "iTXt, packed")]
    + [("zTXt", 70, 1), ("zTXt", 2, 40), ("iTXt, packed", 70, 1)],
)
def test_a_png_with_long_texts_is_no_damaged_one(file, kind, texts, megabytes):
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    packed = kind in ("zTXt", "iTXt, packed")
    info = PngImagePlugin.PngInfo()
    for _ in range(texts):
        write = info.add_itxt if kind.startswith("iTXt") else info.add_text
        write("workflow", "x" * (megabytes * 2**20), zip=packed)
    assert (grey(pictures.read(file("a.png", Image.fromarray(SMALL), pnginfo=info))) == SMALL).all()
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_bomb_of_text_is_said(file, monkeypatch):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2000, zip=True)
    path = file("a.png", Image.fromarray(SMALL), pnginfo=info)
    monkeypatch.setattr(pictures, "TEXT", 1000)
    refused(path, "holds more than 1,000 bytes of text: save it without its metadata")


def test_a_large_colour_profile_is_used(file):
    icc = swapped_profile()
    long = struct.pack(">I", len(icc) + 3 * 2**20) + icc[4:] + bytes(3 * 2**20)
    path = file("a.png", flat("RGB", RED), icc_profile=long)
    assert np.abs(pictures.read(path).astype(int) - GREEN).max() <= 3


@pytest.mark.parametrize("packed", [5, 34887, 34712])  # LZW, LERC, JPEG 2000
def test_a_package_that_is_not_here_is_named(file, packed):
    path = file("a.tif", np.zeros((4, 5, 3), np.float32), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[pictures.COMPRESSION].overwrite(packed)
    refused(
        path, "only the package imagecodecs reads", "pip install imagecodecs", "without compression"
    )


def test_a_picture_larger_than_the_memory_is_not_damaged(file, monkeypatch):
    path = file("a.png", Image.fromarray(SMALL))

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(pictures, "_split", full)
    refused(path, "too large for the memory")


def test_what_is_no_picture(file, tmp_path):
    refused(file("a.png", b"not a picture"), "begins (b'not a pictur')", "export it as PNG")
    refused(tmp_path, "is a folder: name a file in it")
    refused(tmp_path / "absent.png", "there is no such file")
    refused(file("b.png", b"x") / "c.png", "there is no such file")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "no ordinary file")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png", "cannot be read")
    refused(file("c.tif", np.zeros((4, 4, 4), np.float32), photometric="separated"), "neither")


def test_no_permission(file, monkeypatch):
    path = file("a.png", Image.fromarray(SMALL))

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pictures, "_head", denied)
    refused(path, "may not be read by you", "chmod")


def test_a_decompression_bomb(file, monkeypatch):
    path, odd = file("a.png", Image.fromarray(LEVELS)), file("a.tif", LEVELS.astype(np.float64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(path, "more than 2,000 pixels", ".npy")
    refused(odd, "more than 2,000 pixels", ".npy")


def test_the_home_folder_is_known(file, monkeypatch, tmp_path):
    file("a.png", Image.fromarray(SMALL))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (grey(pictures.read("~/a.png")) == SMALL).all()


# ------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize("kind", ["u1", "<u2", ">f4", "f8", "?"])
def test_an_array_is_mapped(tmp_path, kind):
    x = (np.arange(24).reshape(2, 4, 3) % 2).astype(kind)
    np.save(tmp_path / "X.NPY.npy", x)
    (tmp_path / "X.NPY.npy").rename(tmp_path / "X.NPY")
    got = pictures.mapped(tmp_path / "X.NPY")
    assert isinstance(got, np.memmap) and got.dtype == x.dtype and (got == x).all()


def array_file(tmp_path, what):
    path = tmp_path / "x.npy"
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif isinstance(what, dict):
        np.savez(tmp_path / "y.npz", **what)
        (tmp_path / "y.npz").rename(path)
    else:
        np.save(path, what, allow_pickle=True)
    return path


WHOLE = io.BytesIO()
np.save(WHOLE, np.zeros((8, 8, 3)))


@pytest.mark.parametrize(
    "what, words",
    [
        (b"", "empty (0 bytes)"),
        (b"text", "cannot be read as an array"),
        (WHOLE.getvalue()[:20], "cannot be read as an array"),
        (WHOLE.getvalue()[:-9], "cannot be read as an array"),
        ({"x": np.zeros((4, 4, 3))}, "cannot be read as an array"),
        (np.array([[[{}]]], object), "without objects"),
        (np.zeros(()), "shape ()"),
        (np.zeros((4, 4)), "add channels with x[..., None]"),
        (np.zeros((1, 4, 4, 3)), "shape (1, 4, 4, 3)"),
        (np.zeros((1, 1, 4, 4, 3)), "one picture a file"),
        (np.zeros((0, 4, 3)), "shape (0, 4, 3)"),
        (np.zeros((4, 4, 3), complex), "real numbers are wanted"),
        (np.full((4, 4, 3), "a"), "real numbers are wanted"),
        (np.zeros((4, 4, 3), "i4,f4"), "real numbers are wanted"),
    ],
)
def test_an_array_that_is_no_picture(tmp_path, what, words):
    path = array_file(tmp_path, what)
    with pytest.raises(ValueError) as err:
        pictures.mapped(path)
    text = str(err.value)
    assert "\n" not in text and f"picture {path}" in text and words in text


def test_eight_bits_of_arrays():
    assert levels.eight_bits(np.array([True, False])).tolist() == [255, 0]
    assert levels.eight_bits(LEVELS).tolist() == LEVELS.tolist()
    assert levels.eight_bits(np.array([-0.001, 1.001])).tolist() == [0, 255]


def test_the_module_needs_no_torch():
    code = "import sys, nanosd_lib.data.pictures; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
