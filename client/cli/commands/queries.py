"""Commands that ask a server one thing: `sidelight models`, `health` and `cancel`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator

from ...client import Client
from ...models import Calibration, Model
from ...views import make_console, print_message, print_text
from ..connection_options import build_connection


def cancel(args: argparse.Namespace) -> int:
    """Cancels a running request. Returns the exit status. Raises SidelightError."""
    with Client(args.address, **build_connection(args)) as client:
        count = client.cancel_attribution(args.request_id, timeout=30)
    print_message(f"cancelled {count} request{'s' if count > 1 else ''}")
    return 0


def check_health(args: argparse.Namespace) -> int:
    """Prints whether a server serves. Returns the exit status. Raises SidelightError."""
    with Client(args.address, **build_connection(args)) as client:
        is_serving = client.check_health(args.service, timeout=args.timeout)
    print("SERVING" if is_serving else "NOT_SERVING")
    return 0 if is_serving else 1


def list_models(args: argparse.Namespace) -> int:
    """Prints what a server has loaded. Returns the exit status. Raises SidelightError."""
    console = make_console(force_terminal=sys.stdout.isatty())
    with Client(args.address, **build_connection(args)) as client:
        for model in client.list_models(timeout=30):
            kinds = ", ".join(f"{kind} {size.layers}x{size.heads}" for kind, size in model.attentions.items())
            print_text(console, f"{model.name}  {model.family}, {model.dtype} on {model.device}; {kinds}")
            for line in _describe_model(model):
                print_text(console, f"  {line}")
    return 0


def _describe_model(model: Model) -> Iterator[str]:
    """Yields what a user of `sidelight attribute` may ask of a model, line by line."""
    yield f"at most {model.max_source_tokens} tokens in, {model.max_target_tokens} tokens out"
    if model.methods:
        yield f"methods: {', '.join(model.methods)}"
    if model.presets:
        yield f"presets of heads: {', '.join(model.presets)}"
    if model.calibration is not None:
        yield _describe_calibration(model.calibration)
    if model.languages:
        yield f"languages: {', '.join(model.languages)}"
    if model.word_boundaries:
        yield f"word boundaries: {model.word_boundaries}"
    if model.limits is not None:
        limits = dataclasses.asdict(model.limits)
        yield "limits: " + ", ".join(f"{name.removeprefix('max_')} {limit}" for name, limit in limits.items())


def _describe_calibration(calibration: Calibration) -> str:
    heads = ", ".join(f"{layer}.{head}:{weight:g}" for layer, head, weight in calibration.heads)
    lexicon = f", a lexicon of {calibration.lexicon_entries} pairs" if calibration.has_lexicon else ""
    states = ", encoder states" if calibration.has_encoder_states else ""
    figures = f"error rate {calibration.alignment_error_rate:.3f} on {calibration.pairs} pairs"
    return (
        f"alignment: heads {heads}, row {calibration.row}{lexicon}{states}; {figures} against {calibration.reference}"
    )
