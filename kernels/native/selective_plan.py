"""What the 2D selective scan's forward and backward on the CPU are given, in one ``int64`` array: a plan.

The equations stand in :mod:`wsi2d.kernels.scan2d`. A *unit* of work is one image and :data:`LANES` neighbouring
channels.

This module needs numba.
"""

from __future__ import annotations

from typing import NamedTuple

from wsi2d.kernels.native.cells import grid_at
from wsi2d.kernels.native.jit import inlined


class Shape(NamedTuple):
    """Sizes; ``states`` counts blocks."""

    height: int
    width: int
    dim: int
    states: int
    softplus: int


class Parameters(NamedTuple):
    """Addresses of what belongs to channels: log2(e)·A ``[dim / lanes, states, STATES, lanes]``, D and the bias of
    the steps ``[dim / lanes, lanes]``, all of them padded with zeros."""

    A: int
    D: int
    bias: int


HEADER = len(Shape._fields) + len(Parameters._fields)


@inlined
def grid(plan, number):
    """The tensor of a number: of the forward u, delta, B, C, z and the output; of the backward the first five, the
    output's gradient and those of u, delta and z."""
    return grid_at(plan, HEADER + 4 * number)


@inlined
def shape_of(plan):
    """Sizes."""
    return Shape(plan[0], plan[1], plan[2], plan[3], plan[4])


@inlined
def parameters_of(plan):
    """Parameters."""
    return Parameters(plan[5], plan[6], plan[7])
