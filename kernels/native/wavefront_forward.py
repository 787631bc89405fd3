"""The 2D wavefront scan on the CPU, forward, for some images and channels, in numba.

It walks strips of columns from left to right and each strip from top to bottom. h of a row of the strip lies in a
buffer, where that of the next row takes its place cell by cell: a cell finds what is above it in its own place, and
what is on its left in the place before.

This module needs numba. What it is given: :mod:`wsi2d.kernels.native.wavefront_plan`.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import types

from wsi2d.kernels.native.cells import (
    BLOCK,
    LONG_STRIP,
    are_small,
    index,
    largest_rate,
    load_channels,
    smaller,
    state_at,
    states_of,
    store_channels,
    strip_of,
)
from wsi2d.kernels.native.functions import absolute, larger
from wsi2d.kernels.native.jit import inlined, kernel
from wsi2d.kernels.native.simd import (
    LANES,
    STATES,
    align_stack,
    fma,
    full,
    load,
    load_block,
    prefetch,
    spread,
    store,
    zeros,
)
from wsi2d.kernels.native.wavefront_plan import advance, grid, parameters_of, shape_of, weight


class Line(NamedTuple):
    """Addresses of what is known of a strip's row: of each cell a vector of both steps, w times both steps times x
    (w: see :func:`weight`), and y."""

    step_t: int
    step_l: int
    drive_t: int
    drive_l: int
    y: int


@kernel(types.int64(types.int64[::1]))
def scratch(plan):
    """Floats that :func:`run` needs beside its arguments."""
    shape = shape_of(plan)
    return 5 * LONG_STRIP * LANES + (shape.height + strip_of(shape.height) + 1) * shape.states * BLOCK


@inlined
def _load_line(grids, line, skip, where, row, left, width):
    """Steps and weighted drives of a row, y with the skip alone; the row below is asked for. Returns how large both
    steps are at most."""
    x, delta_t, delta_l, out = grids
    image, channel, count = where
    most_t, most_l = full(0.0), full(0.0)
    for j in range(width):
        at_x = index(x, image, row, left + j) + channel
        at_t = index(delta_t, image, row, left + j) + channel
        at_l = index(delta_l, image, row, left + j) + channel
        x_ij = load_channels(x, at_x, count)
        t_ij, l_ij = load_channels(delta_t, at_t, count), load_channels(delta_l, at_l, count)
        most_t, most_l = larger(absolute(t_ij), most_t), larger(absolute(l_ij), most_l)
        store(line.step_t, j * LANES, t_ij)
        store(line.step_l, j * LANES, l_ij)
        weighted = weight(row, left + j) * x_ij
        store(line.drive_t, j * LANES, t_ij * weighted)
        store(line.drive_l, j * LANES, l_ij * weighted)
        store(line.y, j * LANES, skip * x_ij)
        prefetch(x.address, at_x + x.row)
        prefetch(delta_t.address, at_t + delta_t.row)
        prefetch(delta_l.address, at_l + delta_l.row)
        prefetch(out.address, index(out, image, row, left + j) + channel)
    return most_t, most_l


@inlined
def _scan_line(line, h, A_t, A_l, B_t, B_l, C, row, left, width, small):
    """h along a row of a strip and its share of y, for one block of states.

    ``h``, which begins with h on the row's left, and both rates are each an address and an index.
    """
    for j in range(width):
        y = load(line.y, j * LANES)
        for k in range(STATES):
            rates_t, rates_l = (A_t[0], A_t[1] + k * LANES), (A_l[0], A_l[1] + k * LANES)
            back = h[0], h[1] + j * BLOCK + k * LANES
            above = h[0], back[1] + BLOCK
            T_ij, L_ij, C_ij = state_at(B_t, j, k), state_at(B_l, j, k), state_at(C, j, k)
            _, _, h_ij = advance(line, j * LANES, row, left + j, rates_t, rates_l, T_ij, L_ij, above, back, small)
            store(above[0], above[1], h_ij)
            y = fma(spread(C_ij[0], C_ij[1]), h_ij, y)
        store(line.y, j * LANES, y)


@kernel(types.void(types.int64[::1], types.int64, types.int64, types.int64))
def run(plan, first, last, scratch):
    """Units ``first`` to ``last``; ``scratch`` is an address."""
    align_stack()
    shape, parameters = shape_of(plan), parameters_of(plan)
    x, delta_t, delta_l = grid(plan, 0), grid(plan, 1), grid(plan, 2)
    B_t, B_l, C, out = grid(plan, 3), grid(plan, 4), grid(plan, 5), grid(plan, 6)
    channel_blocks = (shape.dim + LANES - 1) // LANES
    strip = strip_of(shape.height)
    size = 4 * LONG_STRIP * LANES
    line = Line(scratch, scratch + size, scratch + 2 * size, scratch + 3 * size, scratch + 4 * size)
    edge = scratch + 5 * size  # h at the strip's right edge, [row, states]
    rows = edge + 4 * shape.height * shape.states * BLOCK  # h of a row, [states, 1 + column of the strip]

    for unit in range(first, last):
        image, channels = unit // channel_blocks, unit % channel_blocks
        channel = channels * LANES
        where = (image, channel, shape.dim - channel)
        skip = load(parameters.D, channel)
        rates = channels * shape.states * BLOCK
        largest_t = largest_rate(parameters.A_t + 4 * rates, shape.states)
        largest_l = largest_rate(parameters.A_l + 4 * rates, shape.states)
        for left in range(0, shape.width, strip):
            width = smaller(strip, shape.width - left)
            for i in range(shape.height):
                most_t, most_l = _load_line((x, delta_t, delta_l, out), line, skip, where, i, left, width)
                small = are_small(most_t, largest_t) and are_small(most_l, largest_l)
                for n in range(shape.states):
                    at_edge, at_rates = (i * shape.states + n) * BLOCK, rates + n * BLOCK
                    h = rows, n * (strip + 1) * BLOCK
                    store(h[0], h[1], load_block(edge, at_edge) if left > 0 else zeros())
                    _scan_line(
                        line, h, (parameters.A_t, at_rates), (parameters.A_l, at_rates),
                        states_of(B_t, image, i, left, n), states_of(B_l, image, i, left, n),
                        states_of(C, image, i, left, n), i, left, width, small,
                    )  # fmt: skip
                    store(edge, at_edge, load_block(h[0], h[1] + width * BLOCK))
                for j in range(width):
                    store_channels(out, index(out, image, i, left + j) + channel, load(line.y, j * LANES), where[2])
