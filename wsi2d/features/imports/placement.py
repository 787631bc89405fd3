"""Patches at any coordinates become cells of one grid, no cell twice.

Patches that lie on a lattice of the grid's pitch keep their neighbours: a lattice is moved as a whole to cells it is
near to. A tool whose grid starts anew in each piece of tissue makes several lattices, which differ in where they
start; the grid is laid on that of most patches. Where two lattices want one cell the larger has it, and the other's
patch goes to a free cell within one pitch, or is dropped. All of it depends on the coordinates and not on their
order, but for patches at the very same place, of which the first is kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.lattices import ROUNDING, Lattices, find_lattices
from wsi2d.features.imports.matching import match

LARGEST_GRID = 2**27  # cells; a slide of 300,000 × 300,000 px has fewer at a pitch of 32 px
_FARTHEST_PX = 2**31 - 1  # what coordinates are kept in
ON_GRID = 0.02  # of a pitch: what lies no farther from its cell's corner, or from the slide's corner, is there
_SMALL_LATTICE, _MOST_LATTICES = 4, 2048  # smaller ones, and those after so many, are placed patch by patch
_FARTHEST = 0.75  # of a pitch along an axis: no lattice is moved by more
_MARGIN = 3  # cells around the patches


@dataclass(frozen=True)
class Counts:
    """What became of a tool's patches: ``patches`` is the sum of ``cells``, ``dropped``, ``duplicates``, ``unplaced``
    and ``outside``, and ``collisions`` that of ``moved`` and ``dropped``.

    Attributes:
        patches: in the tool's file.
        cells: that have a patch.
        holes: empty cells that are surrounded by patches.
        off_grid: patches that lie not in their cell's corner but up to a pitch from it.
        collisions: patches whose cell was taken.
        moved, dropped: those for which there was a free cell within one pitch, and those for which there was none.
        duplicates: patches at the place of an earlier one.
        unplaced: patches without coordinates (NaN or infinite).
        outside: patches that do not touch the slide.
    """

    patches: int = 0
    cells: int = 0
    holes: int = 0
    off_grid: int = 0
    collisions: int = 0
    moved: int = 0
    dropped: int = 0
    duplicates: int = 0
    unplaced: int = 0
    outside: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class Placement:
    """Patches in their cells.

    Attributes:
        rows: int64 ``[M]``, the placed patches' rows in the file, in raster order of their cells.
        index: int32 ``[M, 2]``, their (row, col).
        shape: rows and columns of the grid.
        origin: (x, y) of the first cell's corner, in the coordinates' unit.
        size: width and height of the slide; as far as the patches reach where it is unknown.
        counts: what became of all patches.
        largest_shift: how far from its cell's corner a patch lies at most, along an axis, in pitches.
    """

    rows: np.ndarray
    index: np.ndarray
    shape: tuple[int, int]
    origin: tuple[float, float]
    size: tuple[float, float]
    counts: Counts
    largest_shift: float


def place(coords: np.ndarray, pitch: float, *, patch: float, size: tuple[float, float] | None = None) -> Placement:
    """Put patches into cells.

    Args:
        coords: float64 ``[N, 2]``, (x, y) of the patches' top-left corners; level-0 px, or µm with all else in µm.
        pitch: of the grid.
        patch: side of a patch.
        size: width and height of the slide; None where unknown.

    Raises:
        FeatureStoreError: the patches reach farther than any slide.
    """
    rows, lost = _usable(coords, min(patch, pitch), size)
    xy = coords[rows]
    _refuse_farther_than_slides(xy, pitch, size)
    reach = size or (tuple(np.ceil(xy.max(0) + patch).tolist()) if len(xy) else (patch, patch))
    if not len(rows):
        shape = _cells(reach, pitch, (0.0, 0.0), np.zeros((1, 2), np.int64))
        empty = np.zeros((0, 2), np.int32)
        return Placement(rows, empty, shape, (0.0, 0.0), reach, Counts(len(coords), **lost), 0.0)
    lattices = find_lattices(xy, pitch)
    start = np.where(_is_near_zero(lattices.start[0], pitch), 0.0, lattices.start[0])
    places = (xy - start)[:, ::-1] / pitch
    cells, collided = _fill(places, lattices, start, pitch)
    placed = np.flatnonzero(cells[:, 0] > _NOWHERE)
    order = placed[np.lexsort(cells[placed].T[::-1])]
    index = cells[order]
    first = np.minimum(index.min(0), 0)
    origin = start + first[::-1] * pitch
    index = index - first
    shift = np.abs(cells[order] - places[order]).max(1)
    counts = Counts(
        patches=len(coords),
        cells=len(order),
        holes=_holes(index),
        off_grid=int((shift * pitch > max(ROUNDING, ON_GRID * pitch)).sum()),
        collisions=len(collided),
        moved=int((cells[collided, 0] > _NOWHERE).sum()),
        dropped=len(rows) - len(order),
        **lost,
    )
    x, y = origin.tolist()
    shape = _cells(reach, pitch, (x, y), index)
    return Placement(rows[order], index.astype(np.int32), shape, (x, y), reach, counts, float(shift.max()))


_NOWHERE = np.iinfo(np.int64).min


def _usable(coords: np.ndarray, before: float, size: tuple[float, float] | None) -> tuple[np.ndarray, dict[str, int]]:
    """Rows that have a place on the slide and are the first there, ordered by (y, x); and how many others there are."""
    finite = np.isfinite(coords).all(1)
    with np.errstate(invalid="ignore"):
        outside = (coords <= -before).any(1)
        if size is not None:
            outside |= (coords >= np.array(size)).any(1)
    outside &= finite
    rows = np.flatnonzero(finite & ~outside)
    rows = rows[np.lexsort((rows, *coords[rows].T))]
    again = (np.diff(coords[rows], axis=0) == 0).all(1) if len(rows) else np.zeros(0, bool)
    kept = np.concatenate([[True], ~again]) if len(rows) else np.zeros(0, bool)
    lost = {"unplaced": int((~finite).sum()), "outside": int(outside.sum()), "duplicates": int(again.sum())}
    return rows[kept], lost


def _refuse_farther_than_slides(xy: np.ndarray, pitch: float, size: tuple[float, float] | None) -> None:
    first, last = xy.min(0, initial=0.0), xy.max(0, initial=0.0)
    cols, rows = (((last if size is None else np.maximum(last, size)) - first) / pitch + 1).tolist()
    if not (max(-first.min(), last.max()) <= _FARTHEST_PX and cols * rows <= LARGEST_GRID):
        raise FeatureStoreError(f"it reaches over {rows:,.0f}×{cols:,.0f} cells of {pitch:g}, which no slide does")


def _is_near_zero(start: np.ndarray, pitch: float) -> np.ndarray:
    """Whether a lattice starts at the slide's corner, but for rounding."""
    near: np.ndarray = np.minimum(start, pitch - start) <= max(ROUNDING, ON_GRID * pitch)
    return near


