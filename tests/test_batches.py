from __future__ import annotations

import itertools
from collections import Counter
from functools import cache
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.batches import PretrainBatches, RowPlan, ValidationRows
from fathom.data.packing import Packing, best_fit
from fathom.errors import FathomError
from tests.oracles import packing as oracle
from tests.oracles.stores import DOCUMENT, ListStore

PACKINGS: tuple[Packing, ...] = ("best-fit", "lossless")
LENGTHS = np.random.default_rng(3).integers(1, 60, 400).tolist()


def batches(packing: Packing, seed: int = 1, rows_per_step: int = 12, lengths: list[int] = LENGTHS) -> PretrainBatches:
    return PretrainBatches(ListStore(lengths), packing=packing, seq_len=15, rows_per_step=rows_per_step, seed=seed)


def plan(packing: Packing, seed: int = 1, window: int = 64) -> RowPlan:
    return RowPlan(np.array(LENGTHS), 16, packing, seed=seed, window=window)


def rows_of(plan: RowPlan, first: int, last: int) -> list[list[tuple[int, int, int]]]:
    """The rows one by one, found by counting tokens."""
    rows: list[list[tuple[int, int, int]]] = []
    room = 0
    for document, start, length in plan.segments(first, last).tolist():
        if not room:
            rows.append([])
            room = 16
        rows[-1].append((document, start, length))
        room -= length
    assert room == 0 and len(rows) == last - first
    return rows


def test_a_batch_is_the_rows_of_the_plan_shifted_by_one() -> None:
    made = batches("best-fit")
    inputs, targets = made.batch(0)
    assert inputs.dtype == targets.dtype == np.int64 and inputs.shape == targets.shape == (12, 15)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    first_rows = itertools.islice(best_fit(LENGTHS, 16), 12)
    for row, (first, last) in zip(first_rows, zip(inputs, targets, strict=True), strict=True):
        tokens = [document * DOCUMENT + start + i for document, start, n in row for i in range(n)]
        assert [*first.tolist(), last[-1]] == tokens


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
def test_a_batch_does_not_depend_on_ranks_or_micro_batches(packing: Packing, ranks: int) -> None:
    whole, shared = batches(packing), [batches(packing) for _ in range(ranks)]
    per_rank = 12 // ranks
    for step in range(40):
        parts = []
        for rank in range(ranks):
            first = rank * per_rank
            for row in range(first, first + per_rank, 2):
                parts.append(shared[rank].batch(step, row, min(row + 2, first + per_rank)))
        assert np.array_equal(np.concatenate([p.inputs for p in parts]), whole.batch(step).inputs)
        assert np.array_equal(np.concatenate([p.targets for p in parts]), whole.batch(step).targets)


@pytest.mark.parametrize("packing", PACKINGS)
def test_resuming_anywhere_equals_not_stopping(packing: Packing) -> None:
    unbroken = batches(packing)
    steps = [unbroken.batch(step).inputs for step in range(130)]
    assert unbroken.epoch_of(130) > 2
    for step in (0, 1, 17, 61, 62, 63, 90, 129):
        assert np.array_equal(batches(packing).batch(step).inputs, steps[step])
    for step in (129, 3, 60, 2, 129):
        assert np.array_equal(unbroken.batch(step).inputs, steps[step])


@cache
def unbroken_rows(packing: Packing) -> tuple[list[list[tuple[int, int, int]]], list[float]]:
    unbroken = plan(packing)
    return rows_of(unbroken, 0, 900), [unbroken.epoch_of(row) for row in range(900)]


@given(
    packing=st.sampled_from(PACKINGS), asked=st.lists(st.tuples(st.integers(0, 860), st.integers(0, 39)), max_size=6)
)
@settings(deadline=None, max_examples=30)
def test_rows_do_not_depend_on_what_was_asked_before(packing: Packing, asked: list[tuple[int, int]]) -> None:
    rows, epochs = unbroken_rows(packing)
    jumping = plan(packing)
    for first, count in asked:
        assert rows_of(jumping, first, first + count) == rows[first : first + count]
        assert jumping.epoch_of(first + count) == epochs[first + count]


@pytest.mark.parametrize("packing", PACKINGS)
def test_seeds_and_epochs_give_other_orders(packing: Packing) -> None:
    one, other = batches(packing, seed=1), batches(packing, seed=2)
    per_epoch = next(step for step in itertools.count() if one.epoch_of(step) >= 1)
    assert not np.array_equal(one.batch(per_epoch + 1).inputs, other.batch(per_epoch + 1).inputs)
    assert not np.array_equal(one.batch(per_epoch).inputs, one.batch(0).inputs)
    assert one.digest != other.digest and one.digest == batches(packing, seed=1).digest


def test_the_first_epoch_of_best_fit_is_the_packing_of_the_corpus() -> None:
    rows = list(best_fit(LENGTHS, 16))
    assert rows_of(plan("best-fit"), 0, len(rows)) == rows
    assert plan("best-fit").epoch_of(len(rows)) == 1.0
    assert rows_of(plan("best-fit"), len(rows), len(rows) + 5) != rows[:5]


