"""The programs that `bench_long_prompt.py` compares: Sidelight, transformers' `generate` and Inseq.

Run as a script, this file is a worker: one process that runs one program. For Sidelight the worker is the client of a
server in another process. A worker reads orders from standard input and prints answers, one line of JSON each.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NEW_TOKENS = 64

Run = Callable[[str, str], float | None]  # prompt, target → seconds until the first token, if the program says them
Save = Callable[[Path], None]


@dataclass(frozen=True)
class Program:
    """A row of the table.

    Attributes:
        label: The first cell of the row.
        capture: The parameters of Sidelight's capture; None for another program.
        given: Whether the target is given, instead of generated.
        peer: The name of the program whose attention is compared with the attention of this program.
    """

    label: str
    capture: dict[str, Any] | None = None
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


def work(name: str, location: str, warmup: dict[str, str]) -> None:
    """Runs a program on the short warm-up texts, then on ordered texts, then saves the attention of the ordered run.

    Args:
        name: A key of `PROGRAMS`.
        location: The address of Sidelight's server; the folder of the model for another program.
        warmup: The files of the warm-up's `prompt` and `target`.
    """
    warnings.simplefilter("ignore")
    program = PROGRAMS[name]
    if program.capture is not None:
        run, save = _prepare_sidelight(location, program)
    else:
        run, save = _prepare_generate(location) if name == "generate" else _prepare_inseq(location)
    print(json.dumps(_time_run(run, warmup)), flush=True)
    print(json.dumps(_time_run(run, json.loads(sys.stdin.readline()))), flush=True)
    save(Path(json.loads(sys.stdin.readline())["save"]))
    print(json.dumps({"saved": True}), flush=True)


def _time_run(run: Run, files: dict[str, str]) -> dict[str, Any]:
    prompt, target = (Path(files[name]).read_text(encoding="utf-8") for name in ("prompt", "target"))
    began = time.perf_counter()
    try:
        first = run(prompt, target)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - began, "first": first}


def _prepare_sidelight(address: str, program: Program) -> tuple[Run, Save]:
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


def _prepare_generate(folder: str) -> tuple[Run, Save]:
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
        # `[positions, steps, layers, heads]`, the axes of Sidelight and Inseq.
        arrays = np.full((steps[-1][0].shape[-1], NEW_TOKENS, len(steps[0]), steps[0][0].shape[1]), np.nan, np.float32)
        for index, layers in enumerate(steps):
            row = torch.stack([layer[0, :, -1] for layer in layers])
            arrays[: row.shape[-1], index] = row.permute(2, 0, 1).numpy()
        np.save(path, arrays)

    return run, save


def _prepare_inseq(folder: str) -> tuple[Run, Save]:
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


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], {"prompt": sys.argv[3], "target": sys.argv[4]})
