"""Functions of vectors: exponentials and comparisons.

This module needs numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from wsi2d.kernels.native.simd import (
    AVX512,
    INT,
    INTS,
    LANES,
    VECTOR,
    constant,
    emit_call,
    emit_fma,
    emit_spread,
    vector,
)

SMALL = 126.0  # exponents of this size and below are what exp2 calls small


@intrinsic
def exp2(typing: Any, x: types.Type, small: types.Type) -> Any:
    """2^x of a vector, relative error below 2e-7 and exactly 1 at 0; next to 0 below -126, beyond 1e38 from 128, NaN
    of NaN.

    ``small``: whether no exponent but NaN is beyond ±:data:`SMALL`. It is then faster without AVX-512.
    """

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        def power(exponent: ir.Value) -> ir.Value:
            whole = _round(builder, exponent)
            return _power_of_two(builder, whole, builder.fsub(exponent, whole))

        value, is_small = args
        if AVX512:
            return power(value)
        powers = []
        with builder.if_else(is_small, likely=True) as cases:
            for case, bounded in zip(cases, (False, True), strict=True):
                with case:
                    powers.append((power(_clamp(builder, value, -126.0, 127.0) if bounded else value), builder.block))
        result = builder.phi(VECTOR)
        for one, block_of_it in powers:
            result.add_incoming(one, block_of_it)
        return result

    return vector(vector, types.boolean), emit


@intrinsic
def exp(typing: Any, x: types.Type) -> Any:
    """e^x of a vector, relative error below 3e-7 over its whole range; for few values, where :func:`exp2` is fast."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        value = args[0] if AVX512 else _clamp(builder, args[0], -87.0, 88.0)
        whole = _round(builder, builder.fmul(value, constant(_LOG2_E[0])))
        rest = emit_fma(builder, value, constant(_LOG2_E[0]), builder.fneg(whole))
        rest = emit_fma(builder, value, constant(_LOG2_E[1]), rest)
        return _power_of_two(builder, whole, rest)

    return vector(vector), emit


_EXP2 = (1.0, 0.6931469776, 0.2402224208, 0.05550733744, 0.009671512786, 0.001326472725)
_LOG2_E = (1.44269502162933349609375, 1.92596299112661e-8)  # their sum is log2(e) to some 50 bits


def _power_of_two(builder: ir.IRBuilder, whole: ir.Value, rest: ir.Value) -> ir.Value:
    """2^whole · 2^rest with rest from -1/2 to 1/2, by a polynomial."""
    power: ir.Value = constant(_EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        power = emit_fma(builder, power, rest, constant(coefficient))
    return _scale(builder, power, whole)


def _scale(builder: ir.IRBuilder, value: ir.Value, whole: ir.Value) -> ir.Value:
    """value · 2^whole; without AVX-512 for values about 1 and whole from -126 to 127."""
    if AVX512:
        mask, rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(INT, 4)
        return emit_call(builder, "llvm.x86.avx512.mask.scalef.ps.512", VECTOR, value, whole, value, mask, rounding)
    shift = builder.shl(builder.fptosi(whole, INTS), ir.Constant(INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(value, INTS), shift), VECTOR)


def _clamp(builder: ir.IRBuilder, value: ir.Value, low: float, high: float) -> ir.Value:
    """Between two bounds; NaN stays."""
    value = builder.select(builder.fcmp_ordered("<", value, constant(low)), constant(low), value)
    return builder.select(builder.fcmp_ordered(">", value, constant(high)), constant(high), value)


def _round(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return emit_call(builder, f"llvm.rint.v{LANES}f32", VECTOR, value)


@intrinsic
def positive(typing: Any, x: types.Type) -> Any:
    """x where it is not below 0, else 0; NaN stays."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", args[0], constant(0.0)), constant(0.0), args[0])

    return vector(vector), emit


@intrinsic
def absolute(typing: Any, x: types.Type) -> Any:
    """|x| of a vector."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return emit_call(builder, f"llvm.fabs.v{LANES}f32", VECTOR, args[0])

    return vector(vector), emit


@intrinsic
def larger(typing: Any, x: types.Type, y: types.Type) -> Any:
    """Lane by lane the larger of two vectors; y where x is NaN."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector(vector, vector), emit


@intrinsic
def all_below(typing: Any, x: types.Type, bound: types.Type) -> Any:
    """Whether every lane of a vector is below a number; NaN is not."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        most = emit_spread(builder, context.cast(builder, args[1], sig.args[1], types.float32))
        lanes = ir.IntType(LANES)
        below = builder.bitcast(builder.fcmp_ordered("<", args[0], most), lanes)
        return builder.icmp_signed("==", below, ir.Constant(lanes, -1))

    return types.boolean(vector, bound), emit


@intrinsic
def where_negative(typing: Any, x: types.Type, then: types.Type, other: types.Type) -> Any:
    """``then`` where x is below 0, else ``other``; all are vectors."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", args[0], constant(0.0)), args[1], args[2])

    return vector(vector, vector, vector), emit
