"""Occupancy: how many warps of a kernel a multiprocessor holds at once, and how many it can hold.

Sources. NVIDIA: "Technical Specifications per Compute Capability" in the CUDA C++ Programming Guide, and, for units and
rounding, NVIDIA's `cuda_occupancy.h`, which Triton brings along (triton/backends/nvidia/include); tensor memory is in
the PTX ISA's chapter on tcgen05. AMD: the CDNA 2 and CDNA 3 instruction set guides, and, for units, LLVM's
`AMDGPUBaseInfo.cpp` (`IsaInfo`). Scalar registers are left out: about a hundred of them cost one warp of eight.
"""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What one multiprocessor (NVIDIA) or compute unit (AMD) of a GPU has. A warp is AMD's wavefront."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_unit: int  # the bytes of a block are rounded up to a multiple of this
    shared_reserved: int  # bytes that each block takes in addition
    tensor_memory: int = 0  # columns; 0 where there is none
    # The same on all GPUs: four partitions, each with 512 registers for every lane, allocated to warps in units of 8.
    partitions: int = 4
    registers: int = 512
    register_unit: int = 8


LIMITS = {
    "sm_80": Limits(warps=64, blocks=32, shared=164 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_86": Limits(warps=48, blocks=16, shared=100 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_89": Limits(warps=48, blocks=24, shared=100 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_90": Limits(warps=64, blocks=32, shared=228 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_100": Limits(warps=64, blocks=32, shared=228 * 1024, shared_unit=128, shared_reserved=1024, tensor_memory=512),
    # There are 16 barriers, which blocks of one warp do not need; Triton's blocks are hardly ever so small.
    "gfx90a": Limits(warps=32, blocks=16, shared=64 * 1024, shared_unit=512, shared_reserved=0),
    "gfx942": Limits(warps=32, blocks=16, shared=64 * 1024, shared_unit=512, shared_reserved=0),
}


def resident_warps(target: str, warps: int, registers: int, shared: int, tensor_memory: int = 0) -> int:
    """Returns how many warps are resident at once, in blocks of `warps` warps; 0 where not even one block fits.

    Takes the registers of a thread, and the bytes of shared memory and columns of tensor memory of a block. Assumes
    that the grid is large enough, and that shared memory has all the memory that it can share with the L1 cache.
    """
    limits = LIMITS[target]
    by_registers = limits.partitions * (limits.registers // _round_up(max(registers, 1), limits.register_unit))
    blocks = min(limits.warps // warps, limits.blocks, by_registers // warps)
    block_shared = _round_up(shared + limits.shared_reserved, limits.shared_unit)
    if block_shared:
        blocks = min(blocks, limits.shared // block_shared)
    if tensor_memory:
        blocks = min(blocks, limits.tensor_memory // tensor_memory)
    return blocks * warps


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
