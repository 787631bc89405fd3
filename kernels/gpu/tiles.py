"""What the GPU kernels share: the order of the tiles, who waits for whom, the functions of a step and a gate.

A grid is cut into tiles of some rows and columns, and the channels into blocks. A program scans one tile at a time for
one block of channels and all states; what leaves the tile to the right and below waits in memory for the next ones. All
tiles go in one launch: programs draw tickets, which run along the anti-diagonals of tiles, and wait until the two tiles
before theirs have raised their flags. Those drew lower tickets, so they have begun and need nothing that comes later.

This module needs triton.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
# What differs from slide to slide must not lead to another compilation.
SIZES = ["sums_block", "down_tiles", "across_tiles", "blocks", "images", "first_channel", "height", "width"]


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + 2 artanh(t / (2 + t)) with t = e^-|x|."""
    t = tl.exp(-tl.abs(x))
    s = t / (2.0 + t)
    s2 = s * s
    series = 1 / 13
    series = series * s2 + 1 / 11
    series = series * s2 + 1 / 9
    series = series * s2 + 1 / 7
    series = series * s2 + 1 / 5
    series = series * s2 + 1 / 3
    series = series * s2 + 1.0
    return tl.where(x < 0, 0.0, x) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), the derivative of softplus."""
    t = tl.exp(-tl.abs(x))
    return tl.where(x < 0, t, 1.0) / (1.0 + t)


class Place(NamedTuple):
    """Where a program is.

    Attributes:
        row_tile, column_tile: the tile's place in the grid of tiles; ``top``, ``left`` its first cell.
        block, image: block of channels in the launch, and image (int64).
        n, channel: numbers of the states ``[STATES]`` and channels ``[CHANNELS]``.
        there, of_states: which of them are not only there to fill up.
        in_cell: where they lie in what a border has for a cell ``[CHANNELS, STATES]``; ``of_cell`` numbers in all.
        flag: address of the tile's flag.
    """

    row_tile: tl.tensor
    column_tile: tl.tensor
    top: tl.tensor
    left: tl.tensor
    block: tl.tensor
    image: tl.tensor
    n: tl.tensor
    channel: tl.tensor
    there: tl.tensor
    of_states: tl.tensor
    in_cell: tl.tensor
    of_cell: tl.tensor
    flag: tl.tensor


@triton.jit
def tile_of(number, down, across, REVERSE: tl.constexpr):
    """Row and column of the tile with a number: along the anti-diagonals, each from its upper end, or all backwards."""
    tiles = down * across
    k = tiles - 1 - number if REVERSE else number
    shorter = tl.minimum(down, across)
    corner = shorter * (shorter - 1) // 2  # tiles of the diagonals that grow, and of those that shrink
    if (k >= corner) & (k < tiles - corner):
        diagonal = shorter - 1 + (k - corner) // shorter
        place = (k - corner) % shorter
    else:
        m = tl.where(k < corner, k, tiles - 1 - k)
        diagonal = ((tl.sqrt((8 * m + 1).to(tl.float32)) - 1) / 2).to(tl.int32)
        diagonal = tl.where(diagonal * (diagonal + 1) // 2 > m, diagonal - 1, diagonal)
        diagonal = tl.where((diagonal + 1) * (diagonal + 2) // 2 <= m, diagonal + 1, diagonal)
        place = m - diagonal * (diagonal + 1) // 2
        place = tl.where(k < corner, place, diagonal - place)
        diagonal = tl.where(k < corner, diagonal, down + across - 2 - diagonal)
    row = tl.maximum(0, diagonal - across + 1) + place
    return row, diagonal - row


@triton.jit
def place_of(
    number, flags, down_tiles, across_tiles, blocks, images, first_channel, dim: tl.constexpr, state: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Where a ticket's number sends a program."""
    row_tile, column_tile = tile_of(number // (blocks * images), down_tiles, across_tiles, REVERSE)
    block, image = number % blocks, number // blocks % images
    n, lane = tl.arange(0, STATES), block * CHANNELS + tl.arange(0, CHANNELS)
    channel = first_channel + lane
    flag = flags + ((image * blocks + block) * down_tiles + row_tile) * across_tiles + column_tile
    return Place(
        row_tile, column_tile, row_tile * ROWS, column_tile * COLUMNS, block, image.to(tl.int64), n, channel,
        channel < dim, n < state, lane[:, None] * STATES + n[None, :], STATES * blocks * CHANNELS, flag,
    )  # fmt: skip


@triton.jit
def load_row(grid, between: tl.constexpr, first, offsets, mask, left, width, COLUMNS: tl.constexpr):
    """What a grid has for a row of a tile, a tensor for each column: all are asked for before the first is used."""
    found = ()
    for t in tl.static_range(COLUMNS):
        place = grid + (first + t) * between + offsets
        found = found + (tl.load(place, mask=mask & (left + t < width), other=0.0),)
    return found


@triton.jit
def load_border(border, there, place, width, COLUMNS: tl.constexpr):
    """What crossed an upper or lower border, a tensor for each column; zeros where nothing is ``there``."""
    found = ()
    for t in tl.static_range(COLUMNS):
        column = place.left + t
        found = found + (load_carry(border + column.to(tl.int64) * place.of_cell, there & (column < width)),)
    return found


@triton.jit
def store_border(border, values, there, place, width, COLUMNS: tl.constexpr):
    """Leave what crosses such a border, where anybody is ``there`` to read it."""
    for t in tl.static_range(COLUMNS):
        column = place.left + t
        tl.store(border + column.to(tl.int64) * place.of_cell, values[t], mask=there & (column < width))


@triton.jit
def load_kept(kept, above, i, place, width, ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """h of the row above a tile's row i: from its scratch, ``ROW`` numbers a row, or from its upper border."""
    found = ()
    for t in tl.static_range(COLUMNS):
        column = place.left + t
        if i > 0:
            h = tl.load(kept + (i - 1) * ROW + t * (ROW // COLUMNS))
        else:
            border = above + column.to(tl.int64) * place.of_cell
            h = tl.load(border, mask=(place.row_tile > 0) & (column < width), other=0.0)
        found = found + (h,)
    return found


@triton.jit
def add_to(sums, at, value, mask, block, sums_block, ATOMIC: tl.constexpr):
    """Add a cell's numbers to a sum over channels: one for all programs, or the block's own."""
    if ATOMIC:
        tl.atomic_add(sums + at, value, mask=mask, sem="relaxed")
    else:
        at = block.to(tl.int64) * sums_block + at
        tl.store(sums + at, tl.load(sums + at, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def add_along_row(sums, value):
    """Add to a sum that the tiles of a row hand from one to the next."""
    tl.store(sums, load_carry(sums, True) + value)


@triton.jit
def drive_of(scaled, into, of_states, FILLED: tl.constexpr):
    """Δ·x·B of a cell ``[channels, states]``; zero in the states that fill up a power of two, also where x is inf."""
    drive = scaled[:, None] * into.to(tl.float32)[None, :]
    if FILLED:
        drive = tl.where(of_states[None, :], drive, 0.0)
    return drive


@triton.jit
def wait(flag):
    """Until another program raises a flag. Each acquire empties the first cache: it comes after the flag is up."""
    raised = tl.atomic_add(flag, 0, sem="acquire")
    while raised == 0:
        seen = tl.atomic_add(flag, 0, sem="relaxed")
        while seen == 0:
            seen = tl.atomic_add(flag, 0, sem="relaxed")
        raised = tl.atomic_add(flag, 0, sem="acquire")


@triton.jit
def wait_for_both(place, down_tiles, across_tiles, REVERSE: tl.constexpr):
    """Until the tile above and the one to the left are done; in reverse the one below and the one to the right."""
    if REVERSE:
        if place.row_tile + 1 < down_tiles:
            wait(place.flag + across_tiles)
        if place.column_tile + 1 < across_tiles:
            wait(place.flag + 1)
    else:
        if place.row_tile > 0:
            wait(place.flag - across_tiles)
        if place.column_tile > 0:
            wait(place.flag - 1)


@triton.jit
def raise_flag(flag):
    """Say that all that this program wrote can be read."""
    tl.debug_barrier()
    tl.atomic_xchg(flag, 1, sem="release")


@triton.jit
def load_carry(address, mask):
    """What another program wrote: past the first cache, which may hold what lay there before."""
    return tl.load(address, mask=mask, other=0.0, cache_modifier=".cg")