def _fill(places: np.ndarray, lattices: Lattices, start: np.ndarray, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """The (row, col) of each patch, and the patches whose cell was taken.

    ``places`` are (row, col) in pitches, fractional; (0, 0) is at ``start``.
    """
    low = np.floor(places.min(0)).astype(np.int64) - _MARGIN
    shape = np.floor(places.max(0)).astype(np.int64) + _MARGIN + 1 - low
    taken = np.zeros(shape, bool)
    cells = np.full(places.shape, _NOWHERE)
    natural = np.rint(places).astype(np.int64)
    large = min(_MOST_LATTICES, int((lattices.sizes >= _SMALL_LATTICE).sum()))
    order = np.argsort(lattices.label, kind="stable")
    members = np.split(order, np.cumsum(lattices.sizes)[:-1])
    for which, several in enumerate(members[:large]):
        away = (lattices.start[which] - start)[::-1] / pitch
        natural[several] = _as_a_whole(lattices.step[several][:, ::-1], away, taken, low)
        _claim(several, natural, places, cells, taken, low)
    if large < len(members):
        _claim(np.concatenate(members[large:]), natural, places, cells, taken, low)
    collided = np.flatnonzero(cells[:, 0] == _NOWHERE)
    found = match(places[collided] - low, taken)
    there = found[:, 0] >= 0
    cells[collided[there]] = found[there] + low
    return cells, collided


def _as_a_whole(steps: np.ndarray, away: np.ndarray, taken: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Cells of a lattice that is moved as a whole: where fewest of them are taken, and of such places the nearest."""
    base = np.floor(away)
    best, least = steps, (np.inf, np.inf)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        moved = base + step - away
        if np.abs(moved).max() > _FARTHEST:
            continue
        there = steps + (base + step).astype(np.int64)
        price = (int(taken[tuple((there - low).T)].sum()), round(float(np.square(moved).sum()), 9))
        if price < least:
            best, least = there, price
    return best


def _claim(
    members: np.ndarray, wanted: np.ndarray, places: np.ndarray, cells: np.ndarray, taken: np.ndarray, low: np.ndarray
) -> None:
    """Give patches the cells they want where those are free; of several that want one, the nearest has it."""
    distance = np.abs(wanted[members] - places[members]).max(1)
    members = members[np.argsort(distance, kind="stable")]
    inside = wanted[members] - low
    _, first = np.unique(inside[:, 0] * taken.shape[1] + inside[:, 1], return_index=True)
    free = first[~taken[tuple(inside[first].T)]]
    cells[members[free]] = wanted[members[free]]
    taken[tuple(inside[free].T)] = True


def _holes(index: np.ndarray) -> int:
    """Empty cells from which no way of empty cells leads out."""
    from scipy.ndimage import binary_fill_holes

    inside = index - index.min(0)
    filled = np.zeros(inside.max(0) + 1, bool)
    filled[tuple(inside.T)] = True
    return int(binary_fill_holes(filled).sum()) - len(index)


def _cells(size: tuple[float, float], pitch: float, origin: tuple[float, float], index: np.ndarray) -> tuple[int, int]:
    """Rows and columns of a grid that covers the slide and every patch's cell."""
    cols, rows = (max(1, int(np.ceil((size[k] - origin[k]) / pitch - 1e-6))) for k in (0, 1))
    last_row, last_col = index.max(0).tolist()
    return max(rows, last_row + 1), max(cols, last_col + 1)
