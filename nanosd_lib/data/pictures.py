"""Pictures that a user brings: one way to read a file, as 8-bit sRGB and the right way up.

    x = pictures.read("photo.jpg")                  # (H, W, 3) uint8, transparency over white
    x = pictures.read("logo.png", alpha="keep")     # (H, W, 4), the last channel is opacity
    x = pictures.read("scan.tif", white=4095)       # deeper than 8 bits: which value is white
    x = pictures.mapped("rows.npy")                 # (H, W, C), never read whole

What a file can leave open is decided here, once:

- Integers span their type: 0 is black, its largest value white (65535, 4095 of 12 bits, 32767 of
  signed ones), and the upper eight bits are kept. Pillow does the same to 16-bit colour.
- 32-bit integers are often narrower data in a wide type: white is the smallest of 255, 65535 and
  the type's largest value that nothing exceeds, and a warning says which.
- Floats span 0 .. 1. NaN, and whatever lies outside the range, is refused.
- The EXIF orientation is applied. An embedded colour profile is converted to sRGB; without one RGB
  and grey are sRGB, L*a*b* is D50 and CMYK is Pillow's plain inversion. PNG's gamma is not read.
- Transparency is blended over white, kept or refused, as `alpha` says. The colour hidden under a
  fully transparent pixel is never shown. A transparent colour of 16-bit RGB hides all that share
  its upper eight bits.
- Of several frames or pages the first is read, and a warning says so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from nanosd_lib.data import levels

ALPHA = ("blend", "keep", "refuse")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 258, 259, 262, 274  # tags of TIFF
PLANES, SAMPLE_FORMAT = 284, 339
UNSIGNED, SIGNED = 1, 2  # values of SAMPLE_FORMAT
TEXT = (
    64 * 2**20
)  # bytes of a text or a colour profile beside a PNG's pixels, four times that in all


def read(path: str | Path, alpha: str = "blend", white: float | None = None) -> np.ndarray:
    """A picture (H, W, 3) in uint8, sRGB; (H, W, 4) with opacity last where alpha is "keep".

    alpha: "blend" over white, "keep", or "refuse" a picture that is not opaque. white: the value
    that is white in a file deeper than 8 bits (None: see above); 8-bit files do not ask for it.
    ValueError, in one line that names the file and what to do, for what cannot be read.
    """
    if alpha not in ALPHA:
        raise ValueError(f"alpha {alpha!r} does not exist: use one of {', '.join(ALPHA)}")
    if white is not None and not 0 < white < float("inf"):
        raise ValueError(f"white {white} must be a positive number")
    file = _file(path)
    try:
        with _long_texts():
            colour, opacity, notes = _decoded(file, white)
    except Exception as error:  # decoders raise anything on damaged files
        raise ValueError(f"picture {path} {_why(file, error)}") from None
    for note in notes:
        warnings.warn(f"picture {path} {note}", stacklevel=2)
    if opacity is not None and alpha == "refuse" and opacity.min() < 255:
        raise ValueError(
            f"picture {path} is not opaque: save it without transparency,"
            " or read it with alpha='blend' or alpha='keep'"
        )
    return _composed(colour, opacity, alpha == "keep")


def mapped(path: str | Path) -> np.ndarray:
    """A `.npy` file as a memory map (H, W, C) of numbers, which is never read whole.

    ValueError, in one line, for an empty or damaged file, objects, and any other shape.
    """
    file = _file(path)
    try:
        array = np.lib.format.open_memmap(file, "r")
    except Exception as error:  # a damaged header raises anything
        raise ValueError(
            f"picture {path} cannot be read as an array: {_line(error)};"
            " write it with np.save, without objects"
        ) from None
    if array.ndim != 3 or 0 in array.shape:
        hint = "add channels with x[..., None]" if array.ndim == 2 else "one picture a file"
        raise ValueError(
            f"picture {path} has shape {array.shape}"
            f" and (height, width, channels) is wanted: {hint}"
        )
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"picture {path} holds {array.dtype} and real numbers are wanted: convert it"
            " with x.astype('float32')"
        )
    return array


# ---------------------------------------------------------------------------------------- decoding
def _decoded(file: Path, white: float | None) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Colour (H, W, 3), opacity (H, W) or None, both uint8, and what to say about them."""
    with file.open("rb") as handle:  # by its name, Pillow would map turned TIFFs wrongly
        try:
            image = Image.open(handle)
        except UnidentifiedImageError:
            if _head(file).startswith(TIFF):
                return _unusual_tiff(file, white)
            raise
        tags = dict(getattr(image, "tag_v2", {}))
        if tags.get(PLANES) == 2 and tags.get(COMPRESSION, 1) == 1 and tags[BITS][0] > 8:
            return _unusual_tiff(file, white)  # Pillow takes such planes for 8-bit ones
        notes = _frames(getattr(image, "n_frames", 1) if image.format != "MPO" else 1)
        coded = str(image.tile[0][3]) if image.tile else ""  # forgotten once the pixels are there
        image.load()
        icc = image.info.get("icc_profile")
        upright: Image.Image = image
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception as error:  # damaged EXIF data
            notes.append(f"has EXIF data that cannot be read ({_line(error)}): taken as upright")
        colour, opacity, more = _split(upright, coded, image.format, tags, white)
        rgb, said = _srgb(colour, icc)
        return rgb, opacity, notes + more + said


