"""From a protobuf request to a job: every field checked, every default filled in.

What is wrong is told with the path of the field. What the contract has and this server does not is told as
UNIMPLEMENTED, never left out in silence.
"""

from __future__ import annotations

import secrets
import unicodedata
import uuid
from typing import Any

from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import model_pb2, text_pb2

from ..capture import AttentionKind, CapturePlan
from ..errors import invalid, not_found, unimplemented
from ..models import LoadedModel
from ..request import DecodingParams, GivenTarget, Request, Score
from ..text.languages import Languages
from ..text.tokenizer import TextOptions, TokenizedText
from .capture_validation import plan_capture
from .converters import SCORES

_MAX_REQUEST_ID = 128

_LEAST_FACTOR, _GREATEST_FACTOR = 0.001, 1000

# Of a serialized request: gRPC's usual limit, and plenty for texts.
MAX_REQUEST_BYTES = 4 * 1024**2

# Characters that are normalized at once: no other Python thread can run meanwhile.
_NORMALIZED = 16 * 1024

# Decoding.stop: each text is looked for at every step.
MAX_STOPS, MAX_STOP_BYTES = 64, 1024


# Whether special tokens that are written out in texts become special tokens.
_PARSES = {
    text_pb2.SPECIAL_TOKENS_IN_TEXT_UNSPECIFIED: False,
    text_pb2.SPECIAL_TOKENS_IN_TEXT_TEXT: False,
    text_pb2.SPECIAL_TOKENS_IN_TEXT_PARSE: True,
}


def request_id_of(request: service_pb.AttributeRequest) -> str:
    """The request's id, or a new one. Raises RequestError: it goes into logs and trailers, so not any will do."""
    if len(request.request_id) > _MAX_REQUEST_ID or not request.request_id.isprintable():
        raise invalid("request_id", "MALFORMED", f"at most {_MAX_REQUEST_ID} characters, all of them printable")
    return request.request_id or uuid.uuid4().hex


def limits_of(loaded: LoadedModel) -> model_pb2.RequestLimits:
    """What is looked at before any work is done for a request of a model."""
    return model_pb2.RequestLimits(
        max_request_bytes=MAX_REQUEST_BYTES,
        max_source_bytes=loaded.tokenizer.most_bytes(loaded.max_source_tokens),
        max_target_bytes=loaded.tokenizer.most_bytes(loaded.max_target_tokens),
        max_chat_messages=loaded.max_source_tokens,
        max_stop_texts=MAX_STOPS,
        max_stop_bytes=MAX_STOP_BYTES,
    )


def find_model(models: dict[str, LoadedModel], name: str, field: str = "model") -> LoadedModel:
    """The model of a name; the first of `models` for an empty one."""
    if not name:
        return next(iter(models.values()))
    if name not in models:
        raise not_found(field, "UNKNOWN_MODEL", f"no model of that name is loaded; there is {', '.join(models)}")
    return models[name]


def resolve(request: service_pb.AttributeRequest, loaded: LoadedModel, request_id: str) -> Request:
    """The job that a request asks of a model. Raises RequestError. Tokenizes, so not for an event loop."""
    languages = _languages(request, loaded)
    options = _text_options(request, loaded)
    source = _source(request, loaded, languages, options)
    context, prefix = _context(request, loaded, languages, source, options)
    read = len(context) + (0 if loaded.is_encoder_decoder else len(source.tokens))
    room = loaded.max_target_tokens - read
    if room < 1:
        field = "prefix" if request.HasField("prefix") else "source"
        raise invalid(field, "TEXT_TOO_LONG", f"leaves no room for a target: {_limit(loaded)}")
    if request.WhichOneof("target") == "given":
        target: DecodingParams | GivenTarget = _given(request, loaded, languages, source, options, room)
        steps = at_once = len(target.encoded.tokens)
    else:
        target = _decoding(request.decoding, loaded, languages, read, room)
        if target.do_sample and request.resume_at and not request.decoding.sampling.HasField("seed"):
            raise invalid("decoding.sampling.seed", "REQUIRED", "is needed to draw the same tokens up to resume_at")
        steps, at_once = target.max_new_tokens, 1
    positions: dict[AttentionKind, int] = {
        "cross": len(source.tokens),
        "encoder_self": len(source.tokens),
        "decoder_self": read + steps,
    }
    capture: CapturePlan = plan_capture(request.capture, loaded, positions, at_once)
    return Request(
        request_id=request_id,
        source=source,
        context_ids=tuple(context),
        target=target,
        capture=capture,
        scores=_scores(request),
        score_top_p=_unit(request, "score_top_p", "score_top_p", 0.9),
        resume_at=request.resume_at,
        prefix=prefix,
    )


