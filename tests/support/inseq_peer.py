"""Inseq's attention attribution, for comparisons with Sidelight's results.

The shapes of Inseq 0.7.1 were found by comparing with a raw eager forward pass. All arrays are
`[positions, steps, layers, heads]`, and the column of a step is the query one position before its token.

- Encoder-decoder: `source_attributions` has the positions of the source; `target_attributions` (with
  `attribute_target=True`) has the positions of all target tokens, from the start token to the token of the last step.
  It is NaN at positions that a step has not seen. `sequence_scores["encoder_self_attentions"]` is
  `[positions, queries, layers, heads]`.
- Decoder-only: `source_attributions` is None; `target_attributions` has prompt and continuation.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Truth:
    """Inseq's attribution of one text."""

    source_ids: list[int]
    target_ids: list[int]
    first_step: int
    text: str
    source: np.ndarray | None
    target: np.ndarray | None
    encoder: np.ndarray | None


@lru_cache(maxsize=2)
def _load(path: Path, source_language: str, target_language: str) -> Any:
    import inseq

    logging.getLogger("inseq").setLevel(logging.ERROR)
    languages = {"src_lang": source_language, "tgt_lang": target_language} if source_language else {}
    # Inseq passes no dtype on. Then transformers takes the dtype of the checkpoint: float16 for the bundled model.
    options = {"dtype": torch.float32}
    model = inseq.load_model(str(path), "attention", device="cpu", model_kwargs=options, tokenizer_kwargs=languages)
    if model.model.config.model_type == "marian":
        unscale_targets(model)
    return model


def unscale_targets(model: Any) -> None:
    """Makes Inseq give Marian's decoder embeddings that are not scaled.

    Inseq multiplies all embeddings by sqrt(d_model) if the configuration has `scale_embedding`, as every trained Marian
    has. transformers' Marian encoder expects scaled embeddings as its input, but the decoder scales its input itself.
    So Inseq scales the decoder's embeddings twice, and its rows are not the model's rows: on the bundled model they
    differ from an eager forward pass by up to 0.8. Comparisons need Inseq without the second factor.
    """
    embed_ids = model.embed_ids

    def embed(ids: torch.Tensor, as_targets: bool = False) -> torch.Tensor:
        return embed_ids(ids, as_targets) / (model.embed_scale if as_targets else 1.0)

    model.embed_ids = embed


@lru_cache(maxsize=8)
def attribute(
    path: Path,
    source: str,
    target: str | None = None,
    *,
    max_new_tokens: int = 10,
    source_language: str = "",
    target_language: str = "",
    first_id: int | None = None,
) -> Truth:
    """Attributes a source and its target with Inseq. Without a target, `generate` makes the target greedily.

    By itself Inseq would decode the generated tokens and tokenize the text again. For a random model that gives other
    tokens. So Inseq gets the generated tokens themselves.
    """
    from inseq.data.batch import BatchEncoding

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _load(path, source_language, target_language)
        if target is not None:
            text, targets = target, target
        else:
            options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
            if first_id is not None:
                options["forced_bos_token_id"] = first_id
            ids = model.encode([source]).input_ids
            generated = model.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            text = model.decode(generated)[0]
            tokens = [model.tokenizer.convert_ids_to_tokens(generated[0].tolist())]
            targets = BatchEncoding(generated, torch.ones_like(generated), tokens, baseline_ids=generated)
        (output,) = model.get_attribution_method("attention").prepare_and_attribute(
            [source],
            [targets] if isinstance(targets, str) else targets,
            attribute_target=model.is_encoder_decoder,
            show_progress=False,
        )
    sequence = output.sequence_attributions[0]
    encoder = (sequence.sequence_scores or {}).get("encoder_self_attentions")
    return Truth(
        source_ids=[token.id for token in sequence.source],
        target_ids=[token.id for token in sequence.target],
        first_step=sequence.attr_pos_start,
        text=text,
        source=None if sequence.source_attributions is None else sequence.source_attributions.numpy(),
        target=None if sequence.target_attributions is None else sequence.target_attributions.numpy(),
        encoder=None if encoder is None else encoder.numpy(),
    )


def step_scores(
    path: Path,
    source: str,
    target_ids: list[int],
    names: list[str],
    *,
    source_language: str = "",
    target_language: str = "",
    contrast_target_ids: list[int] | None = None,
    **arguments: Any,
) -> dict[str, np.ndarray]:
    """Computes scores of each step with Inseq, `[steps]`, after its method "dummy": it gives none with attention.

    The ids are those that the decoder reads, from its start token or from the prompt to the last step. `arguments` go
    to the step functions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _load(path, source_language, target_language)
        if contrast_target_ids is not None:
            arguments["contrast_targets"] = _encoding(model, contrast_target_ids)
        (output,) = model.get_attribution_method("dummy").prepare_and_attribute(
            [source],
            _encoding(model, target_ids),
            show_progress=False,
            step_scores=names,
            step_scores_args=arguments,
        )
    return {name: output.sequence_attributions[0].step_scores[name].numpy() for name in names}


def _encoding(model: Any, ids: list[int]) -> Any:
    from inseq.data.batch import BatchEncoding

    tensor = torch.tensor([ids])
    tokens = [model.tokenizer.convert_ids_to_tokens(ids)]
    return BatchEncoding(tensor, torch.ones_like(tensor), tokens, baseline_ids=tensor)


def difference(path: Path, first: tuple[str, str], second: tuple[str, str]) -> Truth:
    """The attention of the first source and target minus the attention of the second, by Inseq's PairAggregator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _load(path, "", "")
        minuend, subtrahend = (
            model.attribute(source, target, attribute_target=model.is_encoder_decoder, show_progress=False)[0]
            for source, target in (first, second)
        )
        # The aggregator subtracts the attribution that it is called on.
        pair = subtrahend.aggregate("pair", paired_attr=minuend, do_post_aggregation_checks=False)
    scores = pair.sequence_scores or {}
    encoder = scores.get("encoder_self_attentions")
    return Truth(
        source_ids=[token.id for token in minuend.source],
        target_ids=[token.id for token in minuend.target],
        first_step=minuend.attr_pos_start,
        text=first[1],
        source=None if pair.source_attributions is None else pair.source_attributions.numpy(),
        target=None if pair.target_attributions is None else pair.target_attributions.numpy(),
        encoder=None if encoder is None else encoder.numpy(),
    )
