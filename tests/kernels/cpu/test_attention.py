"""Attention of CPU programs, of steps and within sequences, and where its rows go, against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sidelight.kernels.cpu.program import MOST_WIDTH, Attention, Program, is_supported, keep
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(), reason="no programs on this machine"),
    pytest.mark.usefixtures("seeded"),
]

NAN, INFINITY = float("nan"), float("inf")


def unwritten(*shape: int) -> Tensor:
    return torch.full(shape, NAN)


# Heads, the width of each, and that of its values.
HEADS = [(1, 1, 1), (1, 5, 5), (2, 16, 33), (3, 33, 16), (8, 64, 64), (2, 80, 80), (4, 40, 130)]
SLOTS, POSITIONS = 9, 70


class Attending:
    """Queries of some slots from `first` on, over what there is in all; behind it stands NaN."""

    def __init__(self, heads: int, width: int, value_width: int, *, is_own: bool, first: int = 2, count: int = 6):
        self.first, self.count, self.scale = first, count, width**-0.5
        self.lengths = torch.tensor([40, 69, 1, 65, 16, 33, 2, 64, 69])[:, None]
        self.query = torch.randn(count, heads * width)
        self.keys, self.values = torch.randn(SLOTS, heads, POSITIONS, width), torch.randn(SLOTS, heads, 70, value_width)
        behind = torch.arange(POSITIONS) >= self.lengths
        for tensor in (self.keys, self.values):
            tensor.masked_fill_(behind[:, None, :, None], NAN)
        # Side by side, as projections give them.
        new = torch.randn(count, heads * (width + value_width)).split([heads * width, heads * value_width], 1)
        self.new = new if is_own else None

    def run(self, shown: int = 75) -> tuple[Tensor, Tensor]:
        """Shares, `[rows, heads, 80]`, and what is mixed."""
        _, heads, _, value_width = self.values.shape
        shares, out = torch.full((self.count, heads, 80), 77.0), unwritten(self.count, heads * value_width)
        program = Program(self.count)
        attention = Attention(self.keys, self.values, self.lengths, self.scale, self.new)
        program.attend(self.query, attention, shares, out)
        shown_of = {"shown_source": shown} if self.new is None else {"shown_own": shown}
        program.run(self.count, first=self.first, **shown_of)
        return shares, out

    def caches(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they are to be after a run."""
        made = self.keys.clone(), self.values.clone()
        for caches, new in zip(made, self.new or (), strict=False):
            for row, each in enumerate(new):
                slot = self.first + row
                caches[slot, :, self.lengths[slot, 0]] = each.view(caches.shape[1], -1)
        return made

    def truth(self) -> tuple[Tensor, Tensor]:
        """What a run gives, in float64."""
        keys, values = (each[self.first :][: self.count].double() for each in self.caches())
        lengths = self.lengths[self.first :][: self.count] + (self.new is not None)
        seen = (torch.arange(POSITIONS) < lengths)[:, None]
        query = self.query.double().view(self.count, keys.shape[1], 1, -1)
        scores = (query * keys).sum(-1) * self.scale
        shares = scores.masked_fill(~seen, -INFINITY).softmax(-1)
        mixed = (shares[..., None] * values.masked_fill(~seen[..., None], 0)).sum(2)
        return F.pad(shares, (0, 5)), mixed.flatten(1)


@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(heads, is_own):
    made = Attending(*heads, is_own=is_own)
    caches, (shares, mixed) = made.caches(), made.truth()
    result, out = made.run()
    torch.testing.assert_close(result[..., :75].double(), shares, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.double(), mixed, atol=3e-6, rtol=0)
    assert (result[..., 75:] == 77).all()
    assert (result[..., :75][shares == 0] == 0).all()
    torch.testing.assert_close((made.keys, made.values), caches, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_heads_side_by_side(heads):
    """As slots of programs have them: all heads of a position one after another."""
    made = Attending(*heads, is_own=True)
    expected = made.run()
    made.keys, made.values = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (made.keys, made.values))
    assert all(map(torch.equal, made.run(), expected))


