"""What a model reads of a flow: sentences, with stand-ins for what is not translated.

Why stand-ins: no placeholder of any kind came back unchanged from the small bundled model, in 52 sentences of Tatoeba,
and the words around it were wrong too. Common names came back in 50 to 100 of 100 sentences: of 20 words that
were tried, these are the best. Larger models copy names as well.
"""

from __future__ import annotations

from itertools import count

from ....text import Span, find_sentences
from ..options import MarkupOptions
from .nodes import Flow, Sentence, StandIn

_NAMES = ("Tom", "Maria", "Boston", "Paris", "Berlin", "London")
_FIRST_NUMBER = 42


def divide_flow(flow: Flow, options: MarkupOptions) -> list[Sentence]:
    """Divides a flow into sentences if the options ask for sentences."""
    if options.has_target:
        return [Sentence(0, len(flow.text), flow.text)]
    spans = find_sentences(flow.text) if options.splits_sentences else [(0, len(flow.text))]
    return [_make_sentence(flow, span) for span in _join_around(flow, spans)]


def _join_around(flow: Flow, spans: list[Span]) -> list[Span]:
    """Joins sentences so that each content that is not translated lies in one sentence."""
    joined: list[Span] = []
    protected = [(node.begin, node.end) for node in flow.protected]
    number = 0
    for begin, end in spans:
        if joined:
            last_end = joined[-1][1]
            while number < len(protected) and protected[number][1] <= last_end:
                number += 1
            if number < len(protected) and protected[number][0] < begin:
                joined[-1] = joined[-1][0], max(end, protected[number][1])
                continue
        joined.append((begin, end))
    return joined


def _make_sentence(flow: Flow, span: Span) -> Sentence:
    """Puts stand-ins into a sentence: words that the sentence does not have yet."""
    begin, end = span
    names = (name for name in _list_names() if name not in flow.text)
    parts: list[str] = []
    stand_ins: list[StandIn] = []
    length = 0
    done = begin
    own = ""
    for node in flow.protected:
        if begin <= node.begin and node.end <= end and node.begin < node.end:
            own += flow.text[done : node.begin]
            parts.append(flow.text[done : node.begin])
            length += node.begin - done
            stand_ins.append(StandIn(node, next(names), length))
            parts.append(stand_ins[-1].text)
            length += len(stand_ins[-1].text)
            done = node.end
    own += flow.text[done:end]
    parts.append(flow.text[done:end])
    has_words = any(map(str.isalpha, own))
    return Sentence(begin, end, "".join(parts) if has_words else "", stand_ins if has_words else [])


def _list_names():
    yield from _NAMES
    yield from map(str, count(_FIRST_NUMBER))
