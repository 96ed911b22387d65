"""A model ready to run, and the ways to run it.

loader                   loads a model: checkpoint, packing, backend
loaded_model             LoadedModel: what does not change with requests; ModelInfo: the same without the weights
backend                  the Backend protocol: encode, prefill, decode, read whole targets
backend_selection        the registry of backends; the first whose logits and rows are the model's own
transformers_backend     any family, by transformers' modules
compiled_backend         the same as one graph of torch.compile
bart_backend             BART-style models, layer by layer
bart_cpu_backend         BART-style models on a CPU, a step as one compiled program
bart_cpu_programs        lays out these programs
bart_cpu_layers          what the programs share: embeddings, weights, what is around attention, rows
bart_modules             what BART-style models are made of
kv_cache                 keys and values of all slots
row_positions            a position for each row, in families that expect one for all
batch_invariance         int8 where torch computes it: no row changes another row's numbers

A new way to run models is one file with a class like `Backend`, and one line in `backend_selection.BACKENDS`.
"""

from .backend import Backend, BackendConfig, TargetBatch, UnsupportedModelError
from .kv_cache import KVCache, SwappedCache
from .loaded_model import LoadedModel, ModelDescription, ModelInfo
from .loader import BUNDLED_NAME, LOADING_STAGES, LoadingStage, ModelError, bundled_model, load
from .transformers_backend import MAX_PREFILL_TOKENS

__all__ = [
    "BUNDLED_NAME",
    "LOADING_STAGES",
    "MAX_PREFILL_TOKENS",
    "Backend",
    "BackendConfig",
    "KVCache",
    "LoadedModel",
    "LoadingStage",
    "ModelDescription",
    "ModelError",
    "ModelInfo",
    "SwappedCache",
    "TargetBatch",
    "UnsupportedModelError",
    "bundled_model",
    "load",
]
