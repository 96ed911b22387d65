"""Whether the Triton kernels, and a server that runs them, give what float64 and the models' own matrices say.

Each check is a call of a public function of `sidelight.kernels`, or a request to a server, on the device. On a GPU the
checks are shared by processes, since most of a check's time is the compiler's.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import attention_truth as truth
import numpy as np
import torch
from report import PartReport
from sidelight.kernels import (
    AttentionParams,
    AttentionTensors,
    Encoding,
    LayerSpec,
    decode,
    layout_into,
    new_attention_tensors,
    rows,
)
from sidelight.kernels.tools import cases

# How far a row may be from float64, for each unit of its greatest number and each layer that is folded. The kernels
# count in float32; the truth is computed from the inputs as they are rounded.
TOLERANCE = 2e-6
# An attention output is rounded to its type, and so are the probabilities that it is made of.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# A served model's rows beside transformers' on a CPU, in float32: every layer adds its own rounding.
SERVED_TOLERANCE = 5e-5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ENCODINGS: tuple[tuple[Encoding, int], ...] = (
    ("float32", 0),
    ("float16", 0),
    ("uint8", 0),
    ("float32", 8),
    ("uint8", 40),
)
FAMILIES = ("marian", "t5", "llama")

Kernel = Literal["backend", "rows", "decode"]


class Check(NamedTuple):
    """One call of a kernel."""

    kernel: Kernel
    case: Any  # a case of `kernels.tools.cases`
    batch: int
    queries: int
    keys: int
    params: tuple[tuple[str, Any], ...] = ()  # of `AttentionParams`: numbers, or the shape of a bias or a mask
    seed: int = 0

    @property
    def name(self) -> str:
        case = self.case
        what = f"{self.kernel}, {case.name}, {str(case.dtype).removeprefix('torch.')} to {case.encoding}"
        top = f", top {case.top_k}" if case.top_k else ""
        return f"{what}{top}, {self.batch} × {self.queries} × {self.keys}{self.params or ''}"


class Found(NamedTuple):
    """What a check found."""

    kernel: str
    name: str
    error: float  # the greatest difference, beyond what the encoding rounds
    allowed: float
    is_deterministic: bool
    problem: str = ""

    @property
    def is_right(self) -> bool:
        return not self.problem and self.error <= self.allowed and self.is_deterministic


def checks(*, is_dry: bool) -> Iterator[Check]:
    """Every case of the audit as it is, with each type, and with each encoding; then odd shapes."""
    sizes = {"backend": (1, 5, 33), "rows": (1, 33, 65), "decode": (2, 1, 65)} if is_dry else {
        "backend": (1, 64, 512), "rows": (2, 200, 300), "decode": (8, 1, 700)
    }  # fmt: skip
    of_kernels = {"backend": cases.LAYOUTS, "rows": cases.ROWS, "decode": [*cases.DECODES, cases.LONG]}
    for number, (kernel, of_kernel) in enumerate(of_kernels.items()):
        batch, queries, keys = sizes[kernel]
        for place, case in enumerate(of_kernel):
            made = [case]
            made += [case._replace(dtype=dtype) for dtype in DTYPES]
            made += [case._replace(encoding=encoding, top_k=top_k) for encoding, top_k in ENCODINGS]
            unique = list(dict.fromkeys(made))
            if is_dry:  # one of each kind: a GPU does them all
                unique = [unique[(place + number) % len(unique)]]
            for each in unique:
                if kernel == "rows" and each.causal:
                    yield Check(kernel, each, batch, queries, queries)
                else:
                    yield Check(kernel, each, batch, queries, keys)
    yield from odd_checks(3 if is_dry else 36)


def odd_checks(count: int) -> Iterator[Check]:
    """Yields odd shapes, with random masks, biases and soft caps; the same at every run."""
    draw = random.Random(0)
    for number in range(count):
        kernel: Kernel = draw.choice(["rows", "decode"])
        heads, key_heads = draw.choice([(1, 1), (4, 2), (6, 3), (8, 8), (5, 1)])
        keys = draw.choice([1, 3, 16, 31, 64, 129, 255])
        queries = 1 if kernel == "decode" else draw.choice([1, 2, 17, 33, 65])
        batch = draw.choice([1, 2, 3])
        encoding, top_k = draw.choice(ENCODINGS)
        case = cases.AttentionCase(
            "odd",
            draw.choice(DTYPES),
            heads,
            key_heads,
            draw.choice([8, 20, 40, 64, 72, 128]),
            draw.choice([None, "mean", "sum", "prod", "max", "min", "absmax", "l2"]),
            encoding,
            min(top_k, keys),
        )
        params: dict[str, Any] = {}
        if draw.random() < 0.6:
            params |= {"causal": True, "first_position": draw.randrange(keys + 1)}
        if draw.random() < 0.4:
            params["softcap"] = draw.choice([0.5, 50.0])
        for name in ("bias", "mask"):
            if draw.random() < 0.4:
                params[name] = (draw.choice([1, batch]), draw.choice([1, heads]), draw.choice([1, queries]), keys)
        yield Check(kernel, case, batch, queries, keys, tuple(params.items()), number)


# ---- one check ------------------------------------------------------------------------------------------------------


def run_check(check: Check, device: str) -> Found:
    """Calls a kernel twice and compares with float64."""
    global _device_error
    if _device_error:
        return Found(check.kernel, check.name, 0.0, 0.0, True, f"not run: the device failed in {_device_error}")
    try:
        torch.manual_seed(check.seed)
        with ExitStack() as stack:
            if device == "cpu":
                import interpreter_fixes

                stack.enter_context(interpreter_fixes.fixed_interpreter())
                stack.enter_context(np.errstate(all="ignore"))
            error, allowed, same = (_check_layout if check.kernel == "backend" else _check_attention)(check, device)
        return Found(check.kernel, check.name, error, allowed, same)
    except Exception as fault:
        traceback.print_exc()
        if "CUDA error" in str(fault):
            _device_error = check.name
        return Found(check.kernel, check.name, float("inf"), 0.0, False, f"{type(fault).__name__}: {fault}"[:200])


# The check that has made the device fail in this process: no later one can run here.
_device_error = ""


def _check_layout(check: Check, device: str) -> tuple[float, float, bool]:
    case = check.case
    shape = (check.batch, case.heads, check.queries, check.keys)
    layers = [torch.rand(shape, device=device).to(case.dtype) for _ in range(case.layers)]
    columns = 1 if case.over_layers else case.layers if case.over_heads else case.layers * case.heads
    results = [_new_result(check, columns, device) for _ in range(2)]
    for result in results:
        layout_into(layers, result, over_heads=case.over_heads, over_layers=case.over_layers, impl="triton")
    expected = truth.columns(
        [_numpy(layer) for layer in layers], over_heads=case.over_heads, over_layers=case.over_layers
    )
    size = max(1.0, float(np.abs(expected).max()))
    return excess(results[0], expected), TOLERANCE * size * (case.layers if case.over_layers else 1), _same(*results)


def _check_attention(check: Check, device: str) -> tuple[float, float, bool]:
    case = check.case
    inputs = cases.make_inputs(case, device, check.batch, check.queries, check.keys)
    params = _params(inputs.params, dict(check.params), check, device)
    spec = LayerSpec(over_heads=case.over_heads)
    columns = 1 if case.over_heads else case.heads
    results = [_new_result(check, columns, device) for _ in range(2)]
    outputs: list[torch.Tensor] = []
    for result in results:
        if check.kernel == "rows":
            rows(inputs.query, inputs.key, params, result, spec, impl="triton")
        else:
            outputs.append(decode(inputs.query, inputs.key, inputs.value, params, result, spec, impl="triton"))
    options = {
        name: _numpy(value) if isinstance(value, torch.Tensor) else value for name, value in params._asdict().items()
    }
    options.pop("no_empty_rows")
    probabilities = truth.softmax(truth.scores(_numpy(inputs.query), _numpy(inputs.key), **options))
    expected = truth.columns([probabilities], over_heads=case.over_heads)
    error, allowed = excess(results[0], expected), TOLERANCE * max(1.0, float(np.abs(expected).max()))
    same = _same(*results)
    if outputs:
        value = _numpy(inputs.value)
        apart = float(np.abs(_numpy(outputs[0]) - truth.output(probabilities, value)).max())
        # One figure for both: the output's is scaled to the rows' tolerance.
        error = max(error, apart / (ROUNDING[case.dtype] * max(1.0, float(np.abs(value).max()))) * allowed)
        same = same and torch.equal(*outputs)
    return error, allowed, same


def _params(params: AttentionParams, options: dict[str, Any], check: Check, device: str) -> AttentionParams:
    for name in ("bias", "mask"):
        if name not in options:
            continue
        tensor = torch.randn(options[name], device=device)
        if name == "mask":
            tensor = tensor > 0 if check.seed % 2 else torch.zeros_like(tensor).masked_fill(tensor > 1, float("-inf"))
        options[name] = tensor
    return params._replace(**options)


def _new_result(check: Check, columns: int, device: str) -> AttentionTensors:
    """A result filled with NaN, or with 77 where there is no NaN, so that a number left unwritten is found."""
    case = check.case
    result = new_attention_tensors(
        check.batch,
        check.queries,
        check.keys,
        columns,
        encoding=case.encoding,
        top_k=case.top_k,
        pools_layers=False,
        device=device,
    )
    for tensor in result[:3]:
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    return result


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return (tensor if tensor.dtype == torch.bool else tensor.double()).cpu().numpy()


def _same(one: AttentionTensors, other: AttentionTensors) -> bool:
    """Whether two results have the same bits."""
    pairs = [(a, b) for a, b in zip(one[:3], other[:3], strict=True) if a is not None and b is not None]
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def excess(result: AttentionTensors, expected: np.ndarray[Any, Any]) -> float:
    """The greatest difference to float64 rows `[B, T, S, C]`, less what the encoding itself rounds.

    Raises:
        ValueError: Positions of a top-k are not positions, or one is there twice.
    """
    values = _numpy(result.values)
    wrong = 0.0
    if result.positions is not None:
        numbers, _ = truth.top(expected, result.top_k)
        positions = result.positions.cpu().numpy()
        if (
            positions.min() < 0
            or positions.max() >= expected.shape[2]
            or not (np.diff(np.sort(positions, 2), axis=2) > 0).all()
        ):
            raise ValueError("positions are out of range, or not different")
        # Positions by their numbers: numbers that are all but equal may change places.
        wrong = float(np.abs(np.take_along_axis(expected, positions, 2) - numbers).max())
        expected = numbers
    rounded: Any = 0.0
    if result.scales is not None:
        scales = _numpy(result.scales)[:, :, None]
        values, rounded = values * scales, scales * 0.5001
    elif result.values.dtype == torch.float16:
        rounded = np.maximum(np.abs(expected) * 2.0**-11, 2.0**-25)
    apart = np.abs(values - expected) - rounded
    return max(wrong, float("inf") if np.isnan(apart).any() else float(apart.max()), 0.0)


def run_large(place: int, device: str) -> Found:
    """Runs a case of the bench twice at its full size: it must run there, and give the same bits.

    Also has it compiled before the bench times it.
    """
    case = list(cases.all_cases(large=True))[place]
    name = f"{case.kernel}, {case.name}, at the bench's size"
    try:
        launches = case.launches(device)
        written: list[list[torch.Tensor]] = []
        for _ in range(2):
            for launch in launches:
                launch.run()
            tensors = [
                each for launch in launches for each in launch.arguments.values() if isinstance(each, torch.Tensor)
            ]
            written.append([tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors])
        same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*written, strict=True))
        if case.two_passes is not None:
            case.two_passes(device)()
        torch.cuda.synchronize()
        return Found(case.kernel, name, 0.0, 0.0, same)
    except Exception as fault:
        traceback.print_exc()
        return Found(case.kernel, name, float("inf"), 0.0, False, f"{type(fault).__name__}: {fault}"[:200])


# ---- all of them ----------------------------------------------------------------------------------------------------


class Checks:
    """All checks of one run. On a GPU other processes check the kernels while this process serves models."""

    def __init__(self, report: PartReport) -> None:
        self.report = report
        self.found: list[Found] = []
        self.served: dict[str, Served] = {}
        self.sanitized: list[object] = ["compute-sanitizer", "–", "–", "not run", "", ""]
        self._lock = threading.Lock()
        report.begin_table("what", "checks", "wrong", "greatest difference", "allowed", "the same bits twice")

    def run(self) -> None:
        """Runs them all. Each figure is reported as soon as it is there."""
        device = self.report.device
        planned = list(checks(is_dry=self.report.is_dry))
        if self.report.is_dry:
            for check in planned:
                self._add(run_check(check, device))
            self._serve_all()
            return
        sanitizer = Sanitizer(self.report.scratch / "sanitizer.txt")
        serving = threading.Thread(target=self._serve_all)
        serving.start()
        workers = max(1, min(12, (os.cpu_count() or 2) - 3))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            # The bench's own sizes first: they matter most, and the bench then finds its kernels compiled.
            futures = [pool.submit(run_large, place, device) for place in range(len(list(cases.all_cases(large=True))))]
            futures += [pool.submit(run_check, check, device) for check in planned]
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, Exception):  # a process has died, and the queue with it
                    self.report.fail_with("a process that checks kernels", error)
                    break
                self._add(future.result())
        serving.join()
        self.sanitized = sanitizer.wait(self.report)
        self._set_rows()

    def _serve_all(self) -> None:
        for name in FAMILIES:
            try:
                self.served[name] = check_served(self.report, name)
            except Exception as error:
                self.report.fail_with(f"{name}, served", error)
            self._set_rows()

    def _add(self, found: Found) -> None:
        self.found.append(found)
        if not found.is_right:
            bits = "" if found.is_deterministic else ", other bits the second time"
            problem = found.problem or f"{found.error:.1e} apart, {found.allowed:.1e} allowed{bits}"
            self.report.fail(f"{found.name}: {problem}")
        self._set_rows()

    def _set_rows(self) -> None:
        with self._lock:
            of_kernels: dict[str, list[Found]] = defaultdict(list)
            for found in self.found:
                of_kernels[found.kernel].append(found)
            rows: list[list[object]] = []
            for kernel, some in sorted(of_kernels.items()):
                worst = max(some, key=lambda each: each.error / each.allowed if each.allowed else each.error)
                wrong = sum(not each.is_right for each in some)
                same = f"{sum(each.is_deterministic for each in some)} of {len(some)}"
                rows.append([kernel, len(some), wrong, f"{worst.error:.1e}", f"{worst.allowed:.1e}", same])
            if served := [*self.served.values()]:
                wrong = sum(not each.is_right for each in served)
                same = f"{sum(each.is_deterministic for each in served)} of {len(served)}"
                error = f"{max(each.error for each in served):.1e}"
                name = f"served {', '.join(self.served)}"
                rows.append([name, len(served), wrong, error, f"{SERVED_TOLERANCE:.1e}", same])
            self.report.figures["kernels"] = [each._asdict() for each in self.found]
            self.report.figures["served"] = {name: each._asdict() for name, each in self.served.items()}
            self.report.set_rows([*rows, self.sanitized])


class Sanitizer:
    """One case of each kernel under compute-sanitizer, where there is one, in a process of its own."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if tool is None:
            return
        command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9", sys.executable]
        # With torch's caching of memory, an access behind a tensor's end would be within a block of the cache.
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, __file__, "--sanitizer-cases"], stdout=file, stderr=file, env=environment
            )

    def wait(self, report: PartReport) -> list[object]:
        """Waits for the tool. Returns the row of the table, and reports what is wrong."""
        if self._process is None:
            return ["compute-sanitizer", "–", "–", "it is not here", "", ""]
        try:
            status = self._process.wait(45)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return ["compute-sanitizer", 3, "–", "not finished in time", "", ""]
        lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-40:]))
        summary = next((line for line in reversed(lines) if "ERROR SUMMARY" in line), "").strip("= \n")
        if status in (9, WRONG_CASES):
            report.fail(f"compute-sanitizer: {summary or 'a case is wrong'}")
        elif status != 0:
            summary = f"could not run: {lines[-1][:80] if lines else status}"
        return ["compute-sanitizer", 3, int(status in (9, WRONG_CASES)), summary, "", ""]


WRONG_CASES = 8  # the exit status where a case differs from float64


def sanitizer_cases() -> int:
    """Runs one case of each kernel, for compute-sanitizer."""
    found = [
        run_check(Check("backend", cases.LAYOUTS[2], 1, 16, 48), "cuda"),
        run_check(Check("rows", cases.ROWS[1], 1, 33, 33), "cuda"),
        run_check(Check("decode", cases.DECODES[3], 2, 1, 65), "cuda"),
    ]
    return 0 if all(each.is_right for each in found) else WRONG_CASES


class Served(NamedTuple):
    """What a served model's rows are like."""

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
        # Common captures are not run before: a request compiles the few kernels that it needs.
        stack.enter_context(patch("sidelight.server.api.server.warm", lambda _: None))
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
    """Has a server on a CPU run the Triton kernels, interpreted, as a server on a GPU runs them."""
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


def main() -> int:
    if "--sanitizer-cases" in sys.argv:
        return sanitizer_cases()
    report = PartReport("correctness")
    torch.set_num_threads(1 if report.is_dry else 4)
    # Of the processes that check kernels: each waits for a compiler most of its time.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    Checks(report).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
