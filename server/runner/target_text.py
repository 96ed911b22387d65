"""The text of a target while the model writes the target: where the text begins, and what ends a hypothesis."""

from __future__ import annotations

from collections.abc import Sequence

from ..models import LoadedModel
from ..request import Request
from ..text import Detokenizer, StopTexts, Token


def begin_text(loaded: LoadedModel, request: Request) -> tuple[Detokenizer, list[Token]]:
    """Returns a detokenizer that has read the tokens before step 0, and the tokens that it has read one by one.

    There are no such tokens where the prefix is a text: then the detokenizer begins with this text.
    """
    context = () if loaded.is_encoder_decoder else request.source.ids
    detokenizer = Detokenizer(loaded.tokenizer, context, request.prefix)
    if request.prefix is not None:
        return detokenizer, []
    return detokenizer, [detokenizer.add(id_)[1] for id_ in request.decoder_prompt_ids]


class HypothesisTexts:
    """The texts of a beam search's hypotheses, and whether they contain stop texts.

    A text grows by one token from the text of the hypothesis before: no token is read again for each step.
    """

    def __init__(self, loaded: LoadedModel, request: Request, stops: Sequence[str]) -> None:
        detokenizer, _ = begin_text(loaded, request)
        self._stop_texts = StopTexts(stops, len(detokenizer.text))
        self._length = 0  # tokens of the hypotheses that the last call of `has_stop` was about, less one
        self._former: dict[tuple[int, ...], Detokenizer] = {(): detokenizer}
        self._present: dict[tuple[int, ...], Detokenizer] = {}

    def has_stop(self, ids: tuple[int, ...]) -> bool:
        """Whether the text of new tokens contains a stop text. All but the last token were asked about before."""
        if len(ids) - 1 > self._length:  # another step: the hypotheses are longer
            self._length = len(ids) - 1
            self._former, self._present = self._present, {}
        former = self._former[ids[:-1]]
        detokenizer = self._present[ids] = former.copy()
        detokenizer.add(ids[-1])
        return self._stop_texts.are_in(detokenizer.text, len(former.text))
