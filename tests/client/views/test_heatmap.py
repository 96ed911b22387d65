"""The heatmap in the terminal."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from client_tokens import SHORT, byte_tokens, tokens
from rich.cells import cell_len
from rich.console import Console
from sidelight.client import AttentionLayout, Started, Step, Token
from sidelight.client.views.heatmap import Heatmap
from sidelight.client.views.words import find_words


def print_heatmap(
    source: tuple[Token, ...], weights: np.ndarray, width: int = 80, color: bool = False, kind="cross"
) -> str:
    output = io.StringIO()
    system = "truecolor" if color else None
    console = Console(file=output, width=width, force_terminal=color, color_system=system, highlight=False)
    layout = AttentionLayout(kind, (), (0,), 1, ())
    started = Started("r", "m", "", source, (), {kind: layout}, (), "predicting", kind == "cross")
    heatmap = Heatmap(console, started)
    heatmap.print_header()
    for index, row in enumerate(weights):
        token = Token(index, f"▁w{index}", 0, 2, False, f"w{index}")
        cross = row if kind == "cross" else None
        decoder_self = row if kind == "decoder_self" else None
        heatmap.print_step(Step(index, token, "", cross, decoder_self, {}), source)
    return output.getvalue()


def step_lines(output: str, count: int) -> list[str]:
    """Returns the lines of the steps, without the header."""
    return output.splitlines()[-count - 1 :]


@pytest.mark.parametrize("kind", ["cross", "decoder_self"])
def test_scores_and_the_share_of_special_tokens_have_columns(kind):
    output = io.StringIO()
    layout = AttentionLayout(kind, (), (0,), 1, ())
    started = Started(
        "r", "m", "", SHORT, (), {kind: layout}, ("probability", "kl_divergence"), "predicting", kind == "cross"
    )
    heatmap = Heatmap(
        Console(file=output, width=100, highlight=False), dataclasses.replace(started, special_tokens="renormalize")
    )
    heatmap.print_header()
    row, shares = np.eye(7)[0], {kind: np.array([0.25, 0.75])}
    arrays = (row, None) if kind == "cross" else (None, row)
    heatmap.print_step(Step(0, SHORT[0], "", *arrays, {"probability": 0.9, "kl_divergence": 1.25e-5}, shares), SHORT)
    header, line = output.getvalue().splitlines()
    assert header.split()[:4] == ["probability", "kl", "diverge…", "special"]
    assert line.split()[1:4] == ["0.9", "1.25e-05", "0.5"]
    assert line.index("0.9") + 3 == header.index("probability") + len("probability")
    assert ("██" in line) == (kind == "cross")


def test_numbers_that_are_no_shares_are_relative_to_the_greatest_of_the_line():
    output = io.StringIO()
    layout = AttentionLayout("cross", (), (0,), 1, ())
    started = Started("r", "m", "", SHORT, (), {"cross": layout}, (), "predicting", True, is_share=False)
    console = Console(file=output, width=80, force_terminal=True, color_system="truecolor", highlight=False)
    heatmap = Heatmap(console, started)
    heatmap.print_header()
    heatmap.print_step(Step(0, SHORT[0], "", np.array([8.0, 3, 3, 0, -1, 2, 0]), None, {}), SHORT)
    note, _, line = output.getvalue().splitlines()
    assert "greatest number of each line" in note
    cells = [part.partition("m")[2].strip() for part in line.split("\x1b[")]
    assert [cell for cell in cells if cell.isdigit()] == ["99", "75", "25"]


def test_words_across_and_shades_below():
    weights = np.array([[1.0, 0, 0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0, 0]])
    header, first, second = print_heatmap(SHORT, weights).splitlines()
    assert header.split() == ["My", "grandmot…", "is", "old", ".", "</s>"]
    assert first.split() == ["w0", "██"]
    assert second.index("███") == header.index("grandmot…")  # the sum of both pieces' attention


def test_colours_carry_the_share_in_percent():
    output = print_heatmap(SHORT, np.array([[0.25, 0.35, 0.4, 0, 0, 0, 0]]), color=True)
    assert "\x1b[" in output
    assert "25" in output
    assert "75" in output


@pytest.mark.parametrize("count", [1, 7, 15, 21, 22, 40, 64, 65, 150])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("color", [False, True])
def test_no_line_is_wider_than_the_terminal(count, width, color):
    source = tokens(*(f" word{number}" for number in range(count)), "</s>")
    weights = np.eye(count + 1)
    output = print_heatmap(source, weights, width=width, color=color)
    plain = io.StringIO()
    for part in output.split("\x1b["):
        plain.write(part.partition("m")[2] if plain.tell() and color else part)
    assert all(cell_len(line) <= width for line in plain.getvalue().splitlines())
    if not color:
        # Every word has a column, or its name is in the line of the token that looks at it.
        assert all(
            "█" in line or f"{source[index].label} 100" in line for index, line in enumerate(step_lines(output, count))
        )


def test_wide_characters_keep_the_columns_straight():
    source = tokens("猫", " が", " いる", "</s>")
    header, *lines = print_heatmap(source, np.eye(4)).splitlines()
    for index, line in enumerate(lines):
        column = cell_len(line[: line.index("█")])
        assert column == cell_len(header[: header.index(source[index].label)])


def test_without_a_source_the_words_with_the_most_attention_are_listed():
    weights = np.array([[0.02, 0.6, 0.003, 0.3, 0.05, 0.02, 0.007]])
    (line,) = print_heatmap(SHORT, weights, kind="decoder_self").splitlines()
    assert line.split() == ["w0", "grandmother", "60", "is", "30", "old", "5", "My", "2", ".", "2"]


def test_letters_of_longer_sources_stand_below_each_other():
    source = tokens(*(f" {letter}-word" for letter in "abcdefghijklmnopqrst"), "</s>")
    lines = print_heatmap(source, np.eye(21)).splitlines()
    assert "abcdefghijklmnopqrst" in lines[0].replace(" ", "")
    header, steps = lines[:-21], lines[-21:]
    assert len(header) == len("a-word")
    for index, line in enumerate(steps):
        column = line.index("█")
        assert "".join(row[column : column + 1].strip() for row in header) == (source[index].text or "</s>")


def test_bytes_are_shown_when_their_character_is_complete():
    streamed = [(0, 1, ""), (0, 1, ""), (0, 1, "한"), (1, 2, ""), (1, 2, "국")]
    lines = [step_line(token) for token in byte_tokens(*streamed)]
    assert [line.split()[0] for line in lines] == ["…", "…", "한", "…", "국"]


def step_line(token: Token) -> str:
    output = io.StringIO()
    layout = AttentionLayout("cross", (), (0,), 1, ())
    heatmap = Heatmap(
        Console(file=output, width=80), Started("r", "m", "", SHORT, (), {"cross": layout}, (), "predicting", True)
    )
    heatmap.print_step(Step(0, token, "", np.eye(7)[0], None, {}), SHORT)
    return output.getvalue()


def test_a_prompt_and_its_target_share_no_character():
    """Their spans count in two different texts."""
    prompt = tokens("Once", " upon")[:1]
    target = tokens("On", "ce", " more")
    assert [word.label for word in find_words((*prompt, *target), 1)] == ["Once", "Once", "more"]
    prompt, target = tokens("a", "b"), (Token(5, "c", 2, 3, False, "c"),)
    assert [word.label for word in find_words((*prompt, *target), 2)] == ["ab", "c"]
    output = io.StringIO()
    layout = AttentionLayout("decoder_self", (), (0,), 1, ())
    started = Started("r", "m", "ab", prompt, (), {"decoder_self": layout}, (), "predicting", False)
    heatmap = Heatmap(Console(file=output, width=80), started)
    heatmap.print_step(Step(1, target[0], "", None, np.array([0.5, 0.2, 0.3]), {}), (*prompt, *target))
    assert output.getvalue().split() == ["c", "ab", "70", "c", "30"]


def test_control_characters_do_not_reach_the_terminal():
    source = (Token(0, "▁\x1b[31m", 0, 5, False, "\x1b[31m"), Token(1, "\n", 5, 6, False, "\n"))
    assert "\x1b" not in print_heatmap(source, np.eye(2))
    assert "\x1b" not in print_heatmap(source, np.eye(2), kind="decoder_self")


@pytest.mark.parametrize("system", ["standard", "256", "truecolor"])
def test_text_colors_differ_from_background_colors_in_every_palette(system):
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, color_system=system, highlight=False)
    layout = AttentionLayout("cross", (), (0,), 1, ())
    heatmap = Heatmap(console, Started("r", "m", "", SHORT, (), {"cross": layout}, (), "predicting", True))
    for share in (0.02, 0.12, 0.3, 0.6, 1.0):
        style = heatmap._cell_style(share)
        assert style.bgcolor is None or style.color.get_truecolor() != style.bgcolor.get_truecolor()


def test_an_ascii_terminal_gets_ascii_shades():
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=output, width=80, highlight=False)
    layout = AttentionLayout("cross", (), (0,), 1, ())
    heatmap = Heatmap(console, Started("r", "m", "", SHORT, (), {"cross": layout}, (), "predicting", True))
    heatmap.print_step(Step(0, SHORT[0], "", np.array([1.0, 0, 0, 0.3, 0, 0, 0]), None, {}), SHORT)
    output.flush()
    assert b"##" in output.buffer.getvalue()
