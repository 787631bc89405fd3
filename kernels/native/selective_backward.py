"""The 2D selective scan on the CPU, backward, for some images and channels, in numba.

It first runs the recurrences alone and keeps what they carry across the borders of tiles, then takes the tiles from the
last to the first: it recomputes a, g and h of a tile into scratch that fits the second cache, and runs the equations in
reverse.

This module needs numba. What it is given: :mod:`wsi2d.kernels.native.selective_plan`.
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
    sigmoid,
    smaller,
    softplus,
    state_at,
    states_of,
    store_channels,
)
from wsi2d.kernels.native.functions import absolute, exp2, larger
from wsi2d.kernels.native.jit import inlined, kernel
from wsi2d.kernels.native.selective_plan import grid, parameters_of, shape_of
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
    spread_states,
    store,
    zeros,
)
from wsi2d.kernels.native.sums import add_lane_sums_of_two, dot_states
from wsi2d.kernels.native.tiles import carries_at, cut, from_above, from_the_left

SUMS_OF_STATES = 1  # numbers of a channel and a state that are summed over cells: of A


class Tile(NamedTuple):
    """Addresses of what is known of a tile.

    Of its cells, a vector each: the step, its derivative by what the softplus took, the step times u, u, and the
    gradient of y; y itself; and two sums over states that the backward makes, Σ Q·B and Σ ∂L/∂(Δ·A)·A. Of the
    states of a block: a, g with a column to its left, h with a row above it.
    """

    step: int
    slope: int
    drive: int
    u: int
    q: int
    y: int
    from_drive: int
    from_decay: int
    a: int
    g: int
    h: int


@inlined
def _tile(tiles, start):
    cells = 4 * tiles.height * tiles.width * LANES
    a = start + 8 * cells
    g = a + cells * STATES
    h = g + 4 * tiles.height * (tiles.width + 1) * BLOCK
    end = h + 4 * (tiles.height + 1) * tiles.width * BLOCK
    tile = Tile(
        start, start + cells, start + 2 * cells, start + 3 * cells, start + 4 * cells, start + 5 * cells,
        start + 6 * cells, start + 7 * cells, a, g, h,
    )  # fmt: skip
    return tile, end


@kernel(types.int64(types.int64[::1]))
def scratch(plan):
    """Floats that :func:`run` needs beside its arguments."""
    shape = shape_of(plan)
    tiles = cut(shape.height, shape.width)
    _, end = carries_at(shape, tiles, 0)
    _, end = _tile(tiles, end)
    return (end + 8 * shape.states * BLOCK) // 4


@inlined
def _load_steps(shape, parameters, u, delta, tile, tiles, where, top, left):
    """Steps, their derivatives, drives and u of a tile. Returns how large steps are at most."""
    image, channel, count = where
    most = full(0.0)
    bias = load(parameters.bias, channel)
    for i in range(smaller(tiles.height, shape.height - top)):
        for j in range(smaller(tiles.width, shape.width - left)):
            at = (i * tiles.width + j) * LANES
            at_u = index(u, image, top + i, left + j) + channel
            at_delta = index(delta, image, top + i, left + j) + channel
            prefetch(u.address, at_u + u.row)
            prefetch(delta.address, at_delta + delta.row)
            u_ij = load_channels(u, at_u, count)
            step = load_channels(delta, at_delta, count) + bias
            if shape.softplus:
                step, slope = softplus(step)
                store(tile.slope, at, slope)
            most = larger(absolute(step), most)
            store(tile.step, at, step)
            store(tile.drive, at, step * u_ij)
            store(tile.u, at, u_ij)
    return most


@inlined
def _keep_carries(shape, tiles, carries, tile, A, B, image, top, left, n, small):
    """Run the recurrences through a tile whose steps are loaded, and keep what they carry out of it; the rates are an
    address and an index."""
    height, width = smaller(tiles.height, shape.height - top), smaller(tiles.width, shape.width - left)
    down, across = top // tiles.height, left // tiles.width
    below, right = down + 1 < tiles.down, across + 1 < tiles.across
    for i in range(height):
        store(tile.g, 0, from_the_left(shape, tiles, carries, top + i, left, n))
        of_B = states_of(B, image, top + i, left, n)
        at_above = (((down - 1) * shape.states + n) * shape.width + left) * BLOCK
        at_here = at_above + shape.width * shape.states * BLOCK
        if i > 0:
            at_above = at_here
        for j in range(width):
            at = (i * tiles.width + j) * LANES
            for k in range(STATES):
                at_h, B_ij = j * BLOCK + k * LANES, state_at(of_B, j, k)
                a = exp2(load(tile.step, at) * load(A[0], A[1] + k * LANES), small)
                g = fma(a, load(tile.g, k * LANES), load(tile.drive, at) * spread(B_ij[0], B_ij[1]))
                store(tile.g, k * LANES, g)
                if below:
                    h = g
                    if top + i > 0:
                        h = fma(a, load(carries.column, at_above + at_h), g)
                    store(carries.column, at_here + at_h, h)
        if right:
            at_right = ((across * shape.height + top + i) * shape.states + n) * BLOCK
            store(carries.row, at_right, load_block(tile.g, 0))


@inlined
def _load_gradient(shape, parameters, z, grad_out, tile, tiles, where, top, left):
    """∂L/∂y of a tile, and y and the backward's sums before any state."""
    image, channel, count = where
    skip = load(parameters.D, channel)
    for i in range(smaller(tiles.height, shape.height - top)):
        for j in range(smaller(tiles.width, shape.width - left)):
            at = (i * tiles.width + j) * LANES
            at_q = index(grad_out, image, top + i, left + j) + channel
            prefetch(grad_out.address, at_q + grad_out.row)
            q = load_channels(grad_out, at_q, count)
            if z.address:
                z_ij = load_channels(z, index(z, image, top + i, left + j) + channel, count)
                q = q * (z_ij * sigmoid(z_ij))
                store(tile.y, at, skip * load(tile.u, at))
            store(tile.q, at, q)
            store(tile.from_drive, at, full(0.0))
            store(tile.from_decay, at, full(0.0))


