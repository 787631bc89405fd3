"""Painted slides: what lies beside a patch is not told by the patch, and what is chosen not by what is painted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi2d.config import PatchConfig
from wsi2d.demo.cohort import draw_layout
from wsi2d.demo.painting import CELL_PX, MPP, Layout, Painter, write_slide
from wsi2d.features.histology_stats import HistologyStats, feature_names
from wsi2d.slides.patching import PatchGrid, make_patch_grid
from wsi2d.slides.reader import open_slide
from wsi2d.slides.tissue import segment_tissue

CONFIG = PatchConfig(patch_px=CELL_PX, mpp=MPP)


def small_layout(seed: int = 0) -> Layout:
    """A slide of 7×8 cells and a bit, its left edge and its lower right corner white, some cells of the rarer kind."""
    rng = np.random.default_rng(seed)
    tissue = np.ones((7 * CELL_PX + 44, 8 * CELL_PX + 100), bool)
    tissue[:, :150] = False
    tissue[700:, 600:] = False
    tissue[:20] = False
    positive = np.zeros((8, 9), bool)
    inside = [(r, c) for r in range(1, 7) for c in range(2, 8) if not (r >= 5 and c >= 4)]
    positive[tuple(np.array(inside)[rng.choice(len(inside), 7, replace=False)].T)] = True
    return Layout(tissue, positive)


def without(layout: Layout) -> Layout:
    """The same slide without a cell of the rarer kind."""
    return replace(layout, positive=np.zeros_like(layout.positive))


def painted(painter: Painter, layout: Layout, folder: Path, name: str, *, scale: int, seed: int = 0) -> Path:
    """A slide on disk."""
    path = folder / f"{name}.tiff"
    write_slide(painter.paint(layout, np.random.default_rng(seed), scale=scale), path, mpp=MPP / scale)
    return path


def read_all(path: Path) -> tuple[PatchGrid, np.ndarray]:
    """The patches that extraction chooses on a slide, and the pixels of every cell, chosen or not."""
    with open_slide(path) as reader:
        grid = make_patch_grid(reader.slide, segment_tissue(reader), CONFIG)
        rows, cols = grid.shape
        step = grid.stride_level0
        cells = [
            reader.read_patch(round(c * step), round(r * step), size_level0=grid.patch_level0, patch_px=grid.patch_px)
            for r in range(rows)
            for c in range(cols)
        ]
    return grid, np.stack(cells).reshape(rows, cols, CELL_PX, CELL_PX, 3)


@pytest.mark.parametrize("scale", [1, 2])
def test_canvas_differs_in_the_cells_of_the_rarer_kind_alone(painter: Painter, scale: int) -> None:
    layout = small_layout()
    with_them = painter.paint(layout, np.random.default_rng(5), scale=scale)
    without_them = painter.paint(without(layout), np.random.default_rng(5), scale=scale)
    assert with_them.shape == (*(scale * n for n in layout.tissue.shape), 3)
    assert with_them.dtype == np.uint8
    same = (with_them == without_them).all(-1)
    cell = scale * CELL_PX
    for row, col in np.ndindex(*layout.positive.shape):
        block = same[row * cell : (row + 1) * cell, col * cell : (col + 1) * cell]
        if layout.positive[row, col]:
            assert block.mean() < 0.05, "the kinds look different"
        else:
            assert block.all()


@pytest.mark.parametrize("scale", [1, 2])
def test_patches_do_not_bleed_into_their_neighbours(painter: Painter, tmp_path: Path, scale: int) -> None:
    """Through tiles, JPEG and levels: a patch beside one of the rarer kind is the same to the last bit without it."""
    layout = small_layout()
    grid, cells = read_all(painted(painter, layout, tmp_path, "with", scale=scale))
    plain_grid, plain = read_all(painted(painter, without(layout), tmp_path, "without", scale=scale))
    np.testing.assert_array_equal(grid.index, plain_grid.index)
    assert grid.shape == layout.positive.shape
    beside = 0
    for row, col in np.ndindex(*grid.shape):
        if layout.positive[row, col]:
            assert (cells[row, col] != plain[row, col]).mean() > 0.5
            continue
        np.testing.assert_array_equal(cells[row, col], plain[row, col], err_msg=f"cell {row}, {col}")
        around = layout.positive[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        beside += bool(around.any())
    assert beside > 15


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 7))])
def test_chosen_patches_do_not_depend_on_the_arrangement(painter: Painter, tmp_path: Path, seed: int) -> None:
    """A slide of the cohort's own size, painted with a nest, scattered, and without any: the same cells are tissue."""
    scale = 1 + seed % 2
    chosen = []
    for name in ("nest", "scattered", "none"):
        layout = draw_layout("nest" if name == "none" else name, np.random.default_rng([seed, 1]))
        layout = without(layout) if name == "none" else layout
        with open_slide(painted(painter, layout, tmp_path, name, scale=scale, seed=seed)) as reader:
            grid = make_patch_grid(reader.slide, segment_tissue(reader), CONFIG)
        chosen.append({(int(r), int(c)) for r, c in grid.index})
        assert {(int(r), int(c)) for r, c in np.argwhere(layout.positive)} <= chosen[-1], "the rarer kind is all there"
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(chosen[0]) > 100


