"""The contenders beside Sidelight: transformers' `generate`, CTranslate2 and Inseq.

A contender runs in the process that makes it. CTranslate2 needs a converted model: `convert` writes it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from contender import BatchContender, Contender, Outcome
from transformers import AutoModelForSeq2SeqLM
from workloads import Source, Workload

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import ctranslate2_peer

# Inseq takes one sentence at a time. More sentences would take minutes and would not change the result.
INSEQ_SENTENCES = 8


class Generate(BatchContender):
    """transformers' `generate`: SDPA without attention rows, or eager attention with `output_attentions=True`."""

    def __init__(self, workload: Workload, *, attention: bool) -> None:
        super().__init__(workload)
        implementation = "eager" if attention else "sdpa"
        self._model = AutoModelForSeq2SeqLM.from_pretrained(
            workload.folder, attn_implementation=implementation, dtype=torch.float32
        ).eval()
        self._options: dict[str, Any] = {"num_beams": 1, "do_sample": False}
        if workload.new_tokens is not None:
            self._options |= {"min_new_tokens": workload.new_tokens, "max_new_tokens": workload.new_tokens}
        if attention:
            self._options |= {"output_attentions": True, "return_dict_in_generate": True}

    def cross(self) -> np.ndarray | None:
        if "output_attentions" not in self._options:
            return None
        output = self._generate(self._encode(self._workload.sources[:1]))
        steps = [torch.stack(layers)[:, 0, :, -1] for layers in output.cross_attentions]  # layers, heads, positions
        return torch.stack(steps).permute(0, 3, 1, 2).numpy()

    def _translate(self, sources: list[list[int]]) -> list[list[int]]:
        output = self._generate(sources)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        config = self._model.generation_config
        return [_without_padding(row[1:], config.eos_token_id, self._workload.new_tokens) for row in sequences.tolist()]

    def _generate(self, sources: list[list[int]]) -> Any:
        batch = self._tokenizer.pad({"input_ids": sources}, return_tensors="pt")
        return self._model.generate(batch.input_ids, attention_mask=batch.attention_mask, **self._options)


class CTranslate2(BatchContender):
    """CTranslate2 with the attention that it can return: that of the last layer's first head."""

    def __init__(self, workload: Workload, folder: Path, *, by_length: bool = False) -> None:
        """Loads a converted model. With `by_length`, CTranslate2 sorts and batches all sentences itself."""
        super().__init__(workload)
        self._folder, self._by_length = folder, by_length
        # In int8 the two kinds of threads that CTranslate2 has can disturb each other. Then one thread is several times
        # as fast as all threads.
        seconds = {threads: self._time_with(threads) for threads in (1, os.cpu_count() or 1)}
        self._translator = self._load(min(seconds, key=seconds.__getitem__))

    def _load(self, threads: int) -> ctranslate2.Translator:
        type_ = compute_type(self._folder.name)
        return ctranslate2.Translator(str(self._folder), compute_type=type_, inter_threads=1, intra_threads=threads)

    def _time_with(self, threads: int) -> float:
        """Measures the seconds of a run with this number of threads."""
        self._translator = self._load(threads)
        self.run(8)  # does what only a first run does
        seconds = min(self.run(8).seconds for _ in range(2))
        del self._translator  # ends its threads: the threads of two translators would disturb each other
        return seconds

    def run(self, concurrency: int) -> Outcome:
        if not self._by_length:
            return super().run(concurrency)
        began = time.perf_counter()
        targets = self._translate(self._encode(self._workload.sentences(concurrency)), concurrency)
        self._tokenizer.batch_decode(targets, skip_special_tokens=True)
        return Outcome(time.perf_counter() - began, targets)

    def _translate(self, sources: list[list[int]], max_batch_size: int = 0) -> list[list[int]]:
        options: dict[str, Any] = {"beam_size": 1, "return_attention": True, "return_end_token": True}
        if self._workload.new_tokens is None:
            options["max_decoding_length"] = 128  # the bundled model's generation config has this limit
        else:
            options |= {"min_decoding_length": self._workload.new_tokens}
            options |= {"max_decoding_length": self._workload.new_tokens}
        pieces = [self._tokenizer.convert_ids_to_tokens(source) for source in sources]
        results = self._translator.translate_batch(pieces, max_batch_size=max_batch_size, **options)
        return [self._tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]


class Inseq(Contender):
    """Inseq's attention attribution of targets that Inseq generates itself."""

    one_by_one = True

    def __init__(self, workload: Workload) -> None:
        import inseq

        self._workload = workload
        self._model: Any = inseq.load_model(
            str(workload.folder), "attention", device="cpu", model_kwargs={"dtype": torch.float32}
        )

    def run(self, concurrency: int) -> Outcome:
        sentences = self._workload.sentences(concurrency)
        if self._workload.new_tokens is not None:
            sentences = sentences[:INSEQ_SENTENCES]
        began = time.perf_counter()
        targets = [target for sentence in sentences for target in self._attribute(sentence)]
        return Outcome(time.perf_counter() - began, targets)

    def _attribute(self, source: Source) -> list[list[int]]:
        if isinstance(source, str):
            output = self._model.attribute(source, show_progress=False)
        else:
            output = self._attribute_ids(source)
        # A target begins with the start token, which is left out.
        return [[token.id for token in sequence.target[1:]] for sequence in output.sequence_attributions]

    def _attribute_ids(self, source: list[int]) -> Any:
        """Does with token ids what `attribute` does with a text."""
        from inseq.data.batch import BatchEncoding

        def batch(ids: torch.Tensor) -> Any:
            tokens = [self._model.tokenizer.convert_ids_to_tokens(ids[0].tolist())]
            return BatchEncoding(ids, torch.ones_like(ids), tokens, baseline_ids=ids)

        sources = torch.tensor([source])
        length = self._workload.new_tokens
        targets = self._model.model.generate(
            sources, attention_mask=torch.ones_like(sources), num_beams=1, min_new_tokens=length, max_new_tokens=length
        )
        method = self._model.get_attribution_method("attention")
        (output,) = method.prepare_and_attribute(batch(sources), batch(targets), show_progress=False)
        return output


def _without_padding(ids: list[int], end: int, length: int | None) -> list[int]:
    """Returns a target without the padding behind its end token. Targets of a forced length have no padding."""
    return ids[: ids.index(end) + 1] if length is None and end in ids else ids


def compute_type(name: str) -> str:
    """The type of the weights of a contender or folder of this name."""
    return "int8" if "int8" in name else "float32"


def converted_folder(workload: Workload, scratch: Path, name: str) -> Path:
    """The folder of a workload's model in CTranslate2's format, for a contender of this name."""
    return scratch / f"{workload.name}-ct2-{compute_type(name)}"


def convert(workload: Workload, folder: Path) -> None:
    """Writes a workload's model in CTranslate2's format, if the folder is not there yet."""
    if not folder.exists():
        ctranslate2_peer.convert(workload.folder, folder, compute_type(folder.name))
