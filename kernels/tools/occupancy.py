"""How many warps of a kernel a multiprocessor holds at once, and of how many at most.

Pure arithmetic on what a compiled kernel takes. Knows the limits of GPUs; does not know kernels.

Sources. NVIDIA: "Technical Specifications per Compute Capability" in the CUDA C++ Programming Guide, and, for units and
rounding, NVIDIA's `cuda_occupancy.h`, which Triton brings along (triton/backends/nvidia/include); tensor memory is in
the PTX ISA's chapter on tcgen05. AMD: the CDNA 2 and CDNA 3 instruction set guides, and, for units, LLVM's
`AMDGPUBaseInfo.cpp` (`IsaInfo`). Its scalar registers are left out: about a hundred of them cost one warp of eight.
"""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What one multiprocessor (NVIDIA) or compute unit (AMD) of a GPU has. A warp is AMD's wavefront."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_unit: int  # bytes that a block's are rounded up to
    shared_reserved: int  # bytes that each block takes besides its own
    tensor_memory: int = 0  # columns; 0 where there is none
    # The same for all: four partitions, each with 512 registers for every lane, given to warps in units of 8.
    partitions: int = 4
    registers: int = 512
    register_unit: int = 8


LIMITS = {
    "sm_80": Limits(warps=64, blocks=32, shared=164 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_86": Limits(warps=48, blocks=16, shared=100 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_89": Limits(warps=48, blocks=24, shared=100 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_90": Limits(warps=64, blocks=32, shared=228 * 1024, shared_unit=128, shared_reserved=1024),
    "sm_100": Limits(warps=64, blocks=32, shared=228 * 1024, shared_unit=128, shared_reserved=1024, tensor_memory=512),
    # 16 barriers, which blocks of one warp do not need; Triton's are hardly ever so small.
    "gfx90a": Limits(warps=32, blocks=16, shared=64 * 1024, shared_unit=512, shared_reserved=0),
    "gfx942": Limits(warps=32, blocks=16, shared=64 * 1024, shared_unit=512, shared_reserved=0),
}


def resident_warps(target: str, warps: int, registers: int, shared: int, tensor_memory: int = 0) -> int:
    """Warps of blocks of `warps` warps that are resident at once; 0 where not even one block fits.

    Given are registers of a thread, bytes of shared memory and columns of tensor memory of a block. The grid is taken
    to be large enough, and shared memory to have all that the L1 cache can do without.
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
