"""The memory and the time that a prompt of 16,384 tokens takes a Llama, with and without the attention of later tokens.

A server in this process, so that torch can say how much memory of the GPU a request took; a client over gRPC.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import models
import numpy as np
import torch
from harness import serving
from report import PartReport, synchronize
from sidelight.client import Capture, Client, Decoding, Greedy
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.models.loader import load

CAPTURES = {
    "capture off": Capture(none=True),
    "all heads of 8 steps": Capture(kinds=("decoder_self",), steps=(8, 16)),
    "mean of all heads, every step": Capture(kinds=("decoder_self",), over_heads="mean", over_layers="mean"),
}


def main() -> int:
    report = PartReport("long_prompt")
    prompt_tokens, new_tokens = (96, 20) if report.is_dry else (16_384, 64)
    models.wait_for("llama", report.scratch, is_dry=report.is_dry)
    folder = models.folder_of(report.scratch, "llama")
    vocabulary = models.words(folder)
    draw = random.Random(0)
    prompt, target = ("".join(draw.choices(vocabulary, k=count)) for count in (prompt_tokens, new_tokens))
    dtype = "float32" if report.is_dry else "bfloat16"
    loaded = load(folder, device=report.device, dtype=dtype, max_length=prompt_tokens + new_tokens + 8, packed=False)
    config: Any = loaded.model.config
    whole = config.num_hidden_layers * config.num_attention_heads * prompt_tokens**2 * loaded.model.dtype.itemsize
    size = f"{whole / 1e9:,.0f} GB" if whole > 1e9 else f"{whole / 1e6:.1f} MB"
    title = f"behind {prompt_tokens:,} tokens, whose attention matrices alone are {size}"
    report.begin_table(title, "extra memory", "seconds to the first step", "seconds")
    with serving(loaded, limits=EngineConfig(max_running=2)) as address, Client(address) as client:

        def ask(text: str, **options: Any) -> tuple[float, float, int]:
            """Seconds to the first step and to the end, and the bytes of memory that the request needed."""
            synchronize(report.device)
            before = _memory(report.device, reset=True)
            began = time.perf_counter()
            first = 0.0
            shares: list[float] = []
            for step in client.attribute(text, timeout=120, **options):
                first = first or time.perf_counter() - began
                if step.decoder_self is not None:
                    shares.append(float(np.nansum(step.decoder_self, axis=0).mean()))
            seconds = time.perf_counter() - began
            if shares and abs(np.mean(shares) - 1) > 1e-2:
                report.fail(f"rows behind a prompt of {len(text)} characters sum to {np.mean(shares):.4f}, not to 1")
            return first, seconds, _memory(report.device) - before

        for name, capture in CAPTURES.items():
            decoding = Decoding(Greedy(), max_new_tokens=new_tokens, min_new_tokens=new_tokens)
            ask(prompt, capture=capture, decoding=decoding)  # compiles what prompts of this length need
            _report(report, f"{name}, {new_tokens} tokens written", *ask(prompt, capture=capture, decoding=decoding))
        capture = Capture(kinds=("decoder_self",), over_heads="mean")
        ask(prompt, capture=capture, target=target)
        _report(report, f"mean of each layer, {new_tokens} tokens given", *ask(prompt, capture=capture, target=target))
    return 0


def _memory(device: str, *, reset: bool = False) -> int:
    if device != "cuda":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return torch.cuda.max_memory_allocated()


def _report(report: PartReport, name: str, first: float, seconds: float, memory: int) -> None:
    report.add(name, {"first": first, "seconds": seconds, "bytes": memory})
    report.add_row(name, f"{memory / 1e6:,.0f} MB", f"{first:.2f}", f"{seconds:.2f}")


if __name__ == "__main__":
    sys.exit(main())
