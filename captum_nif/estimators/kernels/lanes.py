"""Sixteen int32 lanes as one value in numba code: explicit SIMD.

Compilers vectorize neither a search that keeps the few smallest values of a stream nor
its early end, so the kernels say lane by lane what they mean. LLVM maps sixteen lanes
to whatever the processor has: one register with AVX-512, two with AVX2, four with NEON.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

WIDTH = 16

IN_REGISTERS = 24
"""Entries of a list, and of what is inserted, that AVX-512 holds in registers."""

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I32, WIDTH)


class LanesType(types.Type):
    """The numba type of sixteen int32 lanes."""


lanes_type: Any = LanesType("int32x16")

Lanes: TypeAlias = Any
"""Sixteen lanes, in annotations of kernels."""


def _operation(typed: Callable[..., Any]) -> Any:
    """An operation for kernels, from its type and the LLVM code for it."""
    return intrinsic(typed)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _VECTOR)  # type: ignore[no-untyped-call]


def _splat(builder: Any, value: Any) -> Any:
    first = builder.insert_element(
        ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_I32, 0)
    )
    return builder.shuffle_vector(first, first, ir.Constant(_VECTOR, [0] * WIDTH))


def _minimum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def _pointer(
    context: Any, builder: Any, array_type: Any, array: Any, at: Any
) -> tuple[Any, Any]:
    """The type of an array's elements, and where one of them is."""
    struct = context.make_array(array_type)(context, builder, array)
    return ir.IntType(array_type.dtype.bitwidth), builder.gep(struct.data, [at])


