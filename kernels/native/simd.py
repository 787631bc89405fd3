"""A thin SIMD layer for numba: values that are LLVM vectors, so that a kernel reads like its equations.

:data:`LANES` neighbouring channels make a *vector*; the vectors of :data:`STATES` neighbouring states make a *block*. A
vector is one register with AVX-512 and two with AVX2: it fills a line of the cache, of which half a vector would bring
the rest in vain.
Both take part in ``+``, ``-``, ``*`` and :func:`fma`; a vector that meets a block counts for each of its states.
Memory is given as an address and an index, counted in float32.

This module needs numba.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import codegen
from numba.core.datamodel import PrimitiveModel
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, register_model


def _features() -> str:
    library: codegen.JITCPUCodegen = cpu_target.target_context.codegen()
    return str(library._tm_features)


AVX512 = "+avx512f" in _features()
INSTRUCTIONS = "AVX-512" if AVX512 else "AVX2" if "+avx2" in _features() and "+fma" in _features() else "baseline"
LANES = 16
STATES = 4
SMALL = 126.0  # exponents of this size and below are what exp2 calls small

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_BLOCK = ir.ArrayType(_VECTOR, STATES)


class _VectorType(types.Type):
    pass


class _BlockType(types.Type):
    pass


vector = _VectorType("vector")
block = _BlockType("block")


@register_model(_VectorType)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, _VECTOR)


@register_model(_BlockType)
class _BlockModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, _BLOCK)


# --- element by element --------------------------------------------------------------------------------------------


def _wider(*kinds: types.Type) -> types.Type | None:
    """The type of a result: a block where one takes part; None where something else than vectors does."""
    if not all(kind in (vector, block) for kind in kinds):
        return None
    return block if block in kinds else vector


def _elementwise(
    builder: ir.IRBuilder, emit: Callable[..., ir.Value], kinds: Sequence[types.Type], values: Sequence[ir.Value]
) -> ir.Value:
    if _wider(*kinds) is vector:
        return emit(*values)
    result = ir.Constant(_BLOCK, ir.Undefined)
    for n in range(STATES):
        parts = [builder.extract_value(v, n) if k is block else v for k, v in zip(kinds, values, strict=True)]
        result = builder.insert_value(result, emit(*parts), n)
    return result


def _define_operator(function: Callable[..., Any], instruction: str) -> None:
    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: object) -> Any:
            kind = _wider(*args) if len(args) == 2 else None
            return None if kind is None else signature(kind, *args)

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _elementwise(builder, getattr(builder, instruction), sig.args, args)

    for a in (vector, block):
        for b in (vector, block):
            lower_builtin(function, a, b)(lower)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [v.type for v in values]), name)
    return builder.call(function, values)


def _all(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


@intrinsic
def fma(typing: Any, a: types.Type, b: types.Type, c: types.Type) -> Any:
    """a · b + c, rounded once."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        def one(*values: ir.Value) -> ir.Value:
            return _call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, *values)

        return _elementwise(builder, one, sig.args, args)

    kind = _wider(a, b, c)
    return None if kind is None else (kind(a, b, c), emit)


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
        result = builder.phi(_VECTOR)
        for one, block_of_it in powers:
            result.add_incoming(one, block_of_it)
        return result

    return vector(vector, types.boolean), emit


@intrinsic
def exp(typing: Any, x: types.Type) -> Any:
    """e^x of a vector, relative error below 3e-7 over its whole range; for few values, where :func:`exp2` is fast."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        value = args[0] if AVX512 else _clamp(builder, args[0], -87.0, 88.0)
        whole = _round(builder, builder.fmul(value, _all(_LOG2_E[0])))
        rest = _fma(builder, value, _all(_LOG2_E[0]), builder.fneg(whole))
        rest = _fma(builder, value, _all(_LOG2_E[1]), rest)
        return _power_of_two(builder, whole, rest)

    return vector(vector), emit


_EXP2 = (1.0, 0.6931469776, 0.2402224208, 0.05550733744, 0.009671512786, 0.001326472725)
_LOG2_E = (1.44269502162933349609375, 1.92596299112661e-8)  # their sum is log2(e) to some 50 bits


def _power_of_two(builder: ir.IRBuilder, whole: ir.Value, rest: ir.Value) -> ir.Value:
    """2^whole · 2^rest with rest from -1/2 to 1/2, by a polynomial."""
    power: ir.Value = _all(_EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        power = _fma(builder, power, rest, _all(coefficient))
    return _scale(builder, power, whole)


def _scale(builder: ir.IRBuilder, value: ir.Value, whole: ir.Value) -> ir.Value:
    """value · 2^whole; without AVX-512 for values about 1 and whole from -126 to 127."""
    if AVX512:
        mask, rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(_INT, 4)
        return _call(builder, "llvm.x86.avx512.mask.scalef.ps.512", _VECTOR, value, whole, value, mask, rounding)
    shift = builder.shl(builder.fptosi(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(value, _INTS), shift), _VECTOR)


def _clamp(builder: ir.IRBuilder, value: ir.Value, low: float, high: float) -> ir.Value:
    """Between two bounds; NaN stays."""
    value = builder.select(builder.fcmp_ordered("<", value, _all(low)), _all(low), value)
    return builder.select(builder.fcmp_ordered(">", value, _all(high)), _all(high), value)


def _round(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return _call(builder, f"llvm.rint.v{LANES}f32", _VECTOR, value)


@intrinsic
def positive(typing: Any, x: types.Type) -> Any:
    """x where it is not below 0, else 0; NaN stays."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", args[0], _all(0.0)), _all(0.0), args[0])

    return vector(vector), emit