@inlined
def _recompute(shape, tiles, carries, tile, A, B, C, gated, image, top, left, n, small):
    """a, g and h of a tile, for one block of states; the rates are an address and an index."""
    height, width = smaller(tiles.height, shape.height - top), smaller(tiles.width, shape.width - left)
    from_above(shape, tiles, carries, tile.h, 0, top, left, n)
    for i in range(height):
        at_g = i * (tiles.width + 1) * BLOCK
        store(tile.g, at_g, from_the_left(shape, tiles, carries, top + i, left, n))
        of_B, of_C = states_of(B, image, top + i, left, n), states_of(C, image, top + i, left, n)
        for j in range(width):
            at = i * tiles.width + j
            y = load(tile.y, at * LANES)
            for k in range(STATES):
                at_a, back = at * BLOCK + k * LANES, at_g + j * BLOCK + k * LANES
                B_ij, C_ij = state_at(of_B, j, k), state_at(of_C, j, k)
                a = exp2(load(tile.step, at * LANES) * load(A[0], A[1] + k * LANES), small)
                g = fma(a, load(tile.g, back), load(tile.drive, at * LANES) * spread(B_ij[0], B_ij[1]))
                h = fma(a, load(tile.h, at_a), g)
                store(tile.a, at_a, a)
                store(tile.g, back + BLOCK, g)
                store(tile.h, at_a + tiles.width * BLOCK, h)
                if gated:
                    y = fma(spread(C_ij[0], C_ij[1]), h, y)
            if gated:
                store(tile.y, at * LANES, y)


