"""Scores of rows in groups: the plain forward pass on each row says the same, and no token passes twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.evaluate.scorer import Group, ModelScorer, Row, RowScore, cropped
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from tests.oracles.generation import random_model

MODEL = random_model()
CLOSE = {"rtol": 0, "atol": 3e-5}


@torch.inference_mode()
def plainly(model: GPT, row: Row) -> RowScore:
    """Every logit of the row alone."""
    ids = torch.tensor(row.ids[None])
    logits = model.logits(model(ids, DenseContext(ids.shape[1], "cpu")))[0, :-1]
    losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
    span = slice(row.start - 1, row.end - 1) if row.start > 0 else slice(0, 0)
    return RowScore(losses[span].numpy(), logits.argmax(1)[span].numpy())


def same(found: RowScore, wanted: RowScore) -> None:
    np.testing.assert_allclose(found.losses, wanted.losses, **CLOSE)
    np.testing.assert_array_equal(found.likeliest, wanted.likeliest)
    assert found.losses.dtype == np.float32 and found.likeliest.dtype == np.int64


def group_of(dice: np.random.Generator, shared: int, own: Sequence[int], spans: Sequence[int]) -> Group:
    """Rows with `shared` tokens in common, then `own` each, of which the last `spans` count."""
    trunk = dice.integers(0, 269, shared)
    rows = []
    for length, span in zip(own, spans, strict=True):
        ids = np.concatenate([trunk, dice.integers(0, 269, length)])
        rows.append(Row(ids, max(1, len(ids) - span), len(ids)))
    return Group(tuple(rows))


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        shared = draw(st.sampled_from([0, 1, 2, 7, 60, 200]))
        own = draw(st.lists(st.sampled_from([1, 2, 3, 20, 140]), min_size=1, max_size=3))
        spans = [draw(st.integers(0, min(length + shared - 1, 30))) for length in own]
        found.append(group_of(dice, shared, own, spans))
    return found


@settings(max_examples=20)
@given(groups(), st.sampled_from([1, 300, 4096]))
def test_each_row_is_scored_as_if_it_were_alone(asked: list[Group], batch_tokens: int) -> None:
    heard: dict[int, list[RowScore]] = {}
    found = ModelScorer(MODEL, 0, batch_tokens).score(asked, heard.__setitem__)
    assert {at: scores for at, scores in enumerate(found)} == heard
    for group, scores in zip(asked, found, strict=True):
        for row, score in zip(group.rows, scores, strict=True):
            same(score, plainly(MODEL, row))


@pytest.mark.parametrize("windows", ["SSSL", "L"])
def test_beyond_the_context_and_beyond_the_reach_of_the_windows(windows: str) -> None:
    model = random_model(window_pattern=windows, seq_len=192, n_layer=4)
    scorer = ModelScorer(model, 0)
    group = group_of(np.random.default_rng(3), 1500, [9, 40, 3], [9, 40, 3])
    (scores,) = scorer.score([group])
    for row, score in zip(group.rows, scores, strict=True):
        same(score, plainly(model, row))
    assert scorer.max_tokens is None and scorer.seq_len == 192


class Spy:
    """Counts what passes through a network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.logits = 0
        forward, logits = GPT.forward, GPT.logits

        def counted(model: GPT, ids: torch.Tensor, context: Any) -> torch.Tensor:
            self.shapes.append(tuple(ids.shape))  # type: ignore[arg-type]
            return forward(model, ids, context)

        def counted_logits(model: GPT, hidden: torch.Tensor) -> torch.Tensor:
            self.logits += len(hidden)
            return logits(model, hidden)

        monkeypatch.setattr(GPT, "forward", counted)
        monkeypatch.setattr(GPT, "logits", counted_logits)

    @property
    def tokens(self) -> int:
        return sum(rows * width for rows, width in self.shapes)


def test_what_rows_share_passes_once_and_only_scored_places_get_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    group = group_of(np.random.default_rng(1), 400, [5, 6, 7, 8], [5, 6, 7, 8])
    ModelScorer(MODEL, 0).score([group])
    assert spy.shapes == [(1, 400 + 4 + 5 + 6 + 7)]  # the last token of a row foretells nothing that is asked
    assert spy.logits == 5 + 6 + 7 + 8


def test_letters_after_one_text_need_that_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    text = np.arange(50)
    letters = Group(tuple(Row(np.append(text, letter), 50, 51) for letter in (65, 66, 67, 68)))
    (scores,) = ModelScorer(MODEL, 0).score([letters])
    assert spy.shapes == [(1, 50)]
    assert sum(np.exp(-float(score.losses[0])) for score in scores) < 1
    for row, score in zip(letters.rows, scores, strict=True):
        same(score, plainly(MODEL, row))


