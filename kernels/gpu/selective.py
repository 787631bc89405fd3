"""The 2D selective scan in Triton: forward and backward of a tile for one block of channels.

The equations stand in :mod:`wsi2d.kernels.scan2d`, how tiles wait for each other in :mod:`wsi2d.kernels.gpu.tiles`. A
program goes through its tile row by row; the columns of a row are unrolled, so that h of the row above stays in
registers, ``[channels, states]`` for each column, and g runs through them. The backward computes h of its tile again,
into scratch, and then takes rows and columns in reverse.

This module needs triton.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from wsi2d.kernels.gpu.tiles import (
    LN_2,
    SIZES,
    add_along_row,
    add_to,
    drive_of,
    load_border,
    load_carry,
    load_kept,
    load_row,
    place_of,
    raise_flag,
    sigmoid,
    softplus,
    store_border,
    wait_for_both,
)


class Row(NamedTuple):
    """A row of a tile after its recurrences: a, g of the column before, and h, for each column; g of the last one."""

    decays: tuple
    before: tuple
    states: tuple
    g: tl.tensor


class Parameters(NamedTuple):
    """Of a program's channels: log2(e)·A ``[CHANNELS, STATES]``, D and the bias of the steps ``[CHANNELS]``."""

    rates: tl.tensor
    skip: tl.tensor
    shift: tl.tensor


@triton.jit
def _parameters(A, D, bias, place, STATES: tl.constexpr):
    rates = tl.load(A + place.channel[:, None] * STATES + place.n[None, :])
    return Parameters(rates, tl.load(D + place.channel), tl.load(bias + place.channel))


@triton.jit
def _step(delta, shift, here, SOFTPLUS: tl.constexpr):
    """Δ; 0 where there is no cell or channel, so that a = 1 and nothing is added."""
    step = delta.to(tl.float32) + shift
    if SOFTPLUS:
        step = softplus(step)
    return tl.where(here, step, 0.0)


@triton.jit
def _load(u, delta, B, u_column: tl.constexpr, delta_column: tl.constexpr, B_column: tl.constexpr, first, more, place,
          width, COLUMNS: tl.constexpr):  # fmt: skip
    """What the recurrences take of a row whose first cell has the number ``first``; nothing where there is no row."""
    us = load_row(u, u_column, first, place.channel, place.there & more, place.left, width, COLUMNS)
    deltas = load_row(delta, delta_column, first, place.channel, place.there & more, place.left, width, COLUMNS)
    return us, deltas, load_row(B, B_column, first, place.n, place.of_states & more, place.left, width, COLUMNS)


