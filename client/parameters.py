"""The parameters of a request: what to capture, how to decode, which scores. Names are those of the contract.

All types here are plain data. `validation` checks values against these annotations before a request is sent. The server
checks what the values mean; its error names the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

AttentionKind = Literal["cross", "decoder_self", "encoder_self"]
Reduction = Literal["mean", "max", "min", "sum", "prod", "absmax", "l2"]
Row = Literal["predicting", "reading"]
Encoding = Literal["float32", "float16", "uint8"]
Score = Literal[
    "probability",
    "logit",
    "entropy",
    "cross_entropy",
    "perplexity",
    "top_p_size",
    "contrast_logits",
    "contrast_prob",
    "contrast_logits_diff",
    "contrast_prob_diff",
    "pcxmi",
    "kl_divergence",
    "in_context_pvi",
]
Method = Literal["weights", "value_norms", "rollout"]
SpecialTokens = Literal["keep", "renormalize"]

EarlyStopping = Literal["first", "unlikely", "never"]

Grouping = Literal["token", "word", "sentence", "span"]

TextSpan = tuple[int, int]
"""(begin, end): the characters from `begin` to before `end`, as Python slices a text."""

SpecialTokensInText = Literal["text", "parse"]
OffsetUnit = Literal["code_point", "utf16", "utf8"]
Truncation = Literal["none", "left", "right"]
Padding = Literal["refuse", "mask"]

Head = tuple[int, int] | tuple[int, int, float]
"""(layer, head), or (layer, head, weight). The weight is for a weighted mean or sum over heads; its default is 1."""

Source = str | Sequence[int] | Sequence[dict[str, str]] | NDArray[Any]
"""A text, token ids, the messages of a chat (dictionaries with "role" and "content"), or for a speech model an array
`[mel bins, frames]`: what the model's feature extractor makes of a recording."""


@dataclass(frozen=True)
class UnitOptions:
    """How tokens become units, and which parts of the texts are sent.

    Attributes:
        over_positions: How the positions of a unit become one. None: "sum".
        over_steps: How the steps of a unit become one. None: "mean".
        over_scores: How the scores of a unit's steps become one. None: "mean".
        source_spans: The units of the source, with the grouping "span".
        target_spans: The units of a given target, with the grouping "span".
        source_slices: Only source positions that share a character with one of these spans are sent.
        target_slices: Only steps of a given target that share a character with one of these spans carry attention.
    """

    over_positions: Reduction | None = None
    over_steps: Reduction | None = None
    over_scores: Reduction | None = None
    source_spans: Sequence[TextSpan] = ()
    target_spans: Sequence[TextSpan] = ()
    source_slices: Sequence[TextSpan] = ()
    target_slices: Sequence[TextSpan] = ()


@dataclass(frozen=True)
class Capture:
    """What the server keeps of the attention. The contract says what an unset field means.

    Attributes:
        kinds: The kinds of attention. Empty: the model's main kind.
        layers: All heads of these layers. None: all layers.
        heads: Single heads instead of layers; see `Head`. Weights need `over_heads` to be "mean" or "sum". A text
            is the name of a preset, such as "alignment": `Model.presets` lists what a model has.
        over_heads: How the heads are reduced to one. None: the heads stay apart.
        over_layers: How the layers are then reduced to one. Needs `over_heads`.
        row: The query that predicts a token, or the query that reads the token. None: that of the preset; without a
            preset, "predicting".
        encoding: The type of the numbers on the wire. "uint8" sends one byte for each number and one scale for each
            row; the client multiplies them, and the arrays are float32.
        top_k: The server sends only the `top_k` greatest positions of each row. 0: all positions. The arrays still have
            every position, with 0 for the positions that were not sent.
        none: Keep no attention, only tokens and scores.
        method: What the numbers measure: the attention weights; the norms of the values that the weights multiply
            (Kobayashi et al. 2020); or a rollout of the attention over the layers (Abnar and Zuidema 2020), which has
            no axis of heads. `Model.methods` lists what a model has.
        special_tokens: "renormalize" leaves special tokens out of each row. `special_shares` of the results then say
            what these tokens took. None: as the preset says; without a preset, "keep".
        steps: (begin, end): only the steps from `begin` to before `end` carry attention. An `end` of None: to the last.
        grouping: What one position and one step stand for. With "word", "sentence" or "span", attention and scores come
            for units: see `Attribution.units`.
        units: How tokens become units, and which parts of the texts are sent.
    """

    kinds: Sequence[AttentionKind] = ()
    layers: Sequence[int] | None = None
    heads: Sequence[Head] | str | None = None
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    row: Row | None = None
    encoding: Encoding = "float32"
    top_k: int = 0
    none: bool = False
    method: Method = "weights"
    special_tokens: SpecialTokens | None = None
    steps: tuple[int, int | None] | None = None
    grouping: Grouping = "token"
    units: UnitOptions | None = None


