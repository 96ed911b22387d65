"""The texts of a request become tokens: the source, the prefix, a given target. Raises RequestError with the field."""

from __future__ import annotations

import unicodedata

from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import text_pb2

from ...errors import invalid, unimplemented
from ...models import LoadedModel
from ...request import GivenTarget
from ...text import Languages, TextOptions, TokenizedText

# How many characters are normalized at once. No other Python thread can run meanwhile.
_NORMALIZED_AT_ONCE = 16 * 1024

# Whether special tokens that are written out in texts become special tokens.
_PARSES_SPECIAL = {
    text_pb2.SPECIAL_TOKENS_IN_TEXT_UNSPECIFIED: False,
    text_pb2.SPECIAL_TOKENS_IN_TEXT_TEXT: False,
    text_pb2.SPECIAL_TOKENS_IN_TEXT_PARSE: True,
}


def validate_languages(message: service_pb.AttributeRequest, loaded: LoadedModel) -> Languages:
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


def validate_text_options(message: service_pb.AttributeRequest, loaded: LoadedModel) -> TextOptions:
    """Returns how the request's texts become tokens."""
    kinds = [text.WhichOneof("kind") for text in (message.source, message.prefix, message.given)]
    value = message.special_tokens_in_text
    if value not in _PARSES_SPECIAL:
        raise invalid("special_tokens_in_text", "UNKNOWN_VALUE", "is no way with special tokens")
    if value and not {"text", "chat"} & {*kinds}:
        raise invalid("special_tokens_in_text", "CONTRADICTION", "goes with texts, and there are only token ids")
    applies = kinds[0] == "text" or (loaded.is_encoder_decoder and kinds[2] == "text")
    if message.HasField("add_special_tokens") and not applies:
        problem = "goes with a text: token ids are used as they are, and a chat's template writes its own"
        raise invalid("add_special_tokens", "CONTRADICTION", problem)
    adds_special = message.add_special_tokens if message.HasField("add_special_tokens") else True
    return TextOptions(_PARSES_SPECIAL[value], adds_special)


def validate_source(
    message: service_pb.AttributeRequest, loaded: LoadedModel, languages: Languages, options: TextOptions
) -> TokenizedText:
    """Returns the tokens of the source. Raises RequestError."""
    if not message.HasField("source"):
        raise invalid("source", "REQUIRED", "is required")
    source, max_tokens = message.source, loaded.max_source_tokens
    kind = source.WhichOneof("kind")
    if kind == "text":
        _check_text(source.text, "source.text", max_tokens, loaded)
        text = loaded.tokenizer.encode_source(source.text, languages, options)
        _check_not_blank(text, "source.text", loaded, options)
    elif kind == "token_ids":
        ids = _validate_token_ids(source, "source", loaded, max_tokens)
        if (padding_id := loaded.tokenizer.padding_id) in ids:
            problem = f"{padding_id} is padding, which would be attended to: leave it out"
            raise invalid(f"source.token_ids.ids[{ids.index(padding_id)}]", "PADDING", problem)
        text = loaded.tokenizer.detokenize(ids)
    elif kind == "features":
        raise unimplemented("source.features")
    elif kind == "chat":
        text = _validate_chat(source.chat, loaded, options)
    else:
        raise invalid("source", "REQUIRED", "one of text, token_ids and chat must be set")
    if not text.tokens:
        raise invalid(f"source.{kind}", "EMPTY", "must not be empty: it tokenizes to nothing")
    _check_num_tokens(text, f"source.{kind}", max_tokens, "the model reads")
    return text


def _validate_chat(message: text_pb2.Chat, loaded: LoadedModel, options: TextOptions) -> TokenizedText:
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
        return loaded.tokenizer.render_chat(turns, options)
    except Exception as error:  # templates raise errors of any type, such as for roles that they do not know
        raise invalid("source.chat.messages", "CHAT_TEMPLATE", "the model's chat template refuses these") from error


