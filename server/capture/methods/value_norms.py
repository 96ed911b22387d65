"""Norms of the values, weighted by attention (Kobayashi et al. 2020, arXiv:2004.10102, equation 4).

The output of an attention layer is the sum, over heads h and keys j, of a[h, j] f_h(x[j]), and a bias, where a are
probabilities and f_h(x) = (x W_V[h] + b_V[h]) W_O[h]. The method has ||a[h, j] f_h(x[j])|| = a[h, j] n_h(j) for each
head and key. For grouped heads, the value is the key head's and W_O is the query head's.

Where heads are reduced, the norms are reduced: a mean over heads is the mean of the norms of the heads, and not the
norm of the heads' sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ....kernels import LayerSpec, new_attention_tensors
from ..context import LayerKey, RecordTarget, record_to
from ..plan import Method, ProbedModel

# How far the sum of weighted values may be from what the output projection reads, as a share of its greatest number:
# in full and in half precision.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2


class ValueNorms(Method):
    """The norm of what a head adds to its layer's output for a key."""

    name: ClassVar[str] = "value_norms"
    has_factors: ClassVar[bool] = True

    def __init__(self, roots: Mapping[LayerKey, Tensor]) -> None:
        """`roots` has, for each layer, R[h] with R[h] R[h]^T = W_O[h] W_O[h]^T: float32 `[Hkv, groups, D, D]`."""
        self._roots = roots

    @classmethod
    def for_model(cls, probed: ProbedModel) -> ValueNorms | None:
        """Returns the method; None unless the layers' output projections are found and read what attention gives."""
        if not probed.modules:
            return None
        found = _Probe(probed).run()
        roots = {layer_key: _root(weight, *shape) for layer_key, (weight, shape) in found.items()}
        return cls(roots) if roots.keys() == probed.modules.keys() else None

    def describe(self) -> ValueNorms:
        """Returns the method without tensors (see `Method`)."""
        return ValueNorms({})

    def factors(self, layer_key: LayerKey, value: Tensor) -> Tensor:
        """Returns n_h(j), the norm of f_h(x[j]) (see `Method`)."""
        root = self._roots[layer_key]
        batch, key_heads, keys, width = value.shape
        rows = value.float().transpose(0, 1).reshape(key_heads, 1, batch * keys, width) @ root
        norms = rows.square().sum(-1).sqrt()  # on a CPU many times faster than torch.linalg.vector_norm
        return norms.view(-1, batch, keys).transpose(0, 1)


def _root(weight: Tensor, heads: int, key_heads: int, width: int) -> Tensor:
    """Returns the roots of a layer from its output projection `[H * D, out]`: `[Hkv, groups, D, D]`.

    ||v W|| = ||v R||, and R is as small as a head is wide.
    """
    weight = weight.detach().double().view(heads, width, -1)
    values, vectors = torch.linalg.eigh(weight @ weight.mT)
    root = vectors * values.clamp(min=0).sqrt()[:, None]
    return root.float().view(key_heads, heads // key_heads, width, width)


class _Probe:
    """Finds the output projection of each attention layer: runs the model, and compares what projections read.

    A `Recorder`.
    """

    def __init__(self, probed: ProbedModel) -> None:
        self._probed = probed
        self._targets: dict[LayerKey, RecordTarget] = {}
        self._values: dict[LayerKey, Tensor] = {}
        self._inputs: list[tuple[LayerKey, nn.Module, Tensor]] = []

    def run(self) -> dict[LayerKey, tuple[Tensor, tuple[int, int, int]]]:
        """Returns the weight `[H * D, out]` of each projection that was found, with H, Hkv and D."""
        hooks = [
            module.register_forward_pre_hook(partial(self._keep_input, layer_key))
            for layer_key, attention in self._probed.modules.items()
            for module in attention.modules()
            if isinstance(module, (nn.Linear, Conv1D))
        ]
        try:
            with record_to(self):
                self._probed.run()
        finally:
            for hook in hooks:
                hook.remove()
        found: dict[LayerKey, tuple[Tensor, tuple[int, int, int]]] = {}
        for layer_key, module, read in self._inputs:
            rows, value = self._targets[layer_key].tensors.values, self._values[layer_key]
            heads, key_heads, width = rows.shape[3], value.shape[1], value.shape[3]
            # [B, T, S, H] and [B, Hkv, S, D]
            summed = torch.einsum("btsh,bhsd->bthd", rows, value.float().repeat_interleave(heads // key_heads, 1))
            if read.shape[-1] == heads * width and self._is_near(read, summed.flatten(2)):
                weight: Any = module.weight
                found[layer_key] = (weight if isinstance(module, Conv1D) else weight.T, (heads, key_heads, width))
        return found

    def _is_near(self, read: Tensor, summed: Tensor) -> bool:
        tolerance = _HALF_TOLERANCE if self._probed.is_half else _TOLERANCE
        difference = (read.float().view_as(summed) - summed).abs().max()
        return bool(difference <= tolerance * summed.abs().max())

    def targets(
        self, layer_key: LayerKey, shape: tuple[int, int, int, int], device: torch.device
    ) -> list[RecordTarget]:
        """Returns one target for all queries of the layer, which keeps the layer's values too (see `Recorder`)."""
        batch, heads, length, positions = shape
        tensors = new_attention_tensors(batch, length, positions, heads, device=device)

        def keep_value(value: Tensor) -> Tensor:
            self._values[layer_key] = value
            return torch.ones(batch, heads, positions, device=device)

        target = RecordTarget(tensors, LayerSpec(), slice(0, length), factors=keep_value)
        self._targets[layer_key] = target
        return [target]

    def _keep_input(self, layer_key: LayerKey, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if layer_key in self._targets:  # the projections to queries, keys and values come before the attention
            self._inputs.append((layer_key, module, arguments[0]))
