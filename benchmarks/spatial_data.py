"""Pictures that ship inside well-known packages, as grids of cells: digits, faces, and mosaics of stained tissue.

A mosaic is put together of cells cut from scikit-image's immunohistochemistry picture and embedded with the library's
own encoder. Mosaics come in pairs, one of each class, of the very same cells: only the arrangement differs. Folds are
strips of the picture, and each mosaic takes its cells from one strip, so no pixel is trained and tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CELL_PX = 48  # the smallest patch that the encoder takes
STRIDE_PX = 12
STRIPS = 5
_STAINED, _PALE = 0.08, 0.05  # mean DAB, as scikit-image unmixes it, of stained cells at least, of pale ones at most

Places = NDArray[np.bool_]


@dataclass(frozen=True)
class GridData:
    """Labelled grids, all of one size.

    Attributes:
        name, about: for tables.
        grids: float32 ``[N, height, width, dim]``.
        labels: int64 ``[N]``.
        strips: int64 ``[N]``, the strip of the picture from which a grid was made, which is its fold; None where folds
            are drawn.
    """

    name: str
    about: str
    grids: Tensor
    labels: Tensor
    strips: Tensor | None = None

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.labels.max()) + 1

    @property
    def cases(self) -> Tensor:
        """What a grid is drawn with where intervals are made, int64 ``[N]``: itself, or its pair of mosaics."""
        return torch.arange(len(self.labels)) // (1 if self.strips is None else 2)

    @property
    def strata(self) -> Tensor:
        """Within what it is drawn, int64 ``[N]``: its class, or its strip."""
        return self.labels if self.strips is None else self.strips

    def folds(self, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training and test side of each fold, as int64 places in ``labels``; stratified by class.

        Args:
            count: how many folds.
            seed: of the folds, where they are drawn.

        Raises:
            ValueError: there are not as many strips as folds.
        """
        from sklearn.model_selection import StratifiedKFold

        if self.strips is not None:
            if count != STRIPS:
                raise ValueError(f"{self.name}: is made from {STRIPS} strips and has as many folds, not {count}")
            for strip in range(count):
                test = self.strips == strip
                yield (~test).nonzero()[:, 0], test.nonzero()[:, 0]
            return
        cut = StratifiedKFold(count, shuffle=True, random_state=seed)
        for train, test in cut.split(self.labels, self.labels):
            yield torch.from_numpy(train), torch.from_numpy(test)


