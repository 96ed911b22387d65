"""Random BART-style models in sizes that do not suit kernels, and requests at the edges of these sizes."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from sidelight.server.api.validation import validate_request
from sidelight.server.models.loader import LoadedModel
from sidelight.server.request import Request
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text
from tokenizers import Tokenizer, models, pre_tokenizers

_FAMILIES: dict[str, tuple[Any, Any]] = {
    "bart": (tf.BartConfig, tf.BartForConditionalGeneration),
    "marian": (tf.MarianConfig, tf.MarianMTModel),
    "mbart": (tf.MBartConfig, tf.MBartForConditionalGeneration),
    "m2m100": (tf.M2M100Config, tf.M2M100ForConditionalGeneration),
    "pegasus": (tf.PegasusConfig, tf.PegasusForConditionalGeneration),
}
_SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
# Sizes around panels, half and quarter panels, rows that are multiplied as matrices, and a program's most positions.
_EDGES = [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]


@dataclass(frozen=True)
class OddModel:
    """The sizes of a model and how it runs: all that is needed to make the same model again."""

    family: str
    seed: int
    width: int
    encoder_heads: int
    decoder_heads: int
    encoder_feed_forward: int
    decoder_feed_forward: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    positions: int
    activation: str
    precision: str
    slots: int
    threads: int

    def __str__(self) -> str:
        """Python code that makes this object."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in asdict(self).items())})"


def random_model(seed: int) -> OddModel:
    """Draws the model of a seed."""
    chance = random.Random(seed)
    heads = [chance.choice([1, 1, 2, 3, 4, 5]) for _ in range(2)]
    both = heads[0] * heads[1]
    greatest = chance.choice([80, 140, 400])
    width = both * max(2, chance.randint(2, greatest) // both)
    family = chance.choice([*_FAMILIES])
    if family in ("marian", "m2m100", "pegasus"):
        width *= 1 + width % 2  # their sinusoids need an even width
    return OddModel(
        family=family,
        seed=seed,
        width=width,
        encoder_heads=heads[0],
        decoder_heads=heads[1],
        encoder_feed_forward=chance.choice([*_EDGES, 100, 200]),
        decoder_feed_forward=chance.choice([*_EDGES, 100, 200]),
        encoder_layers=chance.choice([1, 1, 2]),
        decoder_layers=chance.choice([1, 2, 3]),
        vocabulary=chance.choice([9, 13, 63, 64, 65, 127, 128, 129, 500, 1025]),
        positions=chance.choice([17, 64, 65, 128, 129, 150]),
        activation=chance.choice(["relu", "gelu", "silu", "gelu_new", "tanh"]),
        precision=chance.choice(["float32", "int8"]),
        slots=chance.choice([1, 2, 3, 5, 17]),
        threads=chance.choice([1, 1, 2, 3]),
    )


def build_odd_model(odd: OddModel, folder: Path) -> Path:
    """Saves the model with a tokenizer whose words are numbers. Returns the path."""
    torch.manual_seed(odd.seed)
    config_class, model_class = _FAMILIES[odd.family]
    model = model_class(
        config_class(
            vocab_size=odd.vocabulary,
            d_model=odd.width,
            encoder_layers=odd.encoder_layers,
            decoder_layers=odd.decoder_layers,
            encoder_attention_heads=odd.encoder_heads,
            decoder_attention_heads=odd.decoder_heads,
            encoder_ffn_dim=odd.encoder_feed_forward,
            decoder_ffn_dim=odd.decoder_feed_forward,
            activation_function=odd.activation,
            max_position_embeddings=odd.positions,
            scale_embedding=bool(odd.seed % 2),
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=3,
            decoder_start_token_id=odd.seed % 2 * 3,
            forced_eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_positions" in name:
                continue
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
            else:
                # Makes rows far from uniform, and layers whose outputs neither vanish nor grow.
                weight.normal_(0, (1.6 if "q_proj" in name or "k_proj" in name else 0.9) * weight.shape[1] ** -0.5)
    path = folder / f"{odd.family}-{odd.seed}"
    model.save_pretrained(path)
    words = [*_SPECIAL, *map(str, range(odd.vocabulary - len(_SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    return path


def edge_jobs(odd: OddModel, loaded: LoadedModel, count: int = 7) -> list[Request]:
    """Makes requests whose sources, prefixes and targets have the lengths at which kernels change their method."""
    chance = random.Random(odd.seed + 1)
    lengths = [length for length in _EDGES if length < odd.positions] + [odd.positions - 1, odd.positions]
    return [validate_request(_request(chance, odd, lengths, number), loaded, f"r{number}") for number in range(count)]


def _request(chance: random.Random, odd: OddModel, lengths: list[int], number: int) -> pb.AttributeRequest:
    request = pb.AttributeRequest()
    length = chance.choice([odd.positions, *lengths])
    request.source.token_ids.ids.extend(chance.randrange(2, odd.vocabulary) for _ in range(length))
    room = odd.positions - 1
    if number % 3 == 1:
        before = chance.choice([length for length in lengths if length < room])
        request.prefix.token_ids.ids.extend(chance.randrange(4, odd.vocabulary) for _ in range(before))
        room -= before
    request.decoding.max_new_tokens = room if number % 4 == 0 else chance.randint(1, room)
    request.decoding.ignore_eos = number % 4 != 3
    if number % 3 == 2:
        request.decoding.sampling.CopyFrom(text.Sampling(seed=number, temperature=1.2))
    captures = [
        attention.Capture(),
        attention.Capture(kinds=[attention.ATTENTION_KIND_CROSS, attention.ATTENTION_KIND_DECODER_SELF]),
        attention.Capture(none=True),
        attention.Capture(over_heads=attention.REDUCTION_MEAN, over_layers=attention.REDUCTION_L2),
        attention.Capture(top_k=2, encoding=attention.ENCODING_UINT8),
        attention.Capture(kinds=[attention.ATTENTION_KIND_CROSS, attention.ATTENTION_KIND_ENCODER_SELF]),
    ]
    request.capture.CopyFrom(chance.choice(captures))
    if number % 5 == 2:
        request.scores.extend([attention.SCORE_PROBABILITY, attention.SCORE_ENTROPY])
    return request


def in_int8(odd: OddModel) -> OddModel:
    """Returns the same model in int8."""
    return replace(odd, precision="int8")
