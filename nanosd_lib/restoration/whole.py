"""A whole photograph damaged and restored: time, memory, seams, and what is left of the damage."""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import psutil
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from nanosd_lib.data import degradations, photographs, pictures
from nanosd_lib.quality import extractors
from nanosd_lib.restoration import judging, photograph, seams
from nanosd_lib.restoration.one_step import OneStep

LOOKED_AT = 200  # crops of 64 pixels, of which LPIPS is the mean
PAUSE = 0.05  # seconds between looks at the process's memory


def photograph_of(name: str, megapixels: float | None) -> np.ndarray:
    """A photograph of `photographs.PHOTOGRAPHS` as uint8 with sides that 4 divides: as large as it
    is, or made smaller to so many megapixels (each pixel the mean of those it covers).
    """
    from PIL import Image

    x = pictures.read(photographs.path_of(name))
    if megapixels is not None and x.shape[0] * x.shape[1] > megapixels * 1e6:
        k = (megapixels * 1e6 / (x.shape[0] * x.shape[1])) ** 0.5
        size = round(x.shape[1] * k), round(x.shape[0] * k)
        x = np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX))
    h, w = (side // photograph.SCALE * photograph.SCALE for side in x.shape[:2])
    return np.ascontiguousarray(x[:h, :w])


def damaged(pixels: np.ndarray, family: str, seed: int) -> np.ndarray:
    """The photograph degraded by one draw of that family and four times smaller, uint8."""
    x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    d = degradations.draw(degradations.FAMILIES[family], seed)
    return _bytes(degradations.apply(x, d, photograph.SCALE))


def _bytes(x: Tensor) -> np.ndarray:
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


@contextmanager
def memory() -> Iterator[list[float]]:
    """[MB]: how far the process grows meanwhile: arrays, tensors, buffers of libraries.

    What was freed before is handed back first, where the C library can (glibc): it would be taken
    again unseen.
    """
    gc.collect()  # what is left of before must not go meanwhile
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    process, found, done = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(PAUSE):
            found[0] = max(found[0], (process.memory_info().rss - before) / 1e6)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def report(
    name: str,
    megapixels: float | None,
    family: str,
    seed: int,
    judge: str,
    batch: int,
    pipe: StableDiffusionPipeline,
    systems: dict[str, OneStep],
    share: float = 1.0,
) -> dict:
    """A photograph (the upper `share` of it) damaged, and restored by each system through the
    streaming tiler.

    table: picture, megapixels (of the output), tiles, method, seconds, peak_mb (how far the process
    grew while it streamed, the network's work included, the finished picture not), seam
    (`seams.seam`), psnr_y, lpips (the mean over crops of 64 pixels). Its first row is bicubic
    interpolation, without tiles; its seam, looked for where the first system's tiles end, is what
    the enlargement's and the JPEG's own grids leave there.
    pictures: the part with most detail of each, 256 pixels wide, and of the clean one.
    """
    truth = photograph_of(name, megapixels)
    truth = truth[: round(len(truth) * share) // photograph.SCALE * photograph.SCALE]
    small = damaged(truth, family, seed)
    size = truth.shape[0] * truth.shape[1] / 1e6
    first = {"picture": name if share == 1 else f"{name}, upper {share:g}", "megapixels": size}
    began = time.perf_counter()
    plain = _bytes(photograph.enlarged(small, 0, truth.shape[0]))
    rows = [first | {"tiles": 1, "method": "bicubic", "seconds": time.perf_counter() - began}]
    rows[0] |= {"peak_mb": float("nan"), "seam": float("nan"), **_near(plain, truth, judge)}
    off = lambda x, g: seams.seam(x / 127.5 - 1, truth / 127.5 - 1, g)  # noqa: E731
    part = functools.partial(_part, corner=_sharpest(truth))
    shown = {"clean": part(truth), "bicubic": part(plain)}
    for method, system in systems.items():
        g = photograph.grid(small.shape[0], small.shape[1], system)
        made = np.ones_like(truth)  # where finished rows leave to, which is not the tiler's
        keep = functools.partial(_put, made)
        began = time.perf_counter()
        with memory() as peak:
            photograph.stream(small, system, keep, batch)
        row = first | {"tiles": g.count, "method": method}
        row |= {"seconds": time.perf_counter() - began, "peak_mb": peak[0]}
        row["seam"] = off(made, g)
        if method == next(iter(systems)):
            rows[0]["seam"] = off(plain, g)
        rows.append(row | _near(made, truth, judge))
        shown[method] = part(made)
    return {"table": pd.DataFrame(rows), "pictures": shown}


def _put(into: np.ndarray, top: int, rows: np.ndarray) -> None:
    into[top : top + len(rows)] = rows


def _near(made: np.ndarray, truth: np.ndarray, judge: str) -> dict[str, float]:
    some = [torch.from_numpy(_crops(x)).permute(0, 3, 1, 2) for x in (made, truth)]
    a, b = (x.float() / 127.5 - 1 for x in some)
    y, z = judging.luma(a), judging.luma(b)
    mse = ((y - z) / 2).pow(2).mean()
    lpips = extractors.perceptual(a, b, judge).mean()
    return {"psnr_y": float(-10 * torch.log10(mse.clamp_min(1e-10))), "lpips": float(lpips)}


def _crops(x: np.ndarray, side: int = 64) -> np.ndarray:
    """At most `LOOKED_AT` crops (N, side, side, 3), evenly over the picture."""
    rows, columns = (n // side for n in x.shape[:2])
    places = [(i * side, j * side) for i in range(rows) for j in range(columns)]
    n = min(LOOKED_AT, len(places))
    some = [places[k * len(places) // n] for k in range(n)]
    return np.stack([x[i : i + side, j : j + side] for i, j in some])


def _sharpest(x: np.ndarray, side: int = 256) -> tuple[int, int]:
    """The corner of the part of a picture, `side` pixels wide, in which neighbours differ most."""
    grey = x.astype(np.float32).mean(2)
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    tops, lefts = (range(0, max(1, n - side + 1), side // 4) for n in x.shape[:2])
    places = [(top, left) for top in tops for left in lefts]
    return max(places, key=lambda p: change[p[0] : p[0] + side, p[1] : p[1] + side].sum())


def _part(x: np.ndarray, corner: tuple[int, int], side: int = 256) -> Tensor:
    """A part of a picture from that corner, (3, side, side) in [-1, 1] at most."""
    top, left = corner
    some = x[top : top + side, left : left + side]
    return torch.from_numpy(some.copy()).permute(2, 0, 1).float() / 127.5 - 1
