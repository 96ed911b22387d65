"""What `sidelight calibrate` shows: the preset, and a picture of the error rate of each head."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..alignment import AlignmentPreset

# The size of a cell of the picture, and of its margins, in pixels.
_WIDTH, _HEIGHT, _MARGIN, _TITLE = 56, 32, 70, 60


def print_report(preset: AlignmentPreset, path: Path) -> None:
    """Prints the preset, and for each row a table of the error rate of each head."""
    figures = preset.figures
    assert figures is not None
    console = Console()
    for row, layers in figures.head_error_rates.items():
        table = Table(title=f"error rate of each head, row {row}", title_justify="left")
        table.add_column("layer", justify="right")
        for head in range(len(layers[0])):
            table.add_column(str(head), justify="right")
        best = min(map(min, layers))
        for number, layer in enumerate(layers):
            cells = (f"[bold]{rate:.3f}[/]" if rate == best else f"{rate:.3f}" for rate in layer)
            table.add_row(str(number), *cells)
        console.print(table)
    heads = ", ".join(f"{layer}.{head}:{weight:g}" for layer, head, weight in preset.heads)
    features = ", ".join(f"{name} {weight:g}" for name, weight in preset.weights.items())
    lexicon = "none" if preset.lexicon is None else f"{len(preset.lexicon):,} pairs"
    threshold = preset.decision(has_states=True).threshold(preset.method)
    states = "not measured"
    if figures.states_error_rates is not None:
        choice = "used" if "encoder_states" in preset.weights else "left out"
        without, with_states = figures.states_error_rates
        states = f"{choice}; error rate {without:.3f} without them, {with_states:.3f} with them, cross-validated"
    for line in (
        f"heads {heads}; row {preset.row}; special tokens {preset.special_tokens}",
        f"method {preset.method} from {threshold:g}; features {features}; lexicon {lexicon}",
        f"encoder states {states}",
        f"error rate {figures.error_rate:.3f}, precision {figures.precision:.3f}, recall {figures.recall:.3f}, "
        f"on {figures.num_pairs:,} pairs against {figures.reference}",
        f"written to {path}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def draw_heads(preset: AlignmentPreset, model: str) -> str:
    """Returns an SVG picture: for each row, a grid of layers and heads with the error rate in each cell."""
    figures = preset.figures
    assert figures is not None
    chosen = {head[:2] for head in preset.heads}
    parts: list[str] = []
    top = 0
    width = _MARGIN
    for row, layers in figures.head_error_rates.items():
        title = f"{_escape(model)}: alignment error rate of each head, row {row}, against {_escape(figures.reference)}"
        parts.append(f'<text x="10" y="{top + 24}" font-weight="bold">{title}</text>')
        width = max(width, _MARGIN + _WIDTH * len(layers[0]) + 20, 20 + 8 * len(title))
        middles = ((_MARGIN + (head + 0.5) * _WIDTH, head) for head in range(len(layers[0])))
        parts += [_text(x, top + _TITLE - 8, f"head {head}") for x, head in middles]
        for layer, rates in enumerate(layers):
            middle = top + _TITLE + (layer + 0.62) * _HEIGHT
            parts.append(_text(_MARGIN / 2, middle, f"layer {layer}"))
            for head, rate in enumerate(rates):
                is_chosen = row == preset.row and (layer, head) in chosen
                parts.append(_cell(_MARGIN + head * _WIDTH, top + _TITLE + layer * _HEIGHT, rate, is_chosen=is_chosen))
        top += _TITLE + len(layers) * _HEIGHT + 20
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{top}" '
        f'font-family="sans-serif" font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _cell(x: float, y: float, rate: float, *, is_chosen: bool) -> str:
    """A cell: the lower the rate, the darker. Chosen heads have a frame."""
    strength = 1 - min(1.0, max(0.0, rate))
    red, green, blue = (round(255 - strength * (255 - full)) for full in (8, 81, 156))
    frame = 'stroke="#d94801" stroke-width="3"' if is_chosen else 'stroke="white"'
    color = "white" if strength > 0.75 else "black"
    return (
        f'<rect x="{x + 2}" y="{y + 2}" width="{_WIDTH - 4}" height="{_HEIGHT - 4}" '
        f'fill="rgb({red},{green},{blue})" {frame}/>' + _text(x + _WIDTH / 2, y + 0.62 * _HEIGHT, f"{rate:.3f}", color)
    )


def _text(x: float, y: float, text: str, color: str = "black") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{color}">{text}</text>'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
