"""Attention rows and outputs in float64, from the definitions: naive, and without any code of `kernels`."""

from __future__ import annotations

import numpy as np

REDUCE = {
    "mean": lambda x, axis: x.mean(axis),
    "sum": lambda x, axis: x.sum(axis),
    "prod": lambda x, axis: x.prod(axis),
    "max": lambda x, axis: x.max(axis),
    "min": lambda x, axis: x.min(axis),
    "absmax": lambda x, axis: x.max(axis),  # probabilities are not negative
    "l2": lambda x, axis: np.sqrt((x**2).sum(axis)),
}


def scores(query, key, *, scale, softcap=None, bias=None, mask=None, causal=False, first_position=0):
    """Returns `[B, H, T, S]`, -inf where a query may not see a key."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    result = np.full((batch, heads, queries, keys), -np.inf)
    for b in range(batch):
        for h in range(heads):
            k = key[b, h * key.shape[1] // heads].astype(np.float64)
            result[b, h] = query[b, h].astype(np.float64) @ k.T * scale
    if bias is not None:
        result = result + bias.astype(np.float64)
    if softcap is not None:
        result = softcap * np.tanh(result / softcap)
    if causal:
        visible = np.arange(keys) <= first_position + np.arange(queries)[:, None]
        result = np.where(visible, result, -np.inf)
    if mask is not None:
        result = np.where(mask, result, -np.inf) if mask.dtype == bool else result + mask.astype(np.float64)
    return result


def softmax(x):
    """The softmax over the last axis; zeros where all is hidden."""
    row_max = x.max(-1, keepdims=True)
    power = np.exp(x - np.where(np.isinf(row_max), 0, row_max))
    total = power.sum(-1, keepdims=True)
    return np.where(total > 0, power / np.where(total > 0, total, 1), 0)


def output(probabilities, value):
    """Returns `[B, H, T, D]`."""
    groups = probabilities.shape[1] // value.shape[1]
    return probabilities @ value.astype(np.float64).repeat(groups, axis=1)


def columns(layers, *, over_heads=None, over_layers=None, pools_all_heads=False, weights=None, length=None):
    """Returns `[B, T, S, C]` from layers `[B, H, T, S]`; with `pools_all_heads`, all heads count as heads of one layer.

    There is one weight for each head of a layer, or for each head of all layers. Positions of 0 are added in front up
    to `length`.
    """
    layers = [layer.transpose(0, 2, 3, 1) for layer in layers]  # [B, T, S, H]
    if length is not None:
        layers = [np.pad(layer, ((0, 0), (0, 0), (length - layer.shape[2], 0), (0, 0))) for layer in layers]
    if over_heads is None:
        return np.concatenate(layers, 3)
    if pools_all_heads:
        layers = [np.concatenate(layers, 3)]
    stacked = np.stack([reduce(layer, over_heads, weights) for layer in layers], 3)
    return REDUCE[over_layers](stacked, 3)[..., None] if over_layers and not pools_all_heads else stacked


def reduce(heads, reduction, weights=None):
    """Reduces the last axis."""
    if weights is None:
        return REDUCE[reduction](heads, -1)
    total = heads @ np.array(weights, np.float64)
    return total / sum(weights) if reduction == "mean" else total


def top(rows, k):
    """Returns the greatest numbers of rows `[B, T, S, C]`, of equal ones the first, and positions: `[B, T, k, C]`."""
    order = np.argsort(-rows, axis=2, kind="stable")[:, :, :k]
    return np.take_along_axis(rows, order, 2), order
