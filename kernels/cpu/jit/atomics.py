"""Atomic operations on int64 numbers that threads share, as intrinsics for functions that Numba compiles."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .llvm import I64, emit_pointer


@intrinsic
def load_shared(typingctx, address):
    """Returns the int64 at an address. What the writing thread wrote before it is visible afterwards."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(emit_pointer(builder, arguments[0], I64), "acquire", 8, typ=I64)

    return types.int64(types.intp), codegen


@intrinsic
def store_shared(typingctx, address, value):
    """Writes an int64 for other threads, after everything that this thread wrote before."""

    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], emit_pointer(builder, arguments[0], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


@intrinsic
def add_shared(typingctx, address, value):
    """Adds to the int64 at an address. Returns the old number."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", emit_pointer(builder, arguments[0], I64), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def exchange_shared(typingctx, address, value):
    """Writes an int64. Returns the old number."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("xchg", emit_pointer(builder, arguments[0], I64), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def compare_and_swap(typingctx, address, old, new):
    """Writes an int64 if the number is still the old one. Returns whether it was written."""

    def codegen(context, builder, signature, arguments):
        address, old, new = arguments
        result = builder.cmpxchg(emit_pointer(builder, address, I64), old, new, "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.intp, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tells the processor that this thread waits in a loop."""

    def codegen(context, builder, signature, arguments):
        type_ = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, type_, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen
