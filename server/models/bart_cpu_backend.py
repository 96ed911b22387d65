"""A backend for BART-style encoder-decoders on a CPU: a step of all slots is one compiled program.

It serves float32 and int8 on x86 processors with AVX2 (see `kernels.cpu`). No Python runs between the
operations of a program, so the other threads of the server go on meanwhile. Prompts run by transformers' modules, and
sources that are too long for a program by `BartEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import PreTrainedModel

from ..layers import ArgmaxQuery, LMHead
from .backend import BackendConfig, TargetBatch, UnsupportedModelError
from .bart_cpu_layers import check_stack
from .bart_cpu_programs import MAX_PROGRAM_TOKENS, DecoderProgram, EncoderProgram, TargetProgram
from .bart_modules import BartEncoder, check_lm_head, is_bart_style
from .kv_cache import KVCache, KVLayout
from .transformers_backend import TransformersBackend


class BartCpuBackend(TransformersBackend):
    """Runs the sources and the steps of a BART-style model as compiled CPU programs."""

    writes_selected_rows: ClassVar[bool] = True
    kv_layout: ClassVar[KVLayout] = "position_major"  # as programs read it

    def __init__(self, model: PreTrainedModel, config: BackendConfig, lm_head: LMHead | None) -> None:
        """As `Backend` describes it."""
        check_lm_head(lm_head)
        super().__init__(model, config, lm_head)
        self._long_source_encoder = BartEncoder(model.get_encoder())
        self._encoder_program = EncoderProgram(model)
        self._decoder_program = DecoderProgram(model.get_decoder())
        # Programs that read targets into the slots of a KV cache.
        self._filling_programs: WeakKeyDictionary[KVCache, TargetProgram] = WeakKeyDictionary()

    @classmethod
    def supports(cls, model: PreTrainedModel) -> bool:
        """Whether the families, the type, the device and the head width are those of programs."""
        return cls.reads_panels(model)

    @classmethod
    def reads_panels(cls, model: PreTrainedModel) -> bool:
        """Programs read all weights in panels."""
        if not is_bart_style(model):
            return False
        try:
            for stack in (model.get_encoder(), model.get_decoder()):
                check_stack(stack)
        except UnsupportedModelError:
            return False
        return True

    @property
    def max_prefill_tokens(self) -> int:
        """How many source tokens are encoded at once."""
        return MAX_PROGRAM_TOKENS

    def _encode(self, sources: Tensor, mask: Tensor | None) -> Tensor:
        return self._long_source_encoder.encode(sources, mask)

    def prefill_sources(self, sources: Tensor, lengths: Mapping[int, int], cache: KVCache) -> None:
        """Encode short sources together as a program, and each long source alone.

        The length of a source alone decides how it is encoded, so its numbers do not depend on other sources.
        """
        short: dict[int, int] = {}  # the lengths of short sources, by slot
        rows: list[int] = []
        for row, (slot, length) in enumerate(lengths.items()):
            if self._encoder_program.takes(length):
                short[slot] = length
                rows.append(row)
            else:
                self._prefill_source(sources[row : row + 1, :length], length, slot, cache)
        if short:
            self._encoder_program.run(sources if len(rows) == len(sources) else sources[rows], short, cache)

    @cached_property
    def _target_program(self) -> TargetProgram:
        """Made for the first given target: the program has tensors of its own."""
        return TargetProgram(self._model, self._config)

    def read_targets(self, batch: TargetBatch) -> Tensor | None:
        """Run encoder and decoder over whole sequences as programs; long ones as `TransformersBackend` does."""
        program = self._target_program
        if batch.cache is not None:
            if batch.cache not in self._filling_programs:
                self._filling_programs[batch.cache] = TargetProgram(self._model, self._config, batch.cache)
            program = self._filling_programs[batch.cache]
        targets = program.record_targets(batch)
        return super().read_targets(batch) if targets is None else program.run(batch, targets)

    def encode(self, sources: Tensor, lengths: Sequence[int]) -> Tensor:
        """The output of the encoder's program; that of `BartEncoder` for long sources."""
        if self._target_program.takes_sources(lengths):
            return self._target_program.encode(sources, lengths)
        return super().encode(sources, lengths)

    def decode(self, tokens: Tensor, cache: KVCache, query: ArgmaxQuery | None = None) -> Tensor:
        """Run a step as a program, and the search of a `query` in the same run."""
        return self._decoder_program.run(tokens, cache, query)
