"""How many tokens a second a server writes, what its steps cost, and `generate` beside it.

Servers run in processes of their own and are asked over gRPC by `load_client`. Steps alone, without gRPC and queues,
are timed and profiled in this process. Figures are medians.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import load_client
import models
import torch
from report import PartReport, seconds
from sidelight.v1 import attention_pb2
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSeq2SeqLM
from workloads import Workload

MODELS = ("opus", "nllb")
# The mean of a few weighted heads, as a calibration chooses them.
CALIBRATED = attention_pb2.Capture(
    kinds=[attention_pb2.ATTENTION_KIND_CROSS],
    heads=attention_pb2.HeadSelection(
        list=attention_pb2.HeadList(
            heads=[
                attention_pb2.Head(layer=layer, head=head, weight=1 + head / 8)
                for layer, head in ((0, 1), (1, 3), (1, 6))
            ]
        )
    ),
    over_heads=attention_pb2.REDUCTION_MEAN,
)
CAPTURES = {"off": load_client.NOTHING, "heads": load_client.EVERY_HEAD, "mean": CALIBRATED}
MAX_LENGTH = 128  # of sources and targets: what --compile makes its one graph for
PROFILED = 64  # slots
STEPS = 8
MANY = 256  # streams: fewer rounds, as each is long


class Engine:
    """The part: its figures, by model, mode and number of streams."""

    def __init__(self) -> None:
        self.report = PartReport("engine")
        dry = self.report.is_dry
        self.streams = (1, 2) if dry else (1, 8, 64, 256)
        self.rounds = 1 if dry else 3
        self.dtype = "bfloat16"
        self.options = ["--device", self.report.device, "--dtype", self.dtype, "--max-length", str(MAX_LENGTH)]
        self.options += ["--max-slots", str(max(self.streams))]
        self.rows: dict[tuple[str, int], dict[str, float]] = {
            (name, count): {} for name in MODELS for count in self.streams
        }
        self.report.begin_table("model, streams", *_COLUMNS)

    def run(self) -> None:
        """Measures everything, the most important figures first."""
        report = self.report
        for name in MODELS:
            models.wait_for(name, report.scratch, is_dry=report.is_dry)
        with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
            eager = {name: pool.submit(self._start, stack, "eager", name) for name in MODELS}
            for name in MODELS:
                self._guard(name, "eager", self._ask, "eager", name, eager[name])
            for name in MODELS:
                self._guard(name, "steps", self._steps, name)
            # Compiling keeps several cores busy: not while anything above is measured.
            compiled = {
                name: pool.submit(self._start, stack, "compile", name) for name in MODELS[: 1 if report.is_dry else 2]
            }
            for name in MODELS:
                self._guard(name, "generate", self._generate, name)
            for name, server in compiled.items():
                self._guard(name, "compile", self._ask, "compile", name, server)

    def _guard(self, name: str, what: str, work: Callable[..., None], *arguments: Any) -> None:
        """Does a part of the work. What goes wrong is reported, and keeps nothing else from being measured."""
        try:
            work(*arguments)
        except Exception as error:
            self.report.fail_with(f"{name}, {what}", error)

    def _workload(self, name: str, count: int) -> Workload:
        return models.workload(name, self.report.scratch, count)

    # ---- servers ----------------------------------------------------------------------------------------------------

    def _start(self, stack: contextlib.ExitStack, mode: str, name: str) -> tuple[str, float]:
        """Starts a server. Returns its address, and the seconds until it served."""
        began = time.perf_counter()
        options = [*self.options, *(["--compile"] if mode == "compile" else [])]
        server = load_client.serve(models.folder_of(self.report.scratch, name), name, options)
        address = stack.enter_context(server)
        return address, time.perf_counter() - began

    def _ask(self, mode: str, name: str, server: Future[tuple[str, float]]) -> None:
        address, started = server.result()
        self.report.add(f"{name}, {mode}: seconds to start", started)
        print(f"{name}, {mode}: started after {started:.0f} s", flush=True)
        for count in self.streams:
            workload = self._workload(name, count)
            for what in ("heads", "off", "mean") if mode == "eager" else ("heads", "off"):
                taken: list[float] = []
                for _ in range(self.rounds if count < MANY else min(2, self.rounds)):
                    all_seconds, _ = load_client.run(
                        address, workload, count, capture=CAPTURES[what], axes=self._axes(name, what)
                    )
                    taken.append(all_seconds)
                self._keep(name, count, f"{mode} {what}", count * models.TOKENS / statistics.median(taken))

    def _axes(self, name: str, what: str) -> tuple[int, ...]:
        if what != "heads":
            return ()
        if self.report.is_dry:
            return (2, 8 if name == "opus" else 16)
        return (6, 8) if name == "opus" else (12, 16)

    # ---- steps alone ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _steps(self, name: str) -> None:
        from sidelight.server.models.loader import load

        report = self.report
        folder = models.folder_of(report.scratch, name)
        loaded = load(folder, device=report.device, dtype=self.dtype, max_length=MAX_LENGTH, packed=False)
        if loaded.backend is None:
            report.fail(f"{name} is not run in slots in {self.dtype}")
            return
        for count in self.streams:
            for what in ("off", "heads"):
                runner, sequences = self._running(loaded, name, count, what)
                step = seconds(partial(runner.decode, sequences), report.device, times=STEPS)
                self._keep(name, count, f"step {what}", step * 1e3)
        count = min(PROFILED, max(self.streams))
        for what in ("heads", "off"):
            runner, sequences = self._running(loaded, name, count, what)
            profiled = _profile(partial(runner.decode, sequences), report.device, STEPS)
            report.add(f"{name}, {count} slots, {what}: a step", profiled)
            shown = ", ".join(f"{key} {value:,.2f}" for key, value in profiled.items() if not key.startswith("µs of"))
            if what == "heads":
                report.add_note(f"A step of {name}, {count} slots, all cross-attention: {shown}")

    def _running(self, loaded: Any, name: str, count: int, what: str) -> tuple[Any, list[Any]]:
        """A runner whose sequences have taken a few steps."""
        from sidelight.server.api.validation import validate_request
        from sidelight.server.runner.model_runner import ModelRunner

        workload = self._workload(name, count)
        requests = [load_client.request_of(source, models.TOKENS, CAPTURES[what]) for source in workload.sources]
        runner = ModelRunner(loaded, loaded.backend, count)
        sequences: list[Any] = runner.add(
            [validate_request(request, loaded, str(at)) for at, request in enumerate(requests)]
        )
        for _ in range(3):
            runner.decode(sequences)
        return runner, sequences

    # ---- generate ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _generate(self, name: str) -> None:
        report = self.report
        for what, implementation in (("generate", "sdpa"), ("generate attentions", "eager")):
            model: Any = AutoModelForSeq2SeqLM.from_pretrained(
                models.folder_of(report.scratch, name),
                dtype=getattr(torch, self.dtype),
                attn_implementation=implementation,
            )
            model = model.to(report.device).eval()
            for count in self.streams:
                sources = torch.tensor(self._workload(name, count).sources, device=report.device)
                options = {"max_new_tokens": models.TOKENS, "min_new_tokens": models.TOKENS, "do_sample": False}
                options |= {"num_beams": 1, "attention_mask": torch.ones_like(sources)}
                if what != "generate":
                    options |= {"output_attentions": True, "return_dict_in_generate": True}
                if count == self.streams[0]:
                    model.generate(sources, **options)  # whatever happens only once
                times = self.rounds if what == "generate" else 1
                taken = seconds(lambda: model.generate(sources, **options), report.device, times=times)  # noqa: B023
                self._keep(name, count, what, count * models.TOKENS / taken)

    # ---- what is found ----------------------------------------------------------------------------------------------

    def _keep(self, name: str, count: int, figure: str, value: float) -> None:
        self.rows[name, count][figure] = value
        self.report.add(
            "figures", [{"model": name, "streams": count, **found} for (name, count), found in self.rows.items()]
        )
        shown = [
            [
                f"{name}, {count}",
                *(
                    f"{found[key]:,.0f}" if key in found and "step" not in key else _milliseconds(found.get(key))
                    for key in _KEYS
                ),
            ]
            for (name, count), found in self.rows.items()
        ]
        self.report.set_rows(shown)


_COLUMNS = (
    "heads",
    "mean",
    "off",
    "compiled heads",
    "compiled off",
    "generate",
    "… attentions",
    "step ms heads",
    "off",
)
_KEYS = (
    *("eager heads", "eager mean", "eager off", "compile heads", "compile off"),
    *("generate", "generate attentions", "step heads", "step off"),
)


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _profile(step: Any, device: str, steps: int) -> dict[str, float]:
    """What a step is made of, on average: counts, microseconds, and the share of time in which the GPU works."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
    on_gpu: list[tuple[float, float, str]] = []
    calls: dict[str, int] = {}
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            on_gpu.append((event.time_range.start, event.time_range.end, event.name))
        else:
            calls[event.name] = calls.get(event.name, 0) + 1
    copies = sum(name.startswith(("Memcpy", "Memset")) for *_, name in on_gpu)
    per_step = 1 / steps
    found = {
        "kernels": (len(on_gpu) - copies) * per_step,
        "copies": copies * per_step,
        "launches": sum(count for name, count in calls.items() if "LaunchKernel" in name) * per_step,
        "synchronisations": sum(count for name, count in calls.items() if name.endswith(WAITS)) * per_step,
        "operations": sum(count for name, count in calls.items() if name.startswith("aten::")) * per_step,
    }
    if on_gpu:
        whole = max(end for _, end, _ in on_gpu) - min(start for start, *_ in on_gpu)
        busy = sum(end - start for start, end in _merged_spans([(start, end) for start, end, _ in on_gpu]))
        found |= {"microseconds": whole * per_step, "gaps": (whole - busy) * per_step, "busy": busy / whole}
        of_names: dict[str, float] = {}
        for start, end, name in on_gpu:
            of_names[name[:80]] = of_names.get(name[:80], 0.0) + (end - start) * per_step
        for name, taken in sorted(of_names.items(), key=lambda each: -each[1])[:12]:
            found[f"µs of {name}"] = taken
    return found


# Calls by which a process waits for a stream; the profiler itself waits for the whole device.
WAITS = ("StreamSynchronize", "EventSynchronize")


def _merged_spans(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Spans in order, those that overlap as one."""
    begin: float | None = None
    end = 0.0
    for start, stop in sorted(spans):
        if begin is None or start > end:
            if begin is not None:
                yield begin, end
            begin, end = start, stop
        end = max(end, stop)
    if begin is not None:
        yield begin, end


def main() -> int:
    engine = Engine()
    if engine.report.is_dry:
        # --compile is asked for all the same; to compile takes a CPU a minute.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
    engine.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