def _limit(loaded: LoadedModel) -> str:
    what = "a target" if loaded.is_encoder_decoder else "prompt and continuation together"
    return f"{what} may have at most {loaded.max_target_tokens} tokens"


def _languages(request: service_pb.AttributeRequest, loaded: LoadedModel) -> Languages:
    problems = loaded.tokenizer.check_languages(request.source_language, request.target_language)
    for field, problem in zip(("source_language", "target_language"), problems, strict=True):
        if problem:
            raise invalid(field, "UNKNOWN_LANGUAGE", problem)
    if request.source.WhichOneof("kind") == "token_ids":
        message = "goes with a source's text: token ids have the language's code among them"
        if request.source_language:
            raise invalid("source_language", "CONTRADICTION", message)
        if request.target_language and loaded.tokenizer.puts_target_in_source:
            raise invalid("target_language", "CONTRADICTION", message)
    return loaded.tokenizer.languages_of(request.source_language, request.target_language)


# ---- texts ----------------------------------------------------------------------------------------------------------


def _text_options(request: service_pb.AttributeRequest, loaded: LoadedModel) -> TextOptions:
    """How the request's texts become tokens."""
    kinds = [text.WhichOneof("kind") for text in (request.source, request.prefix, request.given)]
    value = request.special_tokens_in_text
    if value not in _PARSES:
        raise invalid("special_tokens_in_text", "UNKNOWN_VALUE", "is no way with special tokens")
    if value and not {"text", "chat"} & {*kinds}:
        raise invalid("special_tokens_in_text", "CONTRADICTION", "goes with texts, and there are only token ids")
    applies = kinds[0] == "text" or (loaded.is_encoder_decoder and kinds[2] == "text")
    if request.HasField("add_special_tokens") and not applies:
        message = "goes with a text: token ids are used as they are, and a chat's template writes its own"
        raise invalid("add_special_tokens", "CONTRADICTION", message)
    adds = request.add_special_tokens if request.HasField("add_special_tokens") else True
    return TextOptions(_PARSES[value], adds)


def _source(
    request: service_pb.AttributeRequest, loaded: LoadedModel, languages: Languages, options: TextOptions
) -> TokenizedText:
    if not request.HasField("source"):
        raise invalid("source", "REQUIRED", "is required")
    source, most = request.source, loaded.max_source_tokens
    kind = source.WhichOneof("kind")
    if kind == "text":
        _check_text(source.text, "source.text", most, loaded)
        encoded = loaded.tokenizer.encode_source(source.text, languages, options)
        _check_tokens(encoded, "source.text", loaded, options)
    elif kind == "token_ids":
        ids = _token_ids(source, "source", loaded, most)
        if (padding := loaded.tokenizer.padding_id) in ids:
            message = f"{padding} is padding, which would be attended to: leave it out"
            raise invalid(f"source.token_ids.ids[{ids.index(padding)}]", "PADDING", message)
        encoded = loaded.tokenizer.detokenize(ids)
    elif kind == "chat":
        encoded = _chat(source.chat, loaded, options)
    else:
        raise invalid("source", "REQUIRED", "one of text, token_ids and chat must be set")
    if not encoded.tokens:
        raise invalid(f"source.{kind}", "EMPTY", "must not be empty: it tokenizes to nothing")
    _check_length(encoded, f"source.{kind}", most, "the model reads")
    return encoded


def _chat(chat: text_pb2.Chat, loaded: LoadedModel, options: TextOptions) -> TokenizedText:
    if loaded.is_encoder_decoder or not loaded.tokenizer.has_chat_template:
        raise invalid("source.chat", "NO_CHAT_TEMPLATE", "this model has no chat template")
    if not chat.messages:
        raise invalid("source.chat.messages", "EMPTY", "must not be empty")
    count, most = len(chat.messages), loaded.max_source_tokens
    if count > most:  # each takes a token or more
        message = f"are {count:,}; there may be at most {most:,}"
        raise invalid("source.chat.messages", "TOO_MANY", message)
    whole = "".join(text for message in chat.messages for text in (message.role, message.content))
    _check_size(whole, "source.chat", most, loaded)
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    try:
        return loaded.tokenizer.render_chat(messages, options)
    except Exception as error:  # templates raise what they like, on roles that they do not know for one
        raise invalid("source.chat.messages", "CHAT_TEMPLATE", "the model's chat template refuses these") from error


