"""What a receptive field comes to in numbers: how far it reaches, and whether alike in both dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi2d.explain.receptive_field import ReceptiveField

SECTORS = (
    ("upper_left", "up", "upper_right"),
    ("left", "centre", "right"),
    ("lower_left", "down", "lower_right"),
)


@dataclass(frozen=True)
class FieldSummary:
    """A receptive field in numbers; lengths in cells.

    Attributes:
        radius_50, radius_90: within which half, and nine tenths, of the gradient lie.
        reach: distance of the farthest patch with any gradient.
        within: pairs of a radius (0, 1, 2, 4, …) and the share of the gradient no farther than that.
        arm: how far from the centre row and column are compared: as far as both were seen.
        row_mean, column_mean: mean share of a cell on the centre's row, and on its column, the centre left out; NaN
            where only a row or only a column was seen.
        row_to_column: their ratio: 1 where both dimensions count alike; above 1 the row counts for more.
        spread_across, spread_down: root mean square offset along rows, and along columns.
        sectors: shares of the centre, of the four arms of the cross through it, and of the quadrants between these.
    """

    radius_50: float
    radius_90: float
    reach: float
    within: tuple[tuple[int, float], ...]
    arm: int
    row_mean: float
    column_mean: float
    row_to_column: float
    spread_across: float
    spread_down: float
    sectors: dict[str, float]


def summarise(field: ReceptiveField) -> FieldSummary:
    """The numbers of a field."""
    share, (down, across) = field.share, field.offsets.T
    arm, row, column = _arms(field)
    return FieldSummary(
        radius_50=field.radius_of(0.5),
        radius_90=field.radius_of(0.9),
        reach=field.reach,
        within=tuple((radius, field.within(radius)) for radius in _radii(float(field.distance.max()))),
        arm=arm,
        row_mean=row,
        column_mean=column,
        row_to_column=_ratio(row, column),
        spread_across=math.sqrt(float(share @ across.astype(np.float64) ** 2)),
        spread_down=math.sqrt(float(share @ down.astype(np.float64) ** 2)),
        sectors=_sectors(share, field.offsets),
    )


def _radii(farthest: float) -> list[int]:
    """0, 1, 2, 4 … up to the first that takes in all."""
    radii = [0]
    while radii[-1] < farthest:
        radii.append(max(1, 2 * radii[-1]))
    return radii


def _arms(field: ReceptiveField) -> tuple[int, float, float]:
    """How far row and column are compared, and the mean share of a cell on each."""
    down, across = field.offsets.T
    on_row, on_column = (down == 0) & (across != 0), (across == 0) & (down != 0)
    if not (on_row.any() and on_column.any()):
        return 0, math.nan, math.nan
    arm = int(min(abs(across[on_row]).max(), abs(down[on_column]).max()))
    means = [float(field.share[on & (field.distance <= arm)].mean()) for on in (on_row, on_column)]
    return arm, means[0], means[1]


def _ratio(row: float, column: float) -> float:
    """NaN where there is neither."""
    if column > 0:
        return row / column
    return math.inf if row > 0 else math.nan


def _sectors(share: NDArray[np.float64], offsets: NDArray[np.int64]) -> dict[str, float]:
    signs = np.sign(offsets)
    return {
        name: float(share[(signs == (down - 1, across - 1)).all(1)].sum())
        for down, names in enumerate(SECTORS)
        for across, name in enumerate(names)
    }
