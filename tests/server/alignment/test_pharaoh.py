import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidelight.server.alignment import Link, PharaohError, format_pharaoh, parse_gold, parse_pharaoh

_PAIRS = st.sets(st.tuples(st.integers(0, 30), st.integers(0, 30)))


@given(_PAIRS)
def test_what_is_written_is_read_again(pairs: set[tuple[int, int]]) -> None:
    links = sorted((Link(source, target, 1.0) for source, target in pairs), key=lambda link: (link.target, link.source))
    assert parse_pharaoh(format_pharaoh(links), 31, 31) == links


def test_order_scores_and_repetitions() -> None:
    assert parse_pharaoh(" 3-0\t0-1-0.25  0p1\n3-0 ") == [Link(3, 0, 1.0), Link(0, 1, 1.0)]
    assert parse_pharaoh("0-1-0.25") == [Link(0, 1, 0.25)]
    assert parse_pharaoh("", 0, 0) == []


def test_gold_links_are_sure_or_possible() -> None:
    sure, possible = parse_gold("0-0 1?0 2p3 2-2 1-0", 3, 4)
    assert [link[:2] for link in sure] == [(0, 0), (1, 0), (2, 2)]
    assert [link[:2] for link in possible] == [(2, 3)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0-0 1:1", 'pair 2 is "1:1", not'),
        ("-1-0", 'pair 1 is "-1-0", not'),
        ("0-0-1.5", "a score must be from 0 to 1"),
        ("0-0 2-0", 'pair 2 is "2-0", and the source has only 2 words, which count from 0'),
        ("1-1", "the target has only 1 word, which"),
        ("٣-0", "not"),
        ("x" * 1000, f'"{"x" * 40}…"'),
    ],
)
def test_errors_say_which_pair_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(PharaohError) as caught:
        parse_pharaoh(text, 2, 1)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200
