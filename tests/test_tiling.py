"""tiling: tiles cover a picture, and nothing but it."""

from __future__ import annotations

import itertools
from math import ceil

import pytest

from nanosd_lib import paper, tiling


@pytest.mark.parametrize(
    "job, tiles",
    [
        ((1000, 750, 128, 32), 88),
        ((4000, 3000, 512, 128), 88),
        ((4000, 3000, 128, 32), 1302),
        ((512, 512, 512, 128), 1),
        ((100, 90, 128, 32), 1),
    ],
)
def test_counts(job, tiles):
    columns, rows = tiling.grid(*job)
    assert tiling.count(*job) == tiles == columns * rows


def test_the_picture_is_turned_with_its_tiles():
    assert tiling.grid(1000, 750, 128, 32) == tiling.grid(750, 1000, 128, 32)[::-1] == (11, 8)


@pytest.mark.parametrize("tile", [1, 7, 16, 64])
@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.99])
def test_tiles_cover_the_picture_exactly(tile, share):
    overlap = int(share * tile)
    for length in range(1, 200):
        left = tiling.positions(length, tile, overlap)
        covered = sorted({p for x in left for p in range(x, min(x + tile, length))})
        assert covered == list(range(length))
        assert left[0] == 0 and left[-1] == max(0, length - tile)
        assert left == sorted(set(left))  # no tile twice
        assert all(a + tile - b >= overlap for a, b in itertools.pairwise(left))


def test_no_tile_more_than_the_stride_asks_for():
    for length, (tile, overlap) in itertools.product(range(64, 999), ((64, 16), (64, 0), (50, 49))):
        n = max(1, ceil((length - overlap) / (tile - overlap)))
        assert len(tiling.positions(length, tile, overlap)) == n


@pytest.mark.parametrize(
    "length, tile, overlap", [(100, 32, 32), (100, 32, 40), (100, 32, -1), (0, 32, 8), (100, 0, 0)]
)
def test_what_cannot_tile_is_refused_in_one_line(length, tile, overlap):
    with pytest.raises(ValueError, match=f"overlap {overlap} .*tile {tile}") as err:
        tiling.positions(length, tile, overlap)
    assert "\n" not in str(err.value)


def test_weights_in_gigabytes():
    assert tiling.weights_gb(1_000_000_000) == {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}


def test_seconds_a_photograph():
    assert tiling.photo_seconds(88, 116) == pytest.approx(10.208)
    assert tiling.photo_seconds(10, 100, vae_ms=50, steps=4) == pytest.approx(4.5)


def test_the_photo_table_has_the_models_whose_latency_is_printed():
    family = paper.family()
    table = tiling.photo_table(family, tiles=88, vae_ms=18).set_index("model")
    assert "SD1.5" not in table.index and len(table) == family.htp_ms.notna().sum()
    assert table.unet_only_s["NanoSD2"] == pytest.approx(88 * 0.027)
    assert table.with_vae_s["NanoSD2"] == pytest.approx(88 * 0.045)
