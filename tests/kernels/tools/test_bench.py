"""The bench without a GPU: the error message, and everything but the timing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from sidelight.kernels.tools import bench, bench_cli
from sidelight.kernels.tools.bench import Timing
from sidelight.kernels.tools.cases import KernelCase, all_cases

MOVING = Timing("layout", "heads mean", 30_000_000, 0, 20e-6, 15e-6, 60e-6, None)
MULTIPLYING = Timing("rows", "prompt", 2_000_000, 4 * 10**9, 100e-6, 1e-6, 250e-6, 80e-6, 190e-6)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench_cli.add_arguments(parser)
    return bench_cli.run(parser.parse_args(arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", str(tmp_path / "times.json")) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "sidelight: torch finds no GPU on this machine: there is nothing to time\n"
    assert not (tmp_path / "times.json").exists()


def test_refuses_where_kernels_are_interpreted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run() == 1
    assert "TRITON_INTERPRET" in capsys.readouterr().err


def test_rates() -> None:
    assert MOVING.bytes_per_second == pytest.approx(1.5e12)
    assert MOVING.of_copy == pytest.approx(0.75)


def test_the_table() -> None:
    text = StringIO()
    Console(file=text, width=160).print(bench.table([MOVING, MULTIPLYING]))
    header, moving, multiplying = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines(text))
    baselines = ["copy µs", "eager µs", "SDPA µs", "SDPA + rows µs"]
    assert header == ["kernel", "case", "MB", "µs", "GB/s", "of copy", "TFLOP/s", *baselines]
    figures = ["30.0", "20.0", "1,500", "75%", "–"]
    assert moving == ["layout", "heads mean", *figures, "15.0 (0.75x)", "60.0 (3.00x)", "–", "–"]
    assert multiplying[2:] == [
        *("2.0", "100.0", "20", "1%", "40.0"),
        *("1.0 (0.01x)", "250.0 (2.50x)", "80.0 (0.80x)", "190.0 (1.90x)"),
    ]


def lines(text: StringIO) -> list[str]:
    return text.getvalue().splitlines()


class WithBaselines:
    """A case with baselines."""

    def __init__(self, case: KernelCase, calls: list[str]) -> None:
        self._case = case
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._case, name)

    def eager(self, device: str) -> Callable[[], object]:
        return lambda: self._calls.append(f"eager on {device}")

    def sdpa(self, device: str) -> Callable[[], object]:
        return lambda: self._calls.append(f"sdpa on {device}")

    def two_passes(self, device: str) -> Callable[[], object]:
        return lambda: self._calls.append(f"two passes on {device}")


def test_reports_all_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = next(all_cases())
    launches = first.launches("cpu")
    calls: list[str] = []
    case: Any = WithBaselines(first._replace(launches=lambda _: launches), calls)
    seconds = iter([4e-6, 2e-6, 8e-6, 3e-6, 7e-6])  # the kernel's, the copy's, the baselines'

    def timer(thunk: Callable[[], object]) -> float:
        thunk()
        return next(seconds)

    monkeypatch.setattr(bench.shutil, "which", lambda _: None)
    assert bench_cli.report([case], "cpu", timer, tmp_path / "times.json") == 0
    assert calls == ["eager on cpu", "sdpa on cpu", "two passes on cpu"]
    assert not launches[-1].arguments["out"].isnan().any()  # the kernel ran

    output = capsys.readouterr().out
    print(output)
    assert f"torch: {torch.__version__}" in output
    assert first.name in output
    assert "8.0 (2.00x)" in output
    written = json.loads((tmp_path / "times.json").read_text())
    assert written["machine"]["device"] == "cpu"
    (timing,) = written["variants"]
    assert timing["kernel"] == first.kernel
    names = ("seconds", "copy", "eager", "sdpa", "two_passes")
    assert [timing[name] for name in names] == [4e-6, 2e-6, 8e-6, 3e-6, 7e-6]
    assert timing["of_copy"] == 0.5


def test_cases_without_baselines() -> None:
    case = next(all_cases())
    if hasattr(case, "eager"):
        case = case._replace(eager=None, sdpa=None, two_passes=None)
    timing = bench.measure(case, "cpu", lambda _: 1e-6)
    assert timing.eager is None
    assert timing.sdpa is None
    assert timing.two_passes is None


def test_copies_the_bytes_of_the_kernel() -> None:
    written = bench._make_copy(1000, "cpu")()
    assert isinstance(written, torch.Tensor)
    assert written.nbytes == 500  # and as many read


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def never(_: Callable[[], object]) -> float:
        raise AssertionError("timed although the file cannot be written")

    assert bench_cli.report(all_cases(), "cpu", never, tmp_path / "missing" / "times.json") == 1
    assert "missing/times.json" in capsys.readouterr().err


def test_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {asked}\necho "580.95, 1980 MHz, 1980 MHz, 2619 MHz, 700.00 W"\n')
    program.chmod(0o755)
    monkeypatch.setattr(bench.shutil, "which", lambda _: str(program))
    assert bench._nvidia_smi("GPU-1") == {
        "driver": "580.95",
        "multiprocessor clock": "1980 MHz",
        "at most": "1980 MHz",
        "memory clock": "2619 MHz",
        "power limit": "700.00 W",
    }
    assert "--id=GPU-1" in asked.read_text()
    program.write_text("#!/bin/sh\nexit 9\n")
    assert bench._nvidia_smi("GPU-1") == {}


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", multi_processor_count=132, uuid="01-02")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(bench, "_nvidia_smi", lambda gpu: {"asked for": gpu})
    facts = bench.machine("cuda")
    assert facts["device"] == "NVIDIA H100"
    assert facts["multiprocessors"] == "132"
    assert facts["CUDA"] == "13.0"
    assert facts["asked for"] == "GPU-01-02"
    assert facts.keys() >= {"torch", "triton"}


def test_times_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def do_bench(_thunk: Callable[[], object], **options: object) -> float:
        asked.update(options)
        return 2.5  # milliseconds

    monkeypatch.setattr(bench, "do_bench", do_bench)
    assert bench.median_time(lambda: None) == 0.0025
    assert asked == {"return_mode": "median"}


def test_writes_each_case_as_soon_as_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times so far stay, whatever ends the bench."""
    first, second, *_ = (case._replace(eager=None) for case in all_cases())
    monkeypatch.setattr(bench.shutil, "which", lambda _: None)
    calls = iter(range(4))

    def timer(_: Callable[[], object]) -> float:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return 1e-6

    with pytest.raises(KeyboardInterrupt):
        bench_cli.report([first, second], "cpu", timer, tmp_path / "times.json")
    (timing,) = json.loads((tmp_path / "times.json").read_text())["variants"]
    assert timing["case"] == first.name


@pytest.mark.parametrize("can_capture", [True, False])
def test_times_a_graph_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, can_capture: bool) -> None:
    """Python's launches are not timed; launches that cannot be captured are timed as they are."""
    calls: list[str] = []

    class Graph:
        def replay(self) -> None:
            calls.append("replayed")

    @contextmanager
    def graph(_: Graph) -> Iterator[None]:
        if not can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    bench.as_graph(lambda: calls.append("called"))()
    assert calls == (["called", "called", "replayed"] if can_capture else ["called", "called"])