def digits(*, tuning: bool) -> GridData:
    """1,797 handwritten digits, a cell a pixel; the same for tuning."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grids = torch.from_numpy(found.images / 16).float().unsqueeze(-1)
    return GridData("digits", "scikit-learn's load_digits, 10 classes, 8×8", grids, torch.from_numpy(found.target))


def faces(*, tuning: bool) -> GridData:
    """100 faces and 100 pictures without one, a cell a pixel; the same for tuning."""
    from skimage import data

    grids = torch.from_numpy(data.lfw_subset()).float().unsqueeze(-1)
    labels = (torch.arange(len(grids)) < 100).long()  # the first half are faces
    return GridData("faces", "scikit-image's lfw_subset, face or not, 25×25", grids, labels)


def nests(*, tuning: bool) -> GridData:
    """Stained cells in one compact nest, or scattered: easy for a convolution."""
    about = "mosaics: stained cells in a nest or scattered, 12×12; neighbours tell, so a convolution should do"
    return mosaics("nests", about, nest_or_scattered, pairs=100, seed=0, tuning=tuning)


def margins(*, tuning: bool) -> GridData:
    """A ring of stained cells around the nest, or beside it: no neighbourhood of a few cells tells."""
    about = "mosaics: a ring of stained cells around the nest or beside it, 16×16; neighbours alone do not tell"
    return mosaics("margins", about, ring_around_or_beside, pairs=200, seed=1, tuning=tuning)


DATA: dict[str, Callable[..., GridData]] = {"digits": digits, "faces": faces, "nests": nests, "margins": margins}
"""Called with ``tuning``, whether for the choice of rates or for what is reported."""


# --- mosaics -------------------------------------------------------------------------------------------------------


def mosaics(
    name: str,
    about: str,
    arrange: Callable[[np.random.Generator], tuple[Places, Places]],
    *,
    pairs: int,
    seed: int,
    tuning: bool,
) -> GridData:
    """Pairs of mosaics of the same cells, one after the other.

    Args:
        name, about: for tables.
        arrange: draws where stained cells are, bool ``[rows, cols]``, in a mosaic of class 0 and in one of class 1; as
            many in both.
        pairs: how many, dealt out over the strips.
        seed: of all draws.
        tuning: other draws, from level strips instead of upright ones.
    """
    generator = np.random.default_rng([seed, tuning])
    grids, strips = [], []
    for pair in range(pairs):
        stained, pale = strip_cells(pair % STRIPS, level=tuning)
        both = arrange(generator)
        count, size = int(both[0].sum()), both[0].size
        chosen = stained[generator.integers(len(stained), size=count)]
        others = pale[generator.integers(len(pale), size=size - count)]
        for places in both:
            grids.append(_filled(places, generator.permutation(chosen), generator.permutation(others)))
            strips.append(pair % STRIPS)
    labels = torch.arange(2 * pairs) % 2
    return GridData(name, about, torch.stack(grids), labels, torch.tensor(strips))


def _filled(places: Places, stained: NDArray[np.float32], pale: NDArray[np.float32]) -> Tensor:
    """A mosaic ``[rows, cols, dim]`` with stained cells at these places and pale ones at all others."""
    grid = np.empty((*places.shape, stained.shape[1]), np.float32)
    grid[places], grid[~places] = stained, pale
    return torch.from_numpy(grid)


@cache
def strip_cells(strip: int, *, level: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings ``[cells, dim]`` of the stained and of the pale cells of one strip of the picture."""
    from skimage import color, data

    from wsi2d.features.histology_stats import HistologyStats

    picture = data.immunohistochemistry()
    corners = cell_corners(strip, picture.shape[:2], level=level)
    cells = np.stack([picture[y : y + CELL_PX, x : x + CELL_PX] for y, x in corners])
    dab = color.rgb2hed(picture)[..., 2]
    amount = np.array([dab[y : y + CELL_PX, x : x + CELL_PX].mean() for y, x in corners])
    embedded = HistologyStats().encode(torch.from_numpy(cells)).numpy()
    return embedded[amount >= _STAINED], embedded[amount <= _PALE]


def cell_corners(strip: int, shape: tuple[int, int], *, level: bool) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the cells of a strip, upright or level, none of which reaches into another strip."""
    along, across = (shape[1], shape[0]) if level else shape
    first, end = strip * across // STRIPS, (strip + 1) * across // STRIPS
    corners = [
        (y, x) for y in range(0, along - CELL_PX + 1, STRIDE_PX) for x in range(first, end - CELL_PX + 1, STRIDE_PX)
    ]
    return [(x, y) for y, x in corners] if level else corners


# --- arrangements --------------------------------------------------------------------------------------------------


def nest_or_scattered(generator: np.random.Generator, side: int = 12, count: int = 21) -> tuple[Places, Places]:
    """Stained cells anywhere (0), or as the cells nearest to one place (1)."""
    scattered = np.zeros(side * side, bool)
    scattered[generator.permutation(side * side)[:count]] = True
    nearest = _distance(side, generator.uniform(3, side - 4, 2)).ravel().argsort(kind="stable")[:count]
    nest = np.zeros(side * side, bool)
    nest[nearest] = True
    return scattered.reshape(side, side), nest.reshape(side, side)


RING = (3.5, 4.5)  # nearest and farthest centre of a cell of the ring from the ring's own, cells
NEST = 1.5
APART = 7.0  # least distance of nest and ring where the ring is beside the nest


def ring_around_or_beside(generator: np.random.Generator, side: int = 16) -> tuple[Places, Places]:
    """A nest with a ring of single cells beside it (0), or around it (1).

    The two places that a pair of mosaics needs are drawn so that either may be which: where the nest is, and where the
    ring is, is distributed alike in both classes; only where they are to each other differs.
    """
    while True:
        nest, other = generator.integers(4, side - 4, (2, 2))
        if np.hypot(*(nest - other)) >= APART:
            break
    own, near = _distance(side, nest), _distance(side, other)
    core = own <= NEST
    around, beside = ((d >= RING[0]) & (d <= RING[1]) for d in (own, near))
    return core | beside, core | around


def _distance(side: int, centre: NDArray[np.generic]) -> NDArray[np.float64]:
    """Of each cell's centre from a place (row, col), cells."""
    rows, cols = np.mgrid[:side, :side]
    found: NDArray[np.float64] = np.hypot(rows - centre[0], cols - centre[1])
    return found