@inlined
def _reverse(shape, tiles, carries, tile, A, B, C, sums_B, sums_C, image, top, left, n):
    """P and Q through a tile, from its last cell to its first, for one block of states; returns its share of ∂A."""
    rates = load_block(A[0], A[1])
    height, width = smaller(tiles.height, shape.height - top), smaller(tiles.width, shape.width - left)
    last_row, last_column = top + height == shape.height, left + width == shape.width
    grad_A = zeros()
    for i in range(height - 1, -1, -1):
        at_back = (i * shape.states + n) * BLOCK
        aQ = zeros() if last_column else load_block(carries.back, at_back)
        of_B, of_C = states_of(B, image, top + i, left, n), states_of(C, image, top + i, left, n)
        at_sums = (((image * shape.height + top + i) * shape.width + left) * shape.states + n) * STATES
        at_up = (n * shape.width + left) * BLOCK
        for j in range(width - 1, -1, -1):
            at = i * tiles.width + j
            a, q = load_block(tile.a, at * BLOCK), load(tile.q, at * LANES)
            B_ij, C_ij = state_at(of_B, j, 0), state_at(of_C, j, 0)
            P = q * spread_states(C_ij[0], C_ij[1])
            if not (last_row and i + 1 == height):
                P = P + load_block(carries.up, at_up + j * BLOCK)
            Q = P + aQ
            from_a = P * load_block(tile.h, at * BLOCK)
            from_a = fma(Q, load_block(tile.g, (i * (tiles.width + 1) + j) * BLOCK), from_a) * a
            if top + i > 0:
                store(carries.up, at_up + j * BLOCK, a * P)
            aQ = a * Q
            grad_A = fma(from_a, load(tile.step, at * LANES), grad_A)
            store(tile.from_decay, at * LANES, dot_states(from_a, rates, load(tile.from_decay, at * LANES)))
            B_n = spread_states(B_ij[0], B_ij[1])
            store(tile.from_drive, at * LANES, dot_states(Q, B_n, load(tile.from_drive, at * LANES)))
            h = load_block(tile.h, (at + tiles.width) * BLOCK)
            at_cell = at_sums + j * shape.states * STATES
            add_lane_sums_of_two(sums_B, sums_C, at_cell, Q * load(tile.drive, at * LANES), h * q)
        store(carries.back, at_back, aQ)
    return grad_A


@inlined
def _store_gradients(shape, parameters, z, grad_out, grad_u, grad_delta, grad_z, tile, tiles, where, top, left):
    """∂u, ∂delta and ∂z of a tile; returns its shares of ∂D and of the gradient of the steps' bias."""
    image, channel, count = where
    skip = load(parameters.D, channel)
    grad_D, grad_bias = full(0.0), full(0.0)
    for i in range(smaller(tiles.height, shape.height - top)):
        for j in range(smaller(tiles.width, shape.width - left)):
            at = (i * tiles.width + j) * LANES
            u_ij, q = load(tile.u, at), load(tile.q, at)
            from_drive = load(tile.from_drive, at)
            from_step = fma(load(tile.from_decay, at), full(LN_2), from_drive * u_ij)
            if shape.softplus:
                from_step = from_step * load(tile.slope, at)
            from_u = fma(from_drive, load(tile.step, at), skip * q)
            at_u = index(grad_u, image, top + i, left + j) + channel
            at_delta = index(grad_delta, image, top + i, left + j) + channel
            prefetch(grad_u.address, at_u + grad_u.row)
            prefetch(grad_delta.address, at_delta + grad_delta.row)
            store_channels(grad_u, at_u, from_u, count)
            store_channels(grad_delta, at_delta, from_step, count)
            grad_D = fma(q, u_ij, grad_D)
            grad_bias = grad_bias + from_step
            if z.address:
                z_ij = load_channels(z, index(z, image, top + i, left + j) + channel, count)
                of_out = load_channels(grad_out, index(grad_out, image, top + i, left + j) + channel, count)
                gate = sigmoid(z_ij)
                slope = gate * fma(z_ij, full(1.0) - gate, full(1.0))
                from_z = of_out * load(tile.y, at) * slope
                store_channels(grad_z, index(grad_z, image, top + i, left + j) + channel, from_z, count)
    return grad_D, grad_bias


