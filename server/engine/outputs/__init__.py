"""What a request gets: steps, units and texts, from what forward passes gave. No forward pass runs here; no queues.

output_builder    tokens and attention → outputs: text, stop reasons, which row belongs to which step
unit_builder      steps that belong together become one unit
given_target      the outputs of a request whose target is given
observed_target   ObservedTarget: what is made of the rows that observers have of a target
"""

from .given_target import given_steps, steps_of_passes, target_outputs
from .output_builder import (
    OutputBuilder,
    find_stop,
    make_output_builder,
    make_started,
    make_unit_builder,
    split_encoder_self,
)

__all__ = [
    "OutputBuilder",
    "find_stop",
    "given_steps",
    "make_output_builder",
    "make_started",
    "make_unit_builder",
    "split_encoder_self",
    "steps_of_passes",
    "target_outputs",
]
