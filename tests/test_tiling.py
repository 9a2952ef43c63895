"""tiling: tiles cover a picture, and nothing but it; blended together they give it back exactly."""

from __future__ import annotations

import itertools
import tracemalloc
from math import ceil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nanosd_lib import paper
from nanosd_lib.restoration import photo_cost, seams, tiling
from nanosd_lib.restoration.tiling import Grid


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
    grid = Grid(*job)
    assert grid.count == tiles == grid.columns * grid.rows


def test_the_picture_is_turned_with_its_tiles():
    a, b = Grid(1000, 750, 128, 32, scale=4), Grid(750, 1000, 128, 32, scale=4)
    assert (a.columns, a.rows) == (b.rows, b.columns) == (11, 8)
    assert a.output == (4000, 3000)


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
    assert photo_cost.weights_gb(1_000_000_000) == {
        "fp32": 4.0,
        "fp16": 2.0,
        "int8": 1.0,
        "int4": 0.5,
    }


def test_seconds_a_photograph():
    assert photo_cost.photo_seconds(88, 116) == pytest.approx(10.208)
    assert photo_cost.photo_seconds(10, 100, vae_ms=50, steps=4) == pytest.approx(4.5)


def test_the_photo_table_has_the_models_whose_latency_is_printed():
    family = paper.family()
    table = photo_cost.photo_table(family, tiles=88, vae_ms={"": 18, "TinySD": 126.6})
    table = table.set_index("model")
    assert "SD1.5" not in table.index and len(table) == family.htp_ms.notna().sum()
    assert table.unet_only_s["NanoSD2"] == pytest.approx(88 * 0.027)
    assert table.with_vae_s["NanoSD2"] == pytest.approx(88 * 0.045)
    assert table.with_vae_s["TinySD"] == pytest.approx(88 * (0.074 + 0.1266))


# ----------------------------------------------------------------------------------------- running


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


SIZES = [(64, 64), (61, 97), (200, 33), (10, 7), (1, 1), (16, 300)]


@pytest.mark.parametrize("kind", tiling.WINDOWS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile, overlap", [(16, 0), (16, 4), (32, 31), (33, 17), (64, 16)])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_identity_gives_the_picture_back(kind, size, tile, overlap, batch):
    x, grid = picture(*size), Grid(size[1], size[0], tile, overlap)
    y = tiling.run(x, lambda t: t, grid, batch, kind, progress=False)
    assert y.shape == x.shape and y.dtype == np.float32
    assert np.abs(y - x).max() <= 1e-6


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(50, 70), (9, 40)])
def test_an_enlarging_tile_function(scale, size):
    x, grid = picture(*size), Grid(size[1], size[0], 16, 6, scale)
    enlarge = lambda t: t.repeat(scale, axis=1).repeat(scale, axis=2)  # noqa: E731
    y = tiling.run(x, enlarge, grid, 3, progress=False)
    assert np.abs(y - enlarge(x[None])[0]).max() <= 1e-6


def test_channels_may_change_and_integers_are_taken():
    x = (picture(40, 50) * 255).astype(np.uint8)
    y = tiling.run(x, lambda t: t.mean(3, keepdims=True), Grid(50, 40, 16, 4), progress=False)
    assert y.shape == (40, 50, 1)
    assert np.abs(y[..., 0] - x.mean(2)).max() < 1e-3


@pytest.mark.parametrize("kind", tiling.WINDOWS)
def test_shares_add_up_to_one(kind):
    starts = tiling.positions(100, 16, 5)
    total = np.zeros(100)
    for x, share in zip(starts, tiling.shares(starts, 16, kind), strict=True):
        assert (share > 0).all() or (kind == "none" and (share >= 0).all())
        total[x : x + 16] += share
    assert total == pytest.approx(np.ones(100), abs=1e-12)


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("size", [(40, 50), (9, 40), (16, 16), (7, 5)])
def test_without_blending_the_later_tile_wins(size, batch):
    x, grid, number = np.zeros((*size, 1)), Grid(size[1], size[0], 16, 6), itertools.count(1)
    count = lambda t: t + np.array([next(number) for _ in t], float)[:, None, None, None]  # noqa: E731
    want, tile = np.zeros((size[0], size[1], 1)), itertools.count(1)
    for y, left in itertools.product(grid.ys, grid.xs):
        want[y : y + 16, left : left + 16] = next(tile)
    assert (tiling.run(x, count, grid, batch, "none", progress=False) == want).all()


