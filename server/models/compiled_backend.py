"""A backend for steps as one graph of torch.compile, made of transformers' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .backend import BackendConfig
from .kv_cache import KVCache
from .transformers_backend import TransformersBackend


class CompiledBackend(TransformersBackend):
    """Runs a step of all slots and all positions, of one shape therefore, as one compiled graph.

    Sources and prompts run as in `TransformersBackend`. The graph holds the LM head, so `lm_head` is None and `decode`
    returns logits. The first step compiles, for about a minute. It raises if the model's code is not one graph.
    """

    is_compiled: ClassVar[bool] = True

    def __init__(
        self, model: PreTrainedModel, config: BackendConfig, compiler: str | Callable[..., Any] = "inductor"
    ) -> None:
        """`compiler` is the argument `backend` of torch.compile."""
        super().__init__(model, config, None)
        self._graph = torch.compile(self._forward, fullgraph=True, dynamic=False, backend=compiler)

    def _decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        return self._graph(tokens, cache)