def _context(
    request: service_pb.AttributeRequest,
    loaded: LoadedModel,
    languages: Languages,
    source: TokenizedText,
    options: TextOptions,
) -> tuple[list[int], TokenizedText | None]:
    """What the decoder reads between the source and step 0, and the prefix among it that is a text."""
    start = loaded.tokenizer.start_ids(languages)
    if not request.HasField("prefix"):
        return start, None
    if request.WhichOneof("target") == "given":
        raise invalid("prefix", "CONTRADICTION", "goes with decoding, not with a given target")
    prefix, most = request.prefix, loaded.max_target_tokens
    kind = prefix.WhichOneof("kind")
    if kind == "text":
        _check_text(prefix.text, "prefix.text", most, loaded)
        encoded = loaded.tokenizer.encode_prefix(source, prefix.text, languages, options)
        tokens = encoded.tokens
        if not tokens or not (options.parses_special or any(not token.special for token in tokens)):
            raise invalid("prefix.text", "EMPTY", "must not be empty: it tokenizes to nothing")
        return [*start, *encoded.ids], encoded
    if kind == "token_ids":
        ids = _token_ids(prefix, "prefix", loaded, most)
    else:
        raise invalid("prefix", "REQUIRED", "one of text and token_ids must be set")
    return [*start, *ids], None


def _given(
    request: service_pb.AttributeRequest,
    loaded: LoadedModel,
    languages: Languages,
    source: TokenizedText,
    options: TextOptions,
    room: int,
) -> GivenTarget:
    given = request.given
    kind = given.WhichOneof("kind")
    if kind == "text":
        _check_text(given.text, "given.text", loaded.max_target_tokens, loaded)
        if loaded.is_encoder_decoder:
            encoded = loaded.tokenizer.encode_target(given.text, languages, options)
        else:
            encoded = loaded.tokenizer.encode_continuation(source, given.text, options)
        _check_tokens(encoded, "given.text", loaded, options)
    elif kind == "token_ids":
        ids = _token_ids(given, "given", loaded, room)
        encoded = loaded.tokenizer.detokenize(ids, () if loaded.is_encoder_decoder else source.ids)
    else:
        raise invalid("given", "REQUIRED", "one of text and token_ids must be set")
    _check_length(encoded, f"given.{kind}", room, "there is room for")
    return GivenTarget(encoded)


def _check_text(text: str, field: str, most: int, loaded: LoadedModel) -> None:
    if not text:
        raise invalid(field, "EMPTY", "must not be empty")
    _check_size(text, field, most, loaded)


def _check_size(text: str, field: str, most: int, loaded: LoadedModel) -> None:
    """Refuses a text before anyone tokenizes it that could not be within so many tokens."""
    limit = loaded.tokenizer.most_bytes(most)
    size = len(text.encode())
    if size > limit:
        raise invalid(field, "TEXT_TOO_LONG", f"is {size:,} bytes long; at most {limit:,} are read")
    if text.isascii():
        return
    normalized = 0
    for begin in range(0, len(text), _NORMALIZED):
        normalized += len(unicodedata.normalize("NFKC", text[begin : begin + _NORMALIZED]).encode())
        if normalized > limit:  # one letter may become 18, such as U+FDFA
            message = f"is {size:,} bytes long, and more than {limit:,} once normalized; at most so many are read"
            raise invalid(field, "TEXT_TOO_LONG", message)


def _check_tokens(encoded: TokenizedText, field: str, loaded: LoadedModel, options: TextOptions) -> None:
    """Refuses a text that comes to nothing. White space is something to models that continue a text."""
    may_be_special = options.parses_special and not loaded.is_encoder_decoder
    if not encoded.tokens or (all(token.special for token in encoded.tokens) and not may_be_special):
        raise invalid(field, "EMPTY", "must not be empty: it tokenizes to nothing")
    if loaded.is_encoder_decoder and (not encoded.text.strip() or loaded.tokenizer.is_blank(encoded)):
        raise invalid(field, "EMPTY", "must not be empty: it is nothing but white space")


def _check_length(encoded: TokenizedText, field: str, most: int, what: str) -> None:
    if len(encoded.tokens) > most:
        raise invalid(field, "TEXT_TOO_LONG", f"has {len(encoded.tokens):,} tokens; {what} at most {most:,}")


def _token_ids(text: text_pb2.Text, field: str, loaded: LoadedModel, most: int) -> list[int]:
    ids = text.token_ids.ids
    path = f"{field}.token_ids.ids"
    if not ids:
        raise invalid(path, "EMPTY", "must not be empty")
    if len(ids) > most:
        raise invalid(path, "TEXT_TOO_LONG", f"has {len(ids):,} tokens; at most {most:,} fit")
    ids = list(ids)
    for place, id_ in enumerate(ids):
        if id_ >= loaded.vocabulary_size:
            message = f"{id_} is outside the vocabulary of {loaded.vocabulary_size:,} tokens"
            raise invalid(f"{path}[{place}]", "TOKEN_OUT_OF_RANGE", message)
    return ids


# ---- decoding -------------------------------------------------------------------------------------------------------