@triton.jit
def _load_for_y(C, z, C_column: tl.constexpr, z_column: tl.constexpr, first, more, place, width,
                WRITE: tl.constexpr, GATED: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """What y takes beside, where it is wanted."""
    Cs, zs = (), ()
    if WRITE:
        Cs = load_row(C, C_column, first, place.n, place.of_states & more, place.left, width, COLUMNS)
        if GATED:
            zs = load_row(z, z_column, first, place.channel, place.there & more, place.left, width, COLUMNS)
    return Cs, zs


@triton.jit
def _run(us, deltas, Bs, g, h, parameters, place, width, FILLED: tl.constexpr, SOFTPLUS: tl.constexpr,
         COLUMNS: tl.constexpr):  # fmt: skip
    """The recurrences along a row, from g of the tile to the left and h of the row above."""
    decays, before, states = (), (), ()
    for t in tl.static_range(COLUMNS):
        step = _step(deltas[t], parameters.shift, place.there & (place.left + t < width), SOFTPLUS)
        a = tl.exp2(step[:, None] * parameters.rates)
        decays, before = decays + (a,), before + (g,)
        g = a * g + drive_of(step * us[t].to(tl.float32), Bs[t], place.of_states, FILLED)
        states = states + (a * h[t] + g,)
    return Row(decays, before, states, g)


@triton.jit(do_not_specialize=SIZES)
def forward(
    u, delta, z, B, C, A, D, bias, out, right, down,
    ticket, flags,
    down_tiles, across_tiles, blocks, images, first_channel,
    u_column: tl.constexpr, delta_column: tl.constexpr, z_column: tl.constexpr, B_column: tl.constexpr,
    C_column: tl.constexpr,
    height, width, dim: tl.constexpr, state: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Tiles, until all have been drawn.

    Args:
        A: log2(e)·A ``[dim, STATES]``; D and bias ``[dim]``; zeros beyond.
        right: g at the right border of a tile column ``[…, image, row, channels of all blocks, STATES]``.
        down: h at the lower border of a tile row ``[…, image, column, channels of all blocks, STATES]``.
        WRITE: whether y is wanted, and a tile may overwrite what the one before left at its borders; else only what
            crosses the borders is, of each tile column and row apart.
    """
    number = tl.atomic_add(ticket, 1, sem="relaxed")
    while number < down_tiles * across_tiles * blocks * images:
        place = place_of(
            number, flags, down_tiles, across_tiles, blocks, images, first_channel, dim, state,
            ROWS, COLUMNS, STATES, CHANNELS, False,
        )  # fmt: skip
        parameters = _parameters(A, D, bias, place, STATES)
        there, left, row_tile, column_tile = place.there, place.left, place.row_tile, place.column_tile
        right_tile, down_tile = (
            images * height * place.of_cell.to(tl.int64),
            images * width * place.of_cell.to(tl.int64),
        )
        if WRITE:
            right_tile, down_tile = right_tile * 0, down_tile * 0
        above = down + place.image * width * place.of_cell + place.in_cell
        beside = right + place.image * height * place.of_cell + place.in_cell
        # Arguments do not depend on other tiles: the first row's are asked for before waiting, the others' a row ahead.
        first = (place.image * height + place.top) * width + left
        known = _load(u, delta, B, u_column, delta_column, B_column, first, True, place, width, COLUMNS)
        for_y = _load_for_y(C, z, C_column, z_column, first, True, place, width, WRITE, GATED, COLUMNS)
        wait_for_both(place, down_tiles, across_tiles, False)
        h = load_border(above + (row_tile - 1) * down_tile, row_tile > 0, place, width, COLUMNS)
        from_left = beside + (column_tile - 1) * right_tile
        carried = load_carry(from_left + place.top.to(tl.int64) * place.of_cell, column_tile > 0)
        rows = tl.minimum(ROWS, height - place.top)
        for i in range(rows):
            row = (place.top + i).to(tl.int64)
            first = (place.image * height + row) * width + left
            us, deltas, Bs = known
            Cs, zs = for_y
            more = i + 1 < rows
            known = _load(u, delta, B, u_column, delta_column, B_column, first + width, more, place, width, COLUMNS)
            for_y = _load_for_y(C, z, C_column, z_column, first + width, more, place, width, WRITE, GATED, COLUMNS)
            g, at_next = carried, from_left + (row + 1) * place.of_cell
            carried = load_carry(at_next, more & (column_tile > 0))
            done = _run(us, deltas, Bs, g, h, parameters, place, width, state < STATES, SOFTPLUS, COLUMNS)
            h = done.states
            if WRITE:
                for t in tl.static_range(COLUMNS):
                    y = tl.sum(h[t] * Cs[t].to(tl.float32)[None, :], 1) + parameters.skip * us[t].to(tl.float32)
                    if GATED:
                        gate = zs[t].to(tl.float32)
                        y = y * gate * sigmoid(gate)
                    tl.store(out + (first + t) * dim + place.channel, y, mask=there & (left + t < width))
            border = beside + column_tile * right_tile + row * place.of_cell
            tl.store(border, done.g, mask=column_tile + 1 < across_tiles)
        store_border(above + row_tile * down_tile, h, row_tile + 1 < down_tiles, place, width, COLUMNS)
        raise_flag(place.flag)
        number = tl.atomic_add(ticket, 1, sem="relaxed")


@triton.jit
def _keep_states(
    u, delta, B, u_column: tl.constexpr, delta_column: tl.constexpr, B_column: tl.constexpr, above, beside, kept, rows,
    parameters, place, height, width, FILLED: tl.constexpr, SOFTPLUS: tl.constexpr, COLUMNS: tl.constexpr,
    ROW: tl.constexpr,
):  # fmt: skip
    """h of a tile's rows, from its borders, into scratch of ``ROW`` numbers a row."""
    h = load_border(above, place.row_tile > 0, place, width, COLUMNS)
    for i in range(rows):
        row = (place.top + i).to(tl.int64)
        first = (place.image * height + row) * width + place.left
        us, deltas, Bs = _load(u, delta, B, u_column, delta_column, B_column, first, True, place, width, COLUMNS)
        g = load_carry(beside + row * place.of_cell, place.column_tile > 0)
        h = _run(us, deltas, Bs, g, h, parameters, place, width, FILLED, SOFTPLUS, COLUMNS).states
        for t in tl.static_range(COLUMNS):
            tl.store(kept + i * ROW + t * (ROW // COLUMNS), h[t])


@triton.jit
def _gradients(
    u, delta, z, q, into, from_h, a, before, h_above, h, aP, aQ, at_cell, parameters, here,
    grad_u, grad_delta, grad_z, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """The equations in reverse for a cell; writes what belongs to it alone.

    Returns:
        a·P and a·Q, the cell's shares of the gradients of A, D and the bias, and of B and C.
    """
    x, q = u.to(tl.float32), q.to(tl.float32)
    into, from_h = into.to(tl.float32), from_h.to(tl.float32)
    step = _step(delta, parameters.shift, here, SOFTPLUS)
    if GATED:
        gate = z.to(tl.float32)
        open_ = sigmoid(gate)
        y = tl.sum(h * from_h[None, :], 1) + parameters.skip * x
        tl.store(grad_z + at_cell, q * y * open_ * (1.0 + gate * (1.0 - open_)), mask=here)
        q = q * gate * open_
    P = q[:, None] * from_h[None, :] + aP
    Q = P + aQ
    aP, aQ = a * P, a * Q
    from_a = aP * h_above + aQ * before
    from_drive = tl.sum(Q * into[None, :], 1)
    from_step = tl.sum(from_a * parameters.rates, 1) * LN_2 + from_drive * x
    if SOFTPLUS:
        from_step = from_step * sigmoid(delta.to(tl.float32) + parameters.shift)
    from_step = tl.where(here, from_step, 0.0)
    tl.store(grad_u + at_cell, from_drive * step + parameters.skip * q, mask=here)
    tl.store(grad_delta + at_cell, from_step, mask=here)
    of_B, of_C = tl.sum(Q * (step * x)[:, None], 0), tl.sum(h * q[:, None], 0)
    return aP, aQ, from_a * step[:, None], q * x, from_step, of_B, of_C


@triton.jit(do_not_specialize=SIZES)
def backward(
    u, delta, z, B, C, A, D, bias, grad_out,
    grad_u, grad_delta, grad_z, grad_B, grad_C, grad_A, grad_channels,
    right, down, back, up, states,
    ticket, flags,
    sums_block, down_tiles, across_tiles, blocks, images, first_channel,
    u_column: tl.constexpr, delta_column: tl.constexpr, z_column: tl.constexpr, B_column: tl.constexpr,
    C_column: tl.constexpr, q_column: tl.constexpr,
    height, width, dim: tl.constexpr, state: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
    SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Tiles in reverse, after :func:`forward` has left what crosses all borders in ``right`` and ``down``.

    Args:
        back: a·Q at the left border of a tile ``[image, row, channels of all blocks, STATES]``; the next overwrites.
        up: a·P at the upper border of a tile ``[image, column, channels of all blocks, STATES]``, likewise.
        states: scratch for h of a tile ``[program, ROWS, COLUMNS, CHANNELS, STATES]``.
        grad_B, grad_C: float32 ``[image, row, column, state]``, added to; one for each block where sums must not
            depend on the order of programs, ``sums_block`` apart.
        grad_A: ``[tile row, image, channels of all blocks, STATES]``, added to from tile to tile of a row.
        grad_channels: of D and of the bias, ``[tile row, image, 2, channels of all blocks]``, likewise.
        ATOMIC: whether programs add to one grad_B and grad_C.
    """
    number = tl.atomic_add(ticket, 1, sem="relaxed")
    while number < down_tiles * across_tiles * blocks * images:
        place = place_of(
            number, flags, down_tiles, across_tiles, blocks, images, first_channel, dim, state,
            ROWS, COLUMNS, STATES, CHANNELS, True,
        )  # fmt: skip
        parameters = _parameters(A, D, bias, place, STATES)
        there, left, row_tile, column_tile = place.there, place.left, place.row_tile, place.column_tile
        rows, of_cell = tl.minimum(ROWS, height - place.top), place.of_cell
        of_row: tl.constexpr = COLUMNS * CHANNELS * STATES
        above = down + ((row_tile - 1) * images + place.image) * width * of_cell + place.in_cell
        beside = right + ((column_tile - 1) * images + place.image) * height * of_cell + place.in_cell
        lane = tl.arange(0, CHANNELS)
        kept = states + tl.program_id(0).to(tl.int64) * ROWS * of_row + lane[:, None] * STATES + place.n[None, :]

        _keep_states(
            u, delta, B, u_column, delta_column, B_column, above, beside, kept, rows - 1, parameters, place, height,
            width, state < STATES, SOFTPLUS, COLUMNS, of_row,
        )  # fmt: skip
        tl.debug_barrier()

        wait_for_both(place, down_tiles, across_tiles, True)
        from_below = up + place.image * width * of_cell + place.in_cell
        from_right = back + place.image * height * of_cell + place.in_cell
        aP = load_border(from_below, row_tile + 1 < down_tiles, place, width, COLUMNS)
        of_A = tl.zeros((CHANNELS, STATES), tl.float32)
        of_D, of_bias = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
        for k in range(rows):
            i = rows - 1 - k
            row = (place.top + i).to(tl.int64)
            first = (place.image * height + row) * width + left
            us, deltas, Bs = _load(u, delta, B, u_column, delta_column, B_column, first, True, place, width, COLUMNS)
            Cs = load_row(C, C_column, first, place.n, place.of_states, left, width, COLUMNS)
            qs = load_row(grad_out, q_column, first, place.channel, there, left, width, COLUMNS)
            zs = qs
            if GATED:
                zs = load_row(z, z_column, first, place.channel, there, left, width, COLUMNS)
            g = load_carry(beside + row * of_cell, column_tile > 0)
            aQ = load_carry(from_right + row * of_cell, column_tile + 1 < across_tiles)
            h_above = load_kept(kept, above, i, place, width, of_row, COLUMNS)
            done = _run(us, deltas, Bs, g, h_above, parameters, place, width, state < STATES, SOFTPLUS, COLUMNS)
            upward = ()
            for t in tl.static_range(COLUMNS - 1, -1, -1):
                inside = left + t < width
                up_t, aQ, to_A, to_D, to_bias, to_B, to_C = _gradients(
                    us[t], deltas[t], zs[t], qs[t], Bs[t], Cs[t], done.decays[t], done.before[t], h_above[t],
                    done.states[t], aP[t], aQ, (first + t) * dim + place.channel, parameters, there & inside,
                    grad_u, grad_delta, grad_z, SOFTPLUS, GATED,
                )  # fmt: skip
                upward = (up_t,) + upward
                of_A, of_D, of_bias = of_A + to_A, of_D + to_D, of_bias + to_bias
                at_sums, wanted = (first + t) * state + place.n, place.of_states & inside
                add_to(grad_B, at_sums, to_B, wanted, place.block, sums_block, ATOMIC)
                add_to(grad_C, at_sums, to_C, wanted, place.block, sums_block, ATOMIC)
            aP = upward
            tl.store(from_right + row * of_cell, aQ, mask=column_tile > 0)
        store_border(from_below, aP, row_tile > 0, place, width, COLUMNS)
        at_row = row_tile * images + place.image
        add_along_row(grad_A + at_row * of_cell + place.in_cell, of_A)
        at_channel = at_row * 2 * blocks * CHANNELS + place.block * CHANNELS + lane
        add_along_row(grad_channels + at_channel, of_D)
        add_along_row(grad_channels + at_channel + blocks * CHANNELS, of_bias)
        raise_flag(place.flag)
        number = tl.atomic_add(ticket, 1, sem="relaxed")
