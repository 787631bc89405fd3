"""A thin SIMD layer for numba: values that are LLVM vectors, so that a kernel reads like its equations.

:data:`LANES` neighbouring channels make a *vector*; the vectors of :data:`STATES` neighbouring states make a *block*. A
vector is one register with AVX-512 and two with AVX2: it fills a line of the cache, of which half a vector would bring
the rest in vain.
Both take part in ``+``, ``-``, ``*`` and :func:`fma`; a vector that meets a block counts for each of its states.
Memory is given as an address and an index, counted in float32.

Functions of vectors are in :mod:`wsi2d.kernels.native.functions`, sums in :mod:`wsi2d.kernels.native.sums`.

This module needs numba.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
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

FLOAT = ir.FloatType()
INT = ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(INT, LANES)
_BLOCK = ir.ArrayType(VECTOR, STATES)


class _VectorType(types.Type):
    pass


class _BlockType(types.Type):
    pass


vector = _VectorType("vector")
block = _BlockType("block")


@register_model(_VectorType)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, VECTOR)


@register_model(_BlockType)
class _BlockModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: types.Type) -> None:
        super().__init__(manager, kind, _BLOCK)


# --- what intrinsics are made of ------------------------------------------------------------------------------------


def emit_call(builder: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    """A call of one of LLVM's own functions."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [v.type for v in values]), name)
    return builder.call(function, values)


def emit_fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a · b + c of vectors."""
    return emit_call(builder, f"llvm.fma.v{LANES}f32", VECTOR, a, b, c)


def emit_spread(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """The vector of a scalar."""
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), scalar, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))


def emit_shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """Some lanes of a and b, counted through both."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes)))


def constant(value: float) -> ir.Constant:
    """A vector of a number."""
    return ir.Constant(VECTOR, [value] * LANES)


def emit_pointer(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    """A pointer to what lies at an index."""
    start = builder.inttoptr(address, FLOAT.as_pointer())
    there = builder.gep(start, [builder.add(index, ir.Constant(index.type, offset))])
    return builder.bitcast(there, kind.as_pointer())


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


@intrinsic
def fma(typing: Any, a: types.Type, b: types.Type, c: types.Type) -> Any:
    """a · b + c, rounded once."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _elementwise(builder, partial(emit_fma, builder), sig.args, args)

    kind = _wider(a, b, c)
    return None if kind is None else (kind(a, b, c), emit)


@intrinsic
def full(typing: Any, value: types.Type) -> Any:
    """A vector of one value."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return emit_spread(builder, context.cast(builder, args[0], sig.args[0], types.float32))

    return vector(value), emit


@intrinsic
def zeros(typing: Any) -> Any:
    """A block of zeros."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir.Constant(_BLOCK, [constant(0.0)] * STATES)

    return block(), emit


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


@intrinsic
def load(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The vector at an index."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.load(emit_pointer(builder, args[0], args[1], 0, VECTOR), align=4)

    return vector(types.int64, types.int64), emit


@intrinsic
def store(typing: Any, address: types.Type, index: types.Type, value: types.Type) -> Any:
    """Write a vector or a block at an index."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        at, index, value = args
        parts = [value] if sig.args[2] is vector else [builder.extract_value(value, n) for n in range(STATES)]
        for n, part in enumerate(parts):
            builder.store(part, emit_pointer(builder, at, index, n * LANES, VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), emit


@intrinsic
def load_block(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The block at an index: the vectors of its states, one after the other."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        result = ir.Constant(_BLOCK, ir.Undefined)
        for n in range(STATES):
            part = builder.load(emit_pointer(builder, args[0], args[1], n * LANES, VECTOR), align=4)
            result = builder.insert_value(result, part, n)
        return result

    return block(types.int64, types.int64), emit


@intrinsic
def spread(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The vector of the number at an index, the same for all channels."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return emit_spread(builder, builder.load(emit_pointer(builder, args[0], args[1], 0, FLOAT), align=4))

    return vector(types.int64, types.int64), emit


@intrinsic
def spread_states(typing: Any, address: types.Type, index: types.Type) -> Any:
    """The block of one number a state, the same for all channels; they lie one after the other."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        result = ir.Constant(_BLOCK, ir.Undefined)
        for n in range(STATES):
            scalar = builder.load(emit_pointer(builder, args[0], args[1], n, FLOAT), align=4)
            result = builder.insert_value(result, emit_spread(builder, scalar), n)
        return result

    return block(types.int64, types.int64), emit


@intrinsic
def load_some(typing: Any, address: types.Type, index: types.Type, count: types.Type) -> Any:
    """The first lanes of the vector at an index, zero in the others, whose memory is not touched."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = emit_pointer(builder, args[0], args[1], 0, VECTOR)
        return emit_call(
            builder, f"llvm.masked.load.v{LANES}f32.p0", VECTOR, *_masked(builder, pointer, args[2]), constant(0.0)
        )

    return vector(types.int64, types.int64, types.int64), emit


@intrinsic
def store_some(typing: Any, address: types.Type, index: types.Type, value: types.Type, count: types.Type) -> Any:
    """Write the first lanes of a vector; the memory of the others is not touched."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = emit_pointer(builder, args[0], args[1], 0, VECTOR)
        emit_call(
            builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), args[2], *_masked(builder, pointer, args[3])
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector, types.int64), emit


def _masked(builder: ir.IRBuilder, pointer: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Pointer, alignment and mask as LLVM's masked accesses take them."""
    few = builder.trunc(count, INT)
    first = builder.insert_element(ir.Constant(INTS, ir.Undefined), few, ir.Constant(INT, 0))
    spread = builder.shuffle_vector(first, first, ir.Constant(INTS, [0] * LANES))
    return pointer, ir.Constant(INT, 4), builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), spread)


@intrinsic
def prefetch(typing: Any, address: types.Type, index: types.Type) -> Any:
    """Ask for the memory at an index, which will be read soon. It need not exist."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = builder.bitcast(emit_pointer(builder, args[0], args[1], 0, FLOAT), ir.IntType(8).as_pointer())
        flags = [ir.Constant(INT, flag) for flag in (0, 2, 1)]  # to read, into the second cache, data
        emit_call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *flags)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit
