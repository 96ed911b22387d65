"""Texts of follow streams, which grow piece by piece.

growing_target   tokens of a target that grows: tokens that have been given stay as they are
complete_words   which words of a growing text are complete
"""

from .complete_words import count_complete
from .growing_target import encode_next

__all__ = ["count_complete", "encode_next"]
