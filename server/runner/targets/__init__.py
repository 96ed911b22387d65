"""Given targets in a runner: what their forward passes read, and what the passes give.

given_tokens    GivenTokens: what the decoder reads of a given target, and which query belongs to which step
target_pass     TargetPass: the passes of one request; TargetOutput: what a pass gives
target_reader   read_targets(): whole targets of several requests in one pass
"""

from .target_pass import TargetOutput, TargetPass
from .target_reader import TargetReader

__all__ = ["TargetOutput", "TargetPass", "TargetReader"]
