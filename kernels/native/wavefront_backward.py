"""The 2D wavefront scan on the CPU, backward, for some images and channels, in numba.

It has the shape of the selective scan's (:mod:`wsi2d.kernels.native.selective_backward`), with one state where that
has two.

This module needs numba. What it is given: :mod:`wsi2d.kernels.native.wavefront_plan`.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import types

from wsi2d.kernels.native.cells import (
    BLOCK,
    LN_2,
    are_small,
    index,
    largest_rate,
    load_channels,
    smaller,
    state_at,
    states_of,
    store_channels,
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
    spread_states,
    store,
    zeros,
)
from wsi2d.kernels.native.sums import add_lane_sums, add_lane_sums_of_two, dot_states
from wsi2d.kernels.native.tiles import carries_at, cut, from_above, from_the_left
from wsi2d.kernels.native.wavefront_plan import advance, grid, parameters_of, shape_of, weight

SUMS_OF_STATES = 2  # numbers of a channel and a state that are summed over cells: of both A


class Tile(NamedTuple):
    """Addresses of what is known of a tile.

    Of its cells, a vector each: both steps, w times both steps times x, x, the gradient of y; and of each step two sums
    over states that the backward makes, Σ R·B and Σ ∂L/∂(Δ·A)·A. Of the states of a block: w·aT, w·aL, and h with a
    row above it and a column to its left. The weight w is ½ inside the grid and 1 on its first row and column.
    """

    step_t: int
    step_l: int
    drive_t: int
    drive_l: int
    x: int
    q: int
    from_drive_t: int
    from_drive_l: int
    from_decay_t: int
    from_decay_l: int
    a_t: int
    a_l: int
    h: int


@inlined
def _tile(tiles, start):
    cells = 4 * tiles.height * tiles.width * LANES
    a_t = start + 10 * cells
    a_l = a_t + cells * STATES
    h = a_l + cells * STATES
    end = h + 4 * (tiles.height + 1) * (tiles.width + 1) * BLOCK
    tile = Tile(
        start, start + cells, start + 2 * cells, start + 3 * cells, start + 4 * cells, start + 5 * cells,
        start + 6 * cells, start + 7 * cells, start + 8 * cells, start + 9 * cells, a_t, a_l, h,
    )  # fmt: skip
    return tile, end


@kernel(types.int64(types.int64[::1]))
def scratch(plan):
    """Floats that :func:`run` needs beside its arguments."""
    shape = shape_of(plan)
    tiles = cut(shape.height, shape.width)
    _, end = carries_at(shape, tiles, 0)
    _, end = _tile(tiles, end)
    return (end + 16 * shape.states * BLOCK) // 4


@inlined
def _load_steps(shape, x, delta_t, delta_l, tile, tiles, where, top, left):
    """Steps, weighted drives and x of a tile. Returns how large both steps are at most."""
    image, channel, count = where
    most_t, most_l = full(0.0), full(0.0)
    for i in range(smaller(tiles.height, shape.height - top)):
        for j in range(smaller(tiles.width, shape.width - left)):
            at = (i * tiles.width + j) * LANES
            at_x = index(x, image, top + i, left + j) + channel
            at_t = index(delta_t, image, top + i, left + j) + channel
            at_l = index(delta_l, image, top + i, left + j) + channel
            prefetch(x.address, at_x + x.row)
            prefetch(delta_t.address, at_t + delta_t.row)
            prefetch(delta_l.address, at_l + delta_l.row)
            x_ij = load_channels(x, at_x, count)
            t_ij, l_ij = load_channels(delta_t, at_t, count), load_channels(delta_l, at_l, count)
            most_t, most_l = larger(absolute(t_ij), most_t), larger(absolute(l_ij), most_l)
            store(tile.step_t, at, t_ij)
            store(tile.step_l, at, l_ij)
            weighted = weight(top + i, left + j) * x_ij
            store(tile.drive_t, at, t_ij * weighted)
            store(tile.drive_l, at, l_ij * weighted)
            store(tile.x, at, x_ij)
    return most_t, most_l


@inlined
def _load_gradient(shape, grad_out, read, sums, tile, tiles, where, top, left):
    """∂L/∂y of a tile, and the backward's sums before any state; what will be read of states (both B and C) and summed
    for them is asked for."""
    image, channel, count = where
    B_t, B_l, C = read
    for i in range(smaller(tiles.height, shape.height - top)):
        for j in range(smaller(tiles.width, shape.width - left)):
            at = (i * tiles.width + j) * LANES
            at_q = index(grad_out, image, top + i, left + j) + channel
            prefetch(grad_out.address, at_q + grad_out.row)
            at_sums = ((image * shape.height + top + i) * shape.width + left + j) * shape.states * STATES
            for n in range(0, shape.states * STATES, LANES):
                prefetch(B_t.address, index(B_t, image, top + i, left + j) + n)
                prefetch(B_l.address, index(B_l, image, top + i, left + j) + n)
                prefetch(C.address, index(C, image, top + i, left + j) + n)
                prefetch(sums[0], at_sums + n)
                prefetch(sums[1], at_sums + n)
                prefetch(sums[2], at_sums + n)
            store(tile.q, at, load_channels(grad_out, at_q, count))
            store(tile.from_drive_t, at, full(0.0))
            store(tile.from_drive_l, at, full(0.0))
            store(tile.from_decay_t, at, full(0.0))
            store(tile.from_decay_l, at, full(0.0))


@inlined
def _keep_carries(shape, tiles, carries, tile, A_t, A_l, B_t, B_l, image, top, left, n, small):
    """Run the recurrence through a tile whose steps are loaded, and keep what it carries out of it; both rates are
    each an address and an index."""
    height, width = smaller(tiles.height, shape.height - top), smaller(tiles.width, shape.width - left)
    down, across = top // tiles.height, left // tiles.width
    from_above(shape, tiles, carries, tile.h, BLOCK, top, left, n)
    for i in range(height):
        row = top + i
        store(tile.h, 0, from_the_left(shape, tiles, carries, row, left, n))
        of_t, of_l = states_of(B_t, image, row, left, n), states_of(B_l, image, row, left, n)
        for j in range(width):
            for k in range(STATES):
                rates_t, rates_l = (A_t[0], A_t[1] + k * LANES), (A_l[0], A_l[1] + k * LANES)
                back = tile.h, j * BLOCK + k * LANES
                above = tile.h, back[1] + BLOCK
                at, T_ij, L_ij = (i * tiles.width + j) * LANES, state_at(of_t, j, k), state_at(of_l, j, k)
                _, _, h = advance(tile, at, row, left + j, rates_t, rates_l, T_ij, L_ij, above, back, small)
                store(above[0], above[1], h)
        if across + 1 < tiles.across:
            at_right = ((across * shape.height + row) * shape.states + n) * BLOCK
            store(carries.row, at_right, load_block(tile.h, width * BLOCK))
    if down + 1 < tiles.down:
        at_below = ((down * shape.states + n) * shape.width + left) * BLOCK
        for j in range(width):
            store(carries.column, at_below + j * BLOCK, load_block(tile.h, (j + 1) * BLOCK))


@inlined
def _recompute(shape, tiles, carries, tile, A_t, A_l, B_t, B_l, image, top, left, n, small):
    """w·aT, w·aL and h of a tile, for one block of states; both rates are each an address and an index."""
    height, width = smaller(tiles.height, shape.height - top), smaller(tiles.width, shape.width - left)
    wide = tiles.width + 1
    from_above(shape, tiles, carries, tile.h, BLOCK, top, left, n)
    for i in range(height):
        row, at_h = top + i, (i + 1) * wide
        store(tile.h, at_h * BLOCK, from_the_left(shape, tiles, carries, row, left, n))
        of_t, of_l = states_of(B_t, image, row, left, n), states_of(B_l, image, row, left, n)
        for j in range(width):
            at = i * tiles.width + j
            for k in range(STATES):
                rates_t, rates_l = (A_t[0], A_t[1] + k * LANES), (A_l[0], A_l[1] + k * LANES)
                above = tile.h, (at_h - wide + j + 1) * BLOCK + k * LANES
                back = tile.h, (at_h + j) * BLOCK + k * LANES
                T_ij, L_ij = state_at(of_t, j, k), state_at(of_l, j, k)
                a_t, a_l, h = advance(tile, at * LANES, row, left + j, rates_t, rates_l, T_ij, L_ij, above, back, small)
                store(tile.a_t, at * BLOCK + k * LANES, a_t)
                store(tile.a_l, at * BLOCK + k * LANES, a_l)
                store(tile.h, back[1] + BLOCK, h)


@inlined
def _reverse(shape, tiles, carries, tile, A_t, A_l, B_t, B_l, C, sums, image, top, left, n):
    """R through a tile, from its last cell to its first, for one block of states; returns its shares of ∂A."""
    rates_t, rates_l = load_block(A_t[0], A_t[1]), load_block(A_l[0], A_l[1])
    height, width = smaller(tiles.height, shape.height - top), smaller(tiles.width, shape.width - left)
    last_row, last_column = top + height == shape.height, left + width == shape.width
    wide = tiles.width + 1
    grad_A_t, grad_A_l = zeros(), zeros()
    for i in range(height - 1, -1, -1):
        at_back = (i * shape.states + n) * BLOCK
        back = zeros() if last_column else load_block(carries.back, at_back)
        of_t, of_l = states_of(B_t, image, top + i, left, n), states_of(B_l, image, top + i, left, n)
        of_C = states_of(C, image, top + i, left, n)
        at_sums = (((image * shape.height + top + i) * shape.width + left) * shape.states + n) * STATES
        at_up = (n * shape.width + left) * BLOCK
        for j in range(width - 1, -1, -1):
            at, at_h = i * tiles.width + j, (i + 1) * wide + j + 1
            first_row, first_column = top + i == 0, left + j == 0
            q = load(tile.q, at * LANES)
            T_ij, L_ij, C_ij = state_at(of_t, j, 0), state_at(of_l, j, 0), state_at(of_C, j, 0)
            R = q * spread_states(C_ij[0], C_ij[1])
            if not (last_row and i + 1 == height):
                R = R + load_block(carries.up, at_up + j * BLOCK)
            R = R + back
            back, grad_C = zeros(), load_block(tile.h, at_h * BLOCK) * q
            at_cell = at_sums + j * shape.states * STATES
            if not first_row:
                up = R * load_block(tile.a_t, at * BLOCK)
                store(carries.up, at_up + j * BLOCK, up)
                from_a = up * load_block(tile.h, (at_h - wide) * BLOCK)
                grad_A_t = fma(from_a, load(tile.step_t, at * LANES), grad_A_t)
                store(tile.from_decay_t, at * LANES, dot_states(from_a, rates_t, load(tile.from_decay_t, at * LANES)))
                B_n = spread_states(T_ij[0], T_ij[1])
                store(tile.from_drive_t, at * LANES, dot_states(R, B_n, load(tile.from_drive_t, at * LANES)))
                add_lane_sums_of_two(sums[0], sums[2], at_cell, R * load(tile.drive_t, at * LANES), grad_C)
            else:
                add_lane_sums(sums[2], at_cell, grad_C)
            if first_row or not first_column:
                back = R * load_block(tile.a_l, at * BLOCK)
                from_a = back * load_block(tile.h, (at_h - 1) * BLOCK)
                grad_A_l = fma(from_a, load(tile.step_l, at * LANES), grad_A_l)
                store(tile.from_decay_l, at * LANES, dot_states(from_a, rates_l, load(tile.from_decay_l, at * LANES)))
                B_n = spread_states(L_ij[0], L_ij[1])
                store(tile.from_drive_l, at * LANES, dot_states(R, B_n, load(tile.from_drive_l, at * LANES)))
                add_lane_sums(sums[1], at_cell, R * load(tile.drive_l, at * LANES))
        store(carries.back, at_back, back)
    return grad_A_t, grad_A_l


@inlined
def _store_gradients(shape, parameters, grad_x, grad_delta_t, grad_delta_l, tile, tiles, where, top, left):
    """∂x and the gradients of both steps of a tile; returns its share of ∂D."""
    image, channel, count = where
    skip, grad_D = load(parameters.D, channel), full(0.0)
    for i in range(smaller(tiles.height, shape.height - top)):
        for j in range(smaller(tiles.width, shape.width - left)):
            at = (i * tiles.width + j) * LANES
            x_ij, q = load(tile.x, at), load(tile.q, at)
            w = weight(top + i, left + j)
            drive_t, drive_l = w * load(tile.from_drive_t, at), w * load(tile.from_drive_l, at)
            from_t = fma(load(tile.from_decay_t, at), full(LN_2), drive_t * x_ij)
            from_l = fma(load(tile.from_decay_l, at), full(LN_2), drive_l * x_ij)
            from_x = fma(drive_t, load(tile.step_t, at), fma(drive_l, load(tile.step_l, at), skip * q))
            at_x = index(grad_x, image, top + i, left + j) + channel
            at_t = index(grad_delta_t, image, top + i, left + j) + channel
            at_l = index(grad_delta_l, image, top + i, left + j) + channel
            prefetch(grad_x.address, at_x + grad_x.row)
            prefetch(grad_delta_t.address, at_t + grad_delta_t.row)
            prefetch(grad_delta_l.address, at_l + grad_delta_l.row)
            store_channels(grad_x, at_x, from_x, count)
            store_channels(grad_delta_t, at_t, from_t, count)
            store_channels(grad_delta_l, at_l, from_l, count)
            grad_D = fma(q, x_ij, grad_D)
    return grad_D


@kernel(
    types.void(
        types.int64[::1], types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, types.int64
    )
)
def run(plan, first, last, scratch, sums_B_t, sums_B_l, sums_C, sums):
    """Units ``first`` to ``last``; the others are addresses.

    Adds to ``sums_B_t``, ``sums_B_l`` and ``sums_C`` ``[image, row, column, states · STATES]``, and writes the shares
    that a unit has of the gradients of both A and of D to ``sums`` ``[unit, 2 · states · STATES + 1, lanes]``.
    """
    align_stack()
    shape, parameters = shape_of(plan), parameters_of(plan)
    x, delta_t, delta_l = grid(plan, 0), grid(plan, 1), grid(plan, 2)
    B_t, B_l, C, grad_out = grid(plan, 3), grid(plan, 4), grid(plan, 5), grid(plan, 6)
    grad_x, grad_delta_t, grad_delta_l = grid(plan, 7), grid(plan, 8), grid(plan, 9)
    channel_blocks = (shape.dim + LANES - 1) // LANES
    tiles = cut(shape.height, shape.width)
    carries, end = carries_at(shape, tiles, scratch)
    tile, end = _tile(tiles, end)
    row_sums = end  # ∂A of a row of tiles: sums of sums keep their small terms
    of_states = shape.states * BLOCK
    sums_of_states = (sums_B_t, sums_B_l, sums_C)

    for unit in range(first, last):
        image, channels = unit // channel_blocks, unit % channel_blocks
        channel = channels * LANES
        where = (image, channel, shape.dim - channel)
        rates = channels * of_states
        largest_t = largest_rate(parameters.A_t + 4 * rates, shape.states)
        largest_l = largest_rate(parameters.A_l + 4 * rates, shape.states)
        unit_sums = sums + 4 * unit * (2 * of_states + LANES)
        for n in range(2 * shape.states):
            store(unit_sums, n * BLOCK, zeros())
        for top in range(0, shape.height, tiles.height):
            for left in range(0, shape.width, tiles.width):
                if top + tiles.height < shape.height or left + tiles.width < shape.width:
                    most_t, most_l = _load_steps(shape, x, delta_t, delta_l, tile, tiles, where, top, left)
                    small = are_small(most_t, largest_t) and are_small(most_l, largest_l)
                    for n in range(shape.states):
                        A_t, A_l = (parameters.A_t, rates + n * BLOCK), (parameters.A_l, rates + n * BLOCK)
                        _keep_carries(shape, tiles, carries, tile, A_t, A_l, B_t, B_l, image, top, left, n, small)
        grad_D = full(0.0)
        for top in range((tiles.down - 1) * tiles.height, -1, -tiles.height):
            for n in range(2 * shape.states):
                store(row_sums, n * BLOCK, zeros())
            for left in range((tiles.across - 1) * tiles.width, -1, -tiles.width):
                most_t, most_l = _load_steps(shape, x, delta_t, delta_l, tile, tiles, where, top, left)
                small = are_small(most_t, largest_t) and are_small(most_l, largest_l)
                _load_gradient(shape, grad_out, (B_t, B_l, C), sums_of_states, tile, tiles, where, top, left)
                for n in range(shape.states):
                    A_t, A_l = (parameters.A_t, rates + n * BLOCK), (parameters.A_l, rates + n * BLOCK)
                    _recompute(shape, tiles, carries, tile, A_t, A_l, B_t, B_l, image, top, left, n, small)
                    shares = _reverse(
                        shape, tiles, carries, tile, A_t, A_l, B_t, B_l, C, sums_of_states, image, top, left, n
                    )
                    store(row_sums, n * BLOCK, load_block(row_sums, n * BLOCK) + shares[0])
                    at_l = of_states + n * BLOCK
                    store(row_sums, at_l, load_block(row_sums, at_l) + shares[1])
                grad_D = grad_D + _store_gradients(
                    shape, parameters, grad_x, grad_delta_t, grad_delta_l, tile, tiles, where, top, left
                )
            for n in range(2 * shape.states):
                store(unit_sums, n * BLOCK, load_block(unit_sums, n * BLOCK) + load_block(row_sums, n * BLOCK))
        store(unit_sums, 2 * of_states, grad_D)
