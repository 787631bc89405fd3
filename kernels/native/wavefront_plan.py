"""What the 2D wavefront scan's forward and backward on the CPU are given, in one ``int64`` array: a plan.

The equations stand in :mod:`wsi2d.kernels.scan2d`; the shape of the work is that of the selective scan
(:mod:`wsi2d.kernels.native.selective_plan`), with one state where that has two: h goes on both to the right and down.

This module needs numba.
"""

from __future__ import annotations

from typing import NamedTuple

from wsi2d.kernels.native.cells import grid_at
from wsi2d.kernels.native.functions import exp2
from wsi2d.kernels.native.jit import inlined
from wsi2d.kernels.native.simd import fma, full, load, spread


class Shape(NamedTuple):
    """Sizes; ``states`` counts blocks."""

    height: int
    width: int
    dim: int
    states: int


class Parameters(NamedTuple):
    """Addresses of what belongs to channels: log2(e)·A from above and from the left ``[dim / lanes, states, STATES,
    lanes]`` and D ``[dim / lanes, lanes]``, padded with zeros."""

    A_t: int
    A_l: int
    D: int


HEADER = len(Shape._fields) + len(Parameters._fields)


@inlined
def grid(plan, number):
    """The tensor of a number: of the forward x, both Δ, both B, C and the output; of the backward the first six, the
    output's gradient and those of x and of both Δ."""
    return grid_at(plan, HEADER + 4 * number)


@inlined
def shape_of(plan):
    """Sizes."""
    return Shape(plan[0], plan[1], plan[2], plan[3])


@inlined
def parameters_of(plan):
    """Parameters."""
    return Parameters(plan[4], plan[5], plan[6])


@inlined
def weight(row, column):
    """½ inside the grid, where a state has two predecessors; 1 in the first row and the first column."""
    return full(0.5) if row > 0 and column > 0 else full(1.0)


@inlined
def advance(known, at, row, column, A_t, A_l, B_t, B_l, above, back, small):
    """w·aT and w·aL of one state of a cell, zeros where it has no cell above or none on the left, and its h.

    ``known`` holds the cell's steps and drives (w times step times x) at an index; the rates, both B, h above the cell
    and h on its left (``back``) are each an address and an index. What is not needed is not read. ``small``: see
    :func:`wsi2d.kernels.native.cells.are_small`.
    """
    if row == 0:
        a_l = exp2(load(known.step_l, at) * load(A_l[0], A_l[1]), small)
        from_l = load(known.drive_l, at) * spread(B_l[0], B_l[1])
        return full(0.0), a_l, fma(a_l, load(back[0], back[1]), from_l)
    halved = full(-1.0) if column > 0 else full(0.0)  # ½ = 2^−1
    a_t = exp2(fma(load(known.step_t, at), load(A_t[0], A_t[1]), halved), small)
    from_t = fma(a_t, load(above[0], above[1]), load(known.drive_t, at) * spread(B_t[0], B_t[1]))
    if column == 0:
        return a_t, full(0.0), from_t
    a_l = exp2(fma(load(known.step_l, at), load(A_l[0], A_l[1]), halved), small)
    drive = fma(load(known.drive_l, at), spread(B_l[0], B_l[1]), from_t)
    return a_t, a_l, fma(a_l, load(back[0], back[1]), drive)
