"""Tokenizers of every kind, made on the spot: no network, no fetched files.

Small vocabularies, so that texts have unknown characters, and words of many pieces.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sentencepiece
import tokenizers
import transformers as tf
from model_zoo import FAMILIES, SENTENCES
from sentencepiece import sentencepiece_model_pb2
from sidelight.server.models.loader import bundled_model
from sidelight.server.text.tokenizer import Tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
_SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
_WORDS = [f"▁{word}" for sentence in SENTENCES for word in sentence.split()]
_LETTERS = sorted({letter for word in _WORDS for letter in word})


# ---- SentencePiece in Python -----------------------------------------------------------------------------------------


def _trained(folder: str, **options: Any) -> str:
    """A SentencePiece model of the zoo's sentences; where it is."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **options,
    )
    path = Path(folder) / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return str(path)


def _sentencepiece(make: type, **options: Any) -> Callable[[], Any]:
    def made() -> Any:
        folder = tempfile.mkdtemp()  # tokenizers read their file again when they are saved
        return make(_trained(folder, **options))

    return made


def _marian() -> Any:
    return tf.AutoTokenizer.from_pretrained(bundled_model())


def _multilingual_marian() -> Any:
    folder = Path(tempfile.mkdtemp())
    for file in bundled_model().iterdir():
        if file.suffix in (".spm", ".json"):
            (folder / file.name).write_bytes(file.read_bytes())
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    replaced = {(">>fra<<" if id_ == 4999 else piece): id_ for piece, id_ in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(replaced), encoding="utf-8")
    return tf.AutoTokenizer.from_pretrained(folder)


# ---- the tokenizers library ------------------------------------------------------------------------------------------


def _fast(tokenizer: tokenizers.Tokenizer, template: str = "$A </s>", post: Any = None) -> Any:
    tokens = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    template_of = processors.TemplateProcessing(single=template, special_tokens=tokens)
    tokenizer.post_processor = template_of if post is None else processors.Sequence([post, template_of])
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_NAMES)


