"""readings_tiling, tiling_figures: each reading is given two tables and says two things."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sentences

from nanosd_lib.restoration.tiling import Grid
from nanosd_lib.views import readings_tiling as readings
from nanosd_lib.views import tiling_figures

GRID = Grid(1000, 750, 128, 32, 4)


def photo(vae=1.6):
    rows = [("SD1.5 (w4)", 10.2, 21.0), ("NanoSD2", 2.4, 2.4 + vae), ("NanoSD5", 0.5, 0.5 + vae)]
    return pd.DataFrame(rows, columns=["model", "unet_only_s", "with_vae_s"])


def tiles(n=88):
    return pd.DataFrame([(1000, 750, n)], columns=["width", "height", "tiles"])


def memory(active=400.0):
    rows = [("U-Net", 1700.0, 90.0), ("VAE decoder", 100.0, active), ("VAE encoder", 70.0, active)]
    return pd.DataFrame(rows, columns=["component", "weights_mb", "peak_activation_mb"]).assign(
        format="fp16"
    )


def blending(best=1.0):
    rows = [("none", 0, 1.65), ("none", 16, 1.28), ("linear", 16, 1.02), ("gaussian", 32, best)]
    return pd.DataFrame(rows, columns=["blending", "overlap", "roughness"])


def streaming(off=0.0):
    rows = [(188, 100.0, 0.0), (750, 105.0, off)]
    return pd.DataFrame(rows, columns=["height", "peak_mb", "largest_difference"])


CASES = {
    "streamed": (
        lambda: readings.streamed(streaming()),
        lambda: readings.streamed(streaming(0.5)),
        ["4.0 times as high takes 1.05 times the memory; against the", "differ by at most 0.5"],
    ),
    "answer": (
        lambda: readings.answer(tiles(), 1.92, photo(), memory()),
        lambda: readings.answer(tiles(220), 1.5, photo(-1.5), memory()),
        [
            "true of one tile only. In fp16 SD 1.5's weights take 1.9 GB",
            "true of the photograph too",
        ],
    ),
    "coverage": (
        lambda: readings.coverage(tiling_figures.counted(GRID)),
        lambda: readings.coverage(tiling_figures.counted(Grid(256, 256, 128, 0))),
        ["the work is 1.92 times", "100% of the pixels are computed once, 0% three times"],
    ),
    "seconds": (
        lambda: readings.seconds(photo()),
        lambda: readings.seconds(photo(0.1)),
        ["For SD1.5 (w4) and NanoSD5 the VAE is", "NanoSD5 stay under a second"],
    ),
    "memory": (
        lambda: readings.memory(memory()),
        lambda: readings.memory(memory(10.0)),
        ["the VAE decoder and VAE encoder hold more", "weights outweigh activations everywhere"],
    ),
    "seams": (
        lambda: readings.seams(blending()),
        lambda: readings.seams(blending(1.1)),
        ["gaussian over 32 1.00", "gaussian over 32 1.10"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_two_tables_are_read_as_two_sentences(name):
    sentences.check(*CASES[name])


def test_every_pixel_is_counted_as_often_as_a_tile_sees_it():
    seen = np.zeros((750, 1000), dtype=int)
    for x in GRID.xs:
        for y in GRID.ys:
            seen[y : y + 128, x : x + 128] += 1
    assert (tiling_figures.counted(GRID) == seen).all() and seen.min() == 1


def test_an_error_at_borders_is_drawn_at_borders():
    """A picture whose tiles are lighter and darker: its error jumps at distance 0 alone."""
    picture = np.zeros((192, 256, 3))
    made = np.repeat(np.arange(4) % 2, 64)[None, :, None] * np.ones((192, 1, 3))
    fig = tiling_figures.seams(picture, {"hard": made}, {"hard": Grid(256, 192, 64, 0)})
    y = fig.axes[-1].lines[0].get_ydata()
    assert y[0] > 10 and max(y[1:]) == 0
    plt.close(fig)
