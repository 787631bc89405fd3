"""How the backwards of the CPU kernels cut a grid into tiles, and what crosses the borders of these.

What a scan carries to the right is g in the selective scan and h in the wavefront; downward, both carry h.

This module needs numba.
"""

from __future__ import annotations

from typing import NamedTuple

from wsi2d.kernels.native.cells import BLOCK, smaller
from wsi2d.kernels.native.jit import inlined
from wsi2d.kernels.native.simd import load_block, store, zeros

TILE = 256  # cells of a tile: what is recomputed of it lies in the second cache


class Tiles(NamedTuple):
    """How a grid is cut: cells of a tile, and tiles down and across."""

    height: int
    width: int
    down: int
    across: int


@inlined
def cut(height, width):
    """Square tiles, but for a grid of few rows."""
    down = smaller(height, 16)
    across = TILE // down
    return Tiles(down, across, (height + down - 1) // down, (width + across - 1) // across)


class Carries(NamedTuple):
    """Addresses of what crosses the borders of tiles.

    ``row``: what is carried to each tile but the first of a row, ``[across - 1, height, states]``; ``column``: h above
    each tile but the first of a column, ``[down - 1, states, width]``. In reverse, ``up``: what the row below gives,
    ``[states, width]``; ``back``: what the column to the right gives, ``[tile's height, states]``.
    """

    row: int
    column: int
    up: int
    back: int


@inlined
def carries_at(shape, tiles, start):
    """Carries that begin at an address, and where they end."""
    row = start
    column = row + 4 * (tiles.across - 1) * shape.height * shape.states * BLOCK
    up = column + 4 * (tiles.down - 1) * shape.width * shape.states * BLOCK
    back = up + (4 * shape.width * shape.states * BLOCK if shape.height > 1 else 0)
    return Carries(row, column, up, back), back + 4 * tiles.height * shape.states * BLOCK


@inlined
def from_the_left(shape, tiles, carries, row, left, n):
    """What is carried to a row of the tile that begins at column ``left``, for one block of states."""
    if left == 0:
        return zeros()
    return load_block(carries.row, (((left // tiles.width - 1) * shape.height + row) * shape.states + n) * BLOCK)


@inlined
def from_above(shape, tiles, carries, h, at, top, left, n):
    """Write h of the row above a tile to the address ``h``, from the index ``at`` on, for one block of states."""
    at_above = (((top // tiles.height - 1) * shape.states + n) * shape.width + left) * BLOCK
    for j in range(smaller(tiles.width, shape.width - left)):
        store(h, at + j * BLOCK, load_block(carries.column, at_above + j * BLOCK) if top > 0 else zeros())
