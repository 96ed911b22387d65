"""Prints, as JSON, the bytes of memory that requests of growing length take beyond what the process had.

A script, run in a process of its own: the peak of a process's memory is that of all its threads.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers as tf
from model_zoo import FAMILIES
from sidelight.server.capture import CapturePlan
from sidelight.server.engine.outputs.given_target import target_outputs
from sidelight.server.engine.outputs.output_builder import split_encoder_self
from sidelight.server.models import LoadedModel, load
from sidelight.server.request import DecodingParams, GivenTarget, Request, Step
from sidelight.server.runner import TargetPass
from sidelight.server.runner.single_sequence import SingleSequenceModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def make_llama(folder: Path) -> LoadedModel:
    _, tokenizer = FAMILIES["llama"].make()
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": tokenizer.pad_token_id}
    config = tf.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=32 * 1024, **SIZES, **ids)
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder)


def make_bart(folder: Path) -> LoadedModel:
    _, tokenizer = FAMILIES["bart"].make()
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": 1}
    config = tf.BartConfig(vocab_size=len(tokenizer), max_position_embeddings=8 * 1024, **layers, **heads, **ids)
    tf.BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(folder)


def extra_memory(run) -> int:
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def read_target(loaded: LoadedModel, num_prompt: int, num_target: int, **steps: int) -> None:
    """Reads a given target, and takes its steps one after the other."""
    prompt, target = (loaded.tokenizer.detokenize([7] * count) for count in (num_prompt, num_target))
    plan = CapturePlan(("decoder_self",), {"decoder_self": (0, 1)}, {"decoder_self": 2}, **steps)
    request = Request("", prompt, (), GivenTarget(target), plan, ("probability",))
    num_rows = 0
    for output in target_outputs(loaded, request, TargetPass(loaded, request)):
        num_rows += isinstance(output, Step) and output.decoder_self is not None
    assert num_rows == len(request.captured_steps)


def read_source(loaded: LoadedModel, num_source: int) -> None:
    """Reads a source, and takes the encoder's attention message by message."""
    source = loaded.tokenizer.detokenize([7] * num_source)
    plan = CapturePlan(("encoder_self",), {"encoder_self": (0, 1)}, {"encoder_self": 2})
    request = Request("", source, (1,), DecodingParams(1, do_sample=False), plan)
    outputs = split_encoder_self(SingleSequenceModel.of_request(loaded, request).encode(), request.units)
    assert sum(len(output.attention.values) for output in outputs if output is not None) == num_source


@torch.inference_mode()
def main() -> None:
    found: dict[str, dict[int, int]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        llama, bart = make_llama(Path(scratch) / "llama"), make_bart(Path(scratch) / "bart")
        cases = {
            "prompt": ((2048, 8192, 32000), lambda n: read_target(llama, n, 64, first_step=8, end_step=24)),
            "target": ((2048, 8192, 32000), lambda n: read_target(llama, 64, n, first_step=n - 24, end_step=n - 8)),
            "all rows": ((1024, 4096), lambda n: read_target(llama, 16, n)),
            "encoder": ((1024, 2048, 8000), lambda n: read_source(bart, n)),
        }
        for name, (lengths, run) in cases.items():
            run(lengths[0])  # what is allocated once
            found[name] = {}
            for length in lengths:
                found[name][length] = extra_memory(lambda run=run, length=length: run(length))
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
