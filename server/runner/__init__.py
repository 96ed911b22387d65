"""What runs: forward passes of sequences. Tensors and captures; no queues, no texts.

runner              Runner: what the engine asks of a runner; make_runner: which one a model has
model_runner        ModelRunner: sequences in slots, all of them in one decode step
decode_step         one such step: forward pass, next tokens, scores, attention rows
beams               beam searches: after a step, which hypotheses go on, and their caches
prefill             sources and prompts into the KV cache
slot_allocator      which sequence has which slot, and what the slots hold
step_recorder       the attention rows of a decode step, equal plans together
unbatched_runner    UnbatchedRunner: each sequence with a cache of its own, for models that cannot be run in slots
forward_output      what one pass over one sequence records
single_sequence     a model over one sequence, by the model's own modules: given targets, encoder self-attention
targets             given targets: the passes of one request, and several targets in one pass
sequence            Sequence: a decoded request in a runner; StepOutput, SearchOutput: what a step gives it
target_text         the text of a target while the model writes it
slot_budget         how many slots there is memory for
thread_tuner        how many CPU threads a step uses
warmup              common captures run once before serving
"""

from .runner import Runner, make_runner
from .sequence import DecodeOutput, Rewind, SearchOutput, Sequence, StepOutput
from .slot_budget import caches_that_fit, divide_memory, slots_that_fit
from .target_text import begin_text
from .targets import TargetOutput, TargetPass
from .warmup import warm

__all__ = [
    "DecodeOutput",
    "Rewind",
    "Runner",
    "SearchOutput",
    "Sequence",
    "StepOutput",
    "TargetOutput",
    "TargetPass",
    "begin_text",
    "caches_that_fit",
    "divide_memory",
    "make_runner",
    "slots_that_fit",
    "warm",
]
