"""Attention as a picture: every colour over its own cell, nothing where there is no patch."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi2d.errors import ConfigError, SlideError, StorageError
from wsi2d.evaluation.predictions import Prediction
from wsi2d.explain.attention import SlideAttention
from wsi2d.explain.heatmap import COLOUR_MAP, OPACITY, caption, colour_limit, draw, heatmap, overlay
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.patching import PatchGrid, cell_coords


def grey(values: np.ndarray) -> np.ndarray:
    """A colour map whose red is the value itself."""
    values = np.asarray(values)
    return np.stack([values, values, values, np.ones_like(values)], -1)


def some_grid(shape: tuple[int, int], patch: float, stride: float, seed: int = 0) -> tuple[PatchGrid, np.ndarray]:
    """A grid with about two thirds of its cells, and a value for each, NaN for the others."""
    rng = np.random.default_rng(seed)
    chosen = rng.random(shape) < 0.67
    chosen[0, 0] = chosen[-1, -1] = True
    index = np.argwhere(chosen).astype(np.int32)
    grid = PatchGrid(shape, 64, 0.5, patch, stride, cell_coords(index, stride), index)
    return grid, np.where(chosen, rng.uniform(0.05, 1, shape), np.nan)


GEOMETRIES = [(64.0, 64.0), (64.0, 48.0), (64.0, 16.0), (57.3, 57.3), (131.072, 98.304), (86.486, 32.432)]


@pytest.mark.parametrize("downsample", [1.0, 1.7, 3.0, 7.9])
@pytest.mark.parametrize(("patch", "stride"), GEOMETRIES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (5, 7)])
def test_every_colour_lies_over_its_cell(
    shape: tuple[int, int], patch: float, stride: float, downsample: float
) -> None:
    grid, values = some_grid(shape, patch, stride)
    # A little more slide than cells, as after the last whole cell.
    height, width = (int(((n - 1) * stride + patch + 40) / downsample) + 1 for n in shape)
    layer = overlay(values, grid, (height, width), downsample, grey)
    assert layer.shape == (height, width, 4)
    # The pixel at the centre of each patch has that patch's value, and none where there is no patch.
    for row, col in np.ndindex(*shape):
        x, y = (int((i * stride + patch / 2) / downsample) for i in (col, row))
        if np.isnan(values[row, col]):
            assert layer[y, x, 3] == 0, (row, col)
        else:
            assert layer[y, x, 3] == OPACITY, (row, col)
            assert layer[y, x, 0] == values[row, col], (row, col)
    # Every other pixel: the patch whose centre is nearest, if it is within half a pitch both ways.
    x, y = ((np.arange(n) + 0.5) * downsample for n in (width, height))
    distance_x = np.abs(x[:, None] - (np.arange(shape[1]) * stride + patch / 2))
    distance_y = np.abs(y[:, None] - (np.arange(shape[0]) * stride + patch / 2))
    nearest = values[np.ix_(distance_y.argmin(1), distance_x.argmin(1))]
    inside = (distance_y.min(1) < stride / 2)[:, None] & (distance_x.min(1) < stride / 2)
    border = (np.abs(distance_y.min(1) - stride / 2) < 1e-6)[:, None] | (np.abs(distance_x.min(1) - stride / 2) < 1e-6)
    shown = inside & ~np.isnan(nearest) & ~border
    hidden = (~inside | np.isnan(nearest)) & ~border
    np.testing.assert_array_equal(layer[shown][:, 0], nearest[shown])
    assert (layer[shown][:, 3] == OPACITY).all()
    assert (layer[hidden][:, 3] == 0).all()


def test_masked_values_are_transparent() -> None:
    grid, values = some_grid((3, 4), 64, 64)
    a = overlay(np.ma.masked_invalid(values), grid, (192, 256), 1.0, grey)
    np.testing.assert_array_equal(a, overlay(values, grid, (192, 256), 1.0, grey))


def test_a_grid_that_starts_elsewhere() -> None:
    """As that of imported features can: what is drawn over the cells goes with them."""
    grid, values = some_grid((3, 4), 64, 64)
    away = replace(grid, origin=(5.0, -64.0))
    here, there = (overlay(values, g, (192, 256), 1.0, grey) for g in (grid, away))
    np.testing.assert_array_equal(there[:128, 5:], here[64:, :-5])
    assert (there[..., 3][:, :5] == 0).all()
    assert (there[..., 3][128:] == 0).all()


def test_colour_limit() -> None:
    even = np.ones((10, 10))
    assert colour_limit(even) == 2, "what is even must not be drawn as if it were not"
    one = np.where(np.arange(1000) == 7, 900.0, 1.0).reshape(10, 100)
    assert colour_limit(one) == 2, "one patch does not take the colours of all others"
    some = np.where(np.arange(1000) < 100, 9.0, 0.1).reshape(10, 100)
    some[0, 500:] = np.nan
    assert colour_limit(some) == 9


def some_attention(classes: tuple[str, ...], **changes: Any) -> SlideAttention:
    """A prediction without a slide."""
    prediction = Prediction("s", "s", 0, np.array([0.125, 0.875]), np.array([1.0], np.float32), risk=-1.5)
    grid, _ = some_grid((1, 1), 64, 64)
    values: dict[str, Any] = {"folds": (3,), "slide_mpp": 0.5, "truth": "nest", **changes}
    return SlideAttention(SlideFile("s", Path("s.tiff")), prediction, grid, classes, **values)


def test_caption() -> None:
    assert caption(some_attention(("scattered", "nest"))) == "s: nest 0.88 (fold 3; known: nest)"
    assert caption(some_attention(("b", "a"), folds=(0, 1, 2), truth="")) == "s: a 0.88 (mean of 3 folds)"
    assert caption(some_attention((), truth="12, censored")) == "s: risk -1.50 (fold 3; known: 12, censored)"


# --- end to end


PLACES = {"upper right": (400.0, 40.0), "lower right": (411.0, 215.0), "middle": (231.0, 139.0)}


def read_png(path: Path) -> np.ndarray:
    """float64 ``[height, width, 3]``."""
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def box_of(axes: Any, png: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a saved figure that a panel takes."""
    box = axes.get_window_extent()
    return slice(round(len(png) - box.y1), round(len(png) - box.y0)), slice(round(box.x0), round(box.x1))


