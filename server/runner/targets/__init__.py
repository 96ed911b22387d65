"""Given targets in a runner: what their forward passes read, and what the passes give.

given_tokens    GivenTokens: what the decoder reads of a given target, and which query belongs to which step
target_pass     TargetPass: the passes of one request; TargetOutput: what a pass gives
encoder_states  read_states(): the encoder's states of the texts of several requests
target_reader   TargetReader: whole targets of several requests in one pass
catch_up        catch_up_pass(): what a follow stream has, as such a target
"""

from .catch_up import catch_up_pass
from .target_pass import TargetOutput, TargetPass
from .target_reader import TargetReader

__all__ = ["TargetOutput", "TargetPass", "TargetReader", "catch_up_pass"]
