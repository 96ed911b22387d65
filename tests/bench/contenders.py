"""Who runs in `bench_engine.py`: Sidelight's servers, and the programs beside it.

Each takes a workload's sentences and gives the targets' token ids, the end token included. Each has a process of its
own and uses all cores; it takes texts (or ids) and gives texts (or ids), as a server does.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
import load_client
import numpy as np
import torch
import transformers
from ctranslate2.converters.transformers import BartLoader, MarianMTLoader, register_loader
from load_client import Stream
from sidelight.client.cli.demo import ServerError
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from workloads import Size, Source, Workload

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

# More would take minutes and tell nothing new: Inseq goes one by one.
INSEQ_SENTENCES = 8


@dataclass
class Outcome:
    """One run.

    Attributes:
        seconds: For all sentences.
        targets: Token ids, end token included, in the sentences' order. Fewer where the run was cut short.
        streams: What the client saw of each sentence; for servers only.
    """

    seconds: float
    targets: list[list[int]]
    streams: list[Stream] = field(default_factory=list)


class Contender(ABC):
    """A program on a workload's model, ready to run."""

    # Whether a run is one sentence after the other, so that one of them tells of every concurrency.
    one_by_one = False

    @abstractmethod
    def run(self, concurrency: int) -> Outcome:
        """Does a workload's sentences, this many at a time."""

    def cross(self) -> np.ndarray | None:
        """The first sentence's cross-attention, `[steps, positions, layers, heads]`; None where it gives none."""
        return None


class Sidelight(Contender):
    """A server process, over gRPC."""

    def __init__(self, address: str, workload: Workload, size: Size, *, capture: bool) -> None:
        self._address, self._workload, self._size, self._capture = address, workload, size, capture

    def run(self, concurrency: int) -> Outcome:
        seconds, streams = self._drive(concurrency)
        return Outcome(seconds, [stream.target for stream in streams], streams)

    def cross(self) -> np.ndarray | None:
        _, streams = self._drive(1, keep=True)
        return load_client.cross_of(streams[0].steps) if self._capture else None

    def _drive(self, concurrency: int, *, keep: bool = False) -> tuple[float, list[Stream]]:
        size = self._size
        capture, axes = (
            (load_client.EVERY_HEAD, (size.layers, size.heads)) if self._capture else (load_client.NOTHING, ())
        )
        return load_client.run(self._address, self._workload, concurrency, capture=capture, axes=axes, keep=keep)


class Apart(Contender):
    """A program in a process of its own.

    Two that share one, each with threads for all cores, make it have more threads than cores: libgomp's then no longer
    wait awake for their next piece of work. That takes CTranslate2 twice its time, and ten times for a small model.
    """

    def __init__(self, name: str, workload: Workload, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.one_by_one = name == "inseq"
        self._name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(name, workload, scratch, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, concurrency: int) -> Outcome:
        return self._ask("run", concurrency)

    def cross(self) -> np.ndarray | None:
        return self._ask("cross")

    def _ask(self, method: str, *arguments: int) -> Any:
        self._connection.send((method, arguments))
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self._name} has died") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self._name} failed") from answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def prepare() -> None:
    """Has libraries of this process say nothing, and torch use all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)


def _work(name: str, workload: Workload, scratch: Path, connection: Any) -> None:
    """What a process does that is a contender: answers with what methods give, until nobody asks any more."""
    prepare()
    contender: Contender | None = None
    with contextlib.suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            try:
                if contender is None:
                    contender = _contender(name, workload, scratch)
                answer = getattr(contender, method)(*arguments)
            except Exception as error:
                answer = error
            connection.send(answer)
            # What has been loaded stays: nobody's time should go into looking through it for garbage.
            gc.collect()
            gc.freeze()


def _contender(name: str, workload: Workload, scratch: Path) -> Contender:
    if name == "inseq":
        return Inseq(workload)
    if name in ("generate", "attentions"):
        return Generate(workload, attention=name == "attentions")
    return CTranslate2(workload, _converted(workload, scratch, name), by_length="sorted" in name)


class _Batches(Contender):
    """Batches of `concurrency` sentences as they come."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._tokenizer: Any = AutoTokenizer.from_pretrained(workload.folder)

    def run(self, concurrency: int) -> Outcome:
        sentences = self._workload.sentences(concurrency)
        targets: list[list[int]] = []
        began = time.perf_counter()
        for first in range(0, len(sentences), concurrency):
            targets += self._write(self._encode(sentences[first : first + concurrency]))
        if self._workload.new_tokens is None:
            self._tokenizer.batch_decode(targets, skip_special_tokens=True)
        return Outcome(time.perf_counter() - began, targets)

    def _encode(self, sentences: Sequence[Source]) -> list[list[int]]:
        if isinstance(sentences[0], str):
            return self._tokenizer(list(sentences)).input_ids
        return [source for source in sentences if not isinstance(source, str)]

    @abstractmethod
    def _write(self, sources: list[list[int]]) -> list[list[int]]:
        """The targets of one batch."""


