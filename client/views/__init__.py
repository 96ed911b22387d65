"""Views of attributions, for people.

heatmap     Heatmap: in a terminal, a line for each step
page        render_page: a page for the browser, in one file and without a network; page.html is its template
words       which tokens a view shows as one word
terminal    text for terminals and pipes: control characters escaped, no markup
"""

from .heatmap import Heatmap
from .page import render_page
from .terminal import escape_controls, make_console, print_error, print_message, print_text
from .words import count_complete

__all__ = [
    "Heatmap",
    "count_complete",
    "escape_controls",
    "make_console",
    "print_error",
    "print_message",
    "print_text",
    "render_page",
]
