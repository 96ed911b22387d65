"""Checks of single kernels: calls of public functions of `sidelight.kernels` on the device, compared with float64."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import attention_truth as truth
import numpy as np
import torch
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

# The greatest distance of a row from float64, for each unit of its greatest number and each layer that is folded. The
# kernels compute in float32; the float64 rows are computed from the inputs as they are rounded.
TOLERANCE = 2e-6
# An attention output is rounded to its type, and so are its probabilities.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ENCODINGS: tuple[tuple[Encoding, int], ...] = (
    ("float32", 0),
    ("float16", 0),
    ("uint8", 0),
    ("float32", 8),
    ("uint8", 40),
)
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


class CheckResult(NamedTuple):
    """The result of a check."""

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
    """Yields every case of the audit as it is, with each type, and with each encoding; then odd shapes."""
    sizes = {"backend": (1, 5, 33), "rows": (1, 33, 65), "decode": (2, 1, 65)} if is_dry else {
        "backend": (1, 64, 512), "rows": (2, 200, 300), "decode": (8, 1, 700)
    }  # fmt: skip
    cases_of_kernels = {"backend": cases.LAYOUTS, "rows": cases.ROWS, "decode": [*cases.DECODES, cases.LONG]}
    for number, (kernel, cases_of_kernel) in enumerate(cases_of_kernels.items()):
        batch, queries, keys = sizes[kernel]
        for place, case in enumerate(cases_of_kernel):
            variants = [case]
            variants += [case._replace(dtype=dtype) for dtype in DTYPES]
            variants += [case._replace(encoding=encoding, top_k=top_k) for encoding, top_k in ENCODINGS]
            unique = list(dict.fromkeys(variants))
            if is_dry:  # one variant of each case; a GPU runs all variants
                unique = [unique[(place + number) % len(unique)]]
            for variant in unique:
                is_square = kernel == "rows" and variant.causal
                yield Check(kernel, variant, batch, queries, queries if is_square else keys)
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


def run_check(check: Check, device: str) -> CheckResult:
    """Calls a kernel twice and compares with float64."""
    global _device_error
    if _device_error:
        return CheckResult(check.kernel, check.name, 0.0, 0.0, True, f"not run: the device failed in {_device_error}")
    try:
        torch.manual_seed(check.seed)
        with ExitStack() as stack:
            if device == "cpu":
                import interpreter_fixes

                stack.enter_context(interpreter_fixes.fixed_interpreter())
                stack.enter_context(np.errstate(all="ignore"))
            error, allowed, same = (_check_layout if check.kernel == "backend" else _check_attention)(check, device)
        return CheckResult(check.kernel, check.name, error, allowed, same)
    except Exception as fault:
        traceback.print_exc()
        if "CUDA error" in str(fault):
            _device_error = check.name
        return CheckResult(check.kernel, check.name, float("inf"), 0.0, False, f"{type(fault).__name__}: {fault}"[:200])


# The check that has made the device fail in this process: no later check can run here.
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
        # One figure for both: the output's difference is scaled to the tolerance of the rows.
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
    """Makes a result that is filled with NaN, or with 77 in integers: a check finds numbers that are not written."""
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
    """The greatest difference from float64 rows `[B, T, S, C]`, less the rounding of the encoding.

    Raises:
        ValueError: A position of a top-k is out of range, or occurs twice.
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
        # Positions are compared by their numbers: nearly equal numbers may change places.
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


def run_large(place: int, device: str) -> CheckResult:
    """Runs a case of the bench twice at its full size: the case must run, and give the same bits.

    This also compiles the kernel before the bench measures it.
    """
    case = list(cases.all_cases(large=True))[place]
    name = f"{case.kernel}, {case.name}, at the bench's size"
    try:
        launches = case.launches(device)
        results: list[list[torch.Tensor]] = []
        for _ in range(2):
            for launch in launches:
                launch.run()
            tensors = [
                value for launch in launches for value in launch.arguments.values() if isinstance(value, torch.Tensor)
            ]
            results.append([tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors])
        same = all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*results, strict=True))
        if case.two_passes is not None:
            case.two_passes(device)()
        torch.cuda.synchronize()
        return CheckResult(case.kernel, name, 0.0, 0.0, same)
    except Exception as fault:
        traceback.print_exc()
        return CheckResult(case.kernel, name, float("inf"), 0.0, False, f"{type(fault).__name__}: {fault}"[:200])