@kernel(types.void(types.int64[::1], types.int64, types.int64, types.int64, types.int64, types.int64, types.int64))
def run(plan, first, last, scratch, sums_B, sums_C, sums):
    """Units ``first`` to ``last``; the others are addresses.

    Adds to ``sums_B`` and ``sums_C`` ``[image, row, column, states · STATES]``, and writes the shares that a unit has
    of the gradients of A, D and the bias to ``sums`` ``[unit, states · STATES + 2, lanes]``.
    """
    align_stack()
    shape, parameters = shape_of(plan), parameters_of(plan)
    u, delta, B, C, z = grid(plan, 0), grid(plan, 1), grid(plan, 2), grid(plan, 3), grid(plan, 4)
    grad_out, grad_u, grad_delta, grad_z = grid(plan, 5), grid(plan, 6), grid(plan, 7), grid(plan, 8)
    channel_blocks = (shape.dim + LANES - 1) // LANES
    tiles = cut(shape.height, shape.width)
    carries, end = carries_at(shape, tiles, scratch)
    tile, end = _tile(tiles, end)
    row_sums = end  # ∂A of a row of tiles: sums of sums keep their small terms

    for unit in range(first, last):
        image, channels = unit // channel_blocks, unit % channel_blocks
        channel = channels * LANES
        where = (image, channel, shape.dim - channel)
        rates = channels * shape.states * BLOCK
        largest = largest_rate(parameters.A + 4 * rates, shape.states)
        unit_sums = sums + 4 * unit * (shape.states * BLOCK + 2 * LANES)
        for n in range(shape.states):
            store(unit_sums, n * BLOCK, zeros())
        for top in range(0, shape.height, tiles.height):
            for left in range(0, shape.width, tiles.width):
                if top + tiles.height < shape.height or left + tiles.width < shape.width:
                    most = _load_steps(shape, parameters, u, delta, tile, tiles, where, top, left)
                    small = are_small(most, largest)
                    for n in range(shape.states):
                        A = parameters.A, rates + n * BLOCK
                        _keep_carries(shape, tiles, carries, tile, A, B, image, top, left, n, small)
        grad_D, grad_bias = full(0.0), full(0.0)
        for top in range((tiles.down - 1) * tiles.height, -1, -tiles.height):
            for n in range(shape.states):
                store(row_sums, n * BLOCK, zeros())
            for left in range((tiles.across - 1) * tiles.width, -1, -tiles.width):
                most = _load_steps(shape, parameters, u, delta, tile, tiles, where, top, left)
                small = are_small(most, largest)
                _load_gradient(shape, parameters, z, grad_out, tile, tiles, where, top, left)
                for n in range(shape.states):
                    A = parameters.A, rates + n * BLOCK
                    _recompute(shape, tiles, carries, tile, A, B, C, z.address != 0, image, top, left, n, small)
                    share = _reverse(shape, tiles, carries, tile, A, B, C, sums_B, sums_C, image, top, left, n)
                    store(row_sums, n * BLOCK, load_block(row_sums, n * BLOCK) + share)
                shares = _store_gradients(
                    shape, parameters, z, grad_out, grad_u, grad_delta, grad_z, tile, tiles, where, top, left
                )
                grad_D, grad_bias = grad_D + shares[0], grad_bias + shares[1]
            for n in range(shape.states):
                store(unit_sums, n * BLOCK, load_block(unit_sums, n * BLOCK) + load_block(row_sums, n * BLOCK))
        store(unit_sums, shape.states * BLOCK, grad_D)
        store(unit_sums, shape.states * BLOCK + LANES, grad_bias)
