"""A receptive field in numbers, on fields of which they are known."""

import math

import numpy as np
import pytest
from known_fields import field_of

from wsi2d.errors import ModelError
from wsi2d.explain.receptive_field import ReceptiveField
from wsi2d.explain.receptive_summary import summarise


def test_a_single_point() -> None:
    grid = np.zeros((5, 5))
    grid[2, 2] = 7.0
    field = field_of(grid)
    found = summarise(field)
    assert field.single_point
    assert (found.radius_50, found.radius_90, found.reach) == (0, 0, 0)
    assert found.within[0] == (0, 1.0)
    assert found.sectors["centre"] == 1
    assert math.isnan(found.row_to_column)
    assert (found.spread_across, found.spread_down) == (0, 0)


def test_an_even_square() -> None:
    found = summarise(field_of(np.full((5, 5), 3.0)))
    assert found.row_to_column == pytest.approx(1)
    assert (found.arm, found.row_mean) == (2, pytest.approx(1 / 25))
    assert found.sectors == {
        name: pytest.approx((1 if name == "centre" else 4 if "_" in name else 2) / 25) for name in found.sectors
    }
    assert sum(found.sectors.values()) == pytest.approx(1)
    assert found.within == ((0, 1 / 25), (1, pytest.approx(5 / 25)), (2, pytest.approx(13 / 25)), (4, pytest.approx(1)))
    assert (found.radius_50, found.radius_90) == (2, pytest.approx(8**0.5))  # 21 of 25 lie within √5
    assert found.spread_across == found.spread_down == pytest.approx(2**0.5)


def test_a_stripe() -> None:
    """Nine cells of 1 in a row, among zeros."""
    grid = np.zeros((5, 9))
    grid[2] = 1.0
    found = summarise(field_of(grid))
    assert found.row_to_column == math.inf
    assert (found.arm, found.row_mean, found.column_mean) == (2, pytest.approx(1 / 9), 0)
    assert found.sectors["left"] == found.sectors["right"] == pytest.approx(4 / 9)
    assert (found.radius_50, found.radius_90, found.reach) == (2, 4, 4)
    assert (found.spread_across, found.spread_down) == (pytest.approx((60 / 9) ** 0.5), 0)


def test_row_and_column_are_compared_as_far_as_both_were_seen() -> None:
    """What lies farther out, where a column was never looked at, does not lower the row's mean."""
    grid = np.full((3, 9), np.nan)
    grid[1] = [0, 0, 0, 2, 1, 2, 0, 0, 0]
    grid[:, 4] = [2, 1, 2]
    found = summarise(field_of(grid))
    assert (found.arm, found.row_to_column) == (1, pytest.approx(1))
    only_row = summarise(field_of(grid[1:2]))
    assert only_row.arm == 0
    assert math.isnan(only_row.row_to_column)


def test_cells_never_seen_are_no_zeros() -> None:
    grid = np.full((3, 3), np.nan)
    grid[1, 1], grid[0, 0] = 1.0, 1.0
    found = summarise(field_of(grid))
    assert found.sectors["upper_left"] == 0.5
    assert found.radius_90 == pytest.approx(2**0.5)


@pytest.mark.parametrize(("value", "words"), [(0.0, "zero everywhere"), (math.nan, "not finite"), (math.inf, "finite")])
def test_fields_that_are_none(value: float, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        ReceptiveField(np.zeros((1, 2), np.int64), np.array([value]), np.ones(1, np.int64), 1, 1)
