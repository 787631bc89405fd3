"""Contested patches to free cells: against another solver, and in blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from scipy.optimize import linear_sum_assignment

from wsi2d.features.imports import matching
from wsi2d.features.imports.matching import match


def best(places: np.ndarray, taken: np.ndarray) -> tuple[int, float]:
    """How many patches can have a cell, and the least sum of squared distances then: by trying all pairs."""
    free = np.argwhere(~taken)
    offset = np.abs(free[None] - places[:, None])
    cost = np.where((offset <= 1 + 1e-9).all(2), np.square(offset).sum(2), np.inf)
    price = 1e4
    padded = np.concatenate([np.minimum(cost, price), np.full((len(places), len(places)), price)], 1)
    rows, columns = linear_sum_assignment(padded)
    chosen = padded[rows, columns]
    return int((chosen < price).sum()), float(chosen[chosen < price].sum())


@given(
    places=some.arrays(float, st.tuples(st.integers(1, 14), st.just(2)), elements=st.integers(80, 160)),
    taken=some.arrays(bool, (12, 12)),
)
@settings(max_examples=40, deadline=None)
def test_as_many_as_can_over_the_least_distance(places: np.ndarray, taken: np.ndarray) -> None:
    places = places / 20
    before = taken.copy()
    cells = match(places, taken)
    placed = cells[:, 0] >= 0
    assert (np.abs(cells[placed] - places[placed]) <= 1 + 1e-9).all()
    assert not before[tuple(cells[placed].T)].any()
    assert len(np.unique(cells[placed], axis=0)) == placed.sum()
    assert (taken != before).sum() == placed.sum(), "cells that are given are marked"
    count, distance = best(places, before)
    assert placed.sum() == count
    assert np.square(cells[placed] - places[placed]).sum() == pytest.approx(distance, abs=1e-4)


def test_hundreds_of_rivals_for_a_few_cells() -> None:
    """More than any cell is tried on: still the nearest have the cells."""
    places = 5 + np.random.default_rng(0).random((300, 2))
    taken = np.zeros((12, 12), bool)
    expected = best(places, taken)
    cells = match(places, taken)
    placed = cells[:, 0] >= 0
    assert (int(placed.sum()), np.square(cells[placed] - places[placed]).sum()) == pytest.approx(expected, abs=1e-4)


def test_blocks_give_away_no_cell_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    places = 3 + np.random.default_rng(1).random((1500, 2)) * 34
    at_once = match(places, np.zeros((42, 42), bool))
    monkeypatch.setattr(matching, "AT_ONCE", 100)
    monkeypatch.setattr(matching, "BLOCK", 7)
    cells = match(places, np.zeros((42, 42), bool))
    placed = cells[:, 0] >= 0
    assert len(np.unique(cells[placed], axis=0)) == placed.sum()
    assert (np.abs(cells[placed] - places[placed]) <= 1 + 1e-9).all()
    assert placed.sum() >= 0.95 * (at_once[:, 0] >= 0).sum()


def test_nothing_to_match() -> None:
    assert match(np.zeros((0, 2)), np.zeros((8, 8), bool)).shape == (0, 2)
    assert (match(np.full((3, 2), 4.5), np.ones((9, 9), bool)) == -1).all()
