"""The grid of patches: one origin, even pitch, cells chosen by their share of tissue."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2d.config import PatchConfig
from wsi2d.errors import SlideError
from wsi2d.slides.patching import PatchGrid, cell_coords, make_patch_grid
from wsi2d.slides.reader import Slide
from wsi2d.slides.tissue import TissueMask


def slide(width: int, height: int, mpp: float = 0.5) -> Slide:
    return Slide("A1", Path("A1"), width, height, mpp, "header", (1.0,))


def tissue_everywhere(of: Slide, downsample: float = 16.0) -> TissueMask:
    shape = (math.ceil(of.height / downsample), math.ceil(of.width / downsample))
    return TissueMask(np.ones(shape, bool), downsample, 0.1)


@pytest.mark.parametrize(
    ("width", "height", "mpp", "patch_px", "target", "overlap", "shape"),
    [
        (1024, 768, 0.5, 256, 0.5, 0, (3, 4)),
        (1025, 767, 0.5, 256, 0.5, 0, (3, 5)),
        (1024, 768, 0.25, 256, 0.5, 0, (2, 2)),
        (2220, 2967, 0.499, 256, 0.5, 0, (12, 9)),
        (1024, 768, 0.5, 256, 0.5, 64, (4, 6)),
        (100, 80, 0.5, 64, 0.5, 63, (80, 100)),
        (100, 30, 0.5, 256, 0.5, 0, (1, 1)),
        (2048, 256, 0.5, 256, 0.5, 0, (1, 8)),
        (256, 2048, 0.5, 256, 0.5, 0, (8, 1)),
        (630, 650, 0.5, 8, 0.625, 0, (65, 63)),
        (3 * 256, 256, 0.1, 256, 0.3, 0, (1, 1)),
        (2100, 700, 0.3, 210, 0.1, 0, (10, 30)),
    ],
)
def test_geometry(
    width: int, height: int, mpp: float, patch_px: int, target: float, overlap: int, shape: tuple[int, int]
) -> None:
    of = slide(width, height, mpp)
    mask = tissue_everywhere(of, 1.0)
    grid = make_patch_grid(of, mask, PatchConfig(patch_px=patch_px, mpp=target, overlap_px=overlap, min_tissue=0))
    assert grid.shape == shape
    assert len(grid) == shape[0] * shape[1]
    assert grid.patch_level0 == pytest.approx(patch_px * target / mpp, rel=1e-12)
    assert grid.stride_level0 == pytest.approx((patch_px - overlap) * target / mpp, rel=1e-12)
    assert (grid.coords.dtype, grid.index.dtype) == (np.int32, np.int32)
    assert grid.index.tolist() == [[row, col] for row in range(shape[0]) for col in range(shape[1])]
    for (x, y), (row, col) in zip(grid.coords.tolist(), grid.index.tolist(), strict=True):
        assert (x, y) == (round(col * grid.stride_level0), round(row * grid.stride_level0))
        assert x < width
        assert y < height


def test_the_origin_is_the_slides_corner_wherever_the_tissue_is() -> None:
    of = slide(4096, 4096)
    everywhere = make_patch_grid(of, tissue_everywhere(of), PatchConfig(min_tissue=0.25))
    places = {tuple(i): tuple(c) for i, c in zip(everywhere.index.tolist(), everywhere.coords.tolist(), strict=True)}
    mask = np.zeros((256, 256), bool)
    mask[77:150, 91:203] = True
    grid = make_patch_grid(of, TissueMask(mask, 16.0, 0.1), PatchConfig(min_tissue=0.25))
    assert 0 < len(grid) < len(everywhere)
    assert grid.shape == everywhere.shape
    for index, xy in zip(grid.index.tolist(), grid.coords.tolist(), strict=True):
        assert places[tuple(index)] == tuple(xy)


@pytest.mark.parametrize("min_tissue", [0.0, 0.05, 0.25, 0.5, 1.0])
def test_cells_are_chosen_by_their_share_of_tissue(min_tissue: float) -> None:
    generator = np.random.default_rng(3)
    mask = np.repeat(np.repeat(generator.random((16, 16)) < 0.4, 4, 0), 4, 1)  # 64 × 64 px of 8 level-0 px
    mask[8:16, 40:48] = True
    of = slide(512, 512)
    grid = make_patch_grid(of, TissueMask(mask, 8.0, 0.1), PatchConfig(patch_px=64, min_tissue=min_tissue))
    share = mask.reshape(8, 8, 8, 8).mean((1, 3))
    expected = np.argwhere((share >= min_tissue) & (share > 0))
    assert len(expected) > 0
    assert grid.index.tolist() == expected.tolist()


def test_overlapping_cells_are_chosen_by_the_whole_patch() -> None:
    mask = np.random.default_rng(4).random((64, 64)) < 0.5
    config = PatchConfig(patch_px=64, overlap_px=48, min_tissue=0.5)
    grid = make_patch_grid(slide(512, 512), TissueMask(mask, 8.0, 0.1), config)
    padded = np.pad(mask, ((0, 8), (0, 8)))
    expected = [
        [row, col] for row in range(32) for col in range(32) if padded[2 * row :, 2 * col :][:8, :8].mean() >= 0.5
    ]
    assert 100 < len(expected) < 900
    assert grid.index.tolist() == expected


def test_a_cell_without_tissue_is_never_chosen() -> None:
    grid = make_patch_grid(slide(512, 512), TissueMask(np.zeros((32, 32), bool), 16.0, 0.1), PatchConfig(min_tissue=0))
    assert len(grid) == 0
    assert (grid.coords.shape, grid.index.shape, grid.shape) == ((0, 2), (0, 2), (2, 2))


def test_what_lies_over_the_edge_counts_as_empty() -> None:
    of = slide(256 + 32, 256)  # the second column holds an eighth of a patch
    chosen = [
        make_patch_grid(of, tissue_everywhere(of), PatchConfig(min_tissue=m)).index.tolist() for m in (0.12, 0.13)
    ]
    assert chosen == [[[0, 0], [0, 1]], [[0, 0]]]


def test_20x_and_40x_choose_the_same_cells() -> None:
    mask = np.random.default_rng(5).random((60, 80)) < 0.5
    coarse = make_patch_grid(slide(1280, 960, 0.5), TissueMask(mask, 16.0, 0.1), PatchConfig(patch_px=100))
    fine = make_patch_grid(slide(2560, 1920, 0.25), TissueMask(mask, 32.0, 0.1), PatchConfig(patch_px=100))
    assert np.array_equal(coarse.index, fine.index)
    assert np.array_equal(2 * coarse.coords, fine.coords)


def test_a_slide_coarser_than_the_target_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for mpp, warned in ((0.5, False), (0.52, False), (1.0, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "wsi2d"):
            make_patch_grid(slide(512, 512, mpp), tissue_everywhere(slide(512, 512)), PatchConfig())
        assert ("slide 'A1': scanned at 1 µm/px" in caplog.text) == warned


def test_cell_coords_round_once_and_never_add_up_errors() -> None:
    index = np.array([[0, 0], [1, 2], [1000, 3000]], np.int32)
    assert cell_coords(index, 256.513).tolist() == [[0, 0], [513, 257], [769539, 256513]]
    assert cell_coords(index, 256.513).dtype == np.int32
    assert cell_coords(np.empty((0, 2), np.int32), 256.0).shape == (0, 2)


RIGHT: dict[str, Any] = {
    "coords": np.array([[0, 0], [256, 0]], np.int32),
    "index": np.array([[0, 0], [0, 1]], np.int32),
    "shape": (1, 2),
    "patch_px": 256,
    "mpp": 0.5,
    "patch_level0": 256.0,
    "stride_level0": 256.0,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"index": np.array([[0, 0], [0, 2]])}, "an index lies outside the grid of 1×2"),
        ({"index": np.array([[0, 0], [1, 0]])}, "an index lies outside the grid of 1×2"),
        ({"index": np.array([[0, 0], [0, -1]])}, "an index lies outside the grid of 1×2"),
        ({"index": np.array([[0, 1], [0, 1]])}, "a cell occurs twice"),
        ({"index": np.array([[0, 0]])}, r"must be \[N, 2\], got \(1, 2\) and \(2, 2\)"),
        ({"coords": np.array([[0, 0]])}, r"must be \[N, 2\]"),
        ({"coords": np.zeros((2, 3), int)}, r"must be \[N, 2\]"),
        ({"index": np.array([0, 1])}, r"must be \[N, 2\]"),
        ({"index": np.int32(0)}, r"must be \[N, 2\]"),
        ({"patch_px": 0}, "must be > 0"),
        ({"mpp": -0.5}, "must be > 0"),
        ({"mpp": math.nan}, "must be > 0"),
        ({"patch_level0": 0.0}, "must be > 0"),
        ({"stride_level0": -1.0}, "must be > 0"),
        ({"coords": np.array([[0.5, 0], [256, 0]])}, "must be integers"),
        ({"index": np.array([[0.0, 0], [0, 1]])}, "must be integers"),
    ],
)
def test_a_grid_checks_itself(wrong: dict[str, Any], message: str) -> None:
    assert len(PatchGrid(**RIGHT)) == 2
    with pytest.raises(SlideError, match=f"patch grid: .*{message}"):
        PatchGrid(**{**RIGHT, **wrong})


def a_grid(**changes: Any) -> PatchGrid:
    values: dict[str, Any] = {
        "shape": (4, 5), "patch_px": 256, "mpp": 0.5, "patch_level0": 300.0, "stride_level0": 200.0,
        "index": np.array([[0, 1], [2, 4]], np.int32), "coords": np.array([[205, 10], [815, 400]], np.int32),
    }  # fmt: skip
    return PatchGrid(**(values | changes))


def test_a_grid_that_starts_elsewhere() -> None:
    grid = a_grid(origin=(12.5, -3.0))
    assert cell_coords(grid.index, 200.0, grid.origin).tolist() == [[212, -3], [812, 397]]
    fine = grid.scaled(2.0)
    assert (fine.patch_level0, fine.stride_level0, fine.origin) == (600.0, 400.0, (25.0, -6.0))
    assert fine.coords.tolist() == [[410, 20], [1630, 800]]
    assert np.array_equal(fine.index, grid.index)
    for origin in ((math.nan, 0.0), (0.0, math.inf)):
        with pytest.raises(SlideError, match="origin must be finite"):
            a_grid(origin=origin)


def test_a_grid_of_patches_of_unknown_size() -> None:
    grid = a_grid(patch_px=None, mpp=None)
    assert grid.overlap_px is None
    assert a_grid().overlap_px == 85
