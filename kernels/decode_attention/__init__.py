"""`decode`: the attention output of one query for each slot, and its rows, from a single read of the keys.

op              the public function: checks arguments, chooses an implementation
reference       in torch: the definition of right; `attend_to`, output and probabilities
triton_kernel   in Triton
"""

from .op import decode
from .reference import attend_to

__all__ = ["attend_to", "decode"]