@contextmanager
def _long_texts() -> Iterator[None]:
    """Pillow refuses a PNG with a text above 1 MB: image generators write longer ones."""
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = TEXT, 4 * TEXT
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _frames(n: int) -> list[str]:
    return [f"holds {n} frames or pages: only the first is read"] if n > 1 else []


def _split(
    image: Image.Image, coded: str, kind: str | None, tags: dict, white: float | None
) -> tuple[Image.Image, np.ndarray | None, list[str]]:
    """Colours in mode L, RGB, CMYK or LAB; opacity (H, W) or None; what to say.

    coded: how the pixels were packed in the file, kind: its format, tags: those of a TIFF.
    """
    key, mode = image.info.get("transparency"), image.mode
    signed = tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == SIGNED
    if mode[0] in "IF" or (mode == "L" and signed):
        values, bits = _values(image, kind, tags, signed)
        inverted = tags.get(PHOTOMETRIC) == 0 and mode != "L"
        shown, notes = levels.deep(values, bits, inverted, white)
        opacity = None if key is None else _unlike(values[..., None], [key])
        return Image.fromarray(shown), opacity, notes
    if key is not None and mode in ("L", "RGB"):
        pixels = np.asarray(image)
        return image, _unlike(pixels.reshape(*pixels.shape[:2], -1), _key(key, coded)), []
    if mode in ("LA", "La"):
        grey, alpha = image.convert("LA").split()
        return grey, np.array(alpha), []
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), np.array(rgba.getchannel("A")), []
    return image if mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB"), None, []


def _values(
    image: Image.Image, kind: str | None, tags: dict, signed: bool
) -> tuple[np.ndarray, int]:
    """The numbers (H, W) of a picture deeper than 8 bits in their file's type, and their bits."""
    values = np.asarray(image)
    if image.mode == "F":
        return values, 32
    bits = tags.get(BITS, (16,))[0]  # other formats than TIFF hold at most 16, in any mode
    if image.mode == "I" and (kind != "TIFF" or bits == 32) and not signed:
        return values.view(np.uint32), bits
    return values.view(np.int8) if image.mode == "L" else values, bits


def _key(key: int | tuple[int, ...], coded: str) -> list[int]:
    """The transparent colour of a PNG on the scale of the pixels that Pillow hands out."""
    scale = {"L;2": lambda v: v * 85, "L;4": lambda v: v * 17, "RGB;16B": lambda v: v >> 8}
    return [scale.get(coded, int)(v) for v in (key if isinstance(key, tuple) else (key,))]


def _unlike(pixels: np.ndarray, key: list[int]) -> np.ndarray:
    """Opacity (H, W): 0 where a pixel of (H, W, C) has the transparent colour, else 255."""
    return np.where((pixels == np.array(key)).all(-1), 0, 255).astype(np.uint8)


def _srgb(colour: Image.Image, icc: bytes | None) -> tuple[np.ndarray, list[str]]:
    """Colours of mode L, RGB, CMYK or LAB as sRGB (H, W, 3), by the profile where it fits."""
    target = ImageCms.createProfile("sRGB")
    if colour.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return np.array(ImageCms.profileToProfile(colour, lab, target, outputMode="RGB")), []
    try:
        if icc:
            source = ImageCms.ImageCmsProfile(BytesIO(icc))
            space = source.profile.xcolor_space.strip()
            mode = {"GRAY": "L"}.get(space, space)
            given = colour.convert("RGB") if (colour.mode, mode) == ("L", "RGB") else colour
            if given.mode != mode:
                raise ValueError(f"it is for {space}, the pixels are {colour.mode}")
            made = ImageCms.profileToProfile(given, source, target, outputMode="RGB")
            return np.array(made), []
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        note = f"has a colour profile that cannot be used ({_line(error)}): taken as sRGB"
        return np.array(colour.convert("RGB")), [note]
    return np.array(colour.convert("RGB")), []


