"""The texts of a request become tokens: the source, the prefix, a given target. Raises RequestError with the field."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import text_pb2

from ...errors import invalid
from ...models import ModelInfo
from ...request import GivenTarget, SourceFeatures
from ...text import ChatTooLongError, Languages, TextOptions, TokenizedText
from .padding import refuse_padding, treat_padding, validate_padding
from .truncation import Texts, Truncation, cut_ids, cut_text, truncate_texts

# How many characters are normalized at once. No other Python thread can run meanwhile.
_NORMALIZED_AT_ONCE = 16 * 1024

# Whether special tokens that are written out in texts become special tokens.
_PARSES_SPECIAL = {
    text_pb2.SPECIAL_TOKENS_IN_TEXT_UNSPECIFIED: False,
    text_pb2.SPECIAL_TOKENS_IN_TEXT_TEXT: False,
    text_pb2.SPECIAL_TOKENS_IN_TEXT_PARSE: True,
}


def validate_languages(message: service_pb.AttributeRequest, loaded: ModelInfo) -> Languages:
    """Returns the languages of a request. Raises RequestError."""
    problems = loaded.tokenizer.check_languages(message.source_language, message.target_language)
    for field, problem in zip(("source_language", "target_language"), problems, strict=True):
        if problem:
            raise invalid(field, "UNKNOWN_LANGUAGE", problem)
    if message.source.WhichOneof("kind") == "token_ids":
        problem = "goes with a source's text: token ids have the language's code among them"
        if message.source_language:
            raise invalid("source_language", "CONTRADICTION", problem)
        if message.target_language and loaded.tokenizer.puts_target_in_source:
            raise invalid("target_language", "CONTRADICTION", problem)
    return loaded.tokenizer.resolve_languages(message.source_language, message.target_language)


def validate_text_options(message: service_pb.AttributeRequest, loaded: ModelInfo) -> TextOptions:
    """Returns how the request's texts become tokens. Raises RequestError.

    Without a source, nothing is refused that goes with a source of text: see `validate_source`.
    """
    kinds = [text.WhichOneof("kind") for text in (message.source, message.prefix, message.given)]
    value = message.special_tokens_in_text
    if value not in _PARSES_SPECIAL:
        raise invalid("special_tokens_in_text", "UNKNOWN_VALUE", "is no way with special tokens")
    if value and kinds[0] is not None and not {"text", "chat"} & {*kinds}:
        raise invalid("special_tokens_in_text", "CONTRADICTION", "goes with texts, and there are only token ids")
    applies = kinds[0] in ("text", None) or (loaded.is_encoder_decoder and kinds[2] == "text")
    if message.HasField("add_special_tokens") and not applies:
        problem = "goes with a text: token ids are used as they are, and a chat's template writes its own"
        raise invalid("add_special_tokens", "CONTRADICTION", problem)
    adds_special = message.add_special_tokens if message.HasField("add_special_tokens") else True
    return TextOptions(_PARSES_SPECIAL[value], adds_special)


def validate_source(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    languages: Languages,
    options: TextOptions,
    truncation: Truncation = "none",
) -> TokenizedText:
    """Returns the tokens of the source. Raises RequestError.

    With a truncation, the tokens may be too many, and a text of too many bytes is cut: see `truncate_texts`.
    """
    if not message.HasField("source"):
        raise invalid("source", "REQUIRED", "is required")
    source, max_tokens = message.source, loaded.max_source_tokens
    kind = source.WhichOneof("kind")
    if kind is not None and (kind == "features") != (loaded.feature_shape is not None):
        reads = "texts, not recordings" if kind == "features" else "recordings, which are given by features"
        raise invalid(f"source.{kind}", "WRONG_SOURCE", f"is no source of this model: it reads {reads}")
    if kind == "features":
        return TokenizedText("", ())  # a recording has no tokens: see `validate_features`
    if kind == "text":
        checked = check_text(source.text, "source.text", max_tokens, loaded, truncation)
        text = loaded.tokenizer.encode_source(checked, languages, options)
        _check_not_blank(text, "source.text", loaded, options)
    elif kind == "token_ids":
        ids = treat_padding(_read_token_ids(source, "source", loaded), "source", message.padding, loaded)
        ids, num_left_out = _limit_ids(ids, "source", max_tokens, loaded, truncation)
        text = replace(loaded.tokenizer.detokenize(ids), num_left_out=num_left_out)
    elif kind == "chat":
        text = _validate_chat(source.chat, loaded, options)
    else:
        raise invalid("source", "REQUIRED", "one of text, token_ids, chat and features must be set")
    if not text.tokens:
        raise invalid(f"source.{kind}", "EMPTY", "must not be empty: it tokenizes to nothing")
    _check_ids(text.ids, f"source.{kind}", loaded)
    if truncation == "none":
        _check_num_tokens(text, f"source.{kind}", max_tokens, "the model reads")
    return text


def validate_features(source: text_pb2.Text, loaded: ModelInfo) -> SourceFeatures | None:
    """Returns the features of the source; None where the source is a text. Raises RequestError."""
    if loaded.feature_shape is None or source.WhichOneof("kind") != "features":
        return None
    message, shape = source.features, loaded.feature_shape
    if tuple(message.shape) != shape:
        problem = f"is {list(message.shape)}; the model reads {list(shape)}, which are mel bins and frames"
        raise invalid("source.features.shape", "WRONG_SHAPE", problem)
    num_bytes = 4 * shape[0] * shape[1]
    if len(message.values) != num_bytes:
        problem = f"has {len(message.values):,} bytes; the shape needs {num_bytes:,}, 4 for each number"
        raise invalid("source.features.values", "WRONG_SIZE", problem)
    values = np.frombuffer(message.values, "<f4").astype(np.float32).reshape(shape)
    if not (is_finite := np.isfinite(values)).all():
        problem = f"must be finite numbers; number {int(is_finite.argmin()):,} is not"
        raise invalid("source.features.values", "NOT_FINITE", problem)
    return SourceFeatures(values, loaded.max_source_tokens)


def _validate_chat(message: text_pb2.Chat, loaded: ModelInfo, options: TextOptions) -> TokenizedText:
    if loaded.is_encoder_decoder or not loaded.tokenizer.has_chat_template:
        raise invalid("source.chat", "NO_CHAT_TEMPLATE", "this model has no chat template")
    if not message.messages:
        raise invalid("source.chat.messages", "EMPTY", "must not be empty")
    count, max_tokens = len(message.messages), loaded.max_source_tokens
    if count > max_tokens:  # each message takes a token or more
        problem = f"are {count:,}; there may be at most {max_tokens:,}"
        raise invalid("source.chat.messages", "TOO_MANY", problem)
    joined = "".join(text for turn in message.messages for text in (turn.role, turn.content))
    _check_num_bytes(joined, "source.chat", max_tokens, loaded)
    turns = [{"role": turn.role, "content": turn.content} for turn in message.messages]
    try:
        return loaded.tokenizer.render_chat(turns, options, loaded.tokenizer.max_bytes(max_tokens))
    except ChatTooLongError as error:
        raise invalid("source.chat", "TEXT_TOO_LONG", str(error)) from None
    except Exception as error:  # templates raise errors of any type, such as for roles that they do not know
        raise invalid("source.chat.messages", "CHAT_TEMPLATE", "the model's chat template refuses these") from error


def validate_texts(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    languages: Languages,
    options: TextOptions,
    truncation: Truncation,
) -> Texts:
    """Returns the tokens of all texts of a request. Raises RequestError."""
    validate_padding(message, loaded)
    source = validate_source(message, loaded, languages, options, truncation)
    start_ids = loaded.tokenizer.start_ids(languages)
    prefix_ids, prefix = validate_prefix(message, loaded, languages, source, options, truncation)
    given = None
    if message.WhichOneof("target") == "given":
        max_target = find_room(message, loaded, source, [*start_ids, *prefix_ids]) if truncation == "none" else 0
        given = validate_given(message, loaded, languages, source, options, max_target, truncation).text
    texts = Texts(source, start_ids, prefix_ids, prefix, given)
    return texts if truncation == "none" else truncate_texts(texts, message, loaded, truncation)


def find_room(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    source: TokenizedText,
    prompt_ids: Sequence[int],
    *,
    is_follow: bool = False,
) -> int:
    """Returns how many tokens a target can have, at least 1. Raises RequestError.

    While a follow stream waits, its slot must have room for one more position, which steps of other slots write.
    """
    num_before = len(prompt_ids) + (0 if loaded.is_encoder_decoder else len(source.tokens))
    room = loaded.max_target_tokens - num_before - is_follow
    if room < 1:
        field = "prefix" if message.HasField("prefix") else "source"
        subject = "a target" if loaded.is_encoder_decoder else "prompt and continuation together"
        problem = f"{subject} may have at most {loaded.max_target_tokens} tokens"
        raise invalid(field, "TEXT_TOO_LONG", f"leaves no room for a target: {problem}")
    return room


def validate_prefix(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    languages: Languages,
    source: TokenizedText,
    options: TextOptions,
    truncation: Truncation = "none",
) -> tuple[list[int], TokenizedText | None]:
    """Returns the tokens of the prefix, and the prefix if it is a text. Raises RequestError.

    With a truncation, the tokens may be too many.
    """
    if not message.HasField("prefix"):
        return [], None
    if message.WhichOneof("target") == "given":
        raise invalid("prefix", "CONTRADICTION", "goes with decoding, not with a given target")
    prefix, max_tokens = message.prefix, loaded.max_target_tokens
    kind = prefix.WhichOneof("kind")
    if kind == "text":
        checked = check_text(prefix.text, "prefix.text", max_tokens, loaded, truncation)
        text = loaded.tokenizer.encode_prefix(source, checked, languages, options)
        tokens = text.tokens
        if not tokens or not (options.parses_special or any(not token.special for token in tokens)):
            raise invalid("prefix.text", "EMPTY", "must not be empty: it tokenizes to nothing")
        _check_ids(text.ids, "prefix.text", loaded)
        return text.ids, text
    if kind == "token_ids":
        ids = treat_padding(_read_token_ids(prefix, "prefix", loaded), "prefix", message.padding, loaded)
        return (ids if truncation != "none" else _limit_ids(ids, "prefix", max_tokens, loaded, truncation)[0]), None
    raise invalid("prefix", "REQUIRED", "one of text and token_ids must be set")


def validate_given(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    languages: Languages,
    source: TokenizedText,
    options: TextOptions,
    max_target: int,
    truncation: Truncation = "none",
) -> GivenTarget:
    """Returns the given target, of at most `max_target` tokens. Raises RequestError.

    With a truncation, the tokens may be too many.
    """
    given = message.given
    kind = given.WhichOneof("kind")
    if kind == "text":
        checked = check_text(given.text, "given.text", loaded.max_target_tokens, loaded, truncation)
        if loaded.is_encoder_decoder:
            text = loaded.tokenizer.encode_target(checked, languages, options)
        else:
            text = loaded.tokenizer.encode_continuation(source, checked, options)
        _check_not_blank(text, "given.text", loaded, options)
        _check_ids(text.ids, "given.text", loaded)
    elif kind == "token_ids":
        max_ids = max_target if truncation == "none" else loaded.max_target_tokens
        ids = treat_padding(_read_token_ids(given, "given", loaded), "given", message.padding, loaded)
        ids, num_left_out = _limit_ids(ids, "given", max_ids, loaded, truncation)
        text = loaded.tokenizer.detokenize(ids, () if loaded.is_encoder_decoder else source.ids)
        text = replace(text, num_left_out=num_left_out)
    else:
        raise invalid("given", "REQUIRED", "one of text and token_ids must be set")
    if truncation == "none":
        _check_num_tokens(text, f"given.{kind}", max_target, "there is room for")
    return GivenTarget(text)


def check_text(text: str, field: str, max_tokens: int, loaded: ModelInfo, truncation: Truncation = "none") -> str:
    """Returns the text to tokenize: the whole text, or with a truncation as many bytes as can have the tokens.

    Raises RequestError for an empty text, and for a text that must have more tokens.
    """
    if not text:
        raise invalid(field, "EMPTY", "must not be empty")
    if truncation != "none":
        return cut_text(text, loaded.tokenizer.max_bytes(max_tokens), truncation)
    _check_num_bytes(text, field, max_tokens, loaded)
    return text


def _check_num_bytes(text: str, field: str, max_tokens: int, loaded: ModelInfo) -> None:
    """Refuses a text that must have more than `max_tokens` tokens, before it is tokenized."""
    max_bytes = loaded.tokenizer.max_bytes(max_tokens)
    num_bytes = len(text.encode())
    if num_bytes > max_bytes:
        raise invalid(field, "TEXT_TOO_LONG", f"is {num_bytes:,} bytes long; at most {max_bytes:,} are read")
    if text.isascii():
        return
    num_normalized = 0
    for begin in range(0, len(text), _NORMALIZED_AT_ONCE):
        stretch = text[begin : begin + _NORMALIZED_AT_ONCE]
        num_normalized += len(unicodedata.normalize("NFKC", stretch).encode())
        if num_normalized > max_bytes:  # one letter may become 18, such as U+FDFA
            problem = f"is {num_bytes:,} bytes long, and more than {max_bytes:,} once normalized"
            raise invalid(field, "TEXT_TOO_LONG", f"{problem}; at most so many are read")


def _check_not_blank(text: TokenizedText, field: str, loaded: ModelInfo, options: TextOptions) -> None:
    """Refuses a text without tokens of its own. For a model that continues a text, white space is a text."""
    may_be_special = options.parses_special and not loaded.is_encoder_decoder
    if not text.tokens or (all(token.special for token in text.tokens) and not may_be_special):
        raise invalid(field, "EMPTY", "must not be empty: it tokenizes to nothing")
    if loaded.is_encoder_decoder and (not text.text.strip() or loaded.tokenizer.is_blank(text)):
        raise invalid(field, "EMPTY", "must not be empty: it is nothing but white space")


def _check_num_tokens(text: TokenizedText, field: str, max_tokens: int, limit: str) -> None:
    if len(text.tokens) > max_tokens:
        problem = f"has {len(text.tokens):,} tokens; {limit} at most {max_tokens:,}"
        raise invalid(field, "TEXT_TOO_LONG", problem)


# ---- token ids ------------------------------------------------------------------------------------------------------


def validate_token_ids(message: text_pb2.Text, field: str, loaded: ModelInfo, max_tokens: int) -> list[int]:
    """Returns the token ids of a text, of at most `max_tokens` and without padding. Raises RequestError."""
    ids = _limit_ids(_read_token_ids(message, field, loaded), field, max_tokens, loaded, "none")[0]
    refuse_padding(ids, field, loaded)
    return ids


def _read_token_ids(message: text_pb2.Text, field: str, loaded: ModelInfo) -> list[int]:
    ids = list(message.token_ids.ids)
    path = f"{field}.token_ids.ids"
    if not ids:
        raise invalid(path, "EMPTY", "must not be empty")
    if max(ids) >= loaded.vocabulary_size:
        index = next(index for index, id_ in enumerate(ids) if id_ >= loaded.vocabulary_size)
        _check_ids(ids[index : index + 1], f"{path}[{index}]", loaded)
    return ids


def _check_ids(ids: Sequence[int], field: str, loaded: ModelInfo) -> None:
    """Refuses tokens that the model has no numbers for. Some tokenizers have further tokens, such as images' places."""
    if ids and max(ids) >= loaded.vocabulary_size:
        problem = f"{max(ids)} is outside the vocabulary of {loaded.vocabulary_size:,} tokens"
        raise invalid(field, "TOKEN_OUT_OF_RANGE", problem)


def _limit_ids(
    ids: list[int], field: str, max_tokens: int, loaded: ModelInfo, truncation: Truncation
) -> tuple[list[int], int]:
    """Returns at most `max_tokens` ids, and how many are left out. Raises RequestError."""
    path = f"{field}.token_ids.ids"
    if truncation != "none":
        return cut_ids(ids, max_tokens, truncation, path, loaded)
    if len(ids) > max_tokens:
        raise invalid(path, "TEXT_TOO_LONG", f"has {len(ids):,} tokens; at most {max_tokens:,} fit")
    return ids, 0
