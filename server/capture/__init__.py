"""Attention rows while a model runs: capture methods, and the recorders that receive their rows.

context               AttentionKind, LayerKey, Recorder; record_to() sets the recorder of this thread
attention_function    attend(), which transformers calls for attention: computes and records probabilities
attention_adapters    makes the attention modules of some families call attend()
attention_layers      finds a model's attention layers, and verifies their rows at load; FullRecorder
speech_sources        features of recordings as sources
plan                  CapturePlan: what one request keeps; Method: what its numbers measure
methods               the methods: a method is one module
recorder              PassRecorder: the rows of one forward pass
source_recorder       SourceRecorder: the rows of an encoder, part by part
special_positions     SpecialPositions: which positions hold special tokens
factor_cache          FactorCache: the factors of keys in a KV cache, for methods that have factors
arrays                AttentionArrays: attention on the host
difference            subtract(): the attention of one context minus that of another
grouping              rows of several positions or steps become one, on the host

The way of a row: a request's CapturePlan says, for each LayerKey, what the layer contributes (a LayerSpec). The runner
makes a recorder from the plans and runs the model inside record_to(recorder). Each attention layer asks the recorder
for its RecordTargets and lets a kernel write its rows into the targets' tensors, already reduced. A target also says
which positions a row leaves out, and the factors of its keys. After the step the runner copies the tensors to the host
and builds AttentionArrays. A method with a RowCombiner makes its rows of these.
"""

from .arrays import AttentionArrays, build_arrays, list_batch_tensors, list_tensors
from .attention_function import attend, has_fused_decode, mark_attention, register, write_rows, write_step_rows
from .attention_layers import AttentionLayers, FullRecorder, find_attention_layers, first_token, matrices_of
from .context import (
    AttentionKind,
    LayerKey,
    Recorder,
    RecordTarget,
    attend_per_row,
    end_behind,
    layer_key_of,
    observe_with,
    record_targets,
    record_to,
)
from .difference import minuend_plan, subtract
from .factor_cache import FactorCache
from .grouping import FloatArray, RunningReduction, encode, reduce_groups
from .methods import METHODS
from .plan import WEIGHTS, CapturePlan, Head, Method, MethodFieldError, Row, RowCombiner
from .recorder import PassRecorder
from .source_recorder import SourceRecorder
from .special_positions import SpecialPositions
from .speech_sources import feature_shape, short_sources, source_inputs, trial_inputs

__all__ = [
    "METHODS",
    "WEIGHTS",
    "AttentionArrays",
    "AttentionKind",
    "AttentionLayers",
    "CapturePlan",
    "FactorCache",
    "FloatArray",
    "FullRecorder",
    "Head",
    "LayerKey",
    "Method",
    "MethodFieldError",
    "PassRecorder",
    "RecordTarget",
    "Recorder",
    "Row",
    "RowCombiner",
    "RunningReduction",
    "SourceRecorder",
    "SpecialPositions",
    "attend",
    "attend_per_row",
    "build_arrays",
    "encode",
    "end_behind",
    "feature_shape",
    "find_attention_layers",
    "first_token",
    "has_fused_decode",
    "layer_key_of",
    "list_batch_tensors",
    "list_tensors",
    "mark_attention",
    "matrices_of",
    "minuend_plan",
    "observe_with",
    "record_targets",
    "record_to",
    "reduce_groups",
    "register",
    "short_sources",
    "source_inputs",
    "subtract",
    "trial_inputs",
    "write_rows",
    "write_step_rows",
]