def test_a_batch_holds_no_more_tokens_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    dice = np.random.default_rng(2)
    asked = [group_of(dice, int(dice.integers(1, 200)), [9, 12], [9, 12]) for _ in range(60)]
    asked.append(group_of(dice, 1200, [9], [9]))
    ModelScorer(MODEL, 0, 700).score(asked)
    reach = 128 + 128 + 512 + 1  # of its three windows and the token before
    assert spy.shapes[0] == (1, 9 + reach) and all(rows * width <= 700 for rows, width in spy.shapes[1:])
    rows = sum(len(row.ids) for group in asked for row in group.rows)
    assert len(spy.shapes) < 30 and spy.tokens < 0.6 * rows


def test_long_rows_with_nothing_in_common_build_no_mask_of_all_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    group = group_of(np.random.default_rng(4), 1, [700, 800], [5, 5])
    (scores,) = ModelScorer(MODEL, 0, 4096).score([group])
    assert max(width for _, width in spy.shapes) <= 800
    for row, score in zip(group.rows, scores, strict=True):
        same(score, plainly(MODEL, row))


def test_equal_rows_have_equal_losses_to_the_last_bit() -> None:
    group = group_of(np.random.default_rng(5), 333, [11, 4], [11, 4])
    twice = Group((group.rows[1], group.rows[0], Row(group.rows[0].ids.copy(), *_span(group.rows[0]))))
    (scores,) = ModelScorer(MODEL, 0).score([twice])
    np.testing.assert_array_equal(scores[1].losses, scores[2].losses)


def _span(row: Row) -> tuple[int, int]:
    return row.start, row.end


@pytest.mark.parametrize("span", [(0, 5), (5, 5), (0, 0)])
def test_a_span_without_a_target_has_no_loss(span: tuple[int, int]) -> None:
    heard: list[int] = []
    rows = (Row(np.arange(5), *span),)
    (scores,) = ModelScorer(MODEL, 0).score([Group(rows)], lambda at, _: heard.append(at))
    assert len(scores[0].losses) == 0 and np.isnan(scores[0].mean) and scores[0].is_greedy(rows[0]) and heard == [0]


def test_nothing_asked_is_nothing_answered() -> None:
    assert ModelScorer(MODEL, 0).score([]) == []
    assert ModelScorer(MODEL, 0).score([Group(())]) == [[]]


def test_greedy_is_what_the_network_would_say() -> None:
    ids = list(range(9))
    with torch.inference_mode():
        for _ in range(3):
            context = DenseContext(len(ids), "cpu")
            ids.append(int(MODEL.logits(MODEL(torch.tensor([ids]), context))[0, -1].argmax()))
    right, wrong = Row(np.array(ids), 9, 12), Row(np.array([*ids[:-1], (ids[-1] + 1) % 269]), 9, 12)
    (scores,) = ModelScorer(MODEL, 0).score([Group((right, wrong))])
    assert scores[0].is_greedy(right) and not scores[1].is_greedy(wrong)


def test_bf16_is_as_close_as_its_numbers_are() -> None:
    model = random_model(torch.bfloat16)
    asked = [group_of(np.random.default_rng(6), 250, [9, 15], [9, 15])]
    for row, score in zip(asked[0].rows, ModelScorer(model, 0).score(asked)[0], strict=True):
        np.testing.assert_allclose(score.losses, plainly(model, row).losses, atol=0.6)
        assert score.mean == pytest.approx(plainly(model, row).mean, abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("windows", ["SSL", "L"])
def test_on_a_gpu_as_on_a_cpu(windows: str) -> None:
    model = random_model(window_pattern=windows, head_dim=32)
    dice = np.random.default_rng(8)
    asked = [group_of(dice, int(dice.integers(1, 900)), [9, 12, 1], [9, 12, 1]) for _ in range(20)]
    here = ModelScorer(model, 0).score(asked)
    there = ModelScorer(model.to("cuda"), 0).score(asked)
    for ours, theirs in zip(here, there, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.losses, other.losses, atol=1e-3)


def test_cropping_keeps_the_end_and_its_span() -> None:
    row = cropped(Row(np.arange(10), 7, 10), 4)
    assert (row.ids.tolist(), row.start, row.end) == ([6, 7, 8, 9], 1, 4) and row.targets.tolist() == [7, 8, 9]
    for limit in (None, 10, 11):
        assert len(cropped(Row(np.arange(10), 7, 10), limit).ids) == 10
    row = cropped(Row(np.arange(10), 2, 10), 4)  # even what counts does not fit
    assert (row.ids.tolist(), row.start, row.end) == ([6, 7, 8, 9], 1, 4)