def _composed(colour: np.ndarray, opacity: np.ndarray | None, keep: bool) -> np.ndarray:
    """(H, W, 3) over white, or (H, W, 4) with white for the colours that nobody should see."""
    if not keep and (opacity is None or opacity.min() == 255):
        return colour
    if opacity is None:
        opacity = np.full(colour.shape[:2], 255, np.uint8)
    share = opacity[..., None] / 255
    if keep:
        return np.dstack([np.where(share > 0, colour, 255).astype(np.uint8), opacity])
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def _unusual_tiff(
    file: Path, white: float | None
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """`_decoded` of the TIFFs Pillow has no mode for (float or deep colour, deep transparency)."""
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page, notes = tiff.pages.first, _frames(len(tiff.pages))
        if page.imagewidth * page.imagelength > 2 * (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Image.DecompressionBombError
        n = {0: 1, 1: 1, 2: 3}.get(int(page.photometric), 0)
        values = page.asarray()
        if values.ndim == 3 and page.planarconfig == 2:  # a plane for each channel
            values = values.transpose(1, 2, 0)
        values = values[..., None] if values.ndim == 2 else values
        if n == 0 or values.ndim != 3 or values.shape[2] < n:
            raise ValueError("TIFF: neither grey nor RGB")
        more, way = page.extrasamples, page.tags.get(ORIENTATION)
        shown, said = levels.deep(values[..., :n], page.bitspersample, page.photometric == 0, white)
        opacity = None
        if more and int(more[0]) in (1, 2):  # premultiplied or not
            opacity = levels.deep(values[..., n], page.bitspersample, False, white)[0]
            if int(more[0]) == 1:
                share = np.maximum(opacity, 1)[..., None] / 255
                shown = np.rint(shown / share).clip(0, 255).astype(np.uint8)
        colour = Image.fromarray(shown[..., 0] if n == 1 else shown)
        rgb, told = _srgb(colour, page.iccprofile)
        turn = way.value if way else 1
        opacity = None if opacity is None else _upright(opacity, turn)
        return _upright(rgb, turn), opacity, notes + said + told


def _upright(x: np.ndarray, orientation: int) -> np.ndarray:
    """x (H, W, ...) turned as the EXIF orientation 1 .. 8 says."""
    x = x.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else x
    x = x[::-1] if orientation in (3, 4, 7, 8) else x
    return np.ascontiguousarray(x[:, ::-1] if orientation in (2, 3, 6, 7) else x)


# ------------------------------------------------------------------------------------------ errors
def _file(path: str | Path) -> Path:
    """The path, `~` expanded, of a file that is there, holds something and may be read."""
    file, why = Path(os.path.expanduser(path)), None
    try:
        size = file.stat().st_size
        if file.is_dir():
            why = "is a folder: name a file in it"
        elif not file.is_file():
            why = "is no ordinary file: copy what it gives into one"
        elif size == 0:
            why = "is empty (0 bytes), the copy or download did not finish: fetch it again"
        else:
            _head(file)
    except (FileNotFoundError, NotADirectoryError):
        why = ": there is no such file, check its name and folder"
    except PermissionError:
        why = "may not be read by you: change its permissions (chmod u+r) or copy it"
    except (OSError, ValueError) as error:
        why = f"cannot be read: {_line(error)}"
    if why:
        raise ValueError(f"picture {path}{why}" if why[0] == ":" else f"picture {path} {why}")
    return file


def _why(file: Path, error: Exception) -> str:
    """The end of the line that begins with the picture's name."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"has more than {most:,} pixels: cut it up, or keep it as rows in a .npy file"
    if isinstance(error, UnidentifiedImageError):
        begin = _head(file, 12)
        said = f"is in no format known here, or damaged where it begins ({begin!r})"
        return f"{said}: fetch it again or export it as PNG"
    if str(error).startswith("holds values"):
        return str(error)
    if isinstance(error, ModuleNotFoundError) or "imagecodecs" in str(error):
        return (
            f"is packed in a way that only the package imagecodecs reads ({_line(error)}):"
            " install it (pip install imagecodecs), or save the picture without compression"
        )
    if "MAX_TEXT" in str(error):
        return f"holds more than {TEXT:,} bytes of text: save it without its metadata"
    if isinstance(error, MemoryError):
        return "is too large for the memory that is free: cut it up, or keep it as rows in a .npy"
    said = f"cannot be read, it is damaged, cut off or of a rare kind ({_line(error)})"
    return f"{said}: fetch or export it anew"


def _head(file: Path, n: int = 4) -> bytes:
    with file.open("rb") as begin:
        return begin.read(n)


def _line(error: Exception) -> str:
    """An error's text in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:200]