def test_new_values_of_another_stride():
    made = Attending(2, 16, 33, is_own=True)
    made.new = made.new[0].contiguous(), made.new[1]
    caches = made.caches()
    made.run()
    torch.testing.assert_close((made.keys, made.values), caches, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_query_is_the_same_whatever_its_neighbours(is_own):
    made = Attending(3, 33, 16, is_own=is_own)
    shares, out = made.run()
    query, new, made.count = made.query, made.new, 1
    for row in range(6):
        made.first, made.query = 2 + row, query[row : row + 1]
        made.new = None if new is None else (new[0][row : row + 1], new[1][row : row + 1])
        for alone, together in zip(made.run(), (shares, out), strict=True):
            assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("scale", [30.0, 3000.0, -30.0])
def test_shares_sum_to_one_however_large_the_scores(scale):
    made = Attending(2, 64, 64, is_own=False)
    made.query *= scale
    result, out = made.run()
    shares, mixed = made.truth()
    torch.testing.assert_close(result[..., :75].sum(-1), torch.ones(6, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(result[..., :75].double(), shares, atol=1e-6 * abs(scale), rtol=0)
    torch.testing.assert_close(out.double(), mixed, atol=3e-6 * abs(scale), rtol=0)


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("position", [0, 20, 64])  # in the middle of vectors, and behind the last
@pytest.mark.parametrize("where", ["keys", "query"])
def test_attention_to_what_is_no_number_stays_in_its_slot(where, position, value):
    made = Attending(2, 16, 16, is_own=False)
    shares, out = made.run()
    if where == "keys":
        made.keys[3, 1, position] = value  # of row 1, which sees 65
    else:
        made.query[1, 16 + position % 16] = value
    result, mixed = made.run()
    others = torch.ones(6, 2, dtype=torch.bool)
    others[1, 1] = False
    assert torch.equal(result[others], shares[others])
    assert torch.equal(mixed.view(6, 2, 16)[others], out.view(6, 2, 16)[others])
    assert result[1, 1, :65].isnan().all()
    assert (result[1, 1, 65:75] == 0).all()
    assert mixed.view(6, 2, 16)[1, 1].isnan().all()


def test_values_that_are_no_numbers_stay_in_their_column():
    made = Attending(2, 16, 70, is_own=False)
    _, out = made.run()
    made.values[3, 1, 64, 69] = NAN
    _, mixed = made.run()
    assert mixed[1, -1].isnan()
    mixed[1, -1] = out[1, -1]
    assert torch.equal(mixed, out)


@pytest.mark.parametrize("size", [1, 7, 64, 65, 128])
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 5), (3, 33), (4, 64), (2, 80), (2, 128), (1, 186), (2, 1025)])
def test_sequences_see_themselves(heads, width, size):
    lengths = torch.tensor([size, 1, max(1, size - 3), size // 2 + 1])
    rows = 4 * size
    projected, out = torch.randn(rows + 3, 3 * heads * width), unwritten(rows + 3, heads * width)
    seen = torch.arange(size) < lengths[:, None]
    projected[:rows][~seen.flatten()] = NAN
    program = Program(rows + 3)
    scale = min(0.3, 3 / width)  # numbers of wide heads add up to larger scores
    program.attend_within(projected, heads, lengths, scale, out)
    program.run(rows, sequence=size)
    query, key, value = projected[:rows].double().nan_to_num().view(4, size, 3, heads, width).permute(2, 0, 3, 1, 4)
    mask = seen[:, None, None].expand(4, 1, size, size)
    exact = F.scaled_dot_product_attention(query, key, value, mask, scale=scale).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out[:rows].view(4, size, -1)[seen].double(), exact[seen], atol=1e-5, rtol=0)
    assert out[rows:].isnan().all()


@pytest.mark.parametrize(("count", "sequence"), [(258, 129), (0, 1), (5, 2), (9, 3), (4, 0)])
def test_sequences_that_do_not_fit_are_refused(count, sequence):
    rows = 8 if count != 258 else 258
    program = Program(rows)
    program.attend_within(torch.zeros(rows, 24), 2, torch.ones(rows, dtype=torch.int64), 1.0, torch.zeros(rows, 8))
    with pytest.raises(ValueError, match=r"^(count|sequence): "):
        program.run(count, sequence=sequence)


def test_heads_that_are_too_wide_are_refused():
    lengths, width = torch.ones(2, dtype=torch.int64), MOST_WIDTH + 1
    with pytest.raises(ValueError, match=r"^heads: "):
        Program(2).attend_within(torch.zeros(2, 3 * width), 1, lengths, 1.0, torch.zeros(2, width))


def test_sequences_with_large_scores_and_none():
    """NaN stays in its head of its sequence; with large scores, one position has nearly all."""
    projected, out = torch.randn(3 * 66, 3 * 32), unwritten(3 * 66, 32)
    projected[:66, :64] *= 30
    projected[66 + 65, 32 + 16] = NAN  # a key of the second head, at the last position
    program = Program(len(out))
    program.attend_within(projected, 2, torch.tensor([66, 66, 66]), 0.25, out)
    program.run(len(out), sequence=66)
    query, key, value = projected.double().view(3, 66, 3, 2, 16).permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(query, key, value, scale=0.25).transpose(1, 2)
    exact[1, :, 1] = NAN
    torch.testing.assert_close(out.view(3, 66, 2, 16).double(), exact, atol=1e-3, rtol=0, equal_nan=True)
    torch.testing.assert_close(out.view(3, 66, 2, 16)[2].double(), exact[2], atol=2e-6, rtol=0)


@pytest.mark.parametrize(("heads", "width", "value_width"), [(1, 1, 1), (2, 5, 5), (3, 16, 33), (2, 128, 64)])
@pytest.mark.parametrize("size", [1, 7, 128])
def test_rows_are_spread_over_slots(size, heads, width, value_width):
    slots, lengths = torch.tensor([5, 0, 3]), torch.tensor([size, 1, size // 2 + 1])
    projected = torch.randn(3 * size, heads * (width + value_width))
    keys, values = torch.full((6, heads, 130, width), 77.0), torch.full((6, heads, 130, value_width), 77.0)
    expected = keys.clone(), values.clone()
    both = projected.view(3, size, -1).split([heads * width, heads * value_width], 2)
    for caches, made in zip(expected, both, strict=True):
        for slot, length, rows in zip(slots, lengths, made, strict=True):
            caches[slot, :, :length] = rows[:length].view(length, heads, -1).transpose(0, 1)
    program = Program(3 * size)
    program.spread(projected, keys, values, slots, lengths)
    program.run(3 * size, sequence=size)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


# ---- shares that are kept -------------------------------------------------------------------------------------------


def run_before(then: list[np.ndarray], count: int, **options) -> None:
    """Runs operations behind some program."""
    x, one = torch.zeros(count, 1), torch.ones(1)
    program = Program(count)
    program.normalize(x, one, one, 1e-5, x)
    program.run(count, then=np.stack(then), **options)


@pytest.mark.parametrize("rows", [None, [4], [6, 0, 3, 3, 1, 5]])
def test_shares_are_kept_beside_others(rows):
    shares, places = torch.randn(7, 3, 20), None if rows is None else torch.tensor(rows)
    values = unwritten(7 if rows is None else len(rows), 1, 15, 10)
    then = [keep(shares, values, 2, places, is_source=False), keep(shares[:, 1:2], values, 6, places, is_source=True)]
    run_before(then, 7, shown_own=15, shown_source=11)
    expected = torch.full_like(values, NAN)
    kept = shares if rows is None else shares[places]
    expected[:, 0, :, 2:5] = kept[:, :, :15].transpose(1, 2)
    expected[:, 0, :11, 6] = kept[:, 1, :11]
    torch.testing.assert_close(values, expected, atol=0, rtol=0, equal_nan=True)


def test_no_shares_are_kept():
    shares, values = torch.randn(7, 3, 20), unwritten(7, 1, 15, 3)
    run_before([keep(shares, values, 0, torch.zeros(0, dtype=torch.int64), is_source=False)], 7, shown_own=15)
    assert values.isnan().all()
