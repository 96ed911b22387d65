"""The messages of a follow stream become events: each field is checked, in the order in which the messages come.

Raises RequestError with the path of the field in a FollowRequest.
"""

from __future__ import annotations

from dataclasses import replace

from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import text_pb2

from ...capture import AttentionKind
from ...engine import SourceDone, SourceGrowth, TakeBack, TargetToken
from ...errors import invalid
from ...models import ModelInfo
from ...policy import AlignAtt
from ...request import GivenTarget, Request
from ...text import Languages, TextOptions, TokenizedText, count_complete, encode_next, find_words
from .follow_start import check_start, options_message, paths_in_start, policy_plan
from .request import validate_request
from .texts import check_text, validate_languages, validate_text_options, validate_token_ids

Event = SourceGrowth | SourceDone | TargetToken | TakeBack


class FollowValidator:
    """The texts of one follow stream so far, and what they become. For one thread at a time."""

    def __init__(self, start: service_pb.FollowStart, loaded: ModelInfo, request_id: str) -> None:
        """Raises RequestError for what is wrong whatever the source is."""
        self._start = start
        self._loaded = loaded
        self._request_id = request_id
        self._source = text_pb2.Text()
        self._is_source_done = False
        self._request: Request | None = None
        self._ids: list[int] = []  # of the target
        self._text: str | None = ""  # of these tokens; None: not known
        self._waiting = ""  # text of the target that waits for the end of its word
        check_start(start, loaded)
        self._is_server_written = start.HasField("decoding")

    def add(self, message: service_pb.FollowRequest) -> list[Event]:
        """Takes the next message. Returns the events that it makes: none while the source is blank, or text waits."""
        kind = message.WhichOneof("event")
        if kind is None:
            problem = "is unset or not known: it must be source, source_done, target, take_back or flush"
            raise invalid("event", "REQUIRED", problem)
        if kind == "start":
            raise invalid("start", "OUT_OF_ORDER", "was sent before")
        if kind == "source":
            return self._add_source(message.source)
        if self._request is None:
            problem = "comes before the source" if not self._source.text else "comes before the source has any word"
            raise invalid(kind, "OUT_OF_ORDER", problem)
        if kind == "source_done":
            return self._complete_source()
        if self._is_server_written:
            raise invalid(kind, "CONTRADICTION", "goes without start.decoding: the server writes the target")
        if kind == "target":
            return [TargetToken(id_) for id_ in self._add_target(message.target)]
        if kind == "flush":
            return self.flush()
        return self._take_back(message.take_back)

    # ---- source -----------------------------------------------------------------------------------------------------

    def _add_source(self, piece: text_pb2.Text) -> list[Event]:
        if self._is_source_done:
            raise invalid("source", "OUT_OF_ORDER", "comes after source_done")
        kind, before = piece.WhichOneof("kind"), self._source.WhichOneof("kind")
        if before is not None and (kind != before or kind not in ("text", "token_ids")):
            raise invalid(f"source.{kind}", "CONTRADICTION", f"cannot be added to a source of {before}")
        if kind == "text":
            if not piece.text:
                raise invalid("source.text", "EMPTY", "must not be empty")
            self._source.text += piece.text
            if self._request is None and not self._source.text.strip():
                check_text(self._source.text, "source.text", self._loaded.max_source_tokens, self._loaded)
                return []
        elif kind == "token_ids":
            num_left = self._loaded.max_source_tokens - len(self._source.token_ids.ids)
            self._source.token_ids.ids.extend(validate_token_ids(piece, "source", self._loaded, num_left))
        else:
            self._source.CopyFrom(piece)
        request = self._validate()
        if len(self._ids) > max_new_tokens(request):
            raise invalid(f"source.{kind}", "TEXT_TOO_LONG", "leaves no room for the target")
        self._request = request
        return [SourceGrowth(request)]

    def _complete_source(self) -> list[Event]:
        if self._is_source_done:
            raise invalid("source_done", "OUT_OF_ORDER", "was sent before")
        self._is_source_done = True
        return [SourceDone()]

    def _validate(self) -> Request:
        """Returns the request with the source so far."""
        message, loaded = self._message(), self._loaded
        with paths_in_start():
            request = validate_request(message, loaded, self._request_id, is_follow=True)
        if not self._start.HasField("policy"):
            return request
        policy = self._start.policy.align_att
        num_decoded = request.max_num_tokens - len(request.source.tokens)
        num_positions: dict[AttentionKind, int] = {
            "cross": len(request.source.tokens),
            "encoder_self": len(request.source.tokens),
            "decoder_self": request.max_num_tokens if not loaded.is_encoder_decoder else num_decoded,
        }
        plan = policy_plan(policy, loaded, num_positions)
        align_att = AlignAtt(_first_held(policy, request.source))
        return replace(request, policy=align_att, observed={"policy": plan})

    def _message(self) -> service_pb.AttributeRequest:
        """Returns the options of the stream, with the source so far, as a message for one text."""
        message = options_message(self._start)
        message.source.CopyFrom(self._source)
        return message

    # ---- target -----------------------------------------------------------------------------------------------------

    def flush(self) -> list[Event]:
        """Takes the text that waits, as it is: no more comes."""
        waiting, self._waiting = self._waiting, ""
        return [TargetToken(id_) for id_ in self._encode(waiting)] if waiting else []

    def _add_target(self, piece: text_pb2.Text) -> list[int]:
        """Returns the tokens that a piece of the target adds."""
        kind = piece.WhichOneof("kind")
        if kind == "token_ids":
            ids = [] if not self._waiting else self._encode(self._waiting)
            self._waiting = ""
            new_ids = validate_token_ids(piece, "target", self._loaded, self._num_left)
            self._ids += new_ids
            self._text = None
            return [*ids, *new_ids]
        if kind != "text":
            raise invalid("target", "REQUIRED", "one of text and token_ids must be set")
        text = self._waiting + piece.text
        if not piece.text:
            raise invalid("target.text", "EMPTY", "must not be empty")
        check_text(text, "target.text", self._loaded.max_target_tokens, self._loaded)
        num_complete = count_complete(text)
        self._waiting = text[num_complete:]
        return self._encode(text[:num_complete]) if num_complete else []

    def _encode(self, text: str) -> list[int]:
        """Adds a text to the target. Returns its tokens; the tokens before it stay as they are."""
        request, loaded = self._request, self._loaded
        assert request is not None
        message = self._message()
        languages, options = validate_languages(message, loaded), validate_text_options(message, loaded)
        before, before_ids = self._before(request, languages, options)
        if not loaded.is_encoder_decoder and request.source.options is not None:
            options = request.source.options
        source = request.source if loaded.is_encoder_decoder else None
        ids = encode_next(loaded.tokenizer, source, before, before_ids, text, languages, options)
        if len(ids) > self._num_left:
            raise invalid("target.text", "TEXT_TOO_LONG", f"has {len(ids):,} tokens; {self._num_left:,} more fit")
        self._ids += ids
        if self._text is not None:
            self._text += text
        return ids

    def _before(self, request: Request, languages: Languages, options: TextOptions) -> tuple[str | None, list[int]]:
        """Returns the text that stands before new text of the target, if it is known, and its tokens."""
        tokenizer, is_encoder_decoder = self._loaded.tokenizer, self._loaded.is_encoder_decoder
        prompt_ids = request.decoder_prompt_ids
        if is_encoder_decoder:
            prompt_ids = prompt_ids[len(tokenizer.start_ids(languages)) :]
        before = "" if is_encoder_decoder else request.source.text
        is_known = is_encoder_decoder or request.source.options == options
        if request.prefix is not None:
            before += request.prefix.text
        elif prompt_ids:
            is_known = False
        source_ids = [] if is_encoder_decoder else request.source.ids
        if self._text is None:
            self._text = tokenizer.detokenize(self._ids, [*source_ids, *prompt_ids]).text
        return (before + self._text) if is_known else None, [*source_ids, *prompt_ids, *self._ids]

    def _take_back(self, count: int) -> list[Event]:
        if count > len(self._ids):
            raise invalid(
                "take_back", "OUT_OF_RANGE", f"{count:,} is more than the {len(self._ids):,} tokens there are"
            )
        self._waiting = ""
        if count:
            del self._ids[len(self._ids) - count :]
            self._text = None if self._ids else ""
        return [TakeBack(count)]

    @property
    def _num_left(self) -> int:
        """How many more tokens the target may have."""
        request = self._request
        assert request is not None
        return max_new_tokens(request) - len(self._ids)


def max_new_tokens(request: Request) -> int:
    """Returns how many tokens the target of a follow stream may have."""
    assert not isinstance(request.target, GivenTarget)
    return request.target.max_new_tokens


def _first_held(policy: service_pb.AlignAtt, source: TokenizedText) -> int:
    """Returns the first source token that is held back."""
    if policy.HasField("tokens"):
        own = [index for index, token in enumerate(source.tokens) if not token.special]
        return own[-policy.tokens] if policy.tokens <= len(own) else 0
    # A punctuation mark belongs to the word before it.
    words = [(begin, end) for begin, end in find_words(source.text) if any(map(str.isalnum, source.text[begin:end]))]
    if policy.words > len(words):
        return 0
    begin, _ = words[-policy.words]
    held = (index for index, token in enumerate(source.tokens) if not token.special and token.end > begin)
    return next(held, len(source.tokens))
