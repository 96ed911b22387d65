"""Word links as a picture: two lines of words with curves between them, as SVG or as a page for the browser.

Both are one file that needs no network. A curve shows its link's words and score when the pointer is on the curve. In
the page, a word or a curve also brings out what is linked with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.cells import cell_len

from ..alignments import Alignment
from ..offset_units import Span
from ..results import Link
from .terminal import escape_controls

# Sizes in pixels. Widths of letters are those of a monospaced font.
_LETTER, _GAP, _MARGIN = 9.6, 14.0, 24.0
_SOURCE_Y, _TARGET_Y, _HEIGHT = 40.0, 200.0, 240.0
# How far a curve ends from the middle line of its word.
_ABOVE, _BELOW = 10.0, 18.0

_STYLE = """
svg { --ink: #1d1d1b; --line: #b4480f; --paper: #fbfaf7; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --ink: #ececea; --line: #ffb066; --paper: #161618; } }
text { fill: var(--ink); font: 16px ui-monospace, "DejaVu Sans Mono", monospace; text-anchor: middle; }
path { fill: none; stroke: var(--line); stroke-width: 2; }
path:hover, .on path, path.on { stroke-width: 4; stroke-opacity: 1; }
text.on { font-weight: bold; fill: var(--line); }
svg.some path:not(.on) { stroke-opacity: .08; }
"""

_SCRIPT = """
const svg = document.querySelector("svg");
const paths = [...svg.querySelectorAll("path")];
function show(chosen) {
  svg.classList.toggle("some", chosen.length > 0);
  for (const node of svg.querySelectorAll(".on")) node.classList.remove("on");
  for (const path of chosen) {
    path.classList.add("on");
    for (const side of ["s", "t"]) document.getElementById(side + path.dataset[side]).classList.add("on");
  }
}
svg.addEventListener("mouseover", ({ target }) => {
  if (target.dataset.s !== undefined) show([target]);
  else if (!target.id) show([]);
  else show(paths.filter((path) => path.dataset[target.id[0]] === target.id.slice(1)));
});
svg.addEventListener("mouseleave", () => show([]));
"""


def render_alignment_svg(alignment: Alignment) -> bytes:
    """Renders the picture as SVG, in UTF-8."""
    return _draw(alignment).encode()


def render_alignment_page(alignment: Alignment) -> bytes:
    """Renders the picture as a page for the browser, in UTF-8."""
    marked = escape(escape_controls(alignment.marked_target_text, keep_lines=True))
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>Sidelight</title>\n'
        "<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; } div { overflow-x: auto; }</style>\n"
        f"</head>\n<body>\n<div>{_draw(alignment)}</div>\n<pre>{marked}</pre>\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    ).encode()


def _draw(alignment: Alignment) -> str:
    sources, source_end = _lay_out(alignment.source)
    targets, target_end = _lay_out(alignment.target)
    width = max(source_end, target_end) + _MARGIN
    shift = (source_end - target_end) / 2
    sources = [x + max(0.0, -shift) for x in sources]
    targets = [x + max(0.0, shift) for x in targets]
    curves = "\n".join(
        _draw_curve(alignment, link, sources[link.source], targets[link.target]) for link in alignment.links
    )
    words = "\n".join(
        [
            *_draw_words(alignment.source, sources, "s", _SOURCE_Y),
            *_draw_words(alignment.target, targets, "t", _TARGET_Y),
        ]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{_HEIGHT:.0f}" '
        f'viewBox="0 0 {width:.0f} {_HEIGHT:.0f}">\n<style>{_STYLE}</style>\n{curves}\n{words}\n</svg>'
    )


def _lay_out(words: Sequence[Span]) -> tuple[list[float], float]:
    """Returns the middle of each word, and the end of the last one."""
    middles: list[float] = []
    x = _MARGIN
    for word in words:
        width = cell_len(word.label) * _LETTER
        middles.append(x + width / 2)
        x += width + _GAP
    return middles, x - _GAP if words else x


def _draw_words(words: Sequence[Span], middles: Sequence[float], side: str, y: float) -> list[str]:
    return [
        f'<text id="{side}{number}" x="{x:.1f}" y="{y:.0f}">{_show(word)}</text>'
        for number, (word, x) in enumerate(zip(words, middles, strict=True))
    ]


def _draw_curve(alignment: Alignment, link: Link, begin: float, end: float) -> str:
    top, bottom = _SOURCE_Y + _ABOVE, _TARGET_Y - _BELOW
    middle = (top + bottom) / 2
    title = f"{_show(alignment.source[link.source])} – {_show(alignment.target[link.target])}: {link.score:.2f}"
    return (
        f'<path data-s="{link.source}" data-t="{link.target}" stroke-opacity="{0.25 + 0.75 * link.score:.2f}" '
        f'd="M{begin:.1f} {top:.0f}C{begin:.1f} {middle:.0f} {end:.1f} {middle:.0f} {end:.1f} {bottom:.0f}">'
        f"<title>{title}</title></path>"
    )


def _show(word: Span) -> str:
    return escape(escape_controls(word.label))
