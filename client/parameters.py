"""What can be asked: captures and ways of decoding, in the contract's words.

Plain data. `validation` holds the values against these annotations; whether they make sense is the server's to judge,
and its answer names the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cross", "decoder_self", "encoder_self"]
Reduction = Literal["mean", "max", "min", "sum", "prod", "absmax", "l2"]
Row = Literal["predicting", "reading"]
Encoding = Literal["float32", "float16", "uint8"]
Score = Literal["probability", "logit", "entropy", "cross_entropy", "perplexity", "top_p_size"]

SpecialTokensInText = Literal["text", "parse"]

Head = tuple[int, int] | tuple[int, int, float]
"""(layer, head), or (layer, head, weight): its share in a weighted mean or sum over the heads, 1 where it has none."""

Source = str | Sequence[int] | Sequence[dict[str, str]]
"""A text, token ids, or the messages of a chat as dictionaries with "role" and "content"."""


@dataclass(frozen=True)
class Capture:
    """What to keep of the attention. Unset fields mean what the contract says they mean.

    Attributes:
        kinds: Empty for the model's main kind.
        layers: All heads of these layers; None for all layers.
        heads: Single heads instead of layers; see `Head`. Weights need `over_heads` to be "mean" or "sum".
        over_heads: How heads become one; None keeps them apart.
        over_layers: How layers then become one; needs `over_heads`.
        row: The query that predicts a token, or the one that reads it.
        encoding: The numbers' type on the wire. "uint8" sends a byte for each, times a scale for each row; they become
            float32 here.
        top_k: Only so many positions of each row are sent, the greatest; 0 for all. Arrays still have every position: 0
            stands for what was not sent.
        none: Keep nothing: tokens and scores alone.
        steps: Only the steps from the first to before the second carry attention.
    """

    kinds: Sequence[Kind] = ()
    layers: Sequence[int] | None = None
    heads: Sequence[Head] | None = None
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    row: Row = "predicting"
    encoding: Encoding = "float32"
    top_k: int = 0
    none: bool = False
    steps: tuple[int, int | None] | None = None


@dataclass(frozen=True)
class Greedy:
    """The likeliest token at every step."""


@dataclass(frozen=True)
class Sampling:
    """A token drawn at every step. None: as the model's generation config says; `seed` None: a random one."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Beam:
    """The best of several hypotheses, whose steps come when the search has ended.

    `width` hypotheses are kept at every step, and the best `hypotheses` of them listed in the result.
    `length_penalty` is the exponent of the length that a score is divided by; None: as the generation config says.
    """

    width: int
    length_penalty: float | None = None
    hypotheses: int = 1


@dataclass(frozen=True)
class Decoding:
    """How the server writes a target. None: as the model's generation config says.

    `stop` are texts that end a target; one alone is a sequence too, as in `stop=["."]`.
    """

    strategy: Greedy | Sampling | Beam | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
