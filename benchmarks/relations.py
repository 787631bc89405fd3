"""Where is a 2D scan needed? Relations between marks on a grid, each with a knob of distance.

    python benchmarks/relations.py [--tasks a,b] [--cells marks,mosaic] [--models a,b] [--seeds 0,1,2] [--json FILE]
                                   [--figure docs/images] [--no-training] [--limit-s 600]

Every model is trained on every task with every seed that the file of results does not hold yet, and tested at each
distance; then tables are printed and, with ``--figure``, a picture a task is drawn. This file makes the grids and needs
numpy alone; ``relation_runs.py`` trains on them, ``relation_cells.py`` cuts mosaics, ``relation_figures.py`` draws.

:func:`draw` gives cells ``[n, height, width, channels]``, which relation holds ``[n]``, and the distances ``[n]``.

Grids come in groups that hold the very same cells in other places, as often where the relation holds as where it does
not. So neither the multiset of cells nor where any single mark lies tells anything (but for ``order``, see there), and
where marks are further apart than a window reaches, neither do the windows, each by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Kinds = NDArray[np.uint8]
Shape = tuple[int, int]

BACKGROUND, FIRST, SECOND, DISTRACTOR = range(4)
OFFSETS = 3  # columns by which two marks are off where they are not in one column, at most
TONGUE = 2  # rows by which a tongue stands out of its margin
_NOISE = 0.05
_NOISE_CHANNELS = 3


class Cells(Protocol):
    """What cells look like."""

    dim: int

    def draw(self, kinds: Kinds, generator: np.random.Generator) -> NDArray[np.float32]:
        """Cells ``[..., dim]`` of kinds ``[...]``."""


class Marks:
    """A channel for each kind of mark and some without any, all under Gaussian noise."""

    dim = DISTRACTOR + _NOISE_CHANNELS

    def draw(self, kinds: Kinds, generator: np.random.Generator) -> NDArray[np.float32]:
        """Cells ``[..., dim]`` of kinds ``[...]``: 1 in the kind's channel, and noise of 0.05 everywhere."""
        cells = _NOISE * generator.standard_normal((*kinds.shape, self.dim), np.float32)
        for kind in (FIRST, SECOND, DISTRACTOR):
            cells[..., kind - 1] += kinds == kind
        return cells


@dataclass(frozen=True)
class Layouts:
    """What lies where.

    Attributes:
        kinds: uint8 ``[n, height, width]``, the kind of each cell.
        label: int64 ``[n]``, 1 where the relation holds.
        distance: int64 ``[n]``, in cells.
        arrangements: so many grids, one after the other, are a group: the same cells in other places.
    """

    kinds: Kinds
    label: Ints
    distance: Ints
    arrangements: int

    def __len__(self) -> int:
        return len(self.kinds)


@dataclass(frozen=True)
class Samples:
    """Cells float32 ``x [n, height, width, channels]``, ``label [n]`` and ``distance [n]`` as of :class:`Layouts`."""

    x: NDArray[np.float32]
    label: Ints
    distance: Ints


Placing = Callable[[Ints, Shape, np.random.Generator], Kinds]


@dataclass(frozen=True)
class Relation:
    """A relation with a knob of distance.

    Attributes:
        name: of the task.
        about: what is asked.
        place: given distances ``[groups]`` and a shape, kinds ``[groups, arrangements, height, width]``.
        labels: of the arrangements.
        smallest: the least rows and columns for a distance.
        nearest: the least distance there is.
        trained: the least and the largest distance to train on.
        tested: distances to test at, some of them beyond.
        apart: from this distance on no 3×3 window holds two marks, or parts of two figures.
    """

    name: str
    about: str
    place: Placing
    labels: tuple[int, ...]
    smallest: Callable[[int], Shape]
    nearest: int
    trained: tuple[int, int]
    tested: tuple[int, ...]
    apart: int


