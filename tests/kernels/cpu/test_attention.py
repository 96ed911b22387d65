"""Attention of CPU programs, of steps and of whole sequences, and how its rows are stored, against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from linear_layers import NAN, unwritten
from sidelight.kernels.cpu import MAX_HEAD_WIDTH, Attention, HeadSum, Program, is_supported, store_rows, sum_heads
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(), reason="no programs on this machine"),
    pytest.mark.usefixtures("seeded"),
]

INFINITY = float("inf")
# Heads, their width, and the width of their values.
HEADS = [(1, 1, 1), (1, 5, 5), (2, 16, 33), (3, 33, 16), (8, 64, 64), (2, 80, 80), (4, 40, 130)]
SLOTS, POSITIONS = 9, 70


class AttentionCase:
    """Queries of `count` slots from `first_slot` on, over caches with NaN behind the lengths of slots."""

    def __init__(self, heads: int, width: int, value_width: int, *, has_new: bool, first_slot: int = 2, count: int = 6):
        self.first_slot, self.count, self.scale = first_slot, count, width**-0.5
        self.lengths = torch.tensor([40, 69, 1, 65, 16, 33, 2, 64, 69])[:, None]
        self.query = torch.randn(count, heads * width)
        self.keys, self.values = torch.randn(SLOTS, heads, POSITIONS, width), torch.randn(SLOTS, heads, 70, value_width)
        behind = torch.arange(POSITIONS) >= self.lengths
        for tensor in (self.keys, self.values):
            tensor.masked_fill_(behind[:, None, :, None], NAN)
        # Side by side, as projections return them.
        new = torch.randn(count, heads * (width + value_width)).split([heads * width, heads * value_width], 1)
        self.new = new if has_new else None

    def run(self, num_positions: int = 75) -> tuple[Tensor, Tensor]:
        """Returns the probabilities, `[rows, heads, 80]`, and the output."""
        _, heads, _, value_width = self.values.shape
        probabilities, out = torch.full((self.count, heads, 80), 77.0), unwritten(self.count, heads * value_width)
        program = Program(self.count)
        attention = Attention(self.keys, self.values, self.lengths, self.scale, self.new)
        program.attend(self.query, attention, probabilities, out)
        name = "num_cross_positions" if self.new is None else "num_self_positions"
        program.run(self.count, first_slot=self.first_slot, **{name: num_positions})
        return probabilities, out

    def caches(self) -> tuple[Tensor, Tensor]:
        """Returns the keys and values after a run."""
        result = self.keys.clone(), self.values.clone()
        for caches, new in zip(result, self.new or (), strict=False):
            for row, numbers in enumerate(new):
                slot = self.first_slot + row
                caches[slot, :, self.lengths[slot, 0]] = numbers.view(caches.shape[1], -1)
        return result

    def truth(self) -> tuple[Tensor, Tensor]:
        """Returns the results of a run in float64."""
        keys, values = (cache[self.first_slot :][: self.count].double() for cache in self.caches())
        lengths = self.lengths[self.first_slot :][: self.count] + (self.new is not None)
        seen = (torch.arange(POSITIONS) < lengths)[:, None]
        query = self.query.double().view(self.count, keys.shape[1], 1, -1)
        scores = (query * keys).sum(-1) * self.scale
        probabilities = scores.masked_fill(~seen, -INFINITY).softmax(-1)
        expected_out = (probabilities[..., None] * values.masked_fill(~seen[..., None], 0)).sum(2)
        return F.pad(probabilities, (0, 5)), expected_out.flatten(1)


@pytest.mark.parametrize("has_new", [True, False])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(heads, has_new):
    case = AttentionCase(*heads, has_new=has_new)
    caches, (probabilities, expected_out) = case.caches(), case.truth()
    result, out = case.run()
    torch.testing.assert_close(result[..., :75].double(), probabilities, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.double(), expected_out, atol=3e-6, rtol=0)
    assert (result[..., 75:] == 77).all()
    assert (result[..., :75][probabilities == 0] == 0).all()
    torch.testing.assert_close((case.keys, case.values), caches, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_position_major_caches(heads):
    """The slots of programs have all heads of a position side by side."""
    case = AttentionCase(*heads, has_new=True)
    expected = case.run()
    case.keys, case.values = (cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (case.keys, case.values))
    assert all(map(torch.equal, case.run(), expected))


def test_new_values_of_another_stride():
    case = AttentionCase(2, 16, 33, has_new=True)
    case.new = case.new[0].contiguous(), case.new[1]
    caches = case.caches()
    case.run()
    torch.testing.assert_close((case.keys, case.values), caches, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("has_new", [True, False])
def test_a_query_is_the_same_whatever_its_neighbours(has_new):
    case = AttentionCase(3, 33, 16, has_new=has_new)
    probabilities, out = case.run()
    query, new, case.count = case.query, case.new, 1
    for row in range(6):
        case.first_slot, case.query = 2 + row, query[row : row + 1]
        case.new = None if new is None else (new[0][row : row + 1], new[1][row : row + 1])
        for alone, together in zip(case.run(), (probabilities, out), strict=True):
            assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("scale", [30.0, 3000.0, -30.0])
def test_probabilities_sum_to_one_however_large_the_scores(scale):
    case = AttentionCase(2, 64, 64, has_new=False)
    case.query *= scale
    result, out = case.run()
    probabilities, expected_out = case.truth()
    torch.testing.assert_close(result[..., :75].sum(-1), torch.ones(6, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(result[..., :75].double(), probabilities, atol=1e-6 * abs(scale), rtol=0)
    torch.testing.assert_close(out.double(), expected_out, atol=3e-6 * abs(scale), rtol=0)


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("position", [0, 20, 64])  # in the middle of vectors, and behind the last
@pytest.mark.parametrize("where", ["keys", "query"])
def test_nan_and_infinity_stay_in_their_slot_and_head(where, position, value):
    case = AttentionCase(2, 16, 16, has_new=False)
    probabilities, out = case.run()
    if where == "keys":
        case.keys[3, 1, position] = value  # of row 1, which sees 65
    else:
        case.query[1, 16 + position % 16] = value
    result, expected_out = case.run()
    others = torch.ones(6, 2, dtype=torch.bool)
    others[1, 1] = False
    assert torch.equal(result[others], probabilities[others])
    assert torch.equal(expected_out.view(6, 2, 16)[others], out.view(6, 2, 16)[others])
    assert result[1, 1, :65].isnan().all()
    assert (result[1, 1, 65:75] == 0).all()
    assert expected_out.view(6, 2, 16)[1, 1].isnan().all()


def test_nan_values_stay_in_their_column():
    case = AttentionCase(2, 16, 70, has_new=False)
    _, out = case.run()
    case.values[3, 1, 64, 69] = NAN
    _, expected_out = case.run()
    assert expected_out[1, -1].isnan()
    expected_out[1, -1] = out[1, -1]
    assert torch.equal(expected_out, out)


@pytest.mark.parametrize("size", [1, 7, 64, 65, 128])
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 5), (3, 33), (4, 64), (2, 80), (2, 128), (1, 186), (2, 1025)])
def test_sequences(heads, width, size):
    lengths = [size, 1, max(1, size - 3), size // 2 + 1]
    rows = sum(lengths)
    projected, out = torch.randn(rows + 3, 3 * heads * width), unwritten(rows + 3, heads * width)
    projected[rows:] = NAN
    program = Program(rows + 3)
    scale = min(0.3, 3 / width)  # wide heads have larger scores
    program.attend_sequences(projected[:, : heads * width], projected[:, heads * width :], heads, scale, out)
    program.run(rows, sequence_lengths=lengths)
    for part, result in zip(projected[:rows].split(lengths), out[:rows].split(lengths), strict=True):
        query, key, value = part.double().view(1, -1, 3, heads, width).permute(2, 0, 3, 1, 4)
        exact = F.scaled_dot_product_attention(query, key, value, scale=scale)[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(result.double(), exact, atol=1e-5, rtol=0)
    assert out[rows:].isnan().all()
    # The next run has other sequences.
    program.run(lengths[2], sequence_lengths=[lengths[2] - lengths[2] // 2, *([lengths[2] // 2] * (size > 1))])
    program.run(lengths[0], sequence_lengths=[lengths[0]])
    alone = out[: lengths[0]].clone()
    program.run(rows, sequence_lengths=lengths)
    assert torch.equal(out[: lengths[0]], alone)


@pytest.mark.parametrize("size", [1, 7, 65, 128])
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 5), (3, 33), (4, 64), (2, 186)])
@pytest.mark.parametrize("is_cross", [False, True], ids=["causal", "cross"])
def test_sequences_of_a_decoder(heads, width, size, is_cross):
    lengths = [size, 1, max(1, size - 3), size // 2 + 1]
    key_lengths = [max(1, size // 2), size, 1, size] if is_cross else lengths
    rows, keys = sum(lengths), sum(key_lengths)
    query, keys_and_values = torch.randn(rows + 2, heads * width), torch.randn(keys + 1, 2 * heads * width)
    keys_and_values[keys:] = NAN
    out, probabilities = unwritten(rows + 2, heads * width), unwritten(rows + 2, heads, size + 1)
    program = Program(max(rows, keys) + 2)
    kinds = {"is_cross": is_cross, "is_causal": not is_cross}
    scale = min(0.3, 3 / width)
    program.attend_sequences(query, keys_and_values, heads, scale, out, probabilities=probabilities, **kinds)
    end = program.num_operations
    program.layer_norm(out, torch.full((heads * width,), NAN), torch.zeros(heads * width), 1e-5, out)
    positions = {"num_cross_positions" if is_cross else "num_self_positions": size}
    program.run(rows, sequence_lengths=lengths, key_lengths=key_lengths, num_operations=end, **positions)
    parts = (query[:rows].split(lengths), keys_and_values[:keys].split(key_lengths), out[:rows].split(lengths))
    for part, source, result, kept in zip(*parts, probabilities[:rows].split(lengths), strict=True):
        asked = part.double().view(1, -1, heads, width).transpose(1, 2)
        key, value = source.double().view(1, -1, 2, heads, width).permute(2, 0, 3, 1, 4)
        scores = asked @ key.mT * scale
        if not is_cross:
            scores = scores.masked_fill(torch.ones(len(part), len(part)).triu(1).bool(), float("-inf"))
        exact = scores.softmax(-1)
        torch.testing.assert_close(kept[:, :, : len(source)].double(), exact[0].transpose(0, 1), atol=1e-6, rtol=0)
        assert not kept[:, :, len(source) : size].any()
        expected = (exact @ value)[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)
    for untouched in (out[rows:], probabilities[rows:], probabilities[:, :, size:]):
        assert untouched.isnan().all()


@pytest.mark.parametrize(
    ("count", "lengths"), [(258, [129, 129]), (0, []), (5, [2, 2]), (9, [3, 3, 3]), (4, []), (4, [4, 0]), (2, [3, -1])]
)
def test_sequences_that_do_not_fit_are_refused(count, lengths):
    rows = 8 if count != 258 else 258
    program = Program(rows)
    program.attend_sequences(torch.zeros(rows, 8), torch.zeros(rows, 16), 2, 1.0, torch.zeros(rows, 8))
    with pytest.raises(ValueError, match=r"^(num_rows|sequence_lengths): "):
        program.run(count, sequence_lengths=lengths)


def test_heads_that_are_too_wide_are_refused():
    width = MAX_HEAD_WIDTH + 1
    with pytest.raises(ValueError, match=r"^heads: "):
        Program(2).attend_sequences(torch.zeros(2, width), torch.zeros(2, 2 * width), 1, 1.0, torch.zeros(2, width))


def test_sequences_with_large_scores_and_nan():
    """NaN stays in its head of its sequence; with large scores, one position has nearly all."""
    projected, out = torch.randn(3 * 66, 3 * 32), unwritten(3 * 66, 32)
    projected[:66, :64] *= 30
    projected[66 + 65, 32 + 16] = NAN  # a key of the second head, at the last position
    program = Program(len(out))
    program.attend_sequences(projected[:, :32], projected[:, 32:], 2, 0.25, out)
    program.run(len(out), sequence_lengths=[66, 66, 66])
    query, key, value = projected.double().view(3, 66, 3, 2, 16).permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(query, key, value, scale=0.25).transpose(1, 2)
    exact[1, :, 1] = NAN
    torch.testing.assert_close(out.view(3, 66, 2, 16).double(), exact, atol=1e-3, rtol=0, equal_nan=True)
    torch.testing.assert_close(out.view(3, 66, 2, 16)[2].double(), exact[2], atol=2e-6, rtol=0)


@pytest.mark.parametrize(("heads", "width", "value_width"), [(1, 1, 1), (2, 5, 5), (3, 16, 33), (2, 128, 64)])
@pytest.mark.parametrize("size", [1, 7, 128])
def test_keys_and_values_are_scattered_to_slots(size, heads, width, value_width):
    lengths = [size, 1, size // 2 + 1]
    slots = torch.tensor([5, 0, 3]).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    projected = torch.randn(sum(lengths), heads * (width + value_width))
    keys, values = torch.full((6, heads, 130, width), 77.0), torch.full((6, heads, 130, value_width), 77.0)
    expected = keys.clone(), values.clone()
    both = projected.split([heads * width, heads * value_width], 1)
    for caches, rows in zip(expected, both, strict=True):
        caches[slots, :, positions] = rows.view(len(rows), heads, -1)
    program = Program(sum(lengths))
    program.scatter_kv(projected, keys, values, slots, positions)
    program.run(sum(lengths))
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


# ---- stored rows ------------------------------------------------------------------------------------


def run_epilogue(epilogue: list[np.ndarray], count: int, **options) -> None:
    """Runs operations as the epilogue of a small program."""
    x, one = torch.zeros(count, 1), torch.ones(1)
    program = Program(count)
    program.layer_norm(x, one, one, 1e-5, x)
    program.run(count, epilogue=np.stack(epilogue), **options)


@pytest.mark.parametrize("rows", [None, [4], [6, 0, 3, 3, 1, 5]])
def test_rows_are_stored_beside_other_columns(rows):
    probabilities, index = torch.randn(7, 3, 20), None if rows is None else torch.tensor(rows)
    values = unwritten(7 if rows is None else len(rows), 1, 15, 10)
    epilogue = [
        store_rows(probabilities, values, 2, index, is_cross=False),
        store_rows(probabilities[:, 1:2], values, 6, index, is_cross=True),
    ]
    run_epilogue(epilogue, 7, num_self_positions=15, num_cross_positions=11)
    expected = torch.full_like(values, NAN)
    stored = probabilities if rows is None else probabilities[index]
    expected[:, 0, :, 2:5] = stored[:, :, :15].transpose(1, 2)
    expected[:, 0, :11, 6] = stored[:, 1, :11]
    torch.testing.assert_close(values, expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [None, [4], [6, 0, 3, 3, 1, 5]])
@pytest.mark.parametrize("leaves_out", [False, True])
def test_heads_are_summed_over_layers(rows, leaves_out):
    layers, index = torch.rand(2, 7, 3, 20), None if rows is None else torch.tensor(rows)
    num_stored = 7 if rows is None else len(rows)
    values, shares = unwritten(num_stored, 1, 15, 2), unwritten(num_stored, 1, 2) if leaves_out else None
    left_out = torch.rand(num_stored, 15) < 0.3 if leaves_out else None
    if left_out is not None:
        left_out[0] = True
    sums = [
        HeadSum(np.array(numbers), np.array(factors, np.float32), 1 / 3)
        for numbers, factors in (([2, 0], [0.5, 0.2]), ([1], [0.3]))
    ]
    epilogue = [
        sum_heads(
            layers[layer], values, 1, index, heads, is_cross=True, is_added=layer > 0, left_out=left_out, shares=shares
        )
        for layer, heads in enumerate(sums)
    ]
    run_epilogue(epilogue, 7, num_cross_positions=15)
    expected, expected_shares = torch.zeros(num_stored, 15), torch.zeros(num_stored)
    for layer, heads in zip(layers, sums, strict=True):
        for number, factor in zip(heads.numbers, heads.factors, strict=True):
            row = (layer if index is None else layer[index])[:, number, :15]
            if left_out is not None:
                expected_shares += row.masked_fill(~left_out, 0).sum(1) / 3
                row = row.masked_fill(left_out, 0)
                row = row / row.sum(1, keepdim=True).clamp_min(1e-30)
            expected += float(factor) * row
    torch.testing.assert_close(values[:, 0, :, 1], expected)
    assert values[:, 0, :, 0].isnan().all()
    if shares is not None:
        torch.testing.assert_close(shares[:, 0, 1], expected_shares)
        assert shares[:, 0, 0].isnan().all()


def test_no_rows_are_stored():
    probabilities, values = torch.randn(7, 3, 20), unwritten(7, 1, 15, 3)
    run_epilogue(
        [store_rows(probabilities, values, 0, torch.zeros(0, dtype=torch.int64), is_cross=False)],
        7,
        num_self_positions=15,
    )
    assert values.isnan().all()