def validate_decoder_prompt(
    message: service_pb.AttributeRequest,
    loaded: LoadedModel,
    languages: Languages,
    source: TokenizedText,
    options: TextOptions,
) -> tuple[list[int], TokenizedText | None]:
    """Returns the tokens that the decoder reads between the source and step 0, and the prefix if it is a text."""
    start_ids = loaded.tokenizer.start_ids(languages)
    if not message.HasField("prefix"):
        return start_ids, None
    if message.WhichOneof("target") == "given":
        raise invalid("prefix", "CONTRADICTION", "goes with decoding, not with a given target")
    prefix, max_tokens = message.prefix, loaded.max_target_tokens
    kind = prefix.WhichOneof("kind")
    if kind == "text":
        _check_text(prefix.text, "prefix.text", max_tokens, loaded)
        text = loaded.tokenizer.encode_prefix(source, prefix.text, languages, options)
        tokens = text.tokens
        if not tokens or not (options.parses_special or any(not token.special for token in tokens)):
            raise invalid("prefix.text", "EMPTY", "must not be empty: it tokenizes to nothing")
        return [*start_ids, *text.ids], text
    if kind == "token_ids":
        ids = _validate_token_ids(prefix, "prefix", loaded, max_tokens)
    else:
        raise invalid("prefix", "REQUIRED", "one of text and token_ids must be set")
    return [*start_ids, *ids], None


def validate_given(
    message: service_pb.AttributeRequest,
    loaded: LoadedModel,
    languages: Languages,
    source: TokenizedText,
    options: TextOptions,
    max_target: int,
) -> GivenTarget:
    """Returns the given target, of at most `max_target` tokens. Raises RequestError."""
    given = message.given
    kind = given.WhichOneof("kind")
    if kind == "text":
        _check_text(given.text, "given.text", loaded.max_target_tokens, loaded)
        if loaded.is_encoder_decoder:
            text = loaded.tokenizer.encode_target(given.text, languages, options)
        else:
            text = loaded.tokenizer.encode_continuation(source, given.text, options)
        _check_not_blank(text, "given.text", loaded, options)
    elif kind == "token_ids":
        ids = _validate_token_ids(given, "given", loaded, max_target)
        text = loaded.tokenizer.detokenize(ids, () if loaded.is_encoder_decoder else source.ids)
    else:
        raise invalid("given", "REQUIRED", "one of text and token_ids must be set")
    _check_num_tokens(text, f"given.{kind}", max_target, "there is room for")
    return GivenTarget(text)


def _check_text(text: str, field: str, max_tokens: int, loaded: LoadedModel) -> None:
    if not text:
        raise invalid(field, "EMPTY", "must not be empty")
    _check_num_bytes(text, field, max_tokens, loaded)


def _check_num_bytes(text: str, field: str, max_tokens: int, loaded: LoadedModel) -> None:
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


def _check_not_blank(text: TokenizedText, field: str, loaded: LoadedModel, options: TextOptions) -> None:
    """Refuses a text without tokens of its own. For a model that continues a text, white space is a text."""
    may_be_special = options.parses_special and not loaded.is_encoder_decoder
    if not text.tokens or (all(token.special for token in text.tokens) and not may_be_special):
        raise invalid(field, "EMPTY", "must not be empty: it tokenizes to nothing")
    if loaded.is_encoder_decoder and (not text.text.strip() or loaded.tokenizer.is_blank(text)):
        raise invalid(field, "EMPTY", "must not be empty: it is nothing but white space")


def _check_num_tokens(text: TokenizedText, field: str, max_tokens: int, limit: str) -> None:
    if len(text.tokens) > max_tokens:
        raise invalid(field, "TEXT_TOO_LONG", f"has {len(text.tokens):,} tokens; {limit} at most {max_tokens:,}")


def _validate_token_ids(message: text_pb2.Text, field: str, loaded: LoadedModel, max_tokens: int) -> list[int]:
    ids = message.token_ids.ids
    path = f"{field}.token_ids.ids"
    if not ids:
        raise invalid(path, "EMPTY", "must not be empty")
    if len(ids) > max_tokens:
        raise invalid(path, "TEXT_TOO_LONG", f"has {len(ids):,} tokens; at most {max_tokens:,} fit")
    ids = list(ids)
    for index, id_ in enumerate(ids):
        if id_ >= loaded.vocabulary_size:
            problem = f"{id_} is outside the vocabulary of {loaded.vocabulary_size:,} tokens"
            raise invalid(f"{path}[{index}]", "TOKEN_OUT_OF_RANGE", problem)
    return ids
