"""Attributions from Inseq, and for Inseq: objects of Inseq, and its files.

`inseq` has the format. A file is read without Inseq. What the format has no place for gets a neutral value. The spans
of tokens are found again in the texts, and the usage has the total time only.
"""

# Inseq is optional and has no types; NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportMissingImports=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from ..offset_units import Token
from ..parameters import AttentionKind, Method, Score
from ..results import AttentionLayout, Attribution, FloatArray, Started, StopReason, Usage
from .inseq import SCORE_NAMES, to_inseq_json
from .tensors import decode_tensor

if TYPE_CHECKING:
    from inseq import FeatureAttributionOutput

_GZIP = b"\x1f\x8b"

# How tokenizers write a space at the beginning of a piece: SentencePiece, and byte-level BPE.
_SPACES = ("▁", "Ġ")

_METHODS: dict[str, Method] = {"attention": "weights", **{name: name for name in get_args(Method)}}


def to_inseq(attributions: Attribution | Sequence[Attribution]) -> FeatureAttributionOutput:
    """Returns Inseq's object of one or several attributions.

    Raises:
        ValueError: An attribution has neither cross-attention nor decoder self-attention, or is of a recording.
        ImportError: Inseq is not installed.
    """
    import inseq

    sequence = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    if any(attribution.started.source_position_count for attribution in sequence):
        raise ValueError("Inseq has no place for a source that is a recording")
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(to_inseq_json(sequence))
        file.flush()
        return inseq.FeatureAttributionOutput.load(Path(file.name))


def from_inseq(output: str | Path | FeatureAttributionOutput) -> list[Attribution]:
    """Returns the attributions of an object of Inseq, or of a file that Inseq or `save` has written.

    Raises:
        ValueError: The file is not of Inseq's format, or the numbers are not attention.
        OSError: The file cannot be read.
    """
    root = _members(_read(Path(output)) if isinstance(output, str | Path) else output)
    info, sequences = root.get("info"), root.get("sequence_attributions")
    if not isinstance(info, dict) or not isinstance(sequences, list):
        raise ValueError("this is no FeatureAttributionOutput of Inseq")
    info = cast("dict[str, Any]", info)
    if (method := info.get("attribution_method")) not in _METHODS:
        raise ValueError(f"the method {method} does not measure attention; {', '.join(_METHODS)} do")
    return [_build_attribution(info, _members(sequence), number) for number, sequence in enumerate(sequences)]


def _read(path: Path) -> Any:
    data = path.read_bytes()
    try:
        return json.loads(gzip.decompress(data) if data.startswith(_GZIP) else data)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path.name} is no file of Inseq") from error


def _members(value: Any) -> dict[str, Any]:
    """Returns the members of an object of Inseq, or of the JSON that stands for one."""
    if isinstance(value, dict):
        return value.get("attributes", value)
    return vars(value) if hasattr(value, "__dict__") else {}


def _build_attribution(info: Mapping[str, Any], sequence: Mapping[str, Any], number: int) -> Attribution:
    pieces = {name: [_read_token(token) for token in sequence[name]] for name in ("source", "target")}
    begin = int(sequence["attr_pos_start"])
    end = int(sequence["attr_pos_end"] or len(pieces["target"]))
    arrays: dict[AttentionKind, FloatArray | None] = {
        "cross": _read_tensor(sequence["source_attributions"]),
        "decoder_self": _read_tensor(sequence["target_attributions"]),
    }
    encoder = _read_tensor((sequence.get("sequence_scores") or {}).get("encoder_self_attentions"))
    # Inseq has the positions before the queries.
    arrays["encoder_self"] = None if encoder is None else encoder.swapaxes(0, 1)
    source_text, text = _find_text(info, "input_texts", number), _find_text(info, "generated_texts", number)
    is_decoder_only = arrays["cross"] is None and pieces["target"][: len(pieces["source"])] == pieces["source"]
    prompt = len(pieces["source"]) if is_decoder_only else 0
    text = text[len(source_text) :] if is_decoder_only and text.startswith(source_text) else text
    target = _place(pieces["target"][prompt:], text)
    started = Started(
        request_id="",
        model=str(info.get("model_name") or ""),
        source_text=source_text,
        source=_place(pieces["source"], source_text),
        prefix=target[: begin - prompt],
        layouts={kind: _build_layout(kind, array) for kind, array in arrays.items() if array is not None},
        scores=tuple(_score_name(name) for name in sequence.get("step_scores") or {}),
        row="predicting",
        is_encoder_decoder=not is_decoder_only,
        method=_METHODS[info["attribution_method"]],
        special_tokens=(info.get("attribution_args") or {}).get("special_tokens", "keep"),
        is_difference=bool((info.get("attribution_args") or {}).get("subtract_attention")),
    )
    scores: dict[Score, FloatArray] = {}
    for name, values in (sequence.get("step_scores") or {}).items():
        if (numbers := _read_tensor(values)) is not None:
            scores[_score_name(name)] = numbers
    stop_reason: StopReason = "given" if info.get("constrained_decoding") else "end_token"
    steps = target[begin - prompt : end - prompt]
    usage = Usage(len(started.source), len(steps), 0, 0.0, 0.0, float(info.get("exec_time") or 0.0), None)
    return Attribution(
        started=started,
        steps=steps,
        text=text,
        stop_reason=stop_reason,
        usage=usage,
        scores=scores,
        **arrays,
    )


def _score_name(name: str) -> Score:
    names = {inseqs: ours for ours, inseqs in SCORE_NAMES.items()}
    return cast("Score", names.get(name, name))


def _find_text(info: Mapping[str, Any], name: str, number: int) -> str:
    texts = info.get(name) or []
    return str(texts[number]) if number < len(texts) else ""


def _read_token(token: Any) -> tuple[str, int]:
    """Returns the piece and the id of a token; Inseq gives what it has aggregated the id -1."""
    members = _members(token)
    return (str(members["token"]), int(members.get("id", -1))) if members else (str(token), -1)


def _read_tensor(value: Any) -> FloatArray | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return value.detach().cpu().numpy()
    return decode_tensor(base64.b64decode(value))


def _build_layout(kind: AttentionKind, array: FloatArray) -> AttentionLayout:
    """Returns the axes of an array `[positions, steps, layers, heads]`, or of one without the last or the last two."""
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"{kind} has {array.ndim} axes; attention has positions, steps, layers and heads")
    layers, heads = (*array.shape[2:], 0, 0)[:2]
    axes = ("layer", "head")[: array.ndim - 2]
    return AttentionLayout(kind, axes, tuple(range(layers)), heads, ())


def _place(pieces: Sequence[tuple[str, int]], text: str) -> tuple[Token, ...]:
    """Returns tokens with their places in a text. A piece that does not follow in the text covers nothing."""
    tokens: list[Token] = []
    at = 0
    is_sure = True  # whether no token before has an unknown part of the text
    for piece, id_ in pieces:
        plain = piece
        for space in _SPACES:
            plain = plain.replace(space, " ")
        plain = plain.strip()
        begin = text.find(plain, at) if plain else -1
        # Between two pieces of a text is white space, unless an unknown token stands for something else.
        if begin < 0 or (is_sure and text[at:begin].strip()):
            is_special = piece.startswith(("<", "[")) and piece.endswith((">", "]"))
            tokens.append(Token(id_, piece, at, at, is_special, ""))
            is_sure = is_sure and not plain
            continue
        at, is_sure = begin + len(plain), True
        tokens.append(Token(id_, piece, begin, at, False, plain))
    return tuple(tokens)
