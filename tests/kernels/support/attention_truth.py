"""Attention rows and outputs in float64, written from the definitions alone: naive, sharing nothing with `kernels`."""

from __future__ import annotations

import numpy as np

FOLDS = {
    "mean": lambda x, axis: x.mean(axis),
    "sum": lambda x, axis: x.sum(axis),
    "prod": lambda x, axis: x.prod(axis),
    "max": lambda x, axis: x.max(axis),
    "min": lambda x, axis: x.min(axis),
    "absmax": lambda x, axis: x.max(axis),  # of numbers that are not negative
    "l2": lambda x, axis: np.sqrt((x**2).sum(axis)),
}


def scores(query, key, *, scale, softcap=None, bias=None, mask=None, causal=False, window=None, first=0):
    """`[B, H, T, S]`, -inf where a query may not see a key."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    made = np.full((batch, heads, queries, keys), -np.inf)
    for b in range(batch):
        for h in range(heads):
            k = key[b, h * key.shape[1] // heads].astype(np.float64)
            made[b, h] = query[b, h].astype(np.float64) @ k.T * scale
    if bias is not None:
        made = made + bias.astype(np.float64)
    if softcap is not None:
        made = softcap * np.tanh(made / softcap)
    seen = np.ones((queries, keys), bool)
    if causal:
        place = first + np.arange(queries)[:, None]
        seen &= np.arange(keys) <= place
        if window is not None:
            seen &= np.arange(keys) > place - window
    made = np.where(seen, made, -np.inf)
    if mask is not None:
        made = np.where(mask, made, -np.inf) if mask.dtype == bool else made + mask.astype(np.float64)
    return made


def softmax(x):
    """Over the last axis; zeros where nothing is seen."""
    greatest = x.max(-1, keepdims=True)
    power = np.exp(x - np.where(np.isinf(greatest), 0, greatest))
    total = power.sum(-1, keepdims=True)
    return np.where(total > 0, power / np.where(total > 0, total, 1), 0)


def output(probabilities, value):
    """`[B, H, T, D]`."""
    groups = probabilities.shape[1] // value.shape[1]
    return probabilities @ value.astype(np.float64).repeat(groups, axis=1)


def columns(layers, *, over_heads=None, over_layers=None, as_one=False, weights=None, length=None):
    """`[B, T, S, C]` of layers `[B, H, T, S]`; with `as_one`, heads of all layers count as those of one.

    `weights` is one for each head, of each layer, or of all as one. `length`: positions are added in front, with 0.
    """
    layers = [layer.transpose(0, 2, 3, 1) for layer in layers]  # [B, T, S, H]
    if length is not None:
        layers = [np.pad(layer, ((0, 0), (0, 0), (length - layer.shape[2], 0), (0, 0))) for layer in layers]
    if over_heads is None:
        return np.concatenate(layers, 3)
    if as_one:
        layers = [np.concatenate(layers, 3)]
    folded = [fold(layer, over_heads, weights) for layer in layers]
    stacked = np.stack(folded, 3)
    return FOLDS[over_layers](stacked, 3)[..., None] if over_layers and not as_one else stacked


def fold(heads, reduction, weights=None):
    """Over the last axis."""
    if weights is None:
        return FOLDS[reduction](heads, -1)
    total = heads @ np.array(weights, np.float64)
    return total / sum(weights) if reduction == "mean" else total


def top(rows, k):
    """The greatest of rows `[B, T, S, C]`, of equals the first: numbers and positions `[B, T, k, C]`."""
    order = np.argsort(-rows, axis=2, kind="stable")[:, :, :k]
    return np.take_along_axis(rows, order, 2), order