def _charsmap() -> bytes:
    """SentencePiece's own normalization, nmt_nfkc, as the bundled model has it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((bundled_model() / "source.spm").read_bytes())
    return proto.normalizer_spec.precompiled_charsmap


def _unigram(scheme: str, *, normalized: bool = False, bytes_: bool = False) -> Callable[[], Any]:
    def made() -> Any:
        stretches = {word[i : i + size] for word in _WORDS for size in (2, 3, 5) for i in range(len(word) - size + 1)}
        pieces = [*((token, 0.0) for token in _SPECIAL), *((letter, -6.0) for letter in _LETTERS)]
        pieces += [(stretch, -4.0 - len(stretch) / 10) for stretch in sorted(stretches)]
        pieces += [(f"<0x{byte:02X}>", -12.0) for byte in range(256)] if bytes_ else []
        tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, 2, byte_fallback=bytes_))
        spaces = normalizers.Replace(Regex(" {2,}"), "▁")
        if normalized:  # as T5's and mBART's converters have it
            tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(_charsmap()), spaces])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        if bytes_:
            chain = [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(prepend_scheme=scheme)]
            tokenizer.decoder = decoders.Sequence(chain)
        tokenizer.add_special_tokens(_SPECIAL)
        return _fast(tokenizer)

    return made


def _byte_fallback(*, prefix: bool) -> Callable[[], Any]:
    """BPE as Llama 2 has it, and, without the prefix, as Gemma has it."""

    def made() -> Any:
        pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *_LETTERS]
        merges = sorted({(one, other) for word in _WORDS for one, other in itertools.pairwise(word)})[::3]
        vocabulary = {piece: id_ for id_, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges)]))}
        model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer = tokenizers.Tokenizer(model)
        chain: list[Any] = [normalizers.Replace(" ", "▁")]
        end: list[Any] = []
        if prefix:
            chain.insert(0, normalizers.Prepend("▁"))
            end.append(decoders.Strip(" ", 1, 0))
        tokenizer.normalizer = normalizers.Sequence(chain)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *end]
        tokenizer.decoder = decoders.Sequence(parts)
        tokenizer.add_special_tokens(_SPECIAL)
        if not prefix:  # as Gemma's, which are no special tokens
            tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("\t", normalized=False)])
        return _fast(tokenizer, "<s> $A")

    return made


def _byte_level(*, prefix: bool, trims: bool, normalizer: Any = None) -> Callable[[], Any]:
    def made() -> Any:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=_SPECIAL, initial_alphabet=alphabet)
        tokenizer.train_from_iterator([*SENTENCES, "漢字 日本 🤖🤖 é"], trainer)
        marks = ["<|start_header_id|>", "<|im_start|>"]
        tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
        tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
        post = processors.ByteLevel(add_prefix_space=prefix, trim_offsets=trims)
        made = _fast(tokenizer, "<s> $A", post)
        made.chat_template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n<think>{{ m['content'] }}{% endfor %}"
        return made

    return made


def _word_piece() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word.lower() for sentence in SENTENCES for word in sentence.split()}
    letters = sorted({letter for word in words for letter in word} | set(".,?!'"))
    pieces += [*letters, *(f"##{letter}" for letter in letters), *sorted(words)[::2]]
    vocabulary = {piece: id_ for id_, piece in enumerate(dict.fromkeys(pieces))}
    return tf.BertTokenizer(vocab=vocabulary, do_lower_case=True)


# ---- others in Python ------------------------------------------------------------------------------------------------


def _files(**contents: str) -> dict[str, str]:
    folder = Path(tempfile.mkdtemp())
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return {name: str(folder / name) for name in contents}


def _blenderbot_small() -> Any:
    letters = sorted(
        {letter.lower() for sentence in SENTENCES for letter in sentence if not letter.isspace()} | set("@#")
    )
    pieces = [
        "__null__",
        "__start__",
        "__end__",
        "__unk__",
        "__newln__",
        *letters,
        *(f"{letter}@@" for letter in letters),
    ]
    merges = ["t h", "th e</w>", "d o", "do g</w>", "l a", "z y</w>"]
    pieces += ["th@@", "the", "do@@", "dog", "la@@", "zy"]
    vocabulary = json.dumps({piece: id_ for id_, piece in enumerate(pieces)})
    files = _files(vocab=vocabulary, merges="\n".join(["#version: 0.2", *merges, ""]))
    return tf.BlenderbotSmallTokenizer(files["vocab"], files["merges"])


def _prophetnet() -> Any:
    words = {word.lower().strip(".,?") for sentence in SENTENCES for word in sentence.split()}
    letters = sorted({letter for word in words for letter in word} | set(".,?!'"))
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[X_SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *sorted(words)[::2]]
    return tf.ProphetNetTokenizer(_files(vocab="\n".join(dict.fromkeys(pieces)))["vocab"])


def _of_family(name: str) -> Callable[[], Any]:
    return lambda: FAMILIES[name].make()[1]


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "marian": _marian,
    "multilingual-marian": _multilingual_marian,
    "m2m100": _of_family("m2m100"),
    "unigram-python": _sentencepiece(tf.BertGenerationTokenizer, model_type="unigram", vocab_size=120),
    "unigram-python-bytes": _sentencepiece(
        tf.BertGenerationTokenizer, model_type="unigram", vocab_size=380, byte_fallback=True
    ),
    "bpe-python": _sentencepiece(tf.PLBartTokenizer, model_type="bpe", vocab_size=120),
    "bpe-python-bytes": _sentencepiece(
        tf.BertGenerationTokenizer, model_type="bpe", vocab_size=380, byte_fallback=True
    ),
    "bpe-python-verbatim": _sentencepiece(
        tf.BertGenerationTokenizer,
        model_type="bpe",
        vocab_size=120,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    ),
    "unigram": _unigram("always"),
    "unigram-normalized": _unigram("always", normalized=True),
    "unigram-first": _unigram("first", normalized=True),
    "unigram-bytes": _unigram("always", bytes_=True),
    "mbart": _of_family("mbart"),
    "nllb": _of_family("nllb"),
    "llama2": _byte_fallback(prefix=True),
    "gemma": _byte_fallback(prefix=False),
    "byte-level": _byte_level(prefix=False, trims=True),
    "byte-level-prefix": _byte_level(prefix=True, trims=True),
    "byte-level-untrimmed": _byte_level(prefix=False, trims=False),
    "byte-level-nfc": _byte_level(prefix=False, trims=True, normalizer=normalizers.NFC()),
    "word-piece": _word_piece,
    "bytes": tf.ByT5Tokenizer,
    "moses": _of_family("fsmt"),
    "blenderbot-small": _blenderbot_small,
    "prophetnet": _prophetnet,
}

DECODER_ONLY = {"llama2", "gemma", "byte-level", "byte-level-prefix", "byte-level-untrimmed", "byte-level-nfc"}


@functools.cache
def zoo_tokenizer(name: str) -> Tokenizer:
    """The server's tokenizer over a tokenizer of the zoo, as it is with a model."""
    generation = SimpleNamespace(decoder_start_token_id=None, forced_bos_token_id=None)
    config = SimpleNamespace(is_encoder_decoder=name not in DECODER_ONLY, decoder_start_token_id=0, bos_token_id=0)
    model: Any = SimpleNamespace(config=config, generation_config=generation)
    return Tokenizer(TOKENIZERS[name](), model)
