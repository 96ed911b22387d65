"""Models in CTranslate2's format, for comparisons with Sidelight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ctranslate2.converters.transformers import BartLoader, MarianMTLoader, TransformersConverter, register_loader


def convert(model: Path, folder: Path, quantization: str = "float32") -> None:
    """Writes a Marian model of transformers in CTranslate2's format. It replaces CTranslate2's own loader for Marian.

    Not called in a process that is timed: the conversion starts threads of torch, which would stay beside
    CTranslate2's threads.
    """
    register_loader("MarianConfig")(_MarianLoader)
    _Converter(str(model)).convert(str(folder), quantization=quantization)


class _Converter(TransformersConverter):
    """A converter that loads float32. By itself it takes float16 where the checkpoint has it.

    Marian's positions are made when the model is loaded: in float16 they are rounded, and CTranslate2's numbers are
    3e-5 away from those of the model in float32.
    """

    def load_model(self, model_class: Any, name: str, **options: Any) -> Any:
        return super().load_model(model_class, name, **{**options, "dtype": torch.float32})


class _MarianLoader(MarianMTLoader):
    """CTranslate2's loader for Marian, without the embedding of zeros from which it starts every target.

    In Marian's own models and in opus-mt the padding token, which starts targets, has an embedding of zeros. The
    bundled model has learnt another embedding. From zeros it generates other targets, with the first words in disorder.
    """

    def set_decoder(self, spec: Any, decoder: Any) -> None:
        super().set_decoder(spec, decoder)
        spec.start_from_zero_embedding = False

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        super().set_config(config, model, tokenizer)
        config.decoder_start_token = tokenizer.pad_token

    def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
        return BartLoader.get_vocabulary(self, model, tokenizer)

    def _remove_pad_weights(self, spec: Any) -> None:
        """Keeps the weights of the padding token."""