def pixel_of(axes: Any, png: np.ndarray, x: float, y: float) -> tuple[int, int]:
    """Row and column, in a saved figure, of a place in a panel's picture (its pixels are centred on whole numbers)."""
    right, up = axes.transData.transform((x - 0.5, y - 0.5))
    return int(len(png) - up), int(right)


def place_of(axes: Any, png: np.ndarray, row: float, col: float) -> tuple[float, float]:
    """The other way round."""
    x, y = axes.transData.inverted().transform((col + 0.5, len(png) - (row + 0.5)))
    return float(x) + 0.5, float(y) + 0.5


@pytest.mark.parametrize(("place", "mpp"), [*((place, 0.5) for place in PLACES), ("lower right", 0.25)])
def test_png_shows_the_right_place(brown_slide: Any, handmade_run: Any, tmp_path: Path, place: str, mpp: float) -> None:
    """The most yellow spot of the right panel, carried back to the slide, is the brown square."""
    scale = 0.5 / mpp
    x, y = (c * scale for c in PLACES[place])
    size = (round(448 * scale), round(320 * scale))
    brown_slide(tmp_path / "slides" / "A.tiff", (x, y), size=size, mpp=mpp, side=round(64 * scale))
    run = handmade_run(tmp_path, {"A": 0})
    attention = heatmap(run, "A", tmp_path / "deep" / "A.png")
    png = read_png(tmp_path / "deep" / "A.png")
    figure = draw(attention)
    figure.savefig(io.BytesIO(), dpi=100, format="png")
    rows, cols = box_of(figure.axes[1], png)
    yellow = png[rows, cols, 0] + png[rows, cols, 1] - 2 * png[rows, cols, 2]
    spot = np.argwhere(yellow > 0.9 * yellow.max()).mean(0)
    found = place_of(figure.axes[1], png, rows.start + spot[0], cols.start + spot[1])
    patch = attention.grid.patch_level0
    assert abs(found[0] - x) <= patch
    assert abs(found[1] - y) <= patch


