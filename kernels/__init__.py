"""Tensor functions on attention: pure, and free of anything else of Sidelight.

Each has a torch reference, which is the definition of right and runs on the CPU, and Triton kernels for the GPU; one
public function picks. transformers looks for a package named `kernels` and may find this folder from a source tree, so
nothing here imports from above it.
"""

from .attention_rows.op import rows
from .common.attention_params import AttentionParams
from .common.attention_reference import capped_attention
from .common.attention_tensors import ENCODINGS, AttentionTensors, Encoding, LayerSpec, new_attention_tensors
from .common.dispatch import select_impl
from .common.launch import Launch, recorded
from .common.reductions import REDUCTIONS, Reduction
from .common.write_reference import write_heads as write_probabilities
from .decode_attention.op import decode
from .decode_attention.reference import attend_to
from .message_layout.op import layout, layout_into

__all__ = [
    "ENCODINGS",
    "REDUCTIONS",
    "AttentionParams",
    "AttentionTensors",
    "Encoding",
    "Launch",
    "LayerSpec",
    "Reduction",
    "attend_to",
    "capped_attention",
    "decode",
    "layout",
    "layout_into",
    "new_attention_tensors",
    "recorded",
    "rows",
    "select_impl",
    "write_probabilities",
]