def test_a_seam_is_softer_than_without_overlap():
    """A tile function that shifts each tile's brightness: blending spreads the step out."""
    drawn = np.random.default_rng(1)
    shift = lambda t: t + drawn.random((len(t), 1, 1, 1), np.float32)  # noqa: E731
    flat = np.zeros((64, 64, 3), np.float32)
    steps = {}
    for overlap in (0, 8):
        y = tiling.run(flat, shift, Grid(64, 64, 16, overlap), progress=False)
        steps[overlap] = np.abs(np.diff(y, axis=1)).max()
    assert steps[8] < 0.5 * steps[0]


def test_rows_leave_in_order_as_they_finish():
    x, tops, seen = picture(100, 40), [], []
    grid = Grid(40, 100, 16, 4)
    calls = []

    def count(t):
        calls.append(len(t))
        return t

    tiling.stream(
        x, count, grid, lambda top, rows: (tops.append(top), seen.append(sum(calls))), 2,
        progress=False,
    )  # fmt: skip
    assert tops == sorted(set(tops)) and tops[0] == 0
    assert seen[0] == grid.columns and seen[-1] == grid.count  # the first rows after one tile row


def peak(height: int, path) -> float:
    """Megabytes of a streamed run that Python allocates (memory maps are the system's)."""
    grid = Grid(512, height, 64, 16, scale=2)
    source = np.lib.format.open_memmap(path / f"in{height}.npy", "w+", np.uint8, (height, 512, 3))
    emit = tiling.npy_writer(path / f"out{height}.npy", grid)
    double = lambda t: t.repeat(2, axis=1).repeat(2, axis=2)  # noqa: E731
    tracemalloc.start()
    tiling.stream(source, double, grid, emit, batch=8, progress=False)
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return megabytes


def test_memory_does_not_grow_with_the_height(tmp_path):
    small, large = peak(512, tmp_path), peak(4096, tmp_path)
    assert large < 1.05 * small
    assert large < Grid(512, 4096, 64, 16, scale=2).buffer_mb(8) < 2 * large


def test_streamed_rows_land_in_the_file(tmp_path):
    x, grid = picture(70, 50), Grid(50, 70, 16, 4)
    tiling.stream(x, lambda t: t, grid, tiling.npy_writer(tmp_path / "y.npy", grid), progress=False)
    assert np.abs(tiling.read_picture(tmp_path / "y.npy") - x).max() <= 1e-6


def test_a_torch_network_is_a_tile_function():
    net = torch.nn.Upsample(scale_factor=2)
    x = picture(40, 30)
    y = tiling.run(x, tiling.torch_tiles(net), Grid(30, 40, 16, 4, scale=2), progress=False)
    assert np.abs(y - x.repeat(2, 0).repeat(2, 1)).max() <= 1e-6


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(source=picture(5, 6)), r"shape \(5, 6, 3\) and the grid wants \(40, 30, channels\)"),
        (dict(source=[1, 2]), "shape None"),
        (dict(tile_function=lambda t: t[:, ::2]), r"gave shape \(.*\(6, 16, 16, channels\)"),
        (dict(kind="box"), "window 'box' does not exist: use one of gaussian, linear"),
        (dict(batch=0), "batch 0 must be at least 1"),
    ],
)
def test_what_cannot_be_tiled_is_refused(change, message):
    given = dict(source=picture(40, 30), tile_function=lambda t: t, grid=Grid(30, 40, 16, 4))
    with pytest.raises(ValueError, match=message) as err:
        tiling.run(**{**given, **change}, progress=False)
    assert "\n" not in str(err.value)


NUMBERS = dict(width=50, height=40, tile=16, overlap=4, scale=2)


@pytest.mark.parametrize("kind", [float, np.int64, np.uint8, np.float32])
@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_of_any_type_are_taken_as_what_they_are(name, kind):
    grid, plain = Grid(**NUMBERS | {name: kind(NUMBERS[name])}), Grid(**NUMBERS)
    assert grid == plain and type(getattr(grid, name)) is int
    assert (grid.xs, grid.ys, grid.output) == (plain.xs, plain.ys, plain.output)
    x, enlarge = picture(40, 50), lambda t: t.repeat(2, axis=1).repeat(2, axis=2)
    y = tiling.run(x, enlarge, grid, batch=kind(3), progress=False)
    assert (y == tiling.run(x, enlarge, plain, batch=3, progress=False)).all()
    assert all(type(p) is int for p in tiling.positions(*map(kind, (50, 16, 4))))


@pytest.mark.parametrize(
    "value", [2.5, "2", None, np.nan, np.inf, -np.inf, True, [2], np.array([2])]
)
@pytest.mark.parametrize("name", [*NUMBERS, "batch"])
def test_what_is_no_whole_number_is_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=f"tiling: {name} .* must be a whole number") as err:
        given = NUMBERS | ({name: value} if name != "batch" else {})
        batch = value if name == "batch" else 1
        tiling.run(picture(40, 50), lambda t: t, Grid(**given), batch, progress=False)
    assert "\n" not in str(err.value)