def test_png_pixel_by_pixel(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> None:
    """Over the centre of every cell: the slide's colour mixed with that of the cell's value; glass as it is."""
    from matplotlib import colormaps

    brown_slide(tmp_path / "slides" / "A.tiff", (231, 139))
    attention = heatmap(handmade_run(tmp_path, {"A": 0}, overlap_px=24), "A", tmp_path / "A.png")
    png = read_png(tmp_path / "A.png")
    figure = draw(attention)
    again = io.BytesIO()
    figure.savefig(again, dpi=100, format="png")
    assert again.getvalue() == (tmp_path / "A.png").read_bytes()
    left, right, _ = figure.axes
    picture = left.images[0].get_array()
    values = attention.on_grid()
    limit = colour_limit(values)
    checked = {"patch": 0, "none": 0}
    for row, col in np.ndindex(*attention.grid.shape):
        x, y = col * 40 + 32, row * 40 + 32
        if x >= 448 or y >= 320:
            continue
        found = png[pixel_of(right, png, x, y)]
        below = expected = picture[y, x].astype(float)
        if np.isnan(values[row, col]):
            checked["none"] += 1
        else:
            colour = 255 * np.array(colormaps[COLOUR_MAP](min(values[row, col] / limit, 1.0))[:3])
            expected = OPACITY * colour + (1 - OPACITY) * below
            checked["patch"] += 1
        assert np.abs(found - expected).max() < 12, (row, col, found, expected)
    assert checked["patch"] > 40
    assert checked["none"] > 10


@pytest.fixture
def one_slide(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> Path:
    """A run of one slide."""
    brown_slide(tmp_path / "slides" / "A.tiff", (231, 139))
    return handmade_run(tmp_path, {"A": 0})


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.pdf", "a.svg"])
def test_formats(one_slide: Path, tmp_path: Path, name: str) -> None:
    heatmap(one_slide, "A", str(tmp_path / name))
    head = (tmp_path / name).read_bytes()[:200]
    assert {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<svg"}[name[-3:].lower()] in head or b"<?xml" in head


@pytest.mark.parametrize("name", ["a.jpeg", "a", "a.tiff"])
def test_other_formats_are_refused_before_the_work(one_slide: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png, \.pdf or \.svg"):
        heatmap(one_slide, "no such slide", tmp_path / name)
    with pytest.raises(SlideError, match="no such slide"):
        heatmap(one_slide, "no such slide", tmp_path / "deep" / "a.png")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("name", ["taken/a.png", "folder.png"])
def test_a_picture_that_cannot_be_written(one_slide: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StorageError) as caught:
        heatmap(one_slide, "A", tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / ("taken" if "/" in name else name)))
    assert not list(tmp_path.glob(".*.partial"))


def test_the_same_picture_twice(one_slide: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        heatmap(one_slide, "A", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_the_figure_says(one_slide: Path, tmp_path: Path) -> None:
    attention = heatmap(one_slide, "A", tmp_path / "a.png")
    figure = draw(attention)
    left, right, bar = figure.axes
    assert figure.get_suptitle() == caption(attention)
    assert "attention" in bar.get_ylabel()
    assert bar.get_ylim() == (0.0, pytest.approx(colour_limit(attention.on_grid())))
    assert len(left.images) == 1, "the slide as it is"
    assert len(right.images) == 2, "the slide with the attention over it"
    # The scale bar: its length in the picture is what its label says.
    (line,), (label,) = left.lines, left.texts
    picture = left.images[0].get_array()
    length_um = np.ptp(line.get_xdata()) * picture.shape[1] * 1.0 * 0.5
    assert label.get_text() == f"{length_um:g} µm"
    assert f"{length_um:.9g}".rstrip("0") in {"1", "2", "5"}, "a round length"
    assert 0.08 <= np.ptp(line.get_xdata()) <= 0.2


def test_large_slides_are_drawn_small(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> None:
    brown_slide(tmp_path / "slides" / "A.tiff", (1200, 200), size=(1800, 410), side=128)
    attention = heatmap(handmade_run(tmp_path, {"A": 0}), "A", tmp_path / "a.png")
    picture = draw(attention).axes[0].images[0].get_array()
    assert picture.shape[:2] == (205, 900)
    assert max(Image.open(tmp_path / "a.png").size) < 2300
