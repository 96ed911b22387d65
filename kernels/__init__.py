"""Functions of attention tensors: pure, and independent of the rest of Sidelight.

Each operation has a torch reference, which is the definition of right and runs on a CPU, and Triton kernels for a GPU;
one public function chooses. transformers looks for a package named `kernels` and may find this folder in a source tree,
so nothing here imports from above this folder. Importing this package imports neither Triton nor Numba.

attention_rows     `rows`: prompts and given targets
decode_attention   `decode`: one query for each slot
message_layout     `layout_into`: from whole matrices
common             what the operations share
cpu                programs for CPUs, with a face of their own
tools              `sidelight kernels`: audit, bench and build
"""

from .attention_rows import rows
from .common.attention_params import AttentionParams
from .common.attention_reference import capped_attention
from .common.attention_tensors import ENCODINGS, AttentionTensors, Encoding, LayerSpec, new_attention_tensors
from .common.dispatch import select_impl
from .common.encoding_reference import pack
from .common.key_weighting import PLAIN, KeyWeighting
from .common.launch import Launch, record_launches
from .common.reductions import REDUCTIONS, Reduction
from .common.write_reference import write_probabilities
from .decode_attention import attend_to, decode
from .message_layout import layout_into

__all__ = [
    "ENCODINGS",
    "PLAIN",
    "REDUCTIONS",
    "AttentionParams",
    "AttentionTensors",
    "Encoding",
    "KeyWeighting",
    "Launch",
    "LayerSpec",
    "Reduction",
    "attend_to",
    "capped_attention",
    "decode",
    "layout_into",
    "new_attention_tensors",
    "pack",
    "record_launches",
    "rows",
    "select_impl",
    "write_probabilities",
]
