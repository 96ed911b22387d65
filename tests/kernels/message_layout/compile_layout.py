"""Compiles `layout_kernel` for GPUs that need not be there, and prints the figures, one JSON object a line.

A script for a process of its own: where TRITON_INTERPRET is set nothing is compiled. Its argument is the JSON of a list
of cases: target, shape `[B, H, Q, K, L]`, over_heads, over_layers, dtype, out_dtype.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from sidelight.kernels.message_layout.triton_kernel import layout_kernel, plan
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ALIGNED = [["tt.divisibility", 16]]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def source(shape: list[int], over_heads: str | None, over_layers: str | None, dtype: str, out_dtype: str) -> ASTSource:
    """Returns what the JIT would compile for these arguments: 1 becomes a constant, multiples of 16 are marked."""
    *axes, count = shape
    batch, heads, queries, keys = axes
    layers = [torch.empty(axes, dtype=getattr(torch, dtype), device="meta") for _ in range(count)]
    columns = () if over_layers else (count,) if over_heads else (count, heads)
    out = torch.empty(batch, queries, keys, *columns, dtype=getattr(torch, out_dtype), device="meta")
    arguments = plan(layers, out, over_heads, over_layers).arguments
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], Any] = {}
    for place, parameter in enumerate(layout_kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or (value is not out and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, tuple):
            signature[parameter.name] = ("*" + NAMES[dtype],) * len(value)
            hints.update({(place, layer): ALIGNED for layer in range(len(value))})
        elif value is out:
            signature[parameter.name] = "*" + NAMES[out_dtype]
            hints[(place,)] = ALIGNED
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                hints[(place,)] = ALIGNED
    return ASTSource(layout_kernel, signature=signature, constexprs=constants, attrs=hints)


def widest(instruction: str, ptx: str) -> int:
    """Returns the widest access of an instruction in bits: `ld.global.L1::no_allocate.v4.b32` has 128."""
    found = re.findall(rf"\b{instruction}(?:\.[a-zL]\w*(?:::\w+)?)*?(?:\.v(\d))?\.b(\d+)\b", ptx)
    return max(int(words or 1) * int(bits) for words, bits in found)


def measure(target: str, *case: Any) -> dict[str, Any]:
    if target.startswith("gfx"):
        compiled = triton.compile(source(*case), target=GPUTarget("hip", target, 64))
        text = compiled.asm["amdgcn"]
        words = {
            verb: [int(count or 1) for count in re.findall(rf"(?:global|buffer)_{verb}_dword(?:x(\d))?\b", text)]
            for verb in ("load", "store")
        }
        (vector,) = re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)
        (scalar,) = re.findall(r"\.sgpr_spill_count:\s+(\d+)", text)
        (registers,) = re.findall(r"\.vgpr_count:\s+(\d+)", text)
        (stack,) = re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text)
        return {
            "registers": int(registers),
            "spilled": int(vector) + int(scalar) + int(stack),
            "shared": compiled.metadata.shared,
            "load": 32 * max(words["load"], default=0),
            "store": 32 * max(words["store"], default=0),
        }
    compiled = triton.compile(source(*case), target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage.stdout + usage.stderr)
    ptx = compiled.asm["ptx"]
    return {
        "registers": int(registers),
        "spilled": int(stack) + int(local),
        "shared": compiled.metadata.shared,
        "load": widest(r"ld\.global", ptx),
        "store": widest(r"st\.global", ptx),
        "keeps_nan": re.findall(r"\b(max|min)\.NaN\.f32", ptx),
        "loses_nan": re.findall(r"\b(max|min)\.f32", ptx),
    }


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print(json.dumps(measure(*case)))
