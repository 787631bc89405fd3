"""Sums over the states of a block and over the lanes of its vectors.

This module needs numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from wsi2d.kernels.native.simd import AVX512, LANES, STATES, block, emit_fma, emit_pointer, emit_shuffle, vector


@intrinsic
def dot_states(typing: Any, a: types.Type, b: types.Type, start: types.Type) -> Any:
    """start + Σ over states of a · b: two blocks and a vector give a vector."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        a, b, total = args
        for n in range(STATES):
            factors = builder.extract_value(a, n), builder.extract_value(b, n)
            total = emit_fma(builder, *factors, total)
        return total

    return vector(block, block, vector), emit


@intrinsic
def add_lane_sums(typing: Any, address: types.Type, index: types.Type, value: types.Type) -> Any:
    """Add to memory the sum over lanes of each state of a block."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        quads = _sum_quads(builder, _vectors(builder, args[2]))
        sums = _fold(builder, quads, quads)
        _add(builder, args[0], args[1], emit_shuffle(builder, sums, sums, range(STATES)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, block), emit


@intrinsic
def add_lane_sums_of_two(
    typing: Any, first: types.Type, second: types.Type, index: types.Type, a: types.Type, b: types.Type
) -> Any:
    """The same of two blocks: a at the first address, b at the second. It costs hardly more than one."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        at_a, at_b, index, *blocks = args
        sums = _fold(builder, *(_sum_quads(builder, _vectors(builder, value)) for value in blocks))
        _add(builder, at_a, index, emit_shuffle(builder, sums, sums, range(STATES)))
        _add(builder, at_b, index, emit_shuffle(builder, sums, sums, range(STATES, 2 * STATES)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, block, block), emit


def _add(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, values: ir.Value) -> None:
    pointer = emit_pointer(builder, address, index, 0, values.type)
    builder.store(builder.fadd(builder.load(pointer, align=4), values), pointer, align=4)


def _vectors(builder: ir.IRBuilder, value: ir.Value) -> list[ir.Value]:
    """The vectors of a block."""
    return [builder.extract_value(value, n) for n in range(STATES)]


def _sum_quads(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """Of four vectors the sums of their quads of lanes, [0 1 2 3] for each quad: shuffles that stay in a quad.

    Without AVX-512, where a vector is two registers, these are added first: it takes half the shuffles.
    """
    lanes = LANES
    if not AVX512:
        lanes = LANES // 2
        low, high = (
            [emit_shuffle(builder, v, v, half) for v in vectors] for half in (range(lanes), range(lanes, LANES))
        )
        vectors = [builder.fadd(*pair) for pair in zip(low, high, strict=True)]

    def add(x: ir.Value, y: ir.Value, low: Sequence[int], high: Sequence[int]) -> ir.Value:
        def quads(pattern: Sequence[int]) -> list[int]:
            return [base + k % 4 + (lanes if k >= 4 else 0) for base in range(0, lanes, 4) for k in pattern]

        return builder.fadd(emit_shuffle(builder, x, y, quads(low)), emit_shuffle(builder, x, y, quads(high)))

    zeroth, first, second, third = vectors
    x = add(zeroth, first, (0, 4, 1, 5), (2, 6, 3, 7))  # lanes 0+2, 0'+2', 1+3, 1'+3'
    y = add(second, third, (0, 4, 1, 5), (2, 6, 3, 7))
    return add(x, y, (0, 1, 4, 5), (2, 3, 6, 7))


def _fold(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The sum of a's quads, followed by the sum of b's."""
    if AVX512:
        half = LANES // 2
        low = emit_shuffle(builder, a, b, [*range(half), *range(LANES, LANES + half)])
        high = emit_shuffle(builder, a, b, [*range(half, LANES), *range(LANES + half, 2 * LANES)])
        a = b = builder.fadd(low, high)
    even = emit_shuffle(builder, a, b, [0, 1, 2, 3, 8, 9, 10, 11])
    odd = emit_shuffle(builder, a, b, [4, 5, 6, 7, 12, 13, 14, 15])
    return builder.fadd(even, odd)