def test_scale_is_checked():
    with pytest.raises(ValueError, match="scale 0 must be at least 1"):
        Grid(10, 10, 4, 1, scale=0)


def test_a_picture_that_cannot_be_read_is_one_line(tmp_path):
    Image.fromarray(np.zeros((4, 5, 4), np.uint8)).save(tmp_path / "fine.png")
    assert tiling.read_picture(tmp_path / "fine.png").shape == (4, 5, 3)
    (tmp_path / "broken.png").write_bytes((tmp_path / "fine.png").read_bytes()[:20])
    (tmp_path / "text.jpg").write_text("not a picture")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "flat.npy", np.zeros((4, 5)))
    np.save(tmp_path / "many.npy", np.zeros((1, 2, 4, 5, 3)))
    arrays = ("objects.npy", "empty.npy", "flat.npy", "many.npy")
    for name in ("broken.png", "text.jpg", "absent.png", *arrays):
        with pytest.raises(ValueError, match=f"picture .*{name}") as err:
            tiling.read_picture(tmp_path / name)
        assert "\n" not in str(err.value)


def test_an_array_is_known_in_upper_case(tmp_path):
    np.save(tmp_path / "x.npy", picture(4, 5))
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    assert (tiling.read_picture(tmp_path / "X.NPY") == picture(4, 5)).all()


