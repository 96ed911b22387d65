"""A ModelInferRequest becomes an AttributeRequest for each of its texts, and the outputs that are wanted.

Raises RequestError with the name of the tensor or of the parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.v1 import attention_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...capture import AttentionKind
from ...errors import RequestError, invalid, not_found, quote, unimplemented
from ...models import ModelInfo
from ...request import GivenTarget, Request, Score
from ..enums import ATTENTION_KINDS, SCORES, number_of
from ..rpcs import Validator
from ..validation import request_id_of, validate_request
from .outputs import Output, outputs_of
from .parameters import PARAMETERS, apply_parameters, is_given, rename_field, wants_empty_final_response
from .tensors import TensorType, check_tensor_parameters, read_inputs

# The version of every model.
VERSION = "1"

# The most bytes of attention in one response.
MAX_ATTENTION_BYTES = 64 * 1024**2

INPUTS = (
    TensorType("text_input", "BYTES", (-1,)),
    TensorType("target_input", "BYTES", (-1,)),
    TensorType("stream", "BOOL", (1,)),
)

_KINDS: tuple[AttentionKind, ...] = ("cross", "decoder_self", "encoder_self")


@dataclass(frozen=True)
class InferenceRequest:
    """A request of the protocol.

    Attributes:
        request_id: Its id, or one that the server has made.
        client_id: Its id as the client sent it: empty where it sent none.
        model: The name of the model.
        messages: A request for each text.
        outputs: The outputs that are wanted, in the order of the client.
        scores: The scores of the steps.
        is_raw: Whether the client sends and gets elements as bytes.
        streams: Whether there is a response for each step.
        sends_empty_final: Whether a stream sends a last response that has no tensors.
        has_encoder: Whether the model has an encoder.
        num_bytes: The size of its texts, about.
    """

    request_id: str
    client_id: str
    model: str
    messages: Sequence[service_pb.AttributeRequest]
    outputs: Sequence[Output]
    scores: tuple[Score, ...]
    is_raw: bool
    streams: bool
    sends_empty_final: bool
    has_encoder: bool
    num_bytes: int

    @property
    def validators(self) -> list[Validator]:
        """What makes the engine's request of each text."""
        return [partial(_validate, index) for index in range(len(self.messages))]

    def check(self, requests: Sequence[Request]) -> None:
        """Refuses more attention than one response may have, before any work is done for it. Raises RequestError."""
        source = max(request.source_length for request in requests)
        target = 1 if self.streams else max(map(_max_steps, requests))
        positions = max(_max_positions(request, has_encoder=self.has_encoder) for request in requests)
        sizes = {"cross": target * source, "decoder_self": target * positions, "encoder_self": source * source}
        num_numbers = len(requests) * sum(sizes.get(output.need, 0) for output in self.outputs)
        if num_numbers * 4 > MAX_ATTENTION_BYTES:
            problem = (
                f"may have {num_numbers * 4 / 1024**2:,.0f} MiB of attention, and a response has at most"
                f" {MAX_ATTENTION_BYTES // 1024**2} MiB: fewer texts or a smaller max_new_tokens need less"
            )
            raise invalid("outputs", "TOO_LARGE", problem)


def read_request(
    message: oip.ModelInferRequest, loaded: ModelInfo, max_texts: int, *, is_stream: bool
) -> InferenceRequest:
    """Returns what a message with at most `max_texts` texts asks of a model. Raises RequestError.

    `is_stream` is for ModelStreamInfer, where the default is a response for each step.
    """
    check_version(message.model_version, "model_version")
    check_reads_texts(loaded)
    inputs = read_inputs(message, INPUTS, max_texts)
    if "text_input" not in inputs:
        raise invalid("text_input", "REQUIRED", "is needed: the texts that the model reads")
    streams = inputs["stream"].truth() if "stream" in inputs else is_stream
    if streams and not is_stream:
        raise invalid("stream", "CONTRADICTION", "goes with ModelStreamInfer: ModelInfer has one response")
    texts = inputs["text_input"].texts()
    targets = inputs["target_input"].texts() if "target_input" in inputs else None
    if targets is not None and len(targets) != len(texts):
        problem = f"has {len(targets)} elements for {len(texts)} texts"
        raise invalid("target_input.shape", "SHAPE_MISMATCH", problem)
    outputs = _read_outputs(message, loaded)
    scores: tuple[Score, ...] = tuple(output.score for output in outputs if output.score is not None)
    template = service_pb.AttributeRequest(request_id=message.id, model=loaded.name)
    if targets is not None:
        template.given.SetInParent()
    apply_parameters(message.parameters, template)
    _check_used(message.parameters, outputs)
    _ask_for_outputs(template, outputs, scores)
    try:
        request_id = request_id_of(template)
    except RequestError as error:
        raise rename_field(error) from None
    return InferenceRequest(
        request_id=request_id,
        client_id=message.id,
        model=loaded.name,
        messages=[
            _fill_texts(template, text, None if targets is None else targets[index]) for index, text in enumerate(texts)
        ],
        outputs=outputs,
        scores=scores,
        is_raw=bool(message.raw_input_contents),
        streams=streams,
        sends_empty_final=wants_empty_final_response(message.parameters),
        has_encoder=loaded.is_encoder_decoder,
        num_bytes=sum(map(len, texts)) + sum(map(len, targets or ())),
    )


