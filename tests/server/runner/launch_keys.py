"""Prints whether what requests launch is among what is warmed, by the keys that Triton's JIT looks kernels up by.

For the bundled model, and for those whose folders are given.

A script, run in a process of its own: where TRITON_INTERPRET is set there are no keys. Nothing is compiled.
"""

from __future__ import annotations

import json
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from sidelight.kernels import Launch, record_launches
from sidelight.kernels.tools.cross_compile import compiling_for
from sidelight.server.capture import AttentionArrays
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.request import GivenTarget, Request
from sidelight.server.runner import warmup
from sidelight.server.runner.single_sequence import LAST_QUERY, SingleSequenceModel
from sidelight.server.runner.targets.target_pass import TargetPass


def key(launch: Launch) -> str:
    """As JITFunction.run makes it, the kernel's name before it."""
    *_, binder = launch.kernel.device_caches["cuda:90"]
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "debug": False}
    _, specialization, _ = binder(**launch.arguments, **options)
    return f"{launch.kernel.__name__} {launch.num_warps} {launch.num_stages} {specialization}"


@torch.inference_mode()
def requests(loaded: LoadedModel) -> list[Launch]:
    """The launches of requests of other lengths than those that are warmed."""
    # Where launches are only recorded, memory holds anything, and NaN too.
    unchecked = partialmethod(SingleSequenceModel.encode, check=False)
    with (
        record_launches() as found,
        patch.object(AttentionArrays, "is_finite", lambda _: True),
        patch.object(SingleSequenceModel, "encode", unchecked),
    ):
        for plan in warmup.common_captures(loaded):
            for source, target, steps in ((3, 5, 40), (32, 48, 20), (25, 32, 1)):
                ids: list[Any] = [7] * source
                context = [5] if loaded.is_encoder_decoder else []
                given = GivenTarget(loaded.tokenizer.detokenize([6] * target))
                request = Request("", loaded.tokenizer.detokenize(ids), tuple(context), given, plan)
                passes = TargetPass(loaded, request)
                list(passes.encode() or ())
                list(passes.decode())
                model = SingleSequenceModel(loaded, plan, ids, context)
                list(model.encode() or ())
                model.forward(model.tensor(model.prompt), LAST_QUERY, 1)
                for _ in range(steps):
                    model.forward(model.tensor([6]), LAST_QUERY, 1)
    return found


if __name__ == "__main__":
    found = []
    for loaded in [load(), *(load(Path(path)) for path in sys.argv[1:])]:
        with compiling_for("sm_90"):
            warmed = {key(launch) for launch in warmup.launches(loaded)}
            asked = {key(launch) for launch in requests(loaded)}
        found.append({"warmed": len(warmed), "asked": len(asked), "missing": sorted(asked - warmed)})
    print(json.dumps(found))
