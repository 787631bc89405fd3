"""Coordinates to cells: the same set comes back, contours with their own grids lose as little as can be."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.lattices import find_lattices
from wsi2d.features.imports.placement import Counts, Placement, place

PITCH = 256


def check(coords: np.ndarray, pitch: float, placed: Placement) -> None:
    """What holds of every placement."""
    counts = placed.counts
    assert counts.patches == len(coords)
    assert counts.patches == (counts.cells + counts.dropped + counts.duplicates + counts.unplaced + counts.outside)
    assert counts.collisions == counts.moved + counts.dropped
    assert counts.cells == len(placed.rows) == len(placed.index)
    assert len(np.unique(placed.rows)) == len(placed.rows)
    flat = placed.index[:, 0].astype(np.int64) * placed.shape[1] + placed.index[:, 1]
    assert (np.diff(flat) > 0).all(), "raster order, no cell twice"
    assert (placed.index >= 0).all()
    assert (placed.index < np.array(placed.shape)).all()
    corners = placed.index[:, ::-1] * pitch + np.array(placed.origin)
    shifts = np.abs(corners - coords[placed.rows]).max(1) / pitch
    assert (shifts <= 1 + 1e-9).all()
    assert placed.largest_shift == pytest.approx(shifts.max(initial=0))


def same_cells(placed: Placement, cells: np.ndarray) -> None:
    """Row k of the file is in cell k, up to where the grid begins."""
    expected = cells[placed.rows]
    assert np.array_equal(placed.index - placed.index.min(0), expected - expected.min(0))


cells_of_a_slide = some.arrays(bool, st.tuples(st.integers(1, 15), st.integers(1, 15))).filter(np.any).map(np.argwhere)


@given(
    cells=cells_of_a_slide,
    pitch=st.one_of(st.integers(8, 3000), st.floats(20, 3000)),
    offset=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_any_set_of_cells_comes_back(cells: np.ndarray, pitch: float, offset: tuple[int, int], seed: int) -> None:
    cells = np.random.default_rng(seed).permutation(cells)
    coords = np.rint(cells[:, ::-1] * pitch + offset)
    placed = place(coords, pitch, patch=pitch)
    check(coords, pitch, placed)
    same_cells(placed, cells)
    assert placed.counts == Counts(len(cells), len(cells), holes=placed.counts.holes)


def test_the_grid_starts_in_the_slides_corner_where_patches_do() -> None:
    cells = np.array([[1, 2], [1, 3], [4, 0]])
    placed = place(cells[:, ::-1] * 100.0, 100, patch=100, size=(1000, 700))
    assert (placed.origin, placed.shape, placed.index.tolist()) == ((0, 0), (7, 10), cells.tolist())
    near = place(cells[:, ::-1] * 100.0 + 1, 100, patch=100, size=(1000, 700))
    assert (near.origin, near.index.tolist()) == ((0, 0), cells.tolist())
    assert near.counts.off_grid == 0
    away = place(cells[:, ::-1] * 100.0 + (30, 90), 100, patch=100, size=(1000, 700))
    assert (away.origin, away.index.tolist()) == ((30, 90), cells.tolist())
    assert away.shape == (7, 10)


def test_a_first_column_that_lies_elsewhere() -> None:
    """With an overlap TRIDENT's second column begins a whole patch behind the first, the others a pitch apart."""
    x = np.array([0, 256, 448, 640, 832])
    coords = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2).astype(float)
    placed = place(coords, 192, patch=256, size=(1100, 1100))
    check(coords, 192, placed)
    assert placed.counts == Counts(patches=25, cells=25, off_grid=9)
    assert placed.index.max(0).tolist() == [4, 4], "five columns, none of them empty"


contours_of_a_slide = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 4000), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=8
)


