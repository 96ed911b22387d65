"""Small random models of every family, with tokenizers that work. Tests make them without network and downloads.

The weights of queries and keys are so large that rows are far from uniform: a test with uniform rows proves little.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sidelight.server.models.loader as server_models
import torch
import transformers as tf
from packaging import version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not care.",
    "I don't want to be your friend.",
    "Where is the nearest train station?",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Ich will nicht dein Freund sein.",
    "Wo ist der nächste Bahnhof?",
]
SOURCE = "The lazy dog does not want to be your friend, and I don't care where the train is."
TARGET = "Der faule Hund will nicht dein Freund sein."
UNUSUAL_TEXT = "Schön: ﬁne 漢字, naïve 🤖🏽 and  two\tspaces…"

_WIDTH, _FEED_FORWARD = 32, 64

# Parts of the names of weights that make queries and keys.
_SHARP = ("q_proj", "k_proj", "qkv_proj", "kv_b_proj", "c_attn", ".q.", ".k.", "query", "key")


@dataclass(frozen=True)
class Family:
    """How a model of a family is made and used."""

    make: Callable[[], tuple[tf.PreTrainedModel, tf.PreTrainedTokenizerBase | None]]
    is_encoder_decoder: bool = True
    source_language: str = ""
    target_language: str = ""
    inseq: bool = True  # whether Inseq 0.7.1 attributes the family
    captures_rows: bool = True  # whether the family runs through transformers' attention interface
    in_slots: bool = True  # whether requests share batches
    is_gated: bool = False  # whether a gate stands between attention and its output projection
    has_program: bool = False  # whether a CPU with AVX2 runs a step as one compiled program
    seed: int = 0  # a seed with which greedy decoding gives different tokens
    sharpness: float = 1.0  # a factor of the weights of queries and keys

    @property
    def methods(self) -> list[str]:
        """The methods of the family. Value norms need rows, and output projections that read what attention gives."""
        has_norms = self.captures_rows and not self.is_gated
        return ["weights", "value_norms", "rollout"] if has_norms else ["weights", "rollout"]


def build_model(name: str, folder: Path, family: Family | None = None) -> Path:
    """Makes a model of a family in a folder, if the folder does not have it. Returns the path of the model.

    Without `family`, `name` is one of `FAMILIES`.
    """
    path = folder / name
    if path.exists():
        return path
    family = family or FAMILIES[name]
    torch.manual_seed(family.seed)
    model, tokenizer = family.make()
    torch.manual_seed(family.seed)  # whatever `make` has drawn
    _sharpen(model, family.sharpness)
    model.generation_config.min_new_tokens = 6  # by chance, some models would generate nothing
    model.save_pretrained(path)
    if tokenizer is None:  # the package has Marian's tokenizer
        for file in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
            shutil.copy(server_models.bundled_model() / file, path)
    else:
        tokenizer.save_pretrained(path)
    return path


def _sharpen(model: tf.PreTrainedModel, sharpness: float) -> None:
    """Makes queries and keys large, so that rows are neither uniform nor on a single position.

    Larger weights would be too large: float32 scores of 100 differ by 1e-5 between two orders of addition, and so do
    their exponentials.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim not in (2, 3):  # the weights of experts have an axis for the experts
                continue
            scale = 0.15 if model.config.model_type.endswith("t5") else 0.25  # T5 does not divide its scores
            if any(part in name for part in _SHARP):
                weight.normal_(0, scale * sharpness)
            elif "relative_attention_bias" in name:
                weight.normal_(0, 1.0)
            else:
                weight.normal_(0, 0.2)
        # The embeddings are small, since most families' logits are products with the embeddings. With large embeddings
        # each token would be followed by itself, and greedy decoding would repeat one token.
        model.get_input_embeddings().weight.mul_(0.3)


# ---- tokenizers -----------------------------------------------------------------------------------------------------


