"""Capture methods: what the numbers of a row measure. A method is one module here, and one entry of `METHODS`.

value_norms   norms of the values, weighted by attention (Kobayashi et al. 2020)
rollout       attention that flows through the layers (Abnar and Zuidema 2020)

The attention probabilities as they are need no module: the base of all methods, `plan.Method`, is this method.

How to add a method:

1. Write a module with a subclass of `Method`. `for_model` looks whether a model can have the method, and keeps what the
   method needs of the model. A method that multiplies probabilities by a factor for each head and key has `factors`. A
   method that makes its rows from other rows has `recorded` and `new_combiner`. `for_model` compares what it can with
   the model's own numbers, and gives up a model whose numbers differ.
2. Add the class to `METHODS`, and a number with the name METHOD_NAME to `Method` in the contract.
"""

from collections.abc import Mapping

from ..plan import Method, ProbedModel
from .rollout import Rollout
from .value_norms import ValueNorms

METHODS: dict[str, type[Method]] = {method.name: method for method in (Method, ValueNorms, Rollout)}


def find_methods(probed: ProbedModel) -> Mapping[str, Method]:
    """Returns the methods that a model can have, by name."""
    found = {name: method.for_model(probed) for name, method in METHODS.items()}
    return {name: method for name, method in found.items() if method is not None}


__all__ = ["METHODS", "find_methods"]