def place(
    relation: Relation,
    n: int,
    distance: int | Ints,
    shape: Shape,
    generator: np.random.Generator,
    *,
    distractors: float = 0.03,
) -> Layouts:
    """Grids of one shape, in whole groups.

    Args:
        relation: what is asked.
        n: how many; a multiple of the relation's arrangements.
        distance: in cells, one for all or one a group.
        shape: rows and columns.
        generator: of everything that is drawn.
        distractors: share of all cells that hold a mark of a kind that means nothing.

    Raises:
        ValueError: no whole groups, or the distance does not fit the shape.
    """
    k = len(relation.labels)
    if n % k or n <= 0:
        raise ValueError(f"n must be a positive multiple of {k} for '{relation.name}', got {n}")
    distances = np.broadcast_to(np.asarray(distance, np.int64), n // k)
    nearest, farthest = int(distances.min()), int(distances.max())
    height, width = relation.smallest(farthest)
    if nearest < relation.nearest:
        raise ValueError(f"the distance of '{relation.name}' must be at least {relation.nearest}, got {nearest}")
    if shape[0] < height or shape[1] < width:
        raise ValueError(
            f"'{relation.name}' at distance {farthest} needs {height}×{width} cells, got {shape[0]}×{shape[1]}"
        )
    kinds = np.ascontiguousarray(relation.place(distances, shape, generator).reshape(n, *shape))
    _strew(kinds, round(distractors * shape[0] * shape[1]), generator)
    return Layouts(kinds, np.tile(relation.labels, n // k), distances.repeat(k), k)


def paint(layouts: Layouts, cells: Cells, generator: np.random.Generator) -> NDArray[np.float32]:
    """Cells ``[n, height, width, cells.dim]``; those of a group are the same, in other places."""
    n, k = len(layouts), layouts.arrangements
    flat = layouts.kinds.reshape(n, -1)
    order = np.argsort(flat, axis=1, kind="stable")  # the cells of each kind, one after the other
    pool = cells.draw(np.take_along_axis(flat[::k], order[::k], 1), generator)
    x = np.empty((n, flat.shape[1], cells.dim), np.float32)
    x[np.arange(n)[:, None], order] = pool.repeat(k, 0)
    return x.reshape(*layouts.kinds.shape, cells.dim)


def draw(
    task: str,
    n: int,
    distance: int | Ints,
    shape: Shape,
    generator: np.random.Generator,
    *,
    cells: Cells | None = None,
    distractors: float = 0.03,
) -> Samples:
    """Grids of a task as a model sees them; arguments and errors as of :func:`place`.

    Args:
        task: one of :data:`RELATIONS`.
        cells: what cells look like; :class:`Marks` by default.
    """
    layouts = place(RELATIONS[task], n, distance, shape, generator, distractors=distractors)
    return Samples(paint(layouts, cells or Marks(), generator), layouts.label, layouts.distance)


def _strew(kinds: Kinds, count: int, generator: np.random.Generator) -> None:
    """Put so many distractors on background, anywhere."""
    flat = kinds.reshape(len(kinds), -1)
    keys = generator.random(flat.shape, np.float32)
    keys[flat != BACKGROUND] = 2
    chosen = np.argpartition(keys, count, axis=1)[:, :count]
    rows = np.arange(len(flat))[:, None]
    flat[rows, chosen] = np.where(keys[rows, chosen] < 2, DISTRACTOR, flat[rows, chosen])


def _blank(groups: int, arrangements: int, shape: Shape) -> Kinds:
    return np.zeros((groups, arrangements, *shape), np.uint8)


def _put(kinds: Kinds, rows: Ints, cols: Ints, kind: int) -> None:
    """A mark in each arrangement, at rows and columns ``[groups, arrangements]`` (or what broadcasts to it)."""
    groups, arrangements = kinds.shape[:2]
    kinds[np.arange(groups)[:, None], np.arange(arrangements), rows, cols] = kind


def _same_column(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    """Columns a and b, by 1 to 3 apart: marks at (a, a) and (b, b) are in one column, at (a, b) and (b, a) not."""
    kinds = _blank(len(distance), 4, shape)
    top = generator.integers(0, shape[0] - distance)
    offset = generator.integers(1, OFFSETS + 1, len(distance))
    a = generator.integers(0, shape[1] - offset)
    cols = np.stack([a, a + offset], 1)
    _put(kinds, top[:, None], cols[:, [0, 1, 0, 1]], FIRST)
    _put(kinds, (top + distance)[:, None], cols[:, [0, 1, 1, 0]], FIRST)
    return kinds


def _same_row(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    return _same_column(distance, shape[::-1], generator).swapaxes(2, 3)


def _quadrant(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    """Two neighbouring tips of a diamond: top and right, left and bottom are diagonal, the others anti-diagonal.

    So no corner of the grid is nearer to one class than to the other. Tips are ``distance`` apart along one axis, and
    up to 2 more along the other.
    """
    kinds = _blank(len(distance), 4, shape)
    longer = distance + generator.integers(0, 3, len(distance))
    tall = generator.random(len(distance)) < 0.5
    high = np.minimum(np.where(tall, longer, distance), (shape[0] - 1) // 2)
    wide = np.minimum(np.where(tall, distance, longer), (shape[1] - 1) // 2)
    row, col = generator.integers(high, shape[0] - high), generator.integers(wide, shape[1] - wide)
    rows = np.stack([row - high, row, row + high, row], 1)  # top, right, bottom, left
    cols = np.stack([col, col + wide, col, col - wide], 1)
    for first_or_second in ([0, 2, 0, 2], [1, 3, 3, 1]):
        _put(kinds, rows[:, first_or_second], cols[:, first_or_second], FIRST)
    return kinds


def _order(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    """Two kinds of mark in one row: the first kind left of the second, and the other way round.

    What is on the left lies further left: where a single mark lies cannot be balanced here, on any grid with borders.
    """
    kinds = _blank(len(distance), 2, shape)
    row = generator.integers(0, shape[0], len(distance))[:, None]
    left = generator.integers(0, shape[1] - distance)
    cols = np.stack([left, left + distance], 1)
    _put(kinds, row, cols, FIRST)
    _put(kinds, row, cols[:, ::-1], SECOND)
    return kinds


def _margin(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    """A margin from side to side with a tongue in its left or right half, and below it a band of the other kind.

    The band has the margin's form, its tongue in the same half or in the other one. Both halves begin and end with the
    same two flat cells, so that the halves may change places without a new window.
    """
    groups, (height, width) = len(distance), shape
    half = width // 2
    length = generator.integers(4, half - 1, groups)  # 1, 2, …, 2, 1, with two flat cells on either side at least
    start = generator.integers(1, half - length)
    at = np.arange(half) - start[:, None]
    tongue = np.clip(np.minimum(at + 1, length[:, None] - at), 0, TONGUE)
    tongue = tongue * generator.choice([-1, 1], groups)[:, None]
    lines = np.zeros((groups, 2, width), np.int64)
    lines[:, 0, :half] = tongue
    lines[:, 1, width - half :] = tongue
    base = TONGUE + generator.integers(0, height - distance - 2 * TONGUE)
    kinds = _blank(groups, 4, shape)
    index = np.arange(groups)[:, None, None], np.arange(4)[:, None]
    kinds[*index, base[:, None, None] + lines[:, [0, 1, 0, 1]], np.arange(width)] = FIRST
    kinds[*index, (base + distance)[:, None, None] + lines[:, [0, 1, 1, 0]], np.arange(width)] = SECOND
    return kinds


def _enclosure(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    """A closed ring around one of two places, and a mark in one of the two: inside, or outside as near to the ring."""
    row = generator.integers(distance, shape[0] - distance)
    left = generator.integers(distance, shape[1] - 3 * distance)
    places = np.stack([left, left + 2 * distance], 1)
    down = np.abs(np.arange(shape[0]) - row[:, None])[:, None, :, None]
    across = np.abs(np.arange(shape[1]) - places[:, [0, 1, 1, 0], None])[:, :, None, :]
    ring = np.maximum(down, across) == distance[:, None, None, None]
    kinds = np.where(ring, SECOND, BACKGROUND).astype(np.uint8)
    _put(kinds, row[:, None], places[:, [0, 1, 0, 1]], FIRST)
    return kinds


def _path(distance: Ints, shape: Shape, generator: np.random.Generator) -> Kinds:
    """A path that wanders from side to side, with one gap; two marks on it, the gap between them or beside them."""
    groups, (height, width) = len(distance), shape
    steps = generator.integers(-1, 2, (groups, width))
    steps[:, 0] = generator.integers(0, height, groups)
    walk = steps.cumsum(1) % (2 * height - 2)
    rows = np.minimum(walk, 2 * height - 2 - walk)  # turned back at the border
    kinds = _blank(groups, 4, shape)
    index = np.arange(groups)[:, None, None], np.arange(4)[:, None]
    kinds[*index, rows[:, None], np.arange(width)] = SECOND
    left = generator.integers(0, width - 2 * distance)
    ends = np.stack([left, left + 2 * distance], 1)
    near = (distance + 1) // 2
    gaps = np.stack([left + near, left + 2 * distance - near], 1)
    group = np.arange(groups)[:, None]
    for cols, kind in (
        (gaps[:, [1, 0, 0, 1]], BACKGROUND),
        (ends[:, [0, 1, 0, 1]], FIRST),
        ((left + distance)[:, None].repeat(4, 1), FIRST),
    ):
        _put(kinds, rows[group, cols], cols, kind)
    return kinds


_BALANCED = (1, 1, 0, 0)
RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            "same-column", "two marks in one column, or off by 1 to 3", _same_column, _BALANCED,
            lambda d: (d + 1, OFFSETS + 1), 1, (1, 6), (1, 2, 3, 4, 6, 8, 12, 16), 3,
        ),
        Relation(
            "same-row", "two marks in one row, or off by 1 to 3", _same_row, _BALANCED,
            lambda d: (OFFSETS + 1, d + 1), 1, (1, 6), (1, 2, 3, 4, 6, 8, 12, 16), 3,
        ),
        Relation(
            "quadrant", "the second mark in a diagonal or an anti-diagonal quadrant of the first", _quadrant, _BALANCED,
            lambda d: (2 * d + 1, 2 * d + 1), 1, (1, 6), (1, 2, 3, 4, 6, 8, 12), 3,
        ),
        Relation(
            "order", "of two kinds of mark in one row, which is on the left", _order, (1, 0),
            lambda d: (1, d + 1), 1, (1, 6), (1, 2, 3, 4, 6, 8, 12, 16), 3,
        ),
        Relation(
            "margin", "a band follows a margin at a distance, or has its tongue elsewhere", _margin, _BALANCED,
            lambda d: (d + 2 * TONGUE + 1, 12), 3, (3, 6), (3, 4, 5, 6, 8, 12, 16), 5,
        ),
        Relation(
            "enclosure", "a mark inside a closed ring, or outside", _enclosure, _BALANCED,
            lambda d: (2 * d + 1, 4 * d + 1), 1, (1, 4), (1, 2, 3, 4, 6, 8), 3,
        ),
        Relation(
            "path", "the path between two marks is whole or broken", _path, _BALANCED,
            lambda d: (2, 2 * d + 1), 2, (2, 6), (2, 3, 4, 5, 6, 8, 12), 6,
        ),
    )
}  # fmt: skip


def main() -> None:
    """The command line; training needs torch and the library."""
    from relation_runs import main as run

    run()


if __name__ == "__main__":
    main()
