"""A photograph of one's own, restored (`make restore IMAGE=photo.jpg TASK=sr OUT=photo-x4.png`).

    from nanosd_lib.recipes.restore import restore
    restore("photo.jpg", "sr", "photo-x4.png")

What leaves: 8 bits of sRGB with its profile, four times the input's size, upright, opacity kept;
no other metadata. Deeper, wide-gamut, grey and CMYK pictures come in as `data.pictures` reads them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from nanosd_lib import paths
from nanosd_lib.data import pictures
from nanosd_lib.recipes import members, restoring, shared, trained
from nanosd_lib.restoration import osediff, photograph
from nanosd_lib.restoration.one_step import OneStep
from nanosd_lib.restoration.photograph import SCALE
from nanosd_lib.runs import notebook, release
from nanosd_lib.runs.notebook import Run

TASKS = {"sr": "four times as large: blur, noise and JPEG's marks taken away"}
FORMATS = {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG"}
FORMATS[".jpeg"] = "JPEG"
SIDES = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that a format can hold
LARGEST = 20e6  # pixels of the input
SAID = (
    "done by a network that learned on pictures of 64 pixels: edges get crisper, noise and JPEG's"
    " blocks go; faces, writing and fine texture are not brought back"
)


def system(threads: int = 2) -> OneStep:
    """OSEDiff around NanoSD2, both from the release. `release.Absent`, in one line, where one of
    them is not there, `release.Refused` where a file is damaged.
    """
    folder = paths.results_root() / "restore"
    run = notebook.open_run("restore", "mini", 0, {"threads": threads}, folder)
    found = _found(run)  # before the teacher is loaded: what is absent is said at once
    return _around(shared.teacher(run), *found)


def released(run: Run, pipe) -> OneStep:
    """`system` of an open run."""
    return _around(pipe, *_found(run))


def _found(run: Run) -> tuple[restoring.Backbone, trained.Trained]:
    b = restoring.Backbone("N2", members.released(run, "N2"))
    return b, trained.found(run, restoring.Restoration(b).member(run))


def _around(pipe, b: restoring.Backbone, t: trained.Trained) -> OneStep:
    return osediff.restorer(pipe, b.unet(pipe), b.vae_of(pipe), t.settings.budget["t"], t.tensors)


def restore(image: str | Path, task: str, out: str | Path, progress: bool = True) -> Path:
    """Restore a picture file into another; the path written. See `made`."""
    return made(image, task, out, progress)[0]


def made(
    image: str | Path, task: str, out: str | Path, progress: bool = True
) -> tuple[Path, tuple[int, int]]:
    """Restore a picture file into another: the path written, and its (width, height).

    ValueError, OSError or LookupError, each in one line that names the fix; nothing is written
    then: a task that is none of `TASKS`, a picture that cannot be read, one above 20 megapixels, an
    `out` that exists, has no known ending, or lies in no folder.
    """
    if task not in TASKS:
        raise ValueError(f"TASK {task!r}: use one of {', '.join(TASKS)}")
    out = _out(out)
    pixels = pictures.read(image, alpha="keep")
    if pixels.shape[2] == 4 and pixels[..., 3].min() == 255:
        pixels = np.ascontiguousarray(pixels[..., :3])
    height, width, channels = pixels.shape
    if height * width > LARGEST:
        raise ValueError(
            f"picture {image} has {height * width / 1e6:.0f} megapixels and {LARGEST / 1e6:.0f} are"
            " the most: make it smaller, or cut it"
        )
    if channels == 4 and FORMATS[out.suffix.lower()] == "JPEG":
        raise ValueError(f"OUT {out}: JPEG keeps no transparency: let its name end with .png")
    kind = FORMATS[out.suffix.lower()]
    if SCALE * max(height, width) > (most := SIDES.get(kind, 2**31)):
        raise ValueError(f"OUT {out}: {kind} holds at most {most} pixels a side: use .png")
    raw = 16 * height * width * channels
    if (free := shutil.disk_usage(out.parent).free) < raw / 4:
        raise OSError(f"OUT {out}: {free / 1e6:.0f} MB are left on that disk, which is too little")
    restored = photograph.restored(pixels, system(), progress=progress)
    _write(restored, out)
    return out, (restored.shape[1], restored.shape[0])


def _out(out: str | Path) -> Path:
    path = Path(out).expanduser().absolute()
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"OUT {out}: let its name end with one of {', '.join(FORMATS)}")
    if path.exists():
        raise FileExistsError(f"OUT {out} exists: give another name, or remove it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"OUT {out}: there is no folder {path.parent}: make it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"OUT {out}: {path.parent} is closed to this user")
    return path


def _write(pixels: np.ndarray, out: Path) -> None:
    """The whole file or none of it."""
    kind = FORMATS[out.suffix.lower()]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    with BytesIO() as data:
        Image.fromarray(pixels).save(data, kind, icc_profile=profile, **more)
        if out.exists():  # it came meanwhile
            raise FileExistsError(f"OUT {out} exists: give another name")
        try:
            paths.write_atomic(out, data.getvalue())
        except OSError as error:
            why = error.strerror or error
            raise OSError(f"OUT {out} cannot be written: {why}; nothing is left of it") from None


def main(argv: Sequence[str]) -> int:
    """`make restore`."""
    parser = argparse.ArgumentParser(prog="make restore IMAGE=photo.jpg TASK=sr OUT=photo-x4.png")
    parser.add_argument("--image", required=True)
    parser.add_argument("--task", default="sr")
    parser.add_argument("--out", default="")
    args = parser.parse_args(argv)
    if not args.image:
        print("error: IMAGE is missing: make restore IMAGE=photo.jpg", file=sys.stderr)
        return 2
    out = args.out or f"{Path(args.image).stem}-x4.png"
    began = time.perf_counter()
    try:
        written, (width, height) = made(args.image, args.task, out)
    except (ValueError, OSError, LookupError) as error:
        hint = ": `make release ONLY=adapters` trains it" * isinstance(error, release.Absent)
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1
    size = f"{width} x {height}"
    print(f"{paths.shown(written)}: {size}, {time.perf_counter() - began:.0f} s")
    print(SAID)
    return 0
