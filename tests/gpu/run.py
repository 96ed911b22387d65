"""Runs the parts of the GPU check one after the other, each in a process with a time limit, and sums them up.

`python run.py OUT SCRATCH [--dry]`, by run.sh. No part can stop the next. After each part `OUT/summary.md` is written
anew, and at the end it is printed. Exit status: 0 if every part came to its end and found nothing wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
MAX_LINES = 60  # of what is printed


@dataclass(frozen=True)
class PartLimits:
    """A part, and the seconds that it may take: on a GPU, and with --dry on two slow cores."""

    name: str
    title: str
    limit: float
    dry_limit: float


# The limits on a GPU add up to 7 minutes.
PARTS = (
    PartLimits("machine", "", 40, 120),
    PartLimits(
        "correctness",
        "Correct: differences from float64, and of served models from `output_attentions` on a CPU",
        120,
        240,
    ),
    PartLimits(
        "kernel_times",
        "Kernels: a share of copy bandwidth, and how many times their time others take; < is slower than asked",
        65,
        240,
    ),
    PartLimits(
        "engine",
        "Engine: tokens a second over gRPC in bfloat16, 30 source and 30 target tokens; steps alone in milliseconds",
        150,
        300,
    ),
    PartLimits("long_prompt", "A long prompt through a Llama", 45, 240),
)
# The longest table comes last: what is printed is cut at its end.
SUMMARY_ORDER = ("machine", "correctness", "engine", "long_prompt", "kernel_times")


def main() -> int:
    out, scratch, dry = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    for part in PARTS:  # what an earlier run has left
        (out / f"{part.name}.json").unlink(missing_ok=True)
    ended: dict[str, str] = {}
    began = time.monotonic()
    with (out / "log.txt").open("wb") as log:
        # Models are made, and kernels compiled for them, while the first parts run.
        preparing = None if dry else _start("models.py", out, scratch, [], log)
        try:
            for part in PARTS:
                limit = part.dry_limit if dry else part.limit
                print(f"{part.name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
                ended[part.name] = _run(part.name, out, scratch, dry, log, limit)
                (out / "summary.md").write_text(summarize(out, ended, time.monotonic() - began), encoding="utf-8")
        finally:
            if preparing is not None:
                _kill(preparing)
    summary = (out / "summary.md").read_text(encoding="utf-8")
    lines = summary.splitlines()
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"… {len(lines) - MAX_LINES + 1} more lines in {out / 'summary.md'}"]
    print("\n".join(lines))
    return int(any(end != "done" for end in ended.values()) or any(_read(out, part.name)["wrong"] for part in PARTS))


def _run(name: str, out: Path, scratch: Path, dry: list[str], log: IO[bytes], limit: float) -> str:
    """Runs a part. Says how it ended, in a few words."""
    log.write(f"\n==== {name} ====\n".encode())
    log.flush()
    began = time.monotonic()
    process = _start(f"{name}.py", out, scratch, dry, log)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"ended after its {limit:.0f} s"
    finally:
        _kill(process)
    log.write(f"==== {name} took {time.monotonic() - began:.0f} s ====\n".encode())
    return "done" if status == 0 else f"failed with {status}, see log.txt"


def _start(script: str, out: Path, scratch: Path, dry: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / script), str(out), str(scratch), *dry]
    # In a session of its own, so that all that a part has started ends with it.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(out: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"figures": {}, "lines": [], "wrong": []}


def summarize(out: Path, ended: dict[str, str], seconds: float) -> str:
    """What the parts that have ended so far have found, in Markdown, what is wrong first."""
    blocks: list[str] = []
    wrong: list[str] = []
    order = {name: place for place, name in enumerate(SUMMARY_ORDER)}
    for part in sorted(PARTS, key=lambda part: order.get(part.name, 0)):
        if part.name not in ended:
            continue
        found = _read(out, part.name)
        wrong += [f"- {part.name}: {line}" for line in found["wrong"]]
        if ended[part.name] != "done":
            wrong.append(f"- {part.name}: {ended[part.name]}")
        blocks += [*([f"**{part.title}**"] if part.title else []), *found["lines"]]
    verdict = (
        [f"**Wrong: {len(wrong)}** after {seconds:.0f} s", *wrong[:8]]
        if wrong
        else [f"**Nothing is wrong** after {seconds:.0f} s"]
    )
    if len(wrong) > 8:
        verdict.append(f"- and {len(wrong) - 8} more, in the parts' JSON files")
    return "\n".join([*verdict, *blocks]) + "\n"


if __name__ == "__main__":
    # What runs in the background ends with this process, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