def byte_level(template: str, special: tuple[str, ...] = ("<s>", "</s>", "<pad>", "<unk>")) -> Any:
    """Byte-level BPE, as GPT-2, BART, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _fast(tokenizer, template, byte_level=True)


def unigram(template: str) -> Any:
    """SentencePiece's unigram with a space mark, as T5 and Pegasus have it."""
    # No trainer: it orders pieces of equal score by chance, and would make another vocabulary each time.
    words = [f"▁{word}" for sentence in SENTENCES for word in sentence.split()]
    counts = Counter(word[i : i + size] for word in words for size in (1, 2, 3) for i in range(len(word) - size + 1))
    pieces = sorted(piece for piece, count in counts.items() if len(piece) == 1 or count > 2)
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    scores = [math.log(counts[piece] * len(piece) / counts.total()) for piece in pieces]
    vocabulary = [*((token, 0.0) for token in special), *zip(pieces, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, special.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    return _fast(tokenizer, template)


def _fast(tokenizer: Tokenizer, template: str, *, byte_level: bool = False) -> Any:
    ids = {token: id_ for token in ("<s>", "</s>") if (id_ := tokenizer.token_to_id(token)) is not None}
    post = [processors.ByteLevel(trim_offsets=True)] if byte_level else []
    post.append(processors.TemplateProcessing(single=template, special_tokens=list(ids.items())))
    tokenizer.post_processor = processors.Sequence(post)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _pieces() -> list[tuple[str, float]]:
    """Pieces with scores, for the tokenizers that are built from such a list."""
    tokenizer = json.loads(unigram("$A </s>").backend_tokenizer.to_str())
    return [(piece, score) for piece, score in tokenizer["model"]["vocab"] if not piece.startswith("<")]


# ---- encoder-decoders -----------------------------------------------------------------------------------------------


def seq2seq(config: type, model: type, tokenizer: Any, **more: Any) -> tuple[Any, Any]:
    """A BART-style model whose encoder and decoder differ in depth and in heads."""
    options = {
        "vocab_size": len(tokenizer),
        "d_model": _WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": _FEED_FORWARD,
        "decoder_ffn_dim": _FEED_FORWARD,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "forced_eos_token_id": None,
    }
    return model(config(**options | more)).eval(), tokenizer


def _marian() -> tuple[Any, Any]:
    tokenizer = tf.AutoTokenizer.from_pretrained(server_models.bundled_model())
    model, _ = seq2seq(
        tf.MarianConfig, tf.MarianMTModel, tokenizer, vocab_size=6001, decoder_start_token_id=6000, scale_embedding=True
    )
    model.generation_config.bad_words_ids = [[6000]]
    return model, None


def _bart() -> tuple[Any, Any]:
    tokenizer = byte_level("<s> $A </s>")
    end = tokenizer.eos_token_id
    return seq2seq(tf.BartConfig, tf.BartForConditionalGeneration, tokenizer, decoder_start_token_id=end)


def _pegasus() -> tuple[Any, Any]:
    return seq2seq(tf.PegasusConfig, tf.PegasusForConditionalGeneration, unigram("$A </s>"), decoder_start_token_id=0)


def _mbart() -> tuple[Any, Any]:
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = tf.MBartTokenizer(vocab=[*special, *_pieces()], src_lang="en_XX", tgt_lang="de_DE")
    german = tokenizer.convert_tokens_to_ids("de_DE")
    options = {"decoder_start_token_id": german, "vocab_size": len(tokenizer) + 1}
    return seq2seq(tf.MBartConfig, tf.MBartForConditionalGeneration, tokenizer, **options)


def _m2m100() -> tuple[Any, Any]:
    bundled = server_models.bundled_model()
    pieces = json.loads((bundled / "vocab.json").read_text(encoding="utf-8"))
    known = ["<s>", "<pad>", "</s>", "<unk>", *(p for p in pieces if p not in ("</s>", "<unk>", "<pad>"))]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        vocabulary.write_text(json.dumps({piece: index for index, piece in enumerate(known)}), encoding="utf-8")
        tokenizer = tf.M2M100Tokenizer(str(vocabulary), str(bundled / "source.spm"), src_lang="en", tgt_lang="de")
    size = max(tokenizer.lang_code_to_id.values()) + 1
    options = {"decoder_start_token_id": tokenizer.eos_token_id, "vocab_size": size}
    return seq2seq(tf.M2M100Config, tf.M2M100ForConditionalGeneration, tokenizer, **options)


def nllb() -> tuple[Any, Any]:
    """NLLB with a vocabulary of single letters: its tokenizer puts a language code before the text."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    letters = sorted({c for sentence in SENTENCES for c in sentence if not c.isspace()})
    for piece in ["▁", *letters, *(f"▁{letter}" for letter in letters)]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("▁", letter) for letter in letters]
    codes = {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"}
    tokenizer = tf.NllbTokenizer(
        vocab=vocabulary, merges=merges, extra_special_tokens=["eng_Latn", "deu_Latn", "fra_Latn"], **codes
    )
    options = {"decoder_start_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    return seq2seq(tf.M2M100Config, tf.M2M100ForConditionalGeneration, tokenizer, **options)


def t5(config: type, model: type, **more: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        tokenizer = unigram("$A </s>")
        options = {
            "vocab_size": len(tokenizer),
            "d_model": _WIDTH,
            "d_kv": 8,
            "d_ff": _FEED_FORWARD,
            "num_layers": 3,  # not fewer than num_decoder_layers: generate (5.23) would make a cache that is too small
            "num_decoder_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        }
        return model(config(**options | more)).eval(), tokenizer

    return make


def _fsmt() -> tuple[Any, Any]:
    letters = sorted({c.lower() for s in SENTENCES for c in s if not c.isspace()} | set("&apos;qotx#"))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(f"{c}</w>" for c in letters)]
    vocabulary = json.dumps({piece: index for index, piece in enumerate(pieces)})
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for file, content in (("src_vocab", vocabulary), ("tgt_vocab", vocabulary), ("merges", "")):
            files[f"{file}_file"] = str(Path(folder) / file)
            Path(folder, file).write_text(content, encoding="utf-8")
        tokenizer = tf.FSMTTokenizer(langs=["en", "de"], do_lower_case=True, **files)
    config = tf.FSMTConfig(
        langs=["en", "de"],
        src_vocab_size=len(pieces),
        tgt_vocab_size=len(pieces),
        d_model=_WIDTH,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=_FEED_FORWARD,
        decoder_ffn_dim=_FEED_FORWARD,
        max_position_embeddings=128,
        forced_eos_token_id=None,
    )
    return tf.FSMTForConditionalGeneration(config).eval(), tokenizer


# ---- decoder-only ---------------------------------------------------------------------------------------------------


def decoder_only(config: type, model: type, template: str = "$A", **more: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        tokenizer = byte_level(template)
        options = {
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": _FEED_FORWARD,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        chosen = {name: value for name, value in (options | more).items() if value is not None}
        return model(config(**chosen)).eval(), tokenizer

    return make


def _gpt2() -> tuple[Any, Any]:
    tokenizer = byte_level("$A")
    end = tokenizer.eos_token_id
    config = tf.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=_WIDTH,
        n_layer=3,
        n_head=4,
        n_positions=256,
        bos_token_id=end,
        eos_token_id=end,
    )
    return tf.GPT2LMHeadModel(config).eval(), tokenizer


# In older versions the decoder's attention does not say that it is causal: it is wrong without whole matrices.
_HAS_CAUSAL_UMT5 = version.parse(tf.__version__) >= version.parse("5.18")

FAMILIES: dict[str, Family] = {
    "marian": Family(_marian, has_program=True, seed=27),
    "bart": Family(_bart, has_program=True, seed=4),
    "pegasus": Family(_pegasus, has_program=True, seed=22),
    "mbart": Family(_mbart, source_language="en_XX", target_language="de_DE", has_program=True, seed=1),
    "m2m100": Family(_m2m100, source_language="en", target_language="de", has_program=True),
    "nllb": Family(nllb, source_language="eng_Latn", target_language="deu_Latn", has_program=True),
    "t5": Family(t5(tf.T5Config, tf.T5ForConditionalGeneration), seed=10),
    "mt5": Family(t5(tf.MT5Config, tf.MT5ForConditionalGeneration, feed_forward_proj="gated-gelu"), seed=16),
    "umt5": Family(
        t5(tf.UMT5Config, tf.UMT5ForConditionalGeneration, feed_forward_proj="gated-gelu"),
        captures_rows=_HAS_CAUSAL_UMT5,
        in_slots=_HAS_CAUSAL_UMT5,
    ),
    # Inseq scales FSMT's embeddings a second time: not even the encoder's rows are the model's rows.
    "fsmt": Family(_fsmt, captures_rows=False, in_slots=False, inseq=False, seed=8),
    "gpt2": Family(_gpt2, is_encoder_decoder=False, seed=17),
    "llama": Family(decoder_only(tf.LlamaConfig, tf.LlamaForCausalLM), is_encoder_decoder=False, seed=5),
    "qwen3": Family(decoder_only(tf.Qwen3Config, tf.Qwen3ForCausalLM), is_encoder_decoder=False, seed=3),
    "gemma2": Family(
        decoder_only(
            tf.Gemma2Config,
            tf.Gemma2ForCausalLM,
            attn_logit_softcapping=2.0,
            sliding_window=5,
            query_pre_attn_scalar=8,
        ),
        is_encoder_decoder=False,
        seed=15,
    ),
    "gemma3": Family(
        decoder_only(
            tf.Gemma3TextConfig,
            tf.Gemma3ForCausalLM,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=8,
        ),
        is_encoder_decoder=False,
        seed=4,
    ),
}
