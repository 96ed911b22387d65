"""Word links as a picture: two lines of words with curves between them, as SVG or as a page for the browser.

Both are one file that needs no network. When the pointer is on a curve or on a target word, bars over the source words
show the row of the target word. In the page, a source word also brings out what is linked with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from rich.cells import cell_len

from ..alignments import Alignment
from ..offset_units import Span, Token
from ..results import Attribution, FloatArray, Link, WordAlignment
from .terminal import escape_controls

# Sizes in pixels. Widths of letters are those of a monospaced font.
_LETTER, _GAP, _MARGIN = 9.8, 14.0, 24.0
_SOURCE_Y, _TARGET_Y, _HEIGHT = 70.0, 230.0, 256.0
# How far a curve ends from the middle line of its word.
_ABOVE, _BELOW = 10.0, 18.0
# The bars of a row: where they stand, how high a bar of 1 is, how wide a bar is.
_BAR_Y, _BAR_HEIGHT, _BAR_WIDTH = 50.0, 30.0, 12.0
# Smaller numbers of a row are not shown.
_LEAST = 0.005

_STYLE = """
svg.links { --ink: #1d1d1b; --line: #b4480f; --paper: #fbfaf7; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg.links { --ink: #ececea; --line: #ffb066; --paper: #161618; } }
.links text { fill: var(--ink); font: 16px ui-monospace, "DejaVu Sans Mono", monospace; text-anchor: middle; }
.links path { fill: none; stroke: var(--line); stroke-width: 2; }
.links .row { fill: var(--line); visibility: hidden; pointer-events: none; }
.links .row text { font-size: 11px; }
.links .word:hover .row { visibility: visible; }
.links .word:hover path, .links path.on { stroke-width: 4; stroke-opacity: 1; }
.links .word:hover > text, .links text.on { font-weight: bold; fill: var(--line); }
.links.some path:not(.on) { stroke-opacity: .08; }
"""

_PAGE_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; background: #fbfaf7; color: #1d1d1b; }
@media (prefers-color-scheme: dark) { body { background: #161618; color: #ececea; } }
div { overflow-x: auto; }
pre { white-space: pre-wrap; }
"""

_SCRIPT = """
const svg = document.querySelector("svg");
svg.addEventListener("mouseover", ({ target }) => {
  const word = target.closest(".word"), source = target.dataset.source;
  const paths = [...svg.querySelectorAll("path")];
  const chosen = paths.filter((path) => (word ? word.contains(path) : path.dataset.s === source));
  svg.classList.toggle("some", chosen.length > 0);
  for (const node of svg.querySelectorAll(".on")) node.classList.remove("on");
  for (const path of chosen) {
    path.classList.add("on");
    svg.querySelector(`[data-source="${path.dataset.s}"]`).classList.add("on");
    path.closest(".word").querySelector("text.target").classList.add("on");
  }
});
svg.addEventListener("mouseleave", () => {
  svg.classList.remove("some");
  for (const node of svg.querySelectorAll(".on")) node.classList.remove("on");
});
"""


def render_alignment_svg(alignment: Alignment) -> bytes:
    """Renders the picture as SVG, in UTF-8."""
    return draw_picture(alignment, score_rows(alignment)).encode()


def render_alignment_page(alignment: Alignment) -> bytes:
    """Renders the picture as a page for the browser, in UTF-8."""
    marked = escape(escape_controls(alignment.marked_target_text, keep_lines=True))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>Sidelight</title>\n'
        f"<style>{_PAGE_STYLE}</style>\n</head>\n<body>\n"
        f'<div>{draw_picture(alignment, score_rows(alignment))}</div>\n<pre dir="auto">{marked}</pre>\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    ).encode()


def score_rows(alignment: Alignment | WordAlignment) -> FloatArray:
    """Returns the scores of the links as rows, `[target words, source words]`. A pair of words without a link has 0."""
    rows = np.zeros((len(alignment.target), len(alignment.source)), np.float32)
    for source, target, score in alignment.links:
        rows[target, source] = score
    return rows


def attention_rows(attribution: Attribution, alignment: WordAlignment) -> FloatArray:
    """Returns the cross-attention of words, `[target words, source words]`: what an attribution has captured of it.

    Heads and layers become their mean, the steps of a target word their mean, and the positions of a source word their
    sum. Without cross-attention in the attribution, these are the scores of the links.
    """
    if attribution.cross is None:
        return score_rows(alignment)
    attention: FloatArray = attribution.cross.astype(np.float32)
    attention = attention.mean(axis=tuple(range(2, attention.ndim)))
    steps = find_members(alignment.target, attribution.targets)
    positions = find_members(alignment.source, attribution.source_positions)
    rows = np.zeros((len(steps), len(positions)), np.float32)
    for target, row in enumerate(steps):
        for source, columns in enumerate(positions):
            if row:
                rows[target, source] = attention[np.ix_(columns, row)].sum(axis=0).mean()
    return rows


def find_members(words: Sequence[Span], parts: Sequence[Token | Span]) -> list[list[int]]:
    """Returns for each word the indices of the tokens, or units, that share a character with the word."""
    return [
        [index for index, part in enumerate(parts) if max(word.begin, part.begin) < min(word.end, part.end)]
        for word in words
    ]


def draw_picture(alignment: Alignment | WordAlignment, rows: FloatArray) -> str:
    """Draws the words and their links as SVG.

    Args:
        alignment: The words and the links.
        rows: What the bars show of each target word, `[target words, source words]`.
    """
    sources, source_end = _lay_out(alignment.source)
    targets, target_end = _lay_out(alignment.target)
    width = max(source_end, target_end) + _MARGIN
    shift = (source_end - target_end) / 2
    sources = [x + max(0.0, -shift) for x in sources]
    targets = [x + max(0.0, shift) for x in targets]
    links: list[list[Link]] = [[] for _ in targets]
    for link in alignment.links:
        links[link.target].append(link)
    source_words = "\n".join(
        f'<text data-source="{number}" x="{x:.1f}" y="{_SOURCE_Y:.0f}">{_show(word)}</text>'
        for number, (word, x) in enumerate(zip(alignment.source, sources, strict=True))
    )
    target_words = "\n".join(
        f'<g class="word" data-target="{number}">{_draw_target(alignment, number, x, sources, links[number], row)}</g>'
        for number, (x, row) in enumerate(zip(targets, rows, strict=True))
    )
    return (
        f'<svg class="links" xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{_HEIGHT:.0f}" '
        f'viewBox="0 0 {width:.0f} {_HEIGHT:.0f}">\n<style>{_STYLE}</style>\n{target_words}\n{source_words}\n</svg>'
    )


def _lay_out(words: Sequence[Span]) -> tuple[list[float], float]:
    """Returns the middle of each word, and the end of the last one."""
    middles: list[float] = []
    x = _MARGIN
    for word in words:
        width = cell_len(escape_controls(word.label)) * _LETTER
        middles.append(x + width / 2)
        x += width + _GAP
    return middles, x - _GAP if words else x


def _draw_target(
    alignment: Alignment | WordAlignment,
    number: int,
    x: float,
    sources: Sequence[float],
    links: Sequence[Link],
    row: FloatArray,
) -> str:
    """Draws a target word, its curves, and the bars of its row."""
    shown = [(source, float(value)) for source, value in enumerate(row) if value >= _LEAST]
    order = sorted(shown, key=lambda part: -part[1])
    listed = "".join(f"\n{value:.2f}  {_show(alignment.source[source])}" for source, value in order)
    title = f"<title>{_show(alignment.target[number])}{listed}</title>"
    curves = "".join(_draw_curve(alignment, link, sources[link.source], x, listed) for link in links)
    greatest = max([1.0, *(value for _, value in order[:1])])
    bars = "".join(_draw_bar(sources[source], value, value / greatest) for source, value in shown)
    word = f'<text class="target" x="{x:.1f}" y="{_TARGET_Y:.0f}">{_show(alignment.target[number])}{title}</text>'
    return f'{curves}{word}<g class="row">{bars}</g>'


def _draw_bar(x: float, value: float, share: float) -> str:
    height = share * _BAR_HEIGHT
    bar = (
        f'<rect x="{x - _BAR_WIDTH / 2:.1f}" y="{_BAR_Y - height:.1f}" width="{_BAR_WIDTH:.0f}" height="{height:.1f}"/>'
    )
    # Digits of small numbers would lie over one another where words are short.
    return bar + (f'<text x="{x:.1f}" y="{_BAR_Y - height - 4:.1f}">{value:.2f}</text>' if share >= 0.1 else "")


def _draw_curve(alignment: Alignment | WordAlignment, link: Link, begin: float, end: float, listed: str) -> str:
    top, bottom = _SOURCE_Y + _ABOVE, _TARGET_Y - _BELOW
    middle = (top + bottom) / 2
    title = f"{_show(alignment.source[link.source])} – {_show(alignment.target[link.target])}: {link.score:.2f}"
    return (
        f'<path data-s="{link.source}" stroke-opacity="{0.25 + 0.75 * link.score:.2f}" '
        f'd="M{begin:.1f} {top:.0f}C{begin:.1f} {middle:.0f} {end:.1f} {middle:.0f} {end:.1f} {bottom:.0f}">'
        f"<title>{title}\n{listed}</title></path>"
    )


def _show(word: Span) -> str:
    return escape(escape_controls(word.label))
