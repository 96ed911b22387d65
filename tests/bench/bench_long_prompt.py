"""What the attention of 64 tokens behind a long prompt costs in memory and time: Sidelight, transformers and Inseq.

Run by `make bench`, or by itself: `python tests/bench/bench_long_prompt.py [--tokens 1024 16384] [--skip inseq]`. The
model is a random Llama of 4 layers and 8 heads. Every figure comes from a process of its own (for Sidelight a server,
with the client in another one) that did the same with a few tokens before. Memory is the peak of the resident set
while the request runs, less the resident set just before: the model is not in it, the cache is. A process that takes
too much memory or time is ended, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

COMMAND = str(Path(sys.executable).with_name("sidelight"))
LAYERS, HEADS = 4, 8
NEW_TOKENS, WARM_TOKENS = 64, 32
TOKENS = (1024, 4096, 16384)
SECONDS = 300.0  # that one figure may take
MOST_BYTES, LEAST_FREE_BYTES = 18e9, 2e9  # that a process may have, and that it has to leave free

Work = Callable[[str, str], float | None]
Save = Callable[[Path], None]


@dataclass(frozen=True)
class Program:
    """A row of the table. `peer` is the program whose numbers it is compared with."""

    label: str
    capture: dict[str, Any] | None = None  # for Sidelight alone
    given: bool = False
    peer: str = ""


PROGRAMS = {
    "off": Program("Sidelight, capture off", {"none": True}),
    "heads": Program("Sidelight, all heads", {"kinds": ["decoder_self"]}, peer="generate"),
    "mean": Program(
        "Sidelight, mean of all heads, float16",
        {"kinds": ["decoder_self"], "over_heads": "mean", "over_layers": "mean", "encoding": "float16"},
    ),
    "generate": Program("transformers, output_attentions=True"),
    "given": Program("Sidelight, all heads, target given", {"kinds": ["decoder_self"]}, given=True, peer="inseq"),
    "inseq": Program("Inseq 0.7.1, target given", given=True),
}


@dataclass(frozen=True)
class Cost:
    """What a program took: bytes in the measured process and in the client, and seconds."""

    memory: int
    seconds: float
    first: float | None = None  # seconds until the first token
    client: int | None = None


class FigureError(Exception):
    """Why there is no figure. The message is for the table."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="lengths of the prompt")
    parser.add_argument("--skip", nargs="+", default=[], choices=list(PROGRAMS), help="leaves these out")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return _work(args.work[0], args.work[1], Path(args.work[2]))
    if not os.access("/proc/self/clear_refs", os.W_OK):
        print("skipped: the peak of a process's memory is Linux's to tell")
        return 0
    costs: dict[tuple[str, int], Cost | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        _make(here, args.tokens)
        names = [name for name in PROGRAMS if name not in args.skip]
        for tokens in args.tokens:
            for name in names:
                try:
                    costs[name, tokens] = _measure(name, here, tokens)
                except FigureError as failure:
                    costs[name, tokens] = str(failure)
                print(f"{tokens:,} tokens, {PROGRAMS[name].label}: {_cell(costs[name, tokens])}", file=sys.stderr)
        _report(costs, names, args.tokens)
        _compare(here, names, args.tokens)
    return 0


# ---- the model and its texts ----------------------------------------------------------------------------------------


def _make(here: Path, lengths: list[int]) -> None:
    """Saves a model with its tokenizer, and texts of exactly so many tokens."""
    import model_zoo
    import torch
    import transformers as tf

    tf.logging.disable_progress_bar()
    _, tokenizer = model_zoo.FAMILIES["llama"].make()
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=32768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = tf.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None  # nobody is to stop early
    with torch.no_grad():  # rows that are far from uniform, or comparing them would prove little
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(3)
            layer.self_attn.k_proj.weight.mul_(3)
    model.save_pretrained(here / "model")
    tokenizer.save_pretrained(here / "model")
    # Each of these is a word with a space before it, so a token wherever it stands.
    words = sorted(token for token in tokenizer.get_vocab() if re.fullmatch("Ġ[A-Za-z]{2,}", token))
    draw = random.Random(0)
    for name, length in (("warm", WARM_TOKENS), ("target", NEW_TOKENS), *((f"prompt-{n}", n) for n in lengths)):
        text = "".join(draw.choices(words, k=length)).replace("Ġ", " ")
        assert len(tokenizer(text).input_ids) == length
        (here / name).write_text(text, encoding="utf-8")


# ---- measuring: in the process that was started ---------------------------------------------------------------------


def _measure(name: str, here: Path, tokens: int) -> Cost:
    """One figure. Raises FigureError."""
    log = here / "log"
    if PROGRAMS[name].capture is None:
        with _worker(name, str(here / "model"), here, log) as worker:
            return _watch(worker, worker, here, name, tokens, log)
    with _server(here, log) as (server, address), _worker(name, address, here, here / "client.log") as worker:
        return _watch(server, worker, here, name, tokens, log)


def _watch(
    measured: subprocess.Popen[str], worker: subprocess.Popen[str], here: Path, name: str, tokens: int, log: Path
) -> Cost:
    """Lets a worker work and looks at the memory of the process that is measured. Raises FigureError."""
    _answer(worker, measured, log)
    before = {process.pid: _memory(process, "VmRSS") for process in (measured, worker)}
    for pid in before:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    _tell(worker, {"prompt": str(here / f"prompt-{tokens}"), "target": str(here / "target")})
    answer = _answer(worker, measured, log)
    extra = {process.pid: _memory(process, "VmHWM") - before[process.pid] for process in (measured, worker)}
    _tell(worker, {"save": str(here / f"{name}-{tokens}.npy")})
    _answer(worker, measured, log)
    client = None if worker is measured else extra[worker.pid]
    return Cost(extra[measured.pid], answer["seconds"], answer["first"], client)


def _answer(worker: subprocess.Popen[str], measured: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """A worker's next line. Ends the measured process where it takes too much. Raises FigureError."""
    assert worker.stdout is not None
    until = time.monotonic() + SECONDS
    # What others need at this moment is left to them.
    most = min(MOST_BYTES, _memory(measured, "VmRSS") + _available() - LEAST_FREE_BYTES)
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not selector.select(0.02):
            if _memory(measured, "VmRSS") > most:
                measured.kill()
                raise FigureError(f"ended: more than {most / 1e9:.0f} GB")
            if time.monotonic() > until:
                raise FigureError(f"ended: more than {SECONDS:.0f} s")
        line = worker.stdout.readline()
    if not line:
        raise FigureError(f"died with {worker.wait()}: {_last_line(log)}")
    answer = json.loads(line)
    if "failed" in answer:
        raise FigureError(f"failed: {answer['failed'][:200]}")
    return answer


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no word of why")


def _tell(worker: subprocess.Popen[str], message: dict[str, str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(message) + "\n")
    worker.stdin.flush()


def _memory(process: subprocess.Popen[str], field: str) -> int:
    """A field of a process's status, in bytes; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _available() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def _server(here: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    arguments = ["serve", str(here / "model"), "--address", "127.0.0.1:0", "--threads", str(_cores())]
    with _process([COMMAND, *arguments], here, log) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise FigureError(f"the server did not start: {_last_line(log)}")
        yield server, line.split()[-1]


@contextmanager
def _worker(name: str, where: str, here: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    with _process([sys.executable, __file__, "--work", name, where, str(here)], here, log) as worker:
        yield worker


@contextmanager
def _process(command: list[str], here: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone at the end, and the first to go where memory runs out."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": str(_cores()), "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=here, env=environment
        )
    try:
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("900", encoding="ascii")
        yield process
    finally:
        process.kill()
        process.communicate()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


# ---- working: in a process of its own -------------------------------------------------------------------------------


def _work(name: str, where: str, here: Path) -> int:
    """Does what a program does: first with a few tokens, then when told to, then saves the numbers."""
    warnings.simplefilter("ignore")
    program = PROGRAMS[name]
    if program.capture is not None:
        run, save = _sidelight(where, program)
    else:
        run, save = _generate(where) if name == "generate" else _inseq(where)
    texts = {"prompt": str(here / "warm"), "target": str(here / "target")}
    print(json.dumps(_timed(run, texts)), flush=True)
    print(json.dumps(_timed(run, json.loads(sys.stdin.readline()))), flush=True)
    save(Path(json.loads(sys.stdin.readline())["save"]))
    print(json.dumps({"saved": True}), flush=True)
    return 0


def _timed(run: Work, texts: dict[str, str]) -> dict[str, Any]:
    prompt, target = (Path(texts[name]).read_text(encoding="utf-8") for name in ("prompt", "target"))
    began = time.perf_counter()
    try:
        first = run(prompt, target)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - began, "first": first}


def _sidelight(address: str, program: Program) -> tuple[Work, Save]:
    from sidelight.client import Capture, Client, Decoding, Greedy

    client = Client(address)
    capture = Capture(**program.capture or {})
    streams: list[Any] = []

    def run(prompt: str, target: str) -> float:
        streams.clear()
        began = time.perf_counter()
        if program.given:
            stream = client.attribute(prompt, target=target, capture=capture)
        else:
            decoding = Decoding(strategy=Greedy(), max_new_tokens=NEW_TOKENS, ignore_eos=True)
            stream = client.attribute(prompt, capture=capture, decoding=decoding)
        streams.append(stream)
        next(stream)
        first = time.perf_counter() - began
        assert 1 + sum(1 for _ in stream) == NEW_TOKENS
        return first

    def save(path: Path) -> None:
        if program.peer:
            np.save(path, streams[0].result().decoder_self)

    return run, save


def _generate(folder: str) -> tuple[Work, Save]:
    import torch
    import transformers as tf

    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    outputs: list[Any] = []

    def run(prompt: str, target: str) -> None:  # noqa: ARG001
        outputs.clear()
        outputs.append(
            model.generate(
                **tokenizer(prompt, return_tensors="pt", return_token_type_ids=False),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_attentions=True,
                return_dict_in_generate=True,
            )
        )
        assert len(outputs[0].attentions) == NEW_TOKENS

    def save(path: Path) -> None:
        steps = outputs[0].attentions
        # `[positions, steps, layers, heads]`, as Sidelight and Inseq have it.
        numbers = np.full((steps[-1][0].shape[-1], NEW_TOKENS, len(steps[0]), steps[0][0].shape[1]), np.nan, np.float32)
        for index, layers in enumerate(steps):
            row = torch.stack([layer[0, :, -1] for layer in layers])
            numbers[: row.shape[-1], index] = row.permute(2, 0, 1).numpy()
        np.save(path, numbers)

    return run, save


def _inseq(folder: str) -> tuple[Work, Save]:
    import inseq
    import torch

    logging.disable(logging.ERROR)
    model = inseq.load_model(folder, "attention", device="cpu", model_kwargs={"dtype": torch.float32})
    outputs: list[Any] = []

    def run(prompt: str, target: str) -> None:
        outputs.clear()
        outputs.append(model.attribute(prompt, prompt + target, show_progress=False))

    def save(path: Path) -> None:
        np.save(path, outputs[0].sequence_attributions[0].target_attributions.numpy())

    return run, save


# ---- what is printed ------------------------------------------------------------------------------------------------


def _report(costs: dict[tuple[str, int], Cost | str], names: list[str], lengths: list[int]) -> None:
    table = Table(
        title=f"{NEW_TOKENS} tokens and their attention behind a prompt of ..., {_cores()} cores: extra memory"
    )
    table.add_column("")
    for tokens in lengths:
        table.add_column(f"{tokens:,} tokens", justify="right")
    for name in names:
        table.add_row(PROGRAMS[name].label, *(_cell(costs[name, tokens]) for tokens in lengths))
    Console(width=120).print(table)
    matrices = ", ".join(_size(LAYERS * HEADS * tokens**2 * 4) for tokens in lengths)
    print(f"the whole matrices of the prompt, float32, are {matrices}")
    for name in (name for name in ("off", "heads", "given") if name in names):
        found = [costs.get((name, tokens)) for tokens in lengths]
        first = ", ".join("-" if not isinstance(cost, Cost) else f"{cost.first or 0:.2f} s" for cost in found)
        client = ", ".join("-" if not isinstance(cost, Cost) else _size(cost.client or 0) for cost in found)
        print(f"{PROGRAMS[name].label}: first token after {first}; its client, which keeps all rows: {client}")


def _cell(cost: Cost | str) -> str:
    return cost if isinstance(cost, str) else f"{_size(cost.memory)}, {cost.seconds:.1f} s"


def _size(memory: int) -> str:
    return f"{memory / 1e6:,.0f} MB" if memory < 1e9 else f"{memory / 1e9:,.2f} GB"


def _compare(here: Path, names: list[str], lengths: list[int]) -> None:
    """How far the numbers are apart, where both programs gave some."""
    for name in names:
        peer = PROGRAMS[name].peer
        for tokens in lengths:
            paths = [here / f"{of}-{tokens}.npy" for of in (name, peer)]
            if peer and all(path.exists() for path in paths):
                ours, theirs = (np.load(path) for path in paths)
                shown = f"{tokens:,} tokens: {PROGRAMS[name].label}, to {PROGRAMS[peer].label}"
                positions = min(len(ours), len(theirs))
                difference = np.nanmax(np.abs(ours[:positions] - theirs[:positions]))
                print(f"{shown}: greatest difference {difference:.1e}, of at most {np.nanmax(theirs):.1e}")


if __name__ == "__main__":
    sys.exit(main())
