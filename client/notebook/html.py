"""What Jupyter shows of a result: the page of `views` in a frame of its own, or the picture of word links."""

from __future__ import annotations

from html import escape

from ..alignments import Alignment
from ..results import Attribution
from ..views import escape_controls, render_alignment_svg, render_page

# Pixels: what the page needs beside the lines of its heatmap, for a line, and at most.
_BASE_HEIGHT, _LINE_HEIGHT, _MAX_HEIGHT = 330, 30, 720


def attribution_html(attribution: Attribution) -> str:
    """Returns the page of an attribution in a frame, which neither reads nor changes the notebook around it.

    An attribution without attention, or of a recording, is its text.
    """
    kinds = (attribution.cross, attribution.decoder_self, attribution.encoder_self)
    if all(kind is None for kind in kinds) or attribution.started.source_position_count:
        return text_html(attribution.text)
    page = render_page([attribution]).decode()
    height = min(_BASE_HEIGHT + _LINE_HEIGHT * len(attribution.targets), _MAX_HEIGHT)
    return (
        f'<iframe sandbox="allow-scripts" srcdoc="{escape(page)}" title="Attention" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )


def alignment_html(alignment: Alignment) -> str:
    """Returns the picture of the word links, and the target with its markup where there is any."""
    picture = f'<div style="overflow-x: auto">{render_alignment_svg(alignment).decode()}</div>'
    if alignment.marked_target_text == alignment.target_text:
        return picture
    return picture + text_html(alignment.marked_target_text)


def text_html(text: str) -> str:
    """Returns a text as HTML. Nothing in the text is markup."""
    return f'<pre dir="auto" style="white-space: pre-wrap">{escape(escape_controls(text, keep_lines=True))}</pre>'