class Generate(_Batches):
    """transformers' `generate`, with SDPA and no attention, or eager with `output_attentions=True`."""

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

    def _write(self, sources: list[list[int]]) -> list[list[int]]:
        output = self._generate(sources)
        written = output if isinstance(output, torch.Tensor) else output.sequences
        config = self._model.generation_config
        return [_until_end(row[1:], config.eos_token_id, self._workload.new_tokens) for row in written.tolist()]

    def _generate(self, sources: list[list[int]]) -> Any:
        batch = self._tokenizer.pad({"input_ids": sources}, return_tensors="pt")
        return self._model.generate(batch.input_ids, attention_mask=batch.attention_mask, **self._options)


class CTranslate2(_Batches):
    """CTranslate2 with its attention: the mean of the last layer's heads."""

    def __init__(self, workload: Workload, folder: Path, *, by_length: bool = False) -> None:
        """`folder` has the converted model."""
        super().__init__(workload)
        self._folder, self._by_length = folder, by_length
        # In int8 its two kinds of threads can be in each other's way: one thread is then several times as fast as all.
        seconds = {threads: self._try(threads) for threads in (1, os.cpu_count() or 1)}
        self._translator = self._load(min(seconds, key=seconds.__getitem__))

    def _load(self, threads: int) -> ctranslate2.Translator:
        type_ = _type(self._folder.name)
        return ctranslate2.Translator(str(self._folder), compute_type=type_, inter_threads=1, intra_threads=threads)

    def _try(self, threads: int) -> float:
        """Seconds that it takes with so many threads."""
        self._translator = self._load(threads)
        self.run(8)  # whatever it does but once
        seconds = min(self.run(8).seconds for _ in range(2))
        del self._translator  # and its threads: those of two would be in each other's way
        return seconds

    def run(self, concurrency: int) -> Outcome:
        if not self._by_length:
            return super().run(concurrency)
        began = time.perf_counter()
        targets = self._write(self._encode(self._workload.sentences(concurrency)), concurrency)
        self._tokenizer.batch_decode(targets, skip_special_tokens=True)
        return Outcome(time.perf_counter() - began, targets)

    def _write(self, sources: list[list[int]], max_batch_size: int = 0) -> list[list[int]]:
        options: dict[str, Any] = {"beam_size": 1, "return_attention": True, "return_end_token": True}
        if self._workload.new_tokens is None:
            options["max_decoding_length"] = 128  # as the bundled model's generation config says
        else:
            options |= {"min_decoding_length": self._workload.new_tokens}
            options |= {"max_decoding_length": self._workload.new_tokens}
        pieces = [self._tokenizer.convert_ids_to_tokens(source) for source in sources]
        results = self._translator.translate_batch(pieces, max_batch_size=max_batch_size, **options)
        return [self._tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]


class Inseq(Contender):
    """Inseq's attention attribution, of what it writes itself."""

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
        # Without the start token, at which a target begins.
        return [[token.id for token in sequence.target[1:]] for sequence in output.sequence_attributions]

    def _attribute_ids(self, source: list[int]) -> Any:
        """What `attribute` does with a text, done with token ids."""
        from inseq.data.batch import BatchEncoding

        def batch(ids: torch.Tensor) -> Any:
            tokens = [self._model.tokenizer.convert_ids_to_tokens(ids[0].tolist())]
            return BatchEncoding(ids, torch.ones_like(ids), tokens, baseline_ids=ids)

        sources = torch.tensor([source])
        length = self._workload.new_tokens
        written = self._model.model.generate(
            sources, attention_mask=torch.ones_like(sources), num_beams=1, min_new_tokens=length, max_new_tokens=length
        )
        method = self._model.get_attribution_method("attention")
        (output,) = method.prepare_and_attribute(batch(sources), batch(written), show_progress=False)
        return output


