"""Capture methods in float64, from the formulas of the papers and a model's own attention matrices and values.

Uses no code of the server: transformers' own modules with eager attention give matrices, and the inputs and outputs of
the projections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

KINDS = {"cross": "cross_attentions", "decoder_self": "decoder_attentions", "encoder_self": "encoder_attentions"}


class Truth:
    """A model in float64, and its forward pass over a source and the tokens that the decoder has read."""

    def __init__(self, path: Any, source: list[int], target: list[int], dtype: torch.dtype = torch.float64) -> None:
        """For a decoder-only model, the source is a part of the target and is not looked at."""
        self.is_encoder_decoder = bool(AutoConfig.from_pretrained(path).is_encoder_decoder)
        auto = AutoModelForSeq2SeqLM if self.is_encoder_decoder else AutoModelForCausalLM
        self.model: Any = auto.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).to(dtype).eval()
        self.values: dict[str, np.ndarray] = {}
        for name, module in self.model.named_modules():
            if name.rsplit(".", 1)[-1] in ("v_proj", "v"):
                module.register_forward_hook(lambda _module, _inputs, output, name=name: self._keep(name, output))
        inputs = {"input_ids": torch.tensor([source if self.is_encoder_decoder else target])}
        if self.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([target])
        with torch.no_grad():
            output = self.model(**inputs, output_attentions=True, use_cache=False)
        fields = KINDS if self.is_encoder_decoder else {"decoder_self": "attentions"}
        self.matrices = {kind: [m[0].numpy() for m in getattr(output, field)] for kind, field in fields.items()}

    def _keep(self, name: str, output: torch.Tensor) -> None:
        self.values[name.rsplit(".", 1)[0]] = output[0].numpy()

    def value_norms(self, kind: str, left_out: np.ndarray | None = None) -> np.ndarray:
        """||a[h, j] f_h(x[j])|| for each layer, head, query and key: `[layers, heads, queries, keys]`."""
        return np.stack(
            [
                self._layer_norms(name, renormalized(matrix, left_out)[0])
                for name, matrix in zip(self._modules(kind), self.matrices[kind], strict=True)
            ]
        )

    def _modules(self, kind: str) -> list[str]:
        """The names of the attention modules of a kind, from the input upwards."""
        names = list(self.values)
        if not self.is_encoder_decoder:
            return names
        if kind == "encoder_self":
            return [name for name in names if ".encoder." in f".{name}"]
        is_cross = [".encoder_attn" in name or "EncDecAttention" in name for name in names]
        decoder = [".decoder." in f".{name}" for name in names]
        return [
            name
            for name, cross, inside in zip(names, is_cross, decoder, strict=True)
            if inside and cross == (kind == "cross")
        ]

    def _layer_norms(self, name: str, attention: np.ndarray) -> np.ndarray:
        module = self.model.get_submodule(name)
        output = next(getattr(module, name) for name in ("out_proj", "o_proj", "o") if hasattr(module, name))
        weight = output.weight.detach().numpy().T  # [H * D, out]
        heads, queries, keys = attention.shape
        width = weight.shape[0] // heads
        values = self.values[name].reshape(keys, -1, width)
        norms = np.zeros(attention.shape)
        for head in range(heads):
            transformed = values[:, head * values.shape[1] // heads] @ weight[head * width : (head + 1) * width]
            for query in range(queries):
                weighted = attention[head, query, :, None] * transformed
                norms[head, query] = np.linalg.norm(weighted, axis=1)
        return norms

    def rollout(self, kind: str) -> np.ndarray:
        """The rollout after each layer: `[layers, queries, keys]`."""
        means = {name: [matrix.mean(0) for matrix in layers] for name, layers in self.matrices.items()}
        if kind == "encoder_self":
            return np.stack(_rollout(means[kind]))
        if not self.is_encoder_decoder:
            return np.stack(_rollout(means["decoder_self"]))
        # The decoder as one square matrix over source and target together: [source, target] to [source, target].
        encoder = _rollout(means["encoder_self"])[-1]
        source, target = len(encoder), len(means["decoder_self"][0])
        identity = np.eye(source + target)
        state = np.zeros((target, source + target))
        state[:, source:] = np.eye(target)
        after = []
        for own, cross in zip(means["decoder_self"], means["cross"], strict=True):
            state = 0.5 * own @ state + 0.5 * state
            state = 0.5 * state + 0.5 * cross @ encoder @ identity[:source]
            after.append(state)
        stacked = np.stack(after)
        return stacked[:, :, :source] if kind == "cross" else stacked[:, :, source:]


def _rollout(attention: list[np.ndarray]) -> list[np.ndarray]:
    """The paper: a product of matrices (A + I) / 2, the first layer rightmost."""
    after = []
    product = np.eye(len(attention[0]))
    for matrix in attention:
        product = (0.5 * matrix + 0.5 * np.eye(len(matrix))) @ product
        after.append(product)
    return after


def renormalized(rows: np.ndarray, left_out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows `[..., keys]` without some keys, divided by the sum of the others; and what these keys took."""
    if left_out is None:
        return rows, None
    shares = np.where(left_out, rows, 0).sum(-1)
    kept = np.where(left_out, 0, rows)
    total = kept.sum(-1, keepdims=True)
    return np.divide(kept, total, out=np.zeros_like(kept), where=total > 0), shares