@pytest.mark.parametrize("scale", [1, 2])
def test_kinds_can_be_told_apart(painter: Painter, tmp_path: Path, scale: int) -> None:
    """By the amount of DAB in the embedding, at both magnifications, with one threshold."""
    import torch

    layout = small_layout(3)
    grid, cells = read_all(painted(painter, layout, tmp_path, "a", scale=scale))
    patches = torch.from_numpy(cells[tuple(grid.index.T)])
    dab = HistologyStats().encode(patches)[:, feature_names().index("stain.dab.mean")].numpy()
    positive = layout.positive[tuple(grid.index.T)]
    common, rare = dab[~positive], dab[positive]
    assert (rare.mean() - common.mean()) / np.hypot(rare.std(), common.std()) > 3
    assert rare.min() > common.max()


def test_outside_the_tissue_is_white(painter: Painter) -> None:
    layout = small_layout()
    picture = painter.paint(layout, np.random.default_rng(0))
    outside = picture[~layout.tissue]
    assert len(np.unique(outside)) == 1
    assert 240 <= outside[0, 0] <= 247
    assert picture[layout.tissue].mean() < 225


def test_stains_vary_by_slide(painter: Painter) -> None:
    layout = without(small_layout())
    means = [painter.paint(layout, np.random.default_rng(s))[layout.tissue].mean(0) for s in range(4)]
    assert (np.ptp(means, axis=0) > 1).all()
    np.testing.assert_array_equal(*(painter.paint(layout, np.random.default_rng(1)) for _ in range(2)))


def test_both_magnifications_show_the_same_field(painter: Painter) -> None:
    """Twice the resolution, halved, is nearly the slide at the lower one."""
    layout = without(small_layout())
    low = painter.paint(layout, np.random.default_rng(7)).astype(float)
    high = painter.paint(layout, np.random.default_rng(7), scale=2).astype(float)
    halved = high.reshape(low.shape[0], 2, low.shape[1], 2, 3).mean((1, 3))
    inside = layout.tissue
    # The mirrored texture starts at another place, so the pixels differ; their statistics do not.
    np.testing.assert_allclose(halved[inside].mean(0), low[inside].mean(0), atol=4)
    np.testing.assert_allclose(halved[inside].std(0), low[inside].std(0), rtol=0.15)
    assert halved[~inside].std() == 0


def test_write_slide(tmp_path: Path) -> None:
    """Levels of 1, 1/2 and 1/4, each the mean of the one before; the pixel size is in the header; nothing half done."""
    import tifffile

    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(60, 240, (20, 25, 3)).astype(np.uint8), 32, 0), 32, 1)
    write_slide(picture, tmp_path / "a.tiff", mpp=0.37)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tiff"]
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert [page.shape for page in file.pages] == [(640, 800, 3), (320, 400, 3), (160, 200, 3)]
        assert all(page.is_tiled and page.compression == tifffile.COMPRESSION.JPEG for page in file.pages)
        for level, page in enumerate(file.pages):
            x, _ = page.get_resolution("MICROMETER")
            assert 1 / x == pytest.approx(0.37 * 2**level, rel=1e-4)
            expected = picture.reshape(640 >> level, 1 << level, 800 >> level, 1 << level, 3).mean((1, 3))
            assert np.abs(page.asarray().astype(float) - expected).mean() < 3
    with open_slide(tmp_path / "a.tiff") as reader:
        assert reader.slide.mpp == pytest.approx(0.37, rel=1e-4)
        assert reader.slide.level_downsamples == (1.0, 2.0, 4.0)