@_operation
def load(typing: Any, array: Any, at: Any) -> Any:
    """Lanes ``array[at : at + 16]`` of a contiguous int16 or int32 array, unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element, pointer = _pointer(context, builder, signature.args[0], *args)
        vector = ir.VectorType(element, WIDTH)
        start = builder.bitcast(pointer, vector.as_pointer())
        loaded = builder.load(start, align=element.width // 8)
        return builder.sext(loaded, _VECTOR) if element.width < 32 else loaded

    return lanes_type(array, types.intp), codegen


@_operation
def store(typing: Any, array: Any, at: Any, lanes: Any) -> Any:
    """Set ``array[at : at + 16]`` of a contiguous int16 or int32 array, unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        element, pointer = _pointer(
            context, builder, signature.args[0], args[0], args[1]
        )
        vector = ir.VectorType(element, WIDTH)
        lanes = builder.trunc(args[2], vector) if element.width < 32 else args[2]
        start = builder.bitcast(pointer, vector.as_pointer())
        builder.store(lanes, start, align=element.width // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type), codegen


@_operation
def gather(typing: Any, array: Any, at: Any) -> Any:
    """Lanes ``array[at]`` of a contiguous int16 or int32 array, unchecked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        gathered = ir.Constant(_VECTOR, ir.Undefined)
        pairs = builder.bitcast(args[1], ir.VectorType(_I64, WIDTH // 2))
        for i in range(WIDTH):
            pair = builder.extract_element(pairs, ir.Constant(_I32, i // 2))
            if i % 2 == 0:
                index = builder.and_(pair, ir.Constant(_I64, 0xFFFFFFFF))
            else:
                index = builder.lshr(pair, ir.Constant(_I64, 32))
            element, pointer = _pointer(
                context, builder, signature.args[0], args[0], index
            )
            value = builder.load(pointer)
            if element.width < 32:
                value = builder.sext(value, _I32)
            gathered = builder.insert_element(gathered, value, ir.Constant(_I32, i))
        return gathered

    return lanes_type(array, lanes_type), codegen


@_operation
def numbered(typing: Any) -> Any:
    """The lanes' numbers, 0 to 15."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR, list(range(WIDTH)))

    return lanes_type(), codegen


@_operation
def splat(typing: Any, value: Any) -> Any:
    """The same int32 in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return lanes_type(types.int32), codegen


def _binary(operation: Any, document: str) -> Any:
    def typed(typing: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return operation(builder, *args)

        return lanes_type(lanes_type, lanes_type), codegen

    typed.__doc__ = document
    return _operation(typed)


def _distance(builder: Any, a: Any, b: Any) -> Any:
    difference = builder.sub(a, b)
    return _maximum(builder, difference, builder.neg(difference))


minimum = _binary(_minimum, "The smaller value, lane by lane.")
maximum = _binary(_maximum, "The larger value, lane by lane.")
add = _binary(lambda builder, a, b: builder.add(a, b), "a + b, lane by lane.")
subtract = _binary(lambda builder, a, b: builder.sub(a, b), "a - b, lane by lane.")
shift_right = _binary(lambda builder, a, b: builder.ashr(a, b), "a >> b, by lanes.")
shift_left = _binary(lambda builder, a, b: builder.shl(a, b), "a << b, by lanes.")
distance = _binary(_distance, "The absolute difference, lane by lane.")


@_operation
def mask_at_most(typing: Any, a: Any, b: Any) -> Any:
    """Bit i of the result says whether ``a <= b`` in lane i."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.icmp_signed("<=", *args)
        return builder.zext(builder.bitcast(mask, ir.IntType(WIDTH)), _I32)

    return types.int32(lanes_type, lanes_type), codegen


@_operation
def choose_at_most(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """``then`` in lanes where a is at most b, else ``otherwise``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fits = builder.icmp_signed("<=", args[0], args[1])
        return builder.select(fits, args[2], args[3])

    return lanes_type(lanes_type, lanes_type, lanes_type, lanes_type), codegen


@_operation
def tally(typing: Any, counts: Any, a: Any, b: Any) -> Any:
    """``counts``, and one more in lanes where a is at most b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.icmp_signed("<=", args[1], args[2])
        return builder.sub(args[0], builder.sext(mask, _VECTOR))

    return lanes_type(lanes_type, lanes_type, lanes_type), codegen


@_operation
def count_bits(typing: Any, mask: Any) -> Any:
    """How many bits of an int32 are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int32(types.int32), codegen


@_operation
def first_bit(typing: Any, mask: Any) -> Any:
    """Index of the lowest bit set in a nonzero int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), codegen


@_operation
def load_lists(typing: Any, capacity: Any, array: Any) -> Any:
    """A list for each lane, as long as the tuple ``capacity``, from an array.

    Their first entries are those of ``array[:16]``, and so on. The array is contiguous,
    of int32, and unchecked.
    """
    result: Any = types.UniTuple(lanes_type, len(capacity))  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        entries = []
        for i in range(len(capacity)):
            at = ir.Constant(_I64, i * WIDTH)
            _, pointer = _pointer(context, builder, signature.args[1], args[1], at)
            start = builder.bitcast(pointer, _VECTOR.as_pointer())
            entries.append(builder.load(start, align=4))
        return cgutils.pack_array(builder, entries)  # type: ignore[no-untyped-call]

    return result(capacity, array), codegen


@_operation
def insert_four(typing: Any, sorted_lists: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Insert four values into the sorted list of each lane; the four largest drop out.

    The values are sorted, and merged with the list by Batcher's bitonic network (1968):
    the list from its start and the values from their end, entry by entry, have the
    smallest of both between them, rising and then falling. From eight entries on that
    is two thirds of the work of one value after the other. Lists too long for the
    registers of a processor are gone through in order, one value after the other all
    the same.
    """
    length = len(sorted_lists)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        entries = cgutils.unpack_tuple(builder, args[0])  # type: ignore[no-untyped-call]
        if length <= IN_REGISTERS:
            entries = _merged(builder, entries, list(args[1:]))
        else:
            for value in args[1:]:
                entries = _inserted(builder, entries, value)
        return cgutils.pack_array(builder, entries)  # type: ignore[no-untyped-call]

    return sorted_lists(sorted_lists, a, b, c, d), codegen


def _inserted(builder: Any, entries: list[Any], value: Any) -> list[Any]:
    # Each entry depends only on old ones: no chain from the first to the last.
    new = [_minimum(builder, entries[0], value)]
    for before, entry in pairwise(entries):
        new.append(_minimum(builder, entry, _maximum(builder, before, value)))
    return new


def _merged(builder: Any, entries: list[Any], new: list[Any]) -> list[Any]:
    for pair in ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)):
        _exchange(builder, new, *pair)
    count = len(entries)
    for i, value in enumerate(reversed(new), count - len(new)):
        entries[i] = _minimum(builder, entries[i], value)
    # A list whose length is no power of two is merged as if entries below all others
    # were before its first: these would stay where they are.
    absent = (1 << (count - 1).bit_length()) - count
    step = (absent + count) // 2
    while step:
        for low in range(absent, absent + count - step):
            if not low & step:
                _exchange(builder, entries, low - absent, low + step - absent)
        step //= 2
    return entries


def _exchange(builder: Any, values: list[Any], low: int, high: int) -> None:
    first, second = values[low], values[high]
    values[low] = _minimum(builder, first, second)
    values[high] = _maximum(builder, first, second)