@dataclass(frozen=True)
class Contrast:
    """A second context, in which the model is run as well. What is None is as in the request.

    Attributes:
        source: Another source; for a decoder-only model, another prompt.
        prefix: Another beginning of the target, which the decoder reads before the first step.
        target: Another target, if the request gives its target: text or token ids.
        alignments: Pairs of a step of the request's target and a step of this `target`, which are compared. Empty: step
            i with step i.
        subtract_attention: The attention is that of the request minus that of the contrast. Needs a given target, and
            equal numbers of positions and of steps.
        kl_top_p: The score "kl_divergence" keeps the likeliest tokens of both contexts that reach this sum.
        kl_top_k: The score "kl_divergence" keeps so many likeliest tokens of both contexts. 0: all.
    """

    source: Source | None = None
    prefix: str | Sequence[int] | None = None
    target: str | Sequence[int] | None = None
    alignments: Sequence[tuple[int, int]] = ()
    subtract_attention: bool = False
    kl_top_p: float | None = None
    kl_top_k: int = 0


@dataclass(frozen=True)
class Greedy:
    """Greedy search: the most likely token at every step."""


@dataclass(frozen=True)
class Sampling:
    """Sampling: a random token at every step.

    A field of None takes the value of the model's generation config. A `seed` of None: the server draws a seed.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Beam:
    """Beam search, as `generate` of transformers does it. Its steps come when the search has ended.

    Attributes:
        width: How many hypotheses the search keeps at every step: `num_beams`.
        length_penalty: The exponent of the length by which a hypothesis's score is divided. None: the value of the
            model's generation config.
        hypotheses: How many of the best hypotheses the result lists: `num_return_sequences`.
        early_stopping: When the search ends, once as many hypotheses as `width` have ended. "first": at once.
            "unlikely": when it is unlikely that a better one comes. "never": when no better one can come. These are
            True, False and "never" of transformers. None: the value of the model's generation config.
    """

    width: int
    length_penalty: float | None = None
    hypotheses: int = 1
    early_stopping: EarlyStopping | None = None


@dataclass(frozen=True)
class Decoding:
    """How the server writes a target. A field of None takes the value of the model's generation config.

    `stop` holds the texts that end a target. It is always a sequence, also for a single text: `stop=["."]`.
    """

    strategy: Greedy | Sampling | Beam | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None


@dataclass(frozen=True)
class AlignAtt:
    """When the target of a follow stream may go on: not where a token looks most at the end of a source that may grow.

    The policy is AlignAtt (arXiv:2305.11408).

    Attributes:
        tokens: How many tokens at the end of the source are held back. Either `tokens` or `words` is needed.
        words: How many words at the end of the source are held back.
        layers: The layers whose mean says where a token looks. None: the preset "alignment"; without it, the last two
            thirds of the layers.
        heads: Single heads instead of layers, or the name of a preset; see `Capture.heads`.
        row: The query that predicts a token, or the query that reads the token. None: that of the preset; without a
            preset, "predicting".
    """

    tokens: int | None = None
    words: int | None = None
    layers: Sequence[int] | None = None
    heads: Sequence[Head] | str | None = None
    row: Row | None = None
