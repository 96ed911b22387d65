"""Tensor functions on attention: pure, and free of anything else of Sidelight.

Each has a torch reference, which is the definition of right and runs on the CPU, and a Triton kernel for the GPU; one
public function picks. transformers looks for a package named `kernels` and may find this folder from a source tree, so
nothing here imports from above it.
"""

from .layout import layout
from .reductions import REDUCTIONS, Reduction

__all__ = ["REDUCTIONS", "Reduction", "layout"]