@intrinsic
def absolute(typing: Any, x: types.Type) -> Any:
    """|x| of a vector."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _call(builder, f"llvm.fabs.v{LANES}f32", _VECTOR, args[0])

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
        most = _spread(builder, context.cast(builder, args[1], sig.args[1], types.float32))
        lanes = ir.IntType(LANES)
        below = builder.bitcast(builder.fcmp_ordered("<", args[0], most), lanes)
        return builder.icmp_signed("==", below, ir.Constant(lanes, -1))

    return types.boolean(vector, bound), emit


@intrinsic
def where_negative(typing: Any, x: types.Type, then: types.Type, other: types.Type) -> Any:
    """``then`` where x is below 0, else ``other``; all are vectors."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", args[0], _all(0.0)), args[1], args[2])

    return vector(vector, vector, vector), emit


def _fma(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
    return _call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, *values)


def _parts(builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> list[ir.Value]:
    return [value] if kind is vector else [builder.extract_value(value, n) for n in range(STATES)]


@intrinsic
def full(typing: Any, value: types.Type) -> Any:
    """A vector of one value."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _spread(builder, context.cast(builder, args[0], sig.args[0], types.float32))

    return vector(value), emit


@intrinsic
def zeros(typing: Any) -> Any:
    """A block of zeros."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir.Constant(_BLOCK, [_all(0.0)] * STATES)

    return block(), emit


def _spread(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))


# --- the stack -----------------------------------------------------------------------------------------------------