def _decoding(
    decoding: text_pb2.Decoding, loaded: LoadedModel, languages: Languages, read: int, room: int
) -> DecodingParams:
    config: Any = loaded.model.generation_config
    strategy = decoding.WhichOneof("strategy")
    if strategy == "beam":
        raise unimplemented("decoding.beam")
    do_sample = strategy == "sampling" or (strategy is None and bool(config.do_sample))
    generation: dict[str, Any] = {}
    seed: int | None = None
    if do_sample:
        generation |= _sampling(decoding.sampling)
        seed = decoding.sampling.seed if decoding.sampling.HasField("seed") else secrets.randbits(63)
    if (first := loaded.tokenizer.forced_first_id(languages)) is not None:
        generation["forced_bos_token_id"] = first
    most = _max_new_tokens(decoding, config, read, room)
    if decoding.HasField("min_new_tokens"):
        if decoding.min_new_tokens > most:
            raise invalid("decoding.min_new_tokens", "OUT_OF_RANGE", f"is more than max_new_tokens, {most}")
        generation["min_new_tokens"] = decoding.min_new_tokens
    if decoding.HasField("repetition_penalty"):
        generation["repetition_penalty"] = _factor(decoding, "decoding", "repetition_penalty")
    if decoding.HasField("no_repeat_ngram_size"):
        generation["no_repeat_ngram_size"] = decoding.no_repeat_ngram_size
    if len(decoding.stop) > MAX_STOPS:
        raise invalid("decoding.stop", "TOO_MANY", f"has {len(decoding.stop):,} texts; at most {MAX_STOPS} may be set")
    for place, text in enumerate(decoding.stop):
        if not text:
            raise invalid(f"decoding.stop[{place}]", "EMPTY", "must not be empty")
        if (size := len(text.encode())) > MAX_STOP_BYTES:
            message = f"is {size:,} bytes long; at most {MAX_STOP_BYTES:,} are looked for"
            raise invalid(f"decoding.stop[{place}]", "TEXT_TOO_LONG", message)
    stop = (*decoding.stop, *_configured_stops(config))
    return DecodingParams(most, do_sample, seed, stop, decoding.ignore_eos, generation)


def _sampling(sampling: text_pb2.Sampling) -> dict[str, Any]:
    generation: dict[str, Any] = {}
    if sampling.HasField("temperature"):
        generation["temperature"] = _factor(sampling, "decoding.sampling", "temperature")
    if sampling.HasField("top_k"):
        generation["top_k"] = sampling.top_k
    if sampling.HasField("top_p"):
        generation["top_p"] = _unit(sampling, "top_p", "decoding.sampling.top_p", 1.0)
    return generation


def _max_new_tokens(decoding: text_pb2.Decoding, config: Any, read: int, room: int) -> int:
    if decoding.HasField("max_new_tokens"):
        if not 1 <= decoding.max_new_tokens <= room:
            raise invalid("decoding.max_new_tokens", "OUT_OF_RANGE", f"must be from 1 to {room} for this request")
        return decoding.max_new_tokens
    configured = config.max_new_tokens or (config.max_length - read if config.max_length else room)
    if configured < 1:
        message = f"is needed: {read:,} tokens stand before the first, and the model's generation config ends at"
        raise invalid("decoding.max_new_tokens", "REQUIRED", f"{message} {config.max_length:,} in all")
    return min(configured, room)


def _configured_stops(config: Any) -> tuple[str, ...]:
    stops: Any = getattr(config, "stop_strings", None) or ()
    return (stops,) if isinstance(stops, str) else tuple(stops)


def _factor(message: Any, path: str, name: str) -> float:
    """A number that logits are divided by: none that would make infinities of them."""
    value = float(getattr(message, name))
    if not _LEAST_FACTOR <= value <= _GREATEST_FACTOR:
        message = f"must be above 0: from {_LEAST_FACTOR} to {_GREATEST_FACTOR:,}"
        raise invalid(f"{path}.{name}", "OUT_OF_RANGE", message)
    return value


def _unit(message: Any, name: str, path: str, default: float) -> float:
    if not message.HasField(name):
        return default
    value = float(getattr(message, name))
    if not 0 < value <= 1:
        raise invalid(path, "OUT_OF_RANGE", "must be above 0 and at most 1")
    return value


# ---- scores ---------------------------------------------------------------------------------------------------------


def _scores(request: service_pb.AttributeRequest) -> tuple[Score, ...]:
    names: list[Score] = []
    for place, value in enumerate(request.scores):
        field = f"scores[{place}]"
        if value not in SCORES:
            raise invalid(field, "UNKNOWN_VALUE", "is no score")
        if SCORES[value] in names:
            raise invalid(field, "DUPLICATE", "is asked for twice")
        names.append(SCORES[value])
    return tuple(names)
