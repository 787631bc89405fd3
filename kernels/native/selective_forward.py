"""The 2D selective scan on the CPU, forward, for some images and channels, in numba.

It walks strips of columns from left to right and each strip from top to bottom. g of a strip's row lies in one place,
cell after cell, and h in a buffer of the row, where that of the next row takes its place.

This module needs numba. What it is given: :mod:`wsi2d.kernels.native.selective_plan`.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import types

from wsi2d.kernels.native.cells import (
    BLOCK,
    LONG_STRIP,
    STRIP,
    are_small,
    index,
    largest_rate,
    load_channels,
    sigmoid,
    smaller,
    softplus,
    state_at,
    states_of,
    store_channels,
    strip_of,
)
from wsi2d.kernels.native.functions import absolute, exp2, larger
from wsi2d.kernels.native.jit import inlined, kernel
from wsi2d.kernels.native.selective_plan import grid, parameters_of, shape_of
from wsi2d.kernels.native.simd import LANES, STATES, align_stack, fma, full, load, prefetch, spread, store, zeros


class Line(NamedTuple):
    """Addresses of what is known of a strip's row: of each cell a vector of the step, the step times u, and y."""

    step: int
    drive: int
    y: int


@kernel(types.int64(types.int64[::1]))
def scratch(plan):
    """Floats that :func:`run` needs beside its arguments."""
    shape = shape_of(plan)
    above = STRIP if shape.height > 1 else 0
    return 3 * LONG_STRIP * LANES + (shape.height + above) * shape.states * BLOCK


@inlined
def _load_line(shape, grids, line, skip, bias, where, row, left, width):
    """Steps and drives of a row, y with the skip alone; the row below is asked for. Returns how large steps are at
    most."""
    u, delta, out = grids
    image, channel, count = where
    most = full(0.0)
    for j in range(width):
        at_u = index(u, image, row, left + j) + channel
        at_delta = index(delta, image, row, left + j) + channel
        u_ij = load_channels(u, at_u, count)
        step = load_channels(delta, at_delta, count) + bias
        if shape.softplus:
            step = softplus(step)[0]
        most = larger(absolute(step), most)
        store(line.step, j * LANES, step)
        store(line.drive, j * LANES, step * u_ij)
        store(line.y, j * LANES, skip * u_ij)
        prefetch(u.address, at_u + u.row)
        prefetch(delta.address, at_delta + delta.row)
        prefetch(out.address, index(out, image, row, left + j) + channel)
    return most


@inlined
def _scan_line(line, g, above, A, B, C, row, height, width, small):
    """g and h along a row of a strip and its share of y, for one block of states.

    ``g`` (on the row's left, and in the end of its last cell), ``above`` (h of the row above, then of this one) and
    the rates are each an address and an index.
    """
    for j in range(width):
        y = load(line.y, j * LANES)
        for k in range(STATES):
            at_g, at_h = g[1] + k * LANES, above[1] + j * BLOCK + k * LANES
            B_ij, C_ij = state_at(B, j, k), state_at(C, j, k)
            a = exp2(load(line.step, j * LANES) * load(A[0], A[1] + k * LANES), small)
            g_ij = fma(a, load(g[0], at_g), load(line.drive, j * LANES) * spread(B_ij[0], B_ij[1]))
            store(g[0], at_g, g_ij)
            h_ij = g_ij
            if row > 0:
                h_ij = fma(a, load(above[0], at_h), g_ij)
            if row + 1 < height:
                store(above[0], at_h, h_ij)
            y = fma(spread(C_ij[0], C_ij[1]), h_ij, y)
        store(line.y, j * LANES, y)


@kernel(types.void(types.int64[::1], types.int64, types.int64, types.int64))
def run(plan, first, last, scratch):
    """Units ``first`` to ``last``; ``scratch`` is an address."""
    align_stack()
    shape, parameters = shape_of(plan), parameters_of(plan)
    u, delta, B, C = grid(plan, 0), grid(plan, 1), grid(plan, 2), grid(plan, 3)
    z, out = grid(plan, 4), grid(plan, 5)
    channel_blocks = (shape.dim + LANES - 1) // LANES
    strip = strip_of(shape.height)
    size = 4 * LONG_STRIP * LANES
    line = Line(scratch, scratch + size, scratch + 2 * size)
    edge = scratch + 3 * size  # g of the last cell of the strip that was scanned, [row, states]
    above = edge + 4 * shape.height * shape.states * BLOCK  # h of the row above, [states, column of the strip]

    for unit in range(first, last):
        image, channels = unit // channel_blocks, unit % channel_blocks
        channel = channels * LANES
        where = (image, channel, shape.dim - channel)
        skip, bias = load(parameters.D, channel), load(parameters.bias, channel)
        rates = channels * shape.states * BLOCK
        largest = largest_rate(parameters.A + 4 * rates, shape.states)
        for n in range(shape.height * shape.states):
            store(edge, n * BLOCK, zeros())
        for left in range(0, shape.width, strip):
            width = smaller(strip, shape.width - left)
            for i in range(shape.height):
                most = _load_line(shape, (u, delta, out), line, skip, bias, where, i, left, width)
                small = are_small(most, largest)
                for n in range(shape.states):
                    _scan_line(
                        line, (edge, (i * shape.states + n) * BLOCK), (above, n * strip * BLOCK),
                        (parameters.A, rates + n * BLOCK), states_of(B, image, i, left, n),
                        states_of(C, image, i, left, n), i, shape.height, width, small,
                    )  # fmt: skip
                for j in range(width):
                    y_ij = load(line.y, j * LANES)
                    if z.address:
                        z_ij = load_channels(z, index(z, image, i, left + j) + channel, where[2])
                        y_ij = y_ij * (z_ij * sigmoid(z_ij))
                    store_channels(out, index(out, image, i, left + j) + channel, y_ij, where[2])
