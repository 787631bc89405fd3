"""The 2D wavefront scan in Triton: forward and backward of a tile for one block of channels.

The shape of the work is that of :mod:`wsi2d.kernels.gpu.selective`, with one state where that has two: h goes on both
to the right and down.

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
    store_border,
    wait_for_both,
)


class Parameters(NamedTuple):
    """Of a program's channels: log2(e)·A from above and from the left ``[CHANNELS, STATES]``, and D ``[CHANNELS]``."""

    rates_t: tl.tensor
    rates_l: tl.tensor
    skip: tl.tensor


class Cell(NamedTuple):
    """A cell's x, steps from above and from the left ``[CHANNELS]``, and B of both ``[STATES]``.

    What plays no part is 0, whatever it holds: from above in the first row, from the left in the first column.
    """

    x: tl.tensor
    step_t: tl.tensor
    step_l: tl.tensor
    into_t: tl.tensor
    into_l: tl.tensor


@triton.jit
def _parameters(A_t, A_l, D, place, STATES: tl.constexpr):
    at = place.channel[:, None] * STATES + place.n[None, :]
    return Parameters(tl.load(A_t + at), tl.load(A_l + at), tl.load(D + place.channel))


@triton.jit
def _cell(x, t, l, B_t, B_l, from_left):  # noqa: E741 - l is the left
    step_l = tl.where(from_left, l.to(tl.float32), 0.0)
    into_l = tl.where(from_left, B_l.to(tl.float32), 0.0)
    return Cell(x.to(tl.float32), t.to(tl.float32), step_l, B_t.to(tl.float32), into_l)