@intrinsic
def align_stack(typing: Any) -> Any:
    """Begin a kernel with it: vectors that find no register then lie at borders of 64 bytes, each in one line of the
    cache. Without it they lie at any 16, as the caller's stack happens to be."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        builder.function.attributes.alignstack = 64
        builder.function.attributes.add("nounwind")  # llvmlite writes the former beside another attribute only
        return context.get_dummy_value()

    return types.void(), emit


# --- memory --------------------------------------------------------------------------------------------------------


def _pointer(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    start = builder.inttoptr(address, _FLOAT.as_pointer())
    there = builder.gep(start, [builder.add(index, ir.Constant(index.type, offset))])
    return builder.bitcast(there, kind.as_pointer())


@intrinsic
def load(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The vector at an index."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.load(_pointer(builder, args[0], args[1], 0, _VECTOR), align=4)

    return vector(types.int64, types.int64), emit


@intrinsic
def store(typing: Any, address: types.Type, index: types.Type, value: types.Type) -> Any:
    """Write a vector or a block at an index."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        at, index, value = args
        parts = [value] if sig.args[2] is vector else [builder.extract_value(value, n) for n in range(STATES)]
        for n, part in enumerate(parts):
            builder.store(part, _pointer(builder, at, index, n * LANES, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), emit


@intrinsic
def load_block(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The block at an index: the vectors of its states, one after the other."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        result = ir.Constant(_BLOCK, ir.Undefined)
        for n in range(STATES):
            part = builder.load(_pointer(builder, args[0], args[1], n * LANES, _VECTOR), align=4)
            result = builder.insert_value(result, part, n)
        return result

    return block(types.int64, types.int64), emit


@intrinsic
def spread(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The vector of the number at an index, the same for all channels."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _spread(builder, builder.load(_pointer(builder, args[0], args[1], 0, _FLOAT), align=4))

    return vector(types.int64, types.int64), emit


@intrinsic
def spread_states(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The block of one number a state, the same for all channels; they lie one after the other."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        result = ir.Constant(_BLOCK, ir.Undefined)
        for n in range(STATES):
            scalar = builder.load(_pointer(builder, args[0], args[1], n, _FLOAT), align=4)
            result = builder.insert_value(result, _spread(builder, scalar), n)
        return result

    return block(types.int64, types.int64), emit


@intrinsic
def load_some(typing: Any, address: types.Type, index: types.Type, count: types.Type) -> Any:
    """The first lanes of the vector at an index, zero in the others, whose memory is not touched."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = _pointer(builder, args[0], args[1], 0, _VECTOR)
        return _call(
            builder, f"llvm.masked.load.v{LANES}f32.p0", _VECTOR, *_masked(builder, pointer, args[2]), _all(0.0)
        )

    return vector(types.int64, types.int64, types.int64), emit


@intrinsic
def store_some(typing: Any, address: types.Type, index: types.Type, value: types.Type, count: types.Type) -> Any:
    """Write the first lanes of a vector; the memory of the others is not touched."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = _pointer(builder, args[0], args[1], 0, _VECTOR)
        _call(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), args[2], *_masked(builder, pointer, args[3]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector, types.int64), emit


def _masked(builder: ir.IRBuilder, pointer: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Pointer, alignment and mask as LLVM's masked accesses take them."""
    few = builder.trunc(count, _INT)
    first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), few, ir.Constant(_INT, 0))
    spread = builder.shuffle_vector(first, first, ir.Constant(_INTS, [0] * LANES))
    return pointer, ir.Constant(_INT, 4), builder.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), spread)


@intrinsic
def prefetch(typing: Any, address: types.Type, index: types.Type) -> Any:
    """Ask for the memory at an index, which will be read soon. It need not exist."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = builder.bitcast(_pointer(builder, args[0], args[1], 0, _FLOAT), ir.IntType(8).as_pointer())
        flags = [ir.Constant(_INT, flag) for flag in (0, 2, 1)]  # to read, into the second cache, data
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *flags)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


# --- sums ----------------------------------------------------------------------------------------------------------


@intrinsic
def dot_states(typing: Any, a: types.Type, b: types.Type, start: types.Type) -> Any:
    """start + Σ over states of a · b: two blocks and a vector give a vector."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        a, b, total = args
        for n in range(STATES):
            factors = builder.extract_value(a, n), builder.extract_value(b, n)
            total = _call(builder, f"llvm.fma.v{LANES}f32", _VECTOR, *factors, total)
        return total

    return vector(block, block, vector), emit


@intrinsic
def add_lane_sums(typing: Any, address: types.Type, index: types.Type, value: types.Type) -> Any:
    """Add to memory the sum over lanes of each state of a block."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        quads = _sum_quads(builder, _parts(builder, block, args[2]))
        sums = _fold(builder, quads, quads)
        _add(builder, args[0], args[1], _shuffle(builder, sums, sums, range(STATES)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, block), emit


@intrinsic
def add_lane_sums_of_two(
    typing: Any, first: types.Type, second: types.Type, index: types.Type, a: types.Type, b: types.Type
) -> Any:
    """The same of two blocks: a at the first address, b at the second. It costs hardly more than one."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        at_a, at_b, index, *blocks = args
        sums = _fold(builder, *(_sum_quads(builder, _parts(builder, block, value)) for value in blocks))
        _add(builder, at_a, index, _shuffle(builder, sums, sums, range(STATES)))
        _add(builder, at_b, index, _shuffle(builder, sums, sums, range(STATES, 2 * STATES)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, block, block), emit


def _add(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, values: ir.Value) -> None:
    pointer = _pointer(builder, address, index, 0, values.type)
    builder.store(builder.fadd(builder.load(pointer, align=4), values), pointer, align=4)


def _sum_quads(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """Of four vectors the sums of their quads of lanes, [0 1 2 3] for each quad: shuffles that stay in a quad.

    Without AVX-512, where a vector is two registers, these are added first: it takes half the shuffles.
    """
    lanes = LANES
    if not AVX512:
        lanes = LANES // 2
        low, high = ([_shuffle(builder, v, v, half) for v in vectors] for half in (range(lanes), range(lanes, LANES)))
        vectors = [builder.fadd(*pair) for pair in zip(low, high, strict=True)]

    def add(x: ir.Value, y: ir.Value, low: Sequence[int], high: Sequence[int]) -> ir.Value:
        def quads(pattern: Sequence[int]) -> list[int]:
            return [base + k % 4 + (lanes if k >= 4 else 0) for base in range(0, lanes, 4) for k in pattern]

        return builder.fadd(_shuffle(builder, x, y, quads(low)), _shuffle(builder, x, y, quads(high)))

    zeroth, first, second, third = vectors
    x = add(zeroth, first, (0, 4, 1, 5), (2, 6, 3, 7))  # lanes 0+2, 0'+2', 1+3, 1'+3'
    y = add(second, third, (0, 4, 1, 5), (2, 6, 3, 7))
    return add(x, y, (0, 1, 4, 5), (2, 3, 6, 7))


def _fold(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The sum of a's quads, followed by the sum of b's."""
    if AVX512:
        half = LANES // 2
        low = _shuffle(builder, a, b, [*range(half), *range(LANES, LANES + half)])
        high = _shuffle(builder, a, b, [*range(half, LANES), *range(LANES + half, 2 * LANES)])
        a = b = builder.fadd(low, high)
    even = _shuffle(builder, a, b, [0, 1, 2, 3, 8, 9, 10, 11])
    odd = _shuffle(builder, a, b, [4, 5, 6, 7, 12, 13, 14, 15])
    return builder.fadd(even, odd)


def _shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), list(lanes)))
