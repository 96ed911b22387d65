"""Checks of served models: the rows of a server on the device, compared with transformers' matrices on a CPU."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from report import PartReport

# The greatest distance of a served model's rows from transformers' rows on a CPU, in float32: each layer rounds.
SERVED_TOLERANCE = 5e-5
FAMILIES = ("marian", "t5", "llama")


class Served(NamedTuple):
    """The result of the check of a served model."""

    error: float  # the greatest difference from the model's own matrices
    numbers: int
    is_deterministic: bool

    @property
    def is_right(self) -> bool:
        return self.error <= SERVED_TOLERANCE and self.is_deterministic


def check_served(report: PartReport, name: str) -> Served:
    """Serves a random model of a family on the device, and compares its rows with transformers' on a CPU."""
    import peers
    from harness import serving
    from model_zoo import FAMILIES as ZOO
    from model_zoo import SOURCE, TARGET, build_model
    from sidelight.client import Capture, Client, Decoding, Greedy
    from sidelight.server.models.loader import load

    path = build_model(name, report.scratch / "zoo")
    loaded = load(path, device=report.device, dtype="float32", packed=False)
    kinds: Any = loaded.kinds
    error, is_deterministic, numbers = 0.0, True, 0
    with ExitStack() as stack:
        # Common captures are not warmed up: a request compiles the few kernels that it needs.
        stack.enter_context(patch("sidelight.server.frontends.engine_group.warm", lambda _: None))
        if report.is_dry:
            stack.enter_context(_choosing_triton())
        client = stack.enter_context(Client(stack.enter_context(serving(loaded))))
        targets = (None, TARGET if ZOO[name].is_encoder_decoder else f" {TARGET}")
        for target in targets[:1] if report.is_dry else targets:
            options: dict[str, Any] = {"capture": Capture(kinds=kinds), "timeout": 120}
            if target is None:
                options["decoding"] = Decoding(Greedy(), max_new_tokens=4 if report.is_dry else 12)
            else:
                options["target"] = target
            answers = [client.attribute(SOURCE, **options).result() for _ in range(1 if report.is_dry else 2)]
            ours, again = answers[0], answers[-1]
            context = [token.id for token in ours.context]
            ids = [token.id for token in ours.steps]
            source = [token.id for token in ours.source] if loaded.is_encoder_decoder else []
            matrices = peers.eager_attention(path, source, [*context, *ids])
            first = len(context) - 1
            for kind in kinds:
                queries = slice(None) if kind == "encoder_self" else slice(first, first + len(ids))
                expected = getattr(matrices, kind)[:, :, queries].transpose(2, 3, 0, 1)
                got = getattr(ours, kind)
                same = np.array_equal(got, getattr(again, kind), equal_nan=True)
                is_deterministic = is_deterministic and same
                if kind != "encoder_self":
                    got = np.nan_to_num(got.swapaxes(0, 1))
                    expected = expected[:, : got.shape[1]]
                error = max(error, float(np.abs(got - expected).max()))
                numbers += got.size
    served = Served(error, numbers, is_deterministic)
    if not served.is_right:
        bits = "" if is_deterministic else ", other bits the second time"
        report.fail(f"{name}, served: rows are {error:.1e} from transformers', {SERVED_TOLERANCE:.0e} allowed{bits}")
    return served


def _choosing_triton() -> Any:
    """Makes a server on a CPU run the Triton kernels in the interpreter, as a server on a GPU runs them."""
    import interpreter_fixes

    stack = ExitStack()
    for module in (
        "sidelight.server.capture.attention_function",
        "sidelight.kernels.attention_rows.op",
        "sidelight.kernels.decode_attention.op",
    ):
        stack.enter_context(patch.object(sys.modules[module], "select_impl", lambda *_: "triton"))
    stack.enter_context(interpreter_fixes.fixed_interpreter())
    return stack