def check_version(version: str, field: str) -> None:
    """Raises RequestError for a version that no model has."""
    if version not in ("", VERSION):
        raise not_found(field, "UNKNOWN_VERSION", f"there is version {VERSION}, and not {quote(version)}")


def check_reads_texts(loaded: ModelInfo) -> None:
    """Raises RequestError for a speech model."""
    if loaded.feature_shape is not None:
        raise unimplemented("model_name", "reads recordings, which this protocol does not carry here: see Attribute")


def _read_outputs(message: oip.ModelInferRequest, loaded: ModelInfo) -> list[Output]:
    known = outputs_of(loaded)
    if not message.outputs:
        has_links = not is_given(message.parameters, "beam")  # a beam search has none
        return [output for output in known.values() if output.is_default and (has_links or output.need != "links")]
    if len(message.outputs) > len(known):
        raise invalid("outputs", "TOO_MANY", f"there are {len(message.outputs):,}; at most {len(known)} are known")
    outputs: dict[str, Output] = {}
    for index, wanted in enumerate(message.outputs):
        if wanted.name not in known:
            names = ", ".join(known)
            problem = f"no output of this model is {quote(wanted.name)}; there is {names}"
            raise invalid(f"outputs[{index}].name", "UNKNOWN_OUTPUT", problem)
        if wanted.name in outputs:
            raise invalid(f"outputs[{index}].name", "DUPLICATE", f"{wanted.name} is asked for twice")
        check_tensor_parameters(wanted.parameters, f"outputs[{index}]")
        outputs[wanted.name] = known[wanted.name]
    return list(outputs.values())


def _check_used(parameters: Mapping[str, oip.InferParameter], outputs: Sequence[Output]) -> None:
    """Refuses parameters that say how something is made that is not wanted."""
    needs = {output.need for output in outputs}
    for name in sorted(parameters):
        path = PARAMETERS[name].path if name in PARAMETERS else ""
        if path.startswith("link_options.") and "links" not in needs:
            raise invalid(f"parameters[{name}]", "CONTRADICTION", "goes with outputs of links, and none is wanted")
        if path.startswith("capture.") and not needs.intersection(_KINDS):
            raise invalid(f"parameters[{name}]", "CONTRADICTION", "goes with outputs of attention, and none is wanted")


def _ask_for_outputs(message: service_pb.AttributeRequest, outputs: Sequence[Output], scores: Sequence[Score]) -> None:
    """Asks for what the outputs need, and for nothing else."""
    needs = {output.need for output in outputs}
    if "links" in needs:
        message.link_options.SetInParent()
    message.scores.extend(number_of(SCORES, score) for score in scores)
    capture = message.capture
    kinds: list[AttentionKind] = [kind for kind in _KINDS if kind in needs]
    if not kinds:
        capture.none = True
        return
    capture.kinds.extend(number_of(ATTENTION_KINDS, kind) for kind in kinds)
    capture.over_heads = capture.over_heads or attention_pb2.REDUCTION_MEAN
    if not capture.HasField("heads"):
        capture.over_layers = capture.over_layers or attention_pb2.REDUCTION_MEAN


def _fill_texts(template: service_pb.AttributeRequest, text: str, target: str | None) -> service_pb.AttributeRequest:
    message = service_pb.AttributeRequest()
    message.CopyFrom(template)
    message.source.text = text
    if target is not None:
        message.given.text = target
    return message


def _validate(index: int, message: service_pb.AttributeRequest, loaded: ModelInfo, request_id: str) -> Request:
    """Makes the engine's request of a text. Raises RequestError with the name of the tensor."""
    try:
        return validate_request(message, loaded, request_id)
    except RequestError as error:
        raise rename_field(error, index) from None


def _max_steps(request: Request) -> int:
    return len(request.target.text.tokens) if isinstance(request.target, GivenTarget) else request.target.max_new_tokens


def _max_positions(request: Request, *, has_encoder: bool) -> int:
    """Returns the most positions of a row of decoder self-attention."""
    source = 0 if has_encoder else request.source_length
    return source + len(request.decoder_prompt_ids) + _max_steps(request)
