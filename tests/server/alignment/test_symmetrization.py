from hypothesis import given
from hypothesis import strategies as st
from sidelight.server.alignment import Link, join_links

_LINKS = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.floats(0, 1)).map(
    lambda scores: [Link(*pair, score) for pair, score in scores.items()]
)


def _pairs(links: list[Link]) -> set[tuple[int, int]]:
    return {link[:2] for link in links}


@given(_LINKS, _LINKS)
def test_intersection_grow_diag_final_and_union_contain_one_another(forward: list[Link], backward: list[Link]) -> None:
    both = _pairs(join_links(forward, backward, "intersection"))
    grown = _pairs(join_links(forward, backward, "grow_diag_final_and"))
    either = _pairs(join_links(forward, backward, "union"))
    assert both == _pairs(forward) & _pairs(backward)
    assert either == _pairs(forward) | _pairs(backward)
    assert both <= grown <= either


def test_grow_diag_final_and() -> None:
    forward = [Link(0, 0, 1.0), Link(1, 1, 0.5), Link(4, 4, 0.5), Link(0, 4, 0.5)]
    backward = [Link(0, 0, 0.5), Link(1, 2, 0.5), Link(3, 4, 0.25)]
    # (1, 1) and (1, 2) are neighbours with a word without a link; (0, 4) is none, and comes first among the last.
    assert join_links(forward, backward, "grow_diag_final_and") == [
        Link(0, 0, 0.75),
        Link(1, 1, 0.25),
        Link(1, 2, 0.25),
        Link(4, 4, 0.25),
    ]
