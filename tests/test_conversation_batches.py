"""Rows of conversations: the oracle's packing, exact targets, nothing lost, and never a row without a target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.sft_rows import pack

from fathom.data.conversations.batches import IGNORE, SftBatches, pack_rows
from fathom.errors import FathomError

BOS = 0
Conversation = tuple[list[int], list[int]]


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 50), st.integers(1, 12))
def test_packing_agrees_with_the_oracle(lengths: list[int], row_tokens: int, buffer: int) -> None:
    assert list(pack_rows(lengths, row_tokens, buffer)) == pack(lengths, row_tokens, buffer)


def test_packing_by_hand() -> None:
    assert list(pack_rows([3, 7, 4, 7, 2, 10], 10, buffer=4)) == [[1, 0], [5], [3, 4], [2]]
    assert list(pack_rows([], 10)) == []


@pytest.mark.parametrize("length", [0, 11])
def test_packing_refuses_what_fits_no_row(length: int) -> None:
    with pytest.raises(ValueError, match="fit"):
        list(pack_rows([5, length], 10))


def test_targets_by_hand() -> None:
    batches = SftBatches([([BOS, 5, 6, 7], [0, 0, 1, 1]), ([BOS, 8, 9], [0, 1, 0])], 9, rows_per_step=1, seed=0)
    inputs, targets = batches.batch(0, 0, 1)
    assert inputs.tolist() == [[0, 5, 6, 7, 0, 8, 9, 0, 0]]
    assert targets.tolist() == [[-1, 6, 7, -1, 8, -1, -1, -1, -1]]
    assert inputs.dtype == targets.dtype == np.int64
    assert (batches.steps_per_epoch, batches.dropped, batches.cut) == (1, 0, 0)


def test_a_conversation_longer_than_a_row_is_cut_with_its_mask() -> None:
    batches = SftBatches([([BOS, *range(1, 9)], [0] * 4 + [1] * 5)], 5, rows_per_step=1, seed=0)
    inputs, targets = batches.batch(0, 0, 1)
    assert inputs.tolist() == [[0, 1, 2, 3, 4]]
    assert targets.tolist() == [[-1, -1, -1, 4, 5]]
    assert (batches.dropped, batches.cut) == (0, 1)


def test_a_conversation_without_a_target_left_is_dropped_and_counted() -> None:
    long_question = ([BOS, *range(1, 9)], [0] * 6 + [1] * 3)
    unanswered = ([BOS, 1, 2], [0, 0, 0])
    good = ([BOS, 1, 2], [0, 0, 1])
    batches = SftBatches([long_question, unanswered, good], 5, rows_per_step=1, seed=0)
    assert (batches.dropped, batches.cut, batches.n_conversation) == (2, 0, 1)
    with pytest.raises(FathomError, match="none of the 2 conversations .* 5 tokens"):
        SftBatches([long_question, unanswered], 5, 1, 0)
    with pytest.raises(FathomError, match="none of the 0"):
        SftBatches([], 5, 1, 0)


def test_first_token_is_never_a_target() -> None:
    with pytest.raises(FathomError):
        SftBatches([([5, 6], [1, 0])], 5, 1, 0)


@st.composite
def some_conversations(draw: st.DrawFn) -> list[Conversation]:
    """Each with tokens of its own, so that one can be recognised in a row."""
    lengths = draw(st.lists(st.integers(2, 25), min_size=1, max_size=40))
    result = []
    for number, length in enumerate(lengths):
        mask = [0] + draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))
        result.append(([BOS] + [100 * (number + 1) + i for i in range(1, length)], mask))
    return result


@given(some_conversations(), st.integers(4, 30), st.integers(1, 5), st.integers(0, 5))
@settings(deadline=None)
def test_every_row_teaches_and_an_epoch_holds_each_conversation_once(
    conversations: list[Conversation], seq_len: int, rows_per_step: int, seed: int
) -> None:
    expected = []
    for ids, mask in conversations:
        ids, mask = ids[: seq_len + 1], mask[: seq_len + 1]
        expected += [token for token, trained in zip(ids[1:], mask[1:], strict=True) if trained]
    if not expected:
        with pytest.raises(FathomError):
            SftBatches(conversations, seq_len, rows_per_step, seed)
        return
    batches = SftBatches(conversations, seq_len, rows_per_step, seed)
    steps = [batches.batch(step, 0, rows_per_step) for step in range(batches.steps_per_epoch)]
    assert all((targets != IGNORE).any(axis=1).all() for _, targets in steps)
    n_row = len(batches._epoch(0))
    first_epoch = np.concatenate([targets for _, targets in steps])[:n_row]
    assert sorted(first_epoch[first_epoch != IGNORE].tolist()) == sorted(expected)
    for inputs, targets in steps:
        where = targets[:, :-1] != IGNORE
        assert (inputs[:, 1:][where] == targets[:, :-1][where]).all()


def many(n: int = 200) -> list[Conversation]:
    lengths = np.random.default_rng(0).integers(3, 40, n).tolist()
    return [([BOS, *range(1, length)], [0, *([1] * (length - 1))]) for length in lengths]


def test_a_batch_is_the_same_whoever_asks_and_in_whatever_order() -> None:
    one, other = SftBatches(many(), 64, 8, seed=3), SftBatches(iter(many()), 64, 8, seed=3)
    far = other.batch(37, 0, 8)
    for step in (0, 5, 37):
        whole = one.batch(step, 0, 8)
        parts = [other.batch(step, first, first + 2) for first in (6, 0, 4, 2)]
        for kind in (0, 1):
            assert (np.concatenate([parts[i][kind] for i in (1, 3, 2, 0)]) == whole[kind]).all()
    assert (far[0] == one.batch(37, 0, 8)[0]).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = SftBatches(many(), 64, 1, seed=3)
    n_step = batches.steps_per_epoch
    first = np.concatenate([batches.batch(step, 0, 1)[0] for step in range(n_step)])
    second = np.concatenate([batches.batch(n_step + step, 0, 1)[0] for step in range(n_step)])
    other = np.concatenate([SftBatches(many(), 64, 1, seed=4).batch(step, 0, 1)[0] for step in range(n_step)])
    assert not (first == second).all()
    assert not (first == other).all()
    assert batches.epoch_of(0) == 0
    assert batches.epoch_of(n_step) == 1
    assert 0.4 < batches.epoch_of(n_step // 2) < 0.6


def test_the_digest_knows_the_data() -> None:
    digest = SftBatches(many(), 64, 8, seed=3).digest
    assert digest == SftBatches(many(), 64, 8, seed=4).digest
    changed = many()
    changed[7][1][-1] = 0
    assert digest != SftBatches(changed, 64, 8, seed=3).digest
    assert digest != SftBatches(many(), 65, 8, seed=3).digest


@pytest.mark.parametrize("rows", [(0, 9), (-1, 2), (3, 3), (5, 4)])
def test_rows_outside_a_step_are_an_error(rows: tuple[int, int]) -> None:
    with pytest.raises(IndexError):
        SftBatches(many(), 64, 8, seed=3).batch(0, *rows)


def test_wrong_arguments_are_an_error() -> None:
    with pytest.raises(ValueError, match="mask"):
        SftBatches([([1, 2], [1])], 64, 8, 0)
    with pytest.raises(ValueError, match="positive"):
        SftBatches(many(), 0, 8, 0)