def test_every_epoch_of_lossless_holds_each_token_once() -> None:
    lossless = plan("lossless")
    per_epoch = lossless.rows_per_epoch
    assert per_epoch == sum(LENGTHS) // 16
    for epoch in range(3):
        rows = rows_of(lossless, epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = Counter((document, start + i) for row in rows for document, start, n in row for i in range(n))
        assert set(seen.values()) == {1}
        assert sum(LENGTHS) - len(seen) == sum(LENGTHS) % 16


def test_lossless_rows_are_shuffled_within_windows() -> None:
    packed = oracle.lossless(LENGTHS, 16, 1000)
    rows = rows_of(plan("lossless", window=100), 0, len(packed))
    assert rows != packed
    for first in range(0, len(packed), 100):
        assert sorted(rows[first : first + 100]) == sorted(packed[first : first + 100])
        assert rows[first : first + 100] != packed[first : first + 100]


def test_epoch_of_grows_steadily() -> None:
    for packing in PACKINGS:
        made = batches(packing, rows_per_step=1)
        epochs = [made.epoch_of(step) for step in range(900)]
        assert epochs[0] == 0 and epochs[-1] > 1
        steps = np.diff(epochs)
        assert (steps > 0).all() and steps.max() < 0.05


def test_the_share_dropped_is_that_of_the_oracle() -> None:
    rows = oracle.best_fit(LENGTHS, 16, 1000)
    assert batches("best-fit").share_dropped == pytest.approx(1 - len(rows) * 16 / sum(LENGTHS), abs=1e-12)
    assert 0.3 < batches("best-fit").share_dropped < 0.9
    assert batches("lossless").share_dropped == pytest.approx((sum(LENGTHS) % 16) / sum(LENGTHS), abs=1e-12)


@pytest.mark.parametrize("packing", PACKINGS)
def test_too_little_text_for_a_row_is_refused(packing: Packing) -> None:
    with pytest.raises(FathomError, match="15 tokens altogether.*16 of one row.*--seq-len"):
        batches(packing, lengths=[7, 8])
    assert batches(packing, lengths=[8, 8]).batch(3).inputs.shape == (12, 15)


def test_rows_out_of_a_step_are_refused() -> None:
    made = batches("lossless")
    for arguments in ((0, 0, 13), (0, 5, 4), (0, -1, 3), (-1, 0, 1)):
        with pytest.raises(IndexError):
            made.batch(*arguments)
    assert made.batch(3, 5, 5).inputs.shape == (0, 15)


def test_inputs_and_targets_are_not_views_of_each_other() -> None:
    inputs, targets = batches("lossless").batch(0)
    before = targets.copy()
    inputs[:] = -1
    assert np.array_equal(targets, before)


def test_several_threads_may_ask() -> None:
    made, alone = batches("lossless"), batches("lossless")
    found: dict[int, np.ndarray] = {}

    def ask(steps: range) -> None:
        for step in steps:
            found[step] = made.batch(step).inputs
            made.epoch_of(step)

    threads = [Thread(target=ask, args=(range(start, 90, 3),)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[step], alone.batch(step).inputs) for step in range(90))


def test_a_plan_keeps_few_rows_in_memory() -> None:
    kept = plan("lossless")
    kept.segments(0, 5000)
    assert len(kept._kept) <= 3


def test_a_long_jump_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("fathom.data.batches._SAY_EVERY_S", -1.0)
    plan("best-fit").segments(2000, 2001)
    assert "Packing on to row 2,000" in capsys.readouterr().err


def test_best_fit_validation_rows_read_the_documents_over_and_over() -> None:
    """The reference's fresh loader: its buffer goes on from one reading of the documents to the next."""
    store = ListStore(LENGTHS[:37])
    rows = ValidationRows(store, "best-fit", 15)
    inputs, targets = rows.rows(0, 300)
    endless = oracle.best_fit(LENGTHS[:37] * 60, 16, 1000)[:300]
    tokens = [[(d % 37) * DOCUMENT + start + i for d, start, n in row for i in range(n)] for row in endless]
    assert np.column_stack((inputs, targets[:, -1])).tolist() == tokens
    assert rows.n_rows is None


def test_lossless_validation_rows_are_all_and_always_the_same() -> None:
    rows = ValidationRows(ListStore(LENGTHS), "lossless", 15)
    assert rows.n_rows == sum(LENGTHS) // 16
    inputs, targets = rows.rows(0, rows.n_rows)
    tokens = np.column_stack((inputs, targets[:, -1])).reshape(-1)
    assert len(set(tokens.tolist())) == rows.n_rows * 16
    again = ValidationRows(ListStore(LENGTHS), "lossless", 15)
    assert np.array_equal(again.rows(5, 9).inputs, inputs[5:9])
    with pytest.raises(IndexError, match="validation rows"):
        rows.rows(0, rows.n_rows + 1)