def _until_end(ids: list[int], end: int, length: int | None) -> list[int]:
    """A row without the padding behind its end token."""
    return ids[: ids.index(end) + 1] if length is None and end in ids else ids


# ---- by name --------------------------------------------------------------------------------------------------------

LABELS = {
    "sidelight": "(a) Sidelight, all cross-attention",
    "off": "(b) Sidelight, capture off",  # beside (a): the two are compared in pairs
    "sidelight-int8": "(a) Sidelight int8, all cross-attention",
    "generate": "(c) generate, SDPA, no attention",
    "attentions": "(d) generate, output_attentions",
    "inseq": "(e) Inseq, one by one",
    "ct2": "(f) CTranslate2, its attention",
    "ct2-sorted": "(f) CTranslate2, sorted by length",
    "ct2-int8": "(f) CTranslate2 int8, its attention",
    "ct2-int8-sorted": "(f) CTranslate2 int8, sorted by length",
}


# By `--dtype`, who asks the same server.
_SERVED = {"float32": ("sidelight", "off"), "int8": ("sidelight-int8",)}


@contextlib.contextmanager
def contending(
    names: Sequence[str], workload: Workload, size: Size, scratch: Path, serve_options: Sequence[str]
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Makes contenders ready, servers and all. Gives them by name, and why others of them cannot run."""
    ready: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for dtype, served in _SERVED.items():
            wanted = [name for name in served if name in names]
            if not wanted:
                continue
            options = ["--dtype", dtype, *serve_options]
            try:
                address = stack.enter_context(load_client.serve(workload.folder, workload.name, options))
            except ServerError as error:
                refused |= dict.fromkeys(wanted, f"the server refused `--dtype {dtype}`: {error}")
                continue
            for name in wanted:
                ready[name] = Sidelight(address, workload, size, capture=name != "off")
        for name in names:
            if name in itertools.chain(*_SERVED.values()) or (workload.all_at_once and "sorted" in name):
                continue
            if name.startswith("ct2"):
                _convert(workload, _converted(workload, scratch, name))
            ready[name] = stack.enter_context(contextlib.closing(Apart(name, workload, scratch)))
        yield {name: ready[name] for name in names if name in ready}, refused


def _type(name: str) -> str:
    return "int8" if "int8" in name else "float32"


def _converted(workload: Workload, scratch: Path, name: str) -> Path:
    """Where a workload's model is for CTranslate2, for a contender of this name."""
    return scratch / f"{workload.name}-ct2-{_type(name)}"


def _convert(workload: Workload, folder: Path) -> None:
    """Converts a model for CTranslate2: not in its process, whose threads torch's would be beside."""
    if folder.exists():
        return
    # Before anything is converted: this replaces CTranslate2's own loader for Marian.
    register_loader("MarianConfig")(_MarianLoader)
    converter = ctranslate2.converters.TransformersConverter(str(workload.folder))
    converter.convert(str(folder), quantization=_type(folder.name))


class _MarianLoader(MarianMTLoader):
    """CTranslate2's loader, less one thing: it starts every target from an embedding of zeros.

    That is the padding token's in Marian's own models and opus-mt's. The bundled model has learnt another one, and from
    zeros it writes other targets, with the sentence's first words in disorder.
    """

    def set_decoder(self, spec: Any, decoder: Any) -> None:
        super().set_decoder(spec, decoder)
        spec.start_from_zero_embedding = False

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        super().set_config(config, model, tokenizer)
        config.decoder_start_token = tokenizer.pad_token

    def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
        return BartLoader.get_vocabulary(self, model, tokenizer)

    def _remove_pad_weights(self, spec: Any) -> None:
        """They stay."""
