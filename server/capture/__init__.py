"""Attention rows while a model runs: capture methods, and the recorders that receive their rows.

context               AttentionKind, LayerKey, Recorder; record_to() sets the recorder of this thread
attention_function    attend(), which transformers calls for attention: computes and records probabilities
attention_layers      finds a model's attention layers, and verifies their rows at load; FullRecorder
speech_sources        features of recordings as sources
plan                  CapturePlan: what one request keeps
recorder              PassRecorder: the rows of one forward pass
source_recorder       SourceRecorder: the rows of an encoder, part by part
arrays                AttentionArrays: attention on the host
difference            subtract(): the attention of one context minus that of another

The way of a row: a request's CapturePlan says, for each LayerKey, what the layer contributes (a LayerSpec). The runner
makes a recorder from the plans and runs the model inside record_to(recorder). Each attention layer asks the recorder
for its RecordTargets and lets a kernel write its rows into the targets' tensors, already reduced. After the step the
runner copies the tensors to the host and builds AttentionArrays.

How to add a capture method (another number than the probability for each query, head and position):

1. Write its kernel in a folder of `kernels`, with a torch reference: it fills an AttentionTensors as a LayerSpec says.
2. Write one module here, with a function like `attention_function._record`: it takes a RecordTarget and the tensors of
   the call (query, key, params, and value where the method needs it) and calls the kernel. A method that needs all
   layers at once (rollout) is a `Recorder` of its own, which combines its layers after the pass.
3. Add a field with the method's name to CapturePlan, pass it on in RecordTarget, and choose the function by it wherever
   rows are written: `attention_function._attend_and_record`, `write_step_rows`, `PassRecorder.record_matrices`, and
   `models/bart_cpu_programs.DecoderProgram.run`, which has probabilities and no values.
4. Read the field of the request in `server/api/validation/capture.py`, and answer it in `server/api/converters.py`; the
   words are in `server/api/enums.py`.
5. Compare the method with the model's own numbers at load (`attention_layers._difference`), or give the method up.
"""

from .arrays import AttentionArrays, build_arrays, list_tensors
from .attention_function import attend, has_fused_decode, mark_attention, register, write_step_rows
from .attention_layers import AttentionLayers, FullRecorder, find_attention_layers, first_token, matrices_of
from .context import (
    AttentionKind,
    LayerKey,
    Recorder,
    RecordTarget,
    attend_per_row,
    layer_key_of,
    observe_with,
    record_targets,
    record_to,
)
from .difference import minuend_plan, subtract
from .plan import CapturePlan, Head, Row
from .recorder import PassRecorder
from .source_recorder import SourceRecorder
from .speech_sources import feature_shape, short_sources, source_inputs, trial_inputs

__all__ = [
    "AttentionArrays",
    "AttentionKind",
    "AttentionLayers",
    "CapturePlan",
    "FullRecorder",
    "Head",
    "LayerKey",
    "PassRecorder",
    "RecordTarget",
    "Recorder",
    "Row",
    "SourceRecorder",
    "attend",
    "attend_per_row",
    "build_arrays",
    "feature_shape",
    "find_attention_layers",
    "first_token",
    "has_fused_decode",
    "layer_key_of",
    "list_tensors",
    "mark_attention",
    "matrices_of",
    "minuend_plan",
    "observe_with",
    "record_targets",
    "record_to",
    "register",
    "short_sources",
    "source_inputs",
    "subtract",
    "trial_inputs",
    "write_step_rows",
]
