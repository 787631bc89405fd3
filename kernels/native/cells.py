"""What the CPU kernels share: how a tensor lies in memory, the functions of a step and a gate.

This module needs numba.
"""

from __future__ import annotations

from typing import NamedTuple

from wsi2d.kernels.native.functions import SMALL, absolute, all_below, exp, larger, positive, where_negative
from wsi2d.kernels.native.jit import inlined
from wsi2d.kernels.native.simd import LANES, STATES, fma, full, load, load_some, store, store_some

BLOCK = LANES * STATES
STRIP = 32  # columns of a strip: its row buffer lies in the first cache
LONG_STRIP = 256  # the same for a grid of one row, which has no row above it to buffer
LN_2 = 0.6931471805599453


class Grid(NamedTuple):
    """A tensor ``[image, row, column, channel or state]``: its address (0 where there is none) and strides."""

    address: int
    image: int
    row: int
    column: int


@inlined
def grid_at(plan, place):
    """The tensor whose address and strides begin at a place of a plan."""
    return Grid(plan[place], plan[place + 1], plan[place + 2], plan[place + 3])


@inlined
def index(grid, image, row, column):
    """Where the channels or states of a cell begin."""
    return image * grid.image + row * grid.row + column * grid.column


class States(NamedTuple):
    """A block of states in a row of cells: its address, where the first cell's begin, and from cell to cell."""

    address: int
    start: int
    column: int


@inlined
def states_of(grid, image, row, left, n):
    """The n-th block of states from a cell on."""
    return States(grid.address, index(grid, image, row, left) + n * STATES, grid.column)


@inlined
def state_at(states, j, k):
    """Address and index of the k-th state of the j-th cell."""
    return states.address, states.start + j * states.column + k


@inlined
def load_channels(grid, index, count):
    """A vector of channels; the last ones of all may be fewer than its lanes."""
    if count >= LANES:
        return load(grid.address, index)
    return load_some(grid.address, index, count)


@inlined
def store_channels(grid, index, value, count):
    """Write such a vector."""
    if count >= LANES:
        store(grid.address, index, value)
    else:
        store_some(grid.address, index, value, count)


@inlined
def softplus(x):
    """log(1 + e^x) = max(x, 0) + 2 artanh(t / (2 + t)) with t = e^-|x|, and its derivative 1 / (1 + e^-x)."""
    t = exp(full(0.0) - absolute(x))
    s = t / (full(2.0) + t)
    s2 = s * s
    series = full(1 / 13)
    series = fma(series, s2, full(1 / 11))
    series = fma(series, s2, full(1 / 9))
    series = fma(series, s2, full(1 / 7))
    series = fma(series, s2, full(1 / 5))
    series = fma(series, s2, full(1 / 3))
    series = fma(series, s2, full(1.0))
    return fma(series, s + s, positive(x)), where_negative(x, t, full(1.0)) / (full(1.0) + t)


@inlined
def sigmoid(x):
    """1 / (1 + e^-x)."""
    t = exp(full(0.0) - absolute(x))
    return where_negative(x, t, full(1.0)) / (full(1.0) + t)


@inlined
def smaller(a, b):
    """The smaller of two whole numbers."""
    return a if a < b else b


@inlined
def strip_of(height):
    """Columns of a strip."""
    return STRIP if height > 1 else LONG_STRIP


@inlined
def largest_rate(rates, states):
    """The largest |A| among blocks of states, a vector; ``rates`` is an address."""
    largest = full(0.0)
    for n in range(states * STATES):
        largest = larger(absolute(load(rates, n * LANES)), largest)
    return largest


@inlined
def are_small(steps, rates):
    """Whether exponents A·Δ, less one or not, are small to exp2; both are largest sizes, vectors."""
    return all_below(steps * rates, SMALL - 1.0)
