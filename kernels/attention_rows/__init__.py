"""`rows`: the attention rows of prompts and given targets, reduced, without an attention matrix in memory.

op              the public function: checks arguments, chooses an implementation
reference       in torch: the definition of right
triton_kernel   in Triton
"""

from .op import rows

__all__ = ["rows"]
