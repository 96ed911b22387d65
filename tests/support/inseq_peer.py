"""Inseq's attention attribution, as the peer that results are compared with.

How Inseq 0.7.1 shapes what it gives (found by comparing with a raw eager forward pass): everything is
`[positions, steps, layers, heads]`, and the column of a step is the query one position before its token.

- Encoder-decoder: `source_attributions` has the source's positions; `target_attributions` (with
  `attribute_target=True`) has all target tokens, the start token first and the last step's too, NaN where a step has
  not seen them. `sequence_scores["encoder_self_attentions"]` is `[positions, queries, layers, heads]`.
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
    """What Inseq says of one text."""

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
    # Inseq passes no dtype on, and transformers then takes the checkpoint's own: float16 for the bundled model.
    options = {"dtype": torch.float32}
    model = inseq.load_model(str(path), "attention", device="cpu", model_kwargs=options, tokenizer_kwargs=languages)
    if model.model.config.model_type == "marian":
        unscale_targets(model)
    return model


def unscale_targets(model: Any) -> None:
    """Hands Marian's decoder its embeddings unscaled.

    Inseq multiplies all embeddings by sqrt(d_model) where the configuration says `scale_embedding`, as every trained
    Marian's does. transformers' Marian encoder expects that of embeddings that it is handed; its decoder multiplies
    itself. So Inseq scales the decoder's twice, and its rows are not the model's: on the bundled model they differ from
    an eager forward pass by up to 0.8. What is compared with here is Inseq without that.
    """
    embed_ids = model.embed_ids

    def embed(ids: torch.Tensor, as_targets: bool = False) -> torch.Tensor:
        return embed_ids(ids, as_targets) / (model.embed_scale if as_targets else 1.0)

    model.embed_ids = embed


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
    """Inseq's attribution of a source and its target, written greedily where none is given.

    Inseq attributes the text that it decoded, tokenized again, which for a random model is other tokens than those it
    wrote. So tokens that `generate` wrote are handed to it as they are.
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
            written = model.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            text = model.decode(written)[0]
            tokens = [model.tokenizer.convert_ids_to_tokens(written[0].tolist())]
            targets = BatchEncoding(written, torch.ones_like(written), tokens, baseline_ids=written)
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
