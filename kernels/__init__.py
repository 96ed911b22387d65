"""Tensor functions on attention: pure, and free of anything else of Sidelight.

Each has a torch reference, which is the definition of right and runs on the CPU, and Triton kernels for the GPU; one
public function picks. transformers looks for a package named `kernels` and may find this folder from a source tree, so
nothing here imports from above it.
"""

from .attention_reference import capped_attention
from .choice import choose
from .decode import decode
from .decode_reference import attend_to
from .launch import Launch, recorded
from .layout import layout, layout_into
from .reductions import REDUCTIONS, Reduction
from .result import ENCODINGS, Encoding, Part, Result, new_result
from .rows import rows
from .scoring import Scoring
from .write_reference import write_heads as write_probabilities

__all__ = [
    "ENCODINGS",
    "REDUCTIONS",
    "Encoding",
    "Launch",
    "Part",
    "Reduction",
    "Result",
    "Scoring",
    "attend_to",
    "capped_attention",
    "choose",
    "decode",
    "layout",
    "layout_into",
    "new_result",
    "recorded",
    "rows",
    "write_probabilities",
]