def contour_patches(contours: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of patches that each fill a rectangle from its own corner, and the rectangle that each belongs to."""
    pieces = [np.argwhere(np.ones((w, h))) * PITCH + (x, y) for x, y, w, h in contours]
    return np.concatenate(pieces).astype(float), np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])


@given(contours=contours_of_a_slide, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_contours_with_grids_of_their_own(contours: list[tuple[int, int, int, int]], seed: int) -> None:
    coords, _ = contour_patches(contours)
    placed = place(coords, PITCH, patch=PITCH)
    check(coords, PITCH, placed)
    order = np.random.default_rng(seed).permutation(len(coords))
    again = place(coords[order], PITCH, patch=PITCH)
    assert again.counts == placed.counts
    assert np.array_equal(again.index, placed.index)
    assert np.array_equal(coords[order][again.rows], coords[placed.rows]), "whatever the order of rows"


@given(contours=contours_of_a_slide)
@settings(max_examples=40, deadline=None)
def test_a_contour_keeps_its_neighbours(contours: list[tuple[int, int, int, int]]) -> None:
    """But for patches that had to go elsewhere, a contour is moved as a whole."""
    coords, contour = contour_patches(contours)
    placed = place(coords, PITCH, patch=PITCH)
    shift = placed.index[:, ::-1] - coords[placed.rows] / PITCH
    moved_alone = 0
    for k in np.unique(contour):
        of_contour = shift[contour[placed.rows] == k]
        if len(of_contour):
            _, counts = np.unique(of_contour.round(9), axis=0, return_counts=True)
            moved_alone += len(of_contour) - counts.max()
    small = sum(count for count in np.bincount(contour) if count < 4)
    assert moved_alone <= placed.counts.moved + small


def test_contours_far_apart_lose_nothing() -> None:
    coords, _ = contour_patches([(70, 64, 5, 6), (2000, 111, 4, 4), (555, 3000, 6, 3)])
    placed = place(coords, PITCH, patch=PITCH)
    assert placed.counts == Counts(patches=64, cells=64, off_grid=34)
    assert placed.origin == (70, 64), "the grid of the largest contour"
    assert placed.largest_shift <= 0.5


def test_a_small_contour_gives_way() -> None:
    """Two rows of patches, 100 px apart: the cells are the larger one's, and the other's patches take what is free."""
    large = np.array([[x, 0] for x in range(0, 10 * PITCH, PITCH)], float)
    small = np.array([[x, 100] for x in range(50, 50 + 4 * PITCH, PITCH)], float)
    placed = place(np.concatenate([large, small]), PITCH, patch=PITCH)
    check(np.concatenate([large, small]), PITCH, placed)
    assert placed.counts.dropped == 0
    assert placed.counts.cells == 14
    assert (placed.index[placed.rows < 10, 0] == 0).all()
    assert (placed.index[placed.rows >= 10, 0] == 1).all()


def test_what_has_no_room_is_dropped_and_counted() -> None:
    grid = np.argwhere(np.ones((6, 6))) * 100.0
    between = np.array([[250.0, 250.0], [251.0, 250.0]])
    placed = place(np.concatenate([grid, between]), 100, patch=100)
    assert placed.counts == Counts(patches=38, cells=36, collisions=2, dropped=2)
    assert set(placed.rows) == set(range(36))


def test_rows_that_have_no_place() -> None:
    coords = np.array([
        [0, 0], [100, 0], [np.nan, 0], [100, np.inf], [0, 0], [0, 0], [-100, 0], [-500, 300], [1000, 0], [0, -1e300],
    ], float)  # fmt: skip
    placed = place(coords, 100, patch=100, size=(1000, 1000))
    check(coords, 100, placed)
    assert placed.counts == Counts(patches=10, cells=2, duplicates=2, unplaced=2, outside=4)
    assert placed.rows.tolist() == [0, 1], "the first of those at one place"


def test_a_patch_before_the_slides_edge() -> None:
    """As negative coordinates are: it touches the slide."""
    coords = np.array([[-60, -60], [0, 0], [100, 0], [0, 100], [100, 100], [200, 100]], float)
    placed = place(coords, 100, patch=100, size=(300, 300))
    check(coords, 100, placed)
    assert placed.counts.cells == 6
    assert placed.origin == (-100, -100)


def test_holes() -> None:
    ring = np.argwhere(np.pad(np.zeros((2, 3)), 1, constant_values=1))
    assert place(ring * 10.0, 10, patch=10).counts.holes == 6
    assert place(ring[1:] * 10.0, 10, patch=10).counts.holes == 6, "a corner's gap lets nothing out"
    assert place(np.delete(ring, 2, 0) * 10.0, 10, patch=10).counts.holes == 0


def test_nothing_to_place() -> None:
    for coords in (np.zeros((0, 2)), np.full((3, 2), np.nan)):
        placed = place(coords, 100, patch=100, size=(550, 320))
        assert placed.counts == Counts(patches=len(coords), unplaced=len(coords))
        assert (placed.shape, placed.index.shape) == ((4, 6), (0, 2))
        assert place(coords, 100, patch=100).shape == (1, 1)


@pytest.mark.parametrize("far", [1e8, 1e15, 1e300])
def test_no_slide_reaches_so_far(far: float) -> None:
    for coords in (np.array([[0, 0], [far, far]]), np.full((1, 2), far)):
        with pytest.raises(FeatureStoreError, match="which no slide does"):
            place(coords, 256, patch=256)
        assert place(coords, 256, patch=256, size=(9000, 9000)).counts.outside == 1
    with pytest.raises(FeatureStoreError, match="which no slide does"):
        place(np.zeros((1, 2)), 256, patch=256, size=(far, far))


def slide_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """200,000 patches, on a grid, in contours, or where no tool would put them."""
    if kind == "grid":
        return rng.permutation(np.argwhere(np.ones((400, 500)))) * 256.0
    if kind == "contours":
        square = np.argwhere(np.ones((50, 50)))
        return np.concatenate([square * 256 + rng.integers(0, 115_200, 2) for _ in range(80)]).astype(float)
    if kind == "anywhere":
        return rng.random((200_000, 2)) * 115_200
    return rng.random((200_000, 2)) * 600


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "contours", "anywhere", "heap"])
def test_large_slides_take_seconds(kind: str) -> None:
    coords = slide_of(kind, np.random.default_rng(0))
    start = time.perf_counter()
    placed = place(coords, 256, patch=256)
    assert time.perf_counter() - start < 20
    check(coords, 256, placed)


@given(cells=cells_of_a_slide, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_rounded_coordinates_make_one_lattice(cells: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pitch, start = rng.uniform(50, 600), rng.uniform(0, 1000, 2)
    lattices = find_lattices(np.rint(cells * pitch + start), pitch)
    assert lattices.sizes.tolist() == [len(cells)]
    assert np.array_equal(lattices.step - lattices.step.min(0), cells - cells.min(0))


def test_lattices_by_size() -> None:
    one, two = np.argwhere(np.ones((3, 3))) * 10, np.argwhere(np.ones((2, 2))) * 10 + (3, 7)
    lattices = find_lattices(np.concatenate([two, one]).astype(float), 10)
    assert lattices.sizes.tolist() == [9, 4]
    assert lattices.start.tolist() == [[0, 0], [3, 7]]
    assert lattices.label.tolist() == [1] * 4 + [0] * 9


def test_counts_by_name() -> None:
    counts = Counts(patches=3, cells=2, dropped=1, collisions=1)
    assert Counts(**counts.as_dict()) == counts
    assert replace(counts, cells=1) != counts
