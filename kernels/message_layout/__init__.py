"""`layout_into`: whole attention matrices of a model, reduced and in the layout of a message.

op              the public function: checks arguments, chooses an implementation
reference       in torch: the definition of right
triton_kernel   in Triton
"""

from .op import layout_into

__all__ = ["layout_into"]