@pytest.mark.parametrize("way", ["same", "relative", "dotted", "symlink", "hard link", "view"])
def test_a_result_on_its_own_input_is_refused(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    x, file, grid = picture(40, 30), tmp_path / "x.npy", Grid(30, 40, 16, 4)
    np.save(file, x)
    (tmp_path / "folder").mkdir()
    (tmp_path / "s.npy").symlink_to(file)
    (tmp_path / "h.npy").hardlink_to(file)
    targets = {"relative": "x.npy", "dotted": "folder/../x.npy", "symlink": "s.npy"}
    target = (targets | {"hard link": "h.npy"}).get(way, file)
    source = tiling.read_picture(file)
    source = np.asarray(source)[:, :, ::-1] if way == "view" else source
    before = file.read_bytes()
    with pytest.raises(ValueError, match="the file that the picture is read from") as err:
        tiling.stream(source, lambda t: t, grid, tiling.npy_writer(target, grid), progress=False)
    assert "\n" not in str(err.value) and file.read_bytes() == before


def test_a_writer_leaves_what_is_there_until_rows_come(tmp_path):
    x, grid, file = picture(40, 30), Grid(30, 40, 16, 4), tmp_path / "y.npy"
    np.save(file, x)
    copy = tmp_path / "x.npy"
    np.save(copy, x)

    def fails(t):
        raise RuntimeError("no tiles today")

    for function in (fails, lambda t: t[:, ::2]):
        with pytest.raises((RuntimeError, ValueError)):
            writer = tiling.npy_writer(file, grid)
            tiling.stream(tiling.read_picture(copy), function, grid, writer, progress=False)
    assert file.read_bytes() == copy.read_bytes()
    writer = tiling.npy_writer(file, grid)  # an old result is replaced
    tiling.stream(tiling.read_picture(copy), lambda t: t + 1, grid, writer, progress=False)
    assert np.abs(tiling.read_picture(file) - x - 1).max() <= 1e-6


def test_a_writer_names_its_file(tmp_path):
    grid = Grid(30, 40, 16, 4)
    with pytest.raises(ValueError, match="photo.png is an array: let its name end with .npy"):
        tiling.npy_writer(tmp_path / "photo.png", grid)
    with pytest.raises(ValueError, match="there is no folder for the result .*/absent/y.npy"):
        tiling.npy_writer(tmp_path / "absent" / "y.npy", grid)


# ------------------------------------------------------------------------------------ what it costs


def test_the_explorer_is_a_pure_function():
    rows = [("a", "fp16", 1000, 500), ("b", "fp16", 2000, 100), ("a", "int8", 500, 250)]
    memory = pd.DataFrame(rows, columns=["component", "format", "weights_mb", "peak_activation_mb"])
    seen = photo_cost.explore(Grid(1000, 750, 128, 32, 4), 27, 18, memory)
    assert seen["tiles"] == 88 and seen["columns x rows"] == "11 x 8"
    assert seen["seconds, U-Net"] == pytest.approx(2.376)
    assert seen["seconds, U-Net and VAE"] == pytest.approx(3.96)
    assert seen["GB, weights"] == 3 and seen["GB, activations"] == 0.5
    larger = photo_cost.explore(Grid(1000, 750, 256, 32, 4), 27, 18, memory)
    other = photo_cost.explore(Grid(1000, 750, 128, 32, 4), 27, 18, memory, parameters=3e8)
    held = memory[(memory.format == "fp16") & (memory.component != "U-Net")].weights_mb.sum()
    assert other["GB, weights"] == pytest.approx(0.6 + held / 1e3)
    assert larger["GB, activations"] == 2.0  # four times the area
    with pytest.raises(ValueError, match="format 'fp64' does not exist: use one of fp16, int8"):
        photo_cost.explore(Grid(1000, 750, 128, 32), 27, 18, memory, "fp64")


def test_the_streams_report_measures_flat_memory_and_no_difference():
    table = seams.stream_report([96, 384], 128, 32, 8, 2)["table"]
    assert table.largest_difference.max() <= 1e-6
    assert table.peak_mb[1] < 1.1 * table.peak_mb[0]
    assert table.tiles.tolist() == [5 * 4, 5 * 16]


def test_a_seam_is_seen():
    flat, grid = np.zeros((32, 64, 3)), Grid(64, 32, 16, 0)
    noise = np.random.default_rng(0).random(flat.shape)
    assert seams.seam(noise, flat, grid) == pytest.approx(1, abs=0.2)
    stepped = flat + np.repeat(np.arange(4), 16)[None, :, None]
    assert seams.seam(stepped, flat, grid) > 5


def test_seams_between_rows_are_seen_as_those_between_columns():
    flat, grid = np.zeros((64, 64, 3)), Grid(64, 64, 16, 0)
    noise = np.random.default_rng(0).random(flat.shape)
    stepped = noise + 3 * np.repeat(np.arange(4), 16)[None, :, None]
    across, down = (seams.seam(x, flat, grid) for x in (stepped, stepped.transpose(1, 0, 2)))
    assert across > 2 and down > 2 and across == pytest.approx(down, rel=0.2)
    tall = Grid(16, 64, 16, 0)  # one column of tiles: borders between rows alone
    assert seams.seam(stepped.transpose(1, 0, 2)[:, :16], flat[:, :16], tall) > 2


def test_roughness_is_measured_at_a_ways_own_borders():
    """Each tile a little brighter or darker: a hard cut shows where its tiles end, blending hides
    them, and away from its own borders there is nothing to find in either.
    """
    x, drawn = picture(64, 80), np.random.default_rng(0)
    shift = lambda t: t + 0.05 * drawn.random(t.shape) + drawn.random((len(t), 1, 1, 1))  # noqa: E731
    table, made = seams.blend_report(x, shift, 16)
    assert table.columns.tolist() == ["blending", "overlap", "tiles", "roughness"]
    for row in table.itertuples():
        result = made[f"{row.blending}, overlap {row.overlap}"]
        assert row.roughness == seams.seam(result, x, Grid(80, 64, 16, row.overlap))
    rough = table.set_index(["blending", "overlap"]).roughness
    plain, cut = rough["none", 0], rough["none", 4]
    assert plain > 2 and cut > 2 and rough.drop("none", level="blending").max() < 0.6 * cut
    elsewhere = seams.seam(made["none, overlap 4"], x, Grid(80, 64, 16, 0))
    assert elsewhere < 0.8 * cut


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(16, 16), (9, 5), (1, 1), (16, 40), (40, 16), (1, 40), (40, 1)])
@pytest.mark.parametrize("levels", [False, True])
def test_no_seam_is_1(size, levels):
    x = picture(*size) if not levels else (255 * picture(*size)).astype(np.uint8)
    grid = Grid(size[1], size[0], 16, 4)
    assert seams.seam(x, x, grid) == 1
    table, made = seams.blend_report(x, lambda t: t, 16)
    assert table.roughness.tolist() == [1] * len(table) and len(made) == len(table)
    dark = seams.blend_report(0 * x, lambda t: t, 16)[0]
    assert dark.roughness.eq(1).all()
    assert seams.seam(x + 1.0, x, grid) == 1  # an even error
    if max(size) <= 16:
        noise = np.random.default_rng(0).random(x.shape)
        assert seams.seam(x + noise, x, grid) == 1  # one tile: an error, and nowhere a border


def test_a_seam_is_looked_for_where_it_can_be():
    x, grid = picture(32, 48), Grid(48, 32, 16, 4)
    for wrong in (x[..., 0], x[:-1], x[:, :, :0]):
        with pytest.raises(ValueError, match=r"must both be \(32, 48, channels\)"):
            seams.seam(wrong, wrong, grid)
    with pytest.raises(ValueError, match="must both be"):
        seams.seam(x, x[..., :1], grid)
    with pytest.raises(ValueError, match="NaN or infinite"):
        seams.seam(x * np.nan, x, grid)
