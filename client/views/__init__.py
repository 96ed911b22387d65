"""Views of attributions, for people.

heatmap             Heatmap: in a terminal, a line for each step
page                render_page: a page for the browser, in one file and without a network; page.html is its template
alignment           print_alignment: word links in a terminal
alignment_picture   the same as SVG, as a page, or beside the heatmap of `page`
words               which tokens a view shows as one word
progress            bars on standard error for what takes long
terminal            text for terminals and pipes: control characters escaped, no markup
"""

from .alignment import draw_links, print_alignment
from .alignment_picture import render_alignment_page, render_alignment_svg
from .heatmap import Heatmap
from .page import render_page
from .progress import make_progress_bar, show_waiting
from .terminal import escape_controls, make_console, print_error, print_message, print_text
from .words import count_complete, find_words

__all__ = [
    "Heatmap",
    "count_complete",
    "draw_links",
    "escape_controls",
    "find_words",
    "make_console",
    "make_progress_bar",
    "print_alignment",
    "print_error",
    "print_message",
    "print_text",
    "render_alignment_page",
    "render_alignment_svg",
    "render_page",
    "show_waiting",
]
