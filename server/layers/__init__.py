"""Replacements of single layers of a model.

packed_linear    linear layers on a CPU, each with the kernel that a measurement at load finds fastest
linear_kernels   these kernels, and exact int8
fused_qkv        queries, keys and values as one product
lm_head          the output projection, apart from the model
screened_head    the argmax of the output projection without reading all weights
"""

from .fused_qkv import FusedLinear, FusedSlice, fuse_projections
from .lm_head import ArgmaxQuery, LMHead, find_lm_head, shared_weight
from .packed_linear import PackedLinear, Precision, pack

__all__ = [
    "ArgmaxQuery",
    "FusedLinear",
    "FusedSlice",
    "LMHead",
    "PackedLinear",
    "Precision",
    "find_lm_head",
    "fuse_projections",
    "pack",
    "shared_weight",
]