@triton.jit
def _load(
    x, delta_t, delta_l, B_t, B_l, x_column: tl.constexpr, t_column: tl.constexpr, l_column: tl.constexpr,
    Bt_column: tl.constexpr, Bl_column: tl.constexpr, first, row, more, place, width, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What the recurrence takes of a row whose first cell has the number ``first``; nothing where there is no row."""
    there, of_states, left = place.there & more, place.of_states & more, place.left
    xs = load_row(x, x_column, first, place.channel, there, left, width, COLUMNS)
    ts = load_row(delta_t, t_column, first, place.channel, there & (row > 0), left, width, COLUMNS)
    ls = load_row(delta_l, l_column, first, place.channel, there, left, width, COLUMNS)
    Bts = load_row(B_t, Bt_column, first, place.n, of_states & (row > 0), left, width, COLUMNS)
    return xs, ts, ls, Bts, load_row(B_l, Bl_column, first, place.n, of_states, left, width, COLUMNS)


@triton.jit
def _load_for_y(C, C_column: tl.constexpr, first, more, place, width, WRITE: tl.constexpr, COLUMNS: tl.constexpr):
    """What y takes beside, where it is wanted."""
    Cs = ()
    if WRITE:
        Cs = load_row(C, C_column, first, place.n, place.of_states & more, place.left, width, COLUMNS)
    return Cs


@triton.jit
def _run(xs, ts, ls, Bts, Bls, h_left, h, row, parameters, place, FILLED: tl.constexpr, COLUMNS: tl.constexpr):
    """h along a row, from that of the tile to the left and of the row above: a tensor for each column, and the last."""
    states = ()
    for t in tl.static_range(COLUMNS):
        column = place.left + t
        c = _cell(xs[t], ts[t], ls[t], Bts[t], Bls[t], (row == 0) | (column > 0))
        from_t = tl.exp2(c.step_t[:, None] * parameters.rates_t) * h[t]
        from_t += drive_of(c.step_t * c.x, c.into_t, place.of_states, FILLED)
        from_l = tl.exp2(c.step_l[:, None] * parameters.rates_l) * h_left
        from_l += drive_of(c.step_l * c.x, c.into_l, place.of_states, FILLED)
        h_left = tl.where(row == 0, from_l, tl.where(column == 0, from_t, 0.5 * (from_t + from_l)))
        states = states + (h_left,)
    return states, h_left


@triton.jit(do_not_specialize=SIZES)
def forward(
    x, delta_t, delta_l, B_t, B_l, C, A_t, A_l, D, out, right, down,
    ticket, flags,
    down_tiles, across_tiles, blocks, images, first_channel,
    x_column: tl.constexpr, t_column: tl.constexpr, l_column: tl.constexpr, Bt_column: tl.constexpr,
    Bl_column: tl.constexpr, C_column: tl.constexpr,
    height, width, dim: tl.constexpr, state: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Tiles, until all have been drawn.

    Args:
        A_t, A_l: log2(e)·A ``[dim, STATES]``; D ``[dim]``; zeros beyond.
        right: h at the right border of a tile column ``[…, image, row, channels of all blocks, STATES]``.
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
        parameters = _parameters(A_t, A_l, D, place, STATES)
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
        top = place.top.to(tl.int64)
        first = (place.image * height + top) * width + left
        known = _load(
            x, delta_t, delta_l, B_t, B_l, x_column, t_column, l_column, Bt_column, Bl_column,
            first, top, True, place, width, COLUMNS,
        )  # fmt: skip
        for_y = _load_for_y(C, C_column, first, True, place, width, WRITE, COLUMNS)
        wait_for_both(place, down_tiles, across_tiles, False)
        h = load_border(above + (row_tile - 1) * down_tile, row_tile > 0, place, width, COLUMNS)
        from_left = beside + (column_tile - 1) * right_tile
        carried = load_carry(from_left + place.top.to(tl.int64) * place.of_cell, column_tile > 0)
        rows = tl.minimum(ROWS, height - place.top)
        for i in range(rows):
            row = (place.top + i).to(tl.int64)
            first = (place.image * height + row) * width + left
            xs, ts, ls, Bts, Bls = known
            Cs = for_y
            more = i + 1 < rows
            known = _load(
                x, delta_t, delta_l, B_t, B_l, x_column, t_column, l_column, Bt_column, Bl_column,
                first + width, row + 1, more, place, width, COLUMNS,
            )  # fmt: skip
            for_y = _load_for_y(C, C_column, first + width, more, place, width, WRITE, COLUMNS)
            h_left, at_next = carried, from_left + (row + 1) * place.of_cell
            carried = load_carry(at_next, more & (column_tile > 0))
            h, last = _run(xs, ts, ls, Bts, Bls, h_left, h, row, parameters, place, state < STATES, COLUMNS)
            if WRITE:
                for t in tl.static_range(COLUMNS):
                    y = tl.sum(h[t] * Cs[t].to(tl.float32)[None, :], 1) + parameters.skip * xs[t].to(tl.float32)
                    tl.store(out + (first + t) * dim + place.channel, y, mask=there & (left + t < width))
            border = beside + column_tile * right_tile + row * place.of_cell
            tl.store(border, last, mask=column_tile + 1 < across_tiles)
        store_border(above + row_tile * down_tile, h, row_tile + 1 < down_tiles, place, width, COLUMNS)
        raise_flag(place.flag)
        number = tl.atomic_add(ticket, 1, sem="relaxed")


@triton.jit
def _keep_states(
    x, delta_t, delta_l, B_t, B_l, x_column: tl.constexpr, t_column: tl.constexpr, l_column: tl.constexpr,
    Bt_column: tl.constexpr, Bl_column: tl.constexpr, above, beside, kept, rows, parameters, place, height, width,
    FILLED: tl.constexpr, COLUMNS: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """h of a tile's rows, from its borders, into scratch of ``ROW`` numbers a row."""
    h = load_border(above, place.row_tile > 0, place, width, COLUMNS)
    for i in range(rows):
        row = (place.top + i).to(tl.int64)
        first = (place.image * height + row) * width + place.left
        xs, ts, ls, Bts, Bls = _load(
            x, delta_t, delta_l, B_t, B_l, x_column, t_column, l_column, Bt_column, Bl_column,
            first, row, True, place, width, COLUMNS,
        )  # fmt: skip
        h_left = load_carry(beside + row * place.of_cell, place.column_tile > 0)
        h, _ = _run(xs, ts, ls, Bts, Bls, h_left, h, row, parameters, place, FILLED, COLUMNS)
        for t in tl.static_range(COLUMNS):
            tl.store(kept + i * ROW + t * (ROW // COLUMNS), h[t])


@triton.jit
def _gradients(
    c, q, from_h, h_left, h_above, h, R, row, column, at_cell, parameters, here, grad_x, grad_t, grad_l
):  # fmt: skip
    """The equations in reverse for a cell; writes what belongs to it alone.

    Args:
        c: the cell. q, from_h: ∂L/∂y and C. h_left, h_above, h: states before it and its own.
        R: what comes from the cells below and to the right, w·aT·R and w·aL·R together.

    Returns:
        w·aT·R, w·aL·R, the cell's shares of the gradients of both A, of D, of both B and of C.
    """
    q, from_h = q.to(tl.float32), from_h.to(tl.float32)
    R += q[:, None] * from_h[None, :]
    R_t = tl.where(row == 0, 0.0, tl.where(column == 0, R, 0.5 * R))
    R_l = tl.where(row == 0, R, tl.where(column == 0, 0.0, 0.5 * R))
    upward = tl.where(row == 0, 0.0, R_t * tl.exp2(c.step_t[:, None] * parameters.rates_t))
    leftward = R_l * tl.exp2(c.step_l[:, None] * parameters.rates_l)
    leftward = tl.where((row > 0) & (column == 0), 0.0, leftward)
    from_at, from_al = upward * h_above, leftward * h_left
    drive_t, drive_l = tl.sum(R_t * c.into_t[None, :], 1), tl.sum(R_l * c.into_l[None, :], 1)
    of_step_t = tl.sum(from_at * parameters.rates_t, 1) * LN_2 + drive_t * c.x
    of_step_l = tl.sum(from_al * parameters.rates_l, 1) * LN_2 + drive_l * c.x
    of_Bt = tl.sum(R_t * (c.step_t * c.x)[:, None], 0)
    of_Bl = tl.sum(R_l * (c.step_l * c.x)[:, None], 0)
    of_C = tl.sum(h * q[:, None], 0)
    tl.store(grad_x + at_cell, drive_t * c.step_t + drive_l * c.step_l + parameters.skip * q, mask=here)
    tl.store(grad_t + at_cell, of_step_t, mask=here)
    tl.store(grad_l + at_cell, of_step_l, mask=here)
    return upward, leftward, from_at * c.step_t[:, None], from_al * c.step_l[:, None], q * c.x, of_Bt, of_Bl, of_C


@triton.jit(do_not_specialize=SIZES)
def backward(
    x, delta_t, delta_l, B_t, B_l, C, A_t, A_l, D, grad_out,
    grad_x, grad_t, grad_l, grad_Bt, grad_Bl, grad_C, grad_At, grad_Al, grad_D,
    right, down, back, up, states,
    ticket, flags,
    sums_block, down_tiles, across_tiles, blocks, images, first_channel,
    x_column: tl.constexpr, t_column: tl.constexpr, l_column: tl.constexpr, Bt_column: tl.constexpr,
    Bl_column: tl.constexpr, C_column: tl.constexpr, q_column: tl.constexpr,
    height, width, dim: tl.constexpr, state: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Tiles in reverse, after :func:`forward` has left what crosses all borders in ``right`` and ``down``.

    Args:
        back: w·aL·R at the left border of a tile ``[image, row, channels of all blocks, STATES]``; the next overwrites.
        up: w·aT·R at the upper border of a tile ``[image, column, channels of all blocks, STATES]``, likewise.
        states: scratch for h of a tile ``[program, ROWS, COLUMNS, CHANNELS, STATES]``.
        grad_Bt, grad_Bl, grad_C: float32 ``[image, row, column, state]``, added to; one for each block where sums must
            not depend on the order of programs, ``sums_block`` apart.
        grad_At, grad_Al: ``[tile row, image, channels of all blocks, STATES]``, added to from tile to tile of a row.
        grad_D: ``[tile row, image, channels of all blocks]``, likewise.
        ATOMIC: whether programs add to one sum.
    """
    number = tl.atomic_add(ticket, 1, sem="relaxed")
    while number < down_tiles * across_tiles * blocks * images:
        place = place_of(
            number, flags, down_tiles, across_tiles, blocks, images, first_channel, dim, state,
            ROWS, COLUMNS, STATES, CHANNELS, True,
        )  # fmt: skip
        parameters = _parameters(A_t, A_l, D, place, STATES)
        there, left, row_tile, column_tile = place.there, place.left, place.row_tile, place.column_tile
        rows, of_cell = tl.minimum(ROWS, height - place.top), place.of_cell
        of_row: tl.constexpr = COLUMNS * CHANNELS * STATES
        above = down + ((row_tile - 1) * images + place.image) * width * of_cell + place.in_cell
        beside = right + ((column_tile - 1) * images + place.image) * height * of_cell + place.in_cell
        lane = tl.arange(0, CHANNELS)
        kept = states + tl.program_id(0).to(tl.int64) * ROWS * of_row + lane[:, None] * STATES + place.n[None, :]

        _keep_states(
            x, delta_t, delta_l, B_t, B_l, x_column, t_column, l_column, Bt_column, Bl_column, above, beside, kept,
            rows, parameters, place, height, width, state < STATES, COLUMNS, of_row,
        )  # fmt: skip
        tl.debug_barrier()

        wait_for_both(place, down_tiles, across_tiles, True)
        from_below = up + place.image * width * of_cell + place.in_cell
        from_right = back + place.image * height * of_cell + place.in_cell
        upward = load_border(from_below, row_tile + 1 < down_tiles, place, width, COLUMNS)
        of_At = tl.zeros((CHANNELS, STATES), tl.float32)
        of_Al = tl.zeros((CHANNELS, STATES), tl.float32)
        of_D = tl.zeros((CHANNELS,), tl.float32)
        for k in range(rows):
            i = rows - 1 - k
            row = (place.top + i).to(tl.int64)
            first = (place.image * height + row) * width + left
            xs, ts, ls, Bts, Bls = _load(
                x, delta_t, delta_l, B_t, B_l, x_column, t_column, l_column, Bt_column, Bl_column,
                first, row, True, place, width, COLUMNS,
            )  # fmt: skip
            Cs = load_row(C, C_column, first, place.n, place.of_states, left, width, COLUMNS)
            qs = load_row(grad_out, q_column, first, place.channel, there, left, width, COLUMNS)
            leftward = load_carry(from_right + row * of_cell, column_tile + 1 < across_tiles)
            h_above = load_kept(kept, above, i, place, width, of_row, COLUMNS)
            known = (load_carry(beside + row * of_cell, column_tile > 0),)
            for t in tl.static_range(COLUMNS):
                known = known + (tl.load(kept + i * of_row + t * CHANNELS * STATES),)
            next_ = ()
            for t in tl.static_range(COLUMNS - 1, -1, -1):
                column = left + t
                c = _cell(xs[t], ts[t], ls[t], Bts[t], Bls[t], (row == 0) | (column > 0))
                up_t, leftward, to_At, to_Al, to_D, to_Bt, to_Bl, to_C = _gradients(
                    c, qs[t], Cs[t], known[t], h_above[t], known[t + 1], upward[t] + leftward, row, column,
                    (first + t) * dim + place.channel, parameters, there & (column < width), grad_x, grad_t, grad_l,
                )  # fmt: skip
                next_ = (up_t,) + next_
                of_At, of_Al, of_D = of_At + to_At, of_Al + to_Al, of_D + to_D
                at_sums, wanted = (first + t) * state + place.n, place.of_states & (column < width)
                add_to(grad_Bt, at_sums, to_Bt, wanted, place.block, sums_block, ATOMIC)
                add_to(grad_Bl, at_sums, to_Bl, wanted, place.block, sums_block, ATOMIC)
                add_to(grad_C, at_sums, to_C, wanted, place.block, sums_block, ATOMIC)
            upward = next_
            tl.store(from_right + row * of_cell, leftward, mask=column_tile > 0)
        store_border(from_below, upward, row_tile > 0, place, width, COLUMNS)
        at_row = row_tile * images + place.image
        add_along_row(grad_At + at_row * of_cell + place.in_cell, of_At)
        add_along_row(grad_Al + at_row * of_cell + place.in_cell, of_Al)
        add_along_row(grad_D + at_row * blocks * CHANNELS + place.block * CHANNELS + lane, of_D)
        raise_flag(place.flag)
        number = tl.atomic_add(ticket, 1, sem="relaxed")
