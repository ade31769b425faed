"""Choosing a token: against a plain oracle, row by row, and independent of the company a row keeps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.sampling import shares

from fathom.errors import FathomError
from fathom.generate.sampling import Sampling, draw, probabilities, sample

distinct_logits = st.lists(st.integers(-60, 60), min_size=2, max_size=12, unique=True).map(
    lambda whole: [x / 4 + 0.01 for x in whole]
)
some_sampling = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.31, 0.5, 0.873, 1.0]),
    min_p=st.sampled_from([0.0, 0.011, 0.2, 1.0]),
)


@given(distinct_logits, some_sampling)
@settings(max_examples=200, deadline=None)
def test_probabilities_agree_with_the_oracle(logits: list[float], how: Sampling) -> None:
    weights = probabilities(torch.tensor([logits]), [how])[0]
    got = weights / weights.sum()
    expected = shares(logits, how.temperature, how.top_k, how.top_p, how.min_p)
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


@given(distinct_logits, some_sampling, st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_draw_inverts_the_running_sum(logits: list[float], how: Sampling, number: float) -> None:
    token = int(draw(torch.tensor([logits]), [how], [number])[0])
    expected = shares(logits, how.temperature, how.top_k, how.top_p, how.min_p)
    assert expected[token] > 0
    assert sum(expected[:token]) - 1e-6 <= number <= sum(expected[: token + 1]) + 1e-6


def test_temperature_zero_takes_the_best_and_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]])
    assert sample(logits, [Sampling(), Sampling()], [0.9, 0.9]).tolist() == [1, 0]


def test_every_row_has_its_own_settings() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(5, 1)
    how = [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_k=2),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=1.0, min_p=0.5),
    ]
    assert sample(logits, how, [0.99] * 5).tolist() == [0, 2, 1, 1, 1]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_row_chooses_the_same_in_any_company(data: st.DataObject) -> None:
    n_row = data.draw(st.integers(1, 6))
    logits = torch.randn(n_row, 20, generator=torch.Generator().manual_seed(n_row)).mul(2).round()  # many equal ones
    how = [data.draw(st.just(Sampling()) | some_sampling) for _ in range(n_row)]
    numbers = [data.draw(st.floats(0, 1, exclude_max=True)) for _ in range(n_row)]
    together = sample(logits, how, numbers).tolist()
    alone = [int(sample(logits[i : i + 1], how[i : i + 1], numbers[i : i + 1])) for i in range(n_row)]
    order = torch.randperm(n_row, generator=torch.Generator().manual_seed(1)).tolist()
    mixed = sample(logits[order], [how[i] for i in order], [numbers[i] for i in order]).tolist()
    assert together == alone
    assert mixed == [together[i] for i in order]


def test_frequencies_follow_the_shares() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(20_000, 1)
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).tolist()
    tokens = draw(logits, [Sampling(temperature=1.0)] * 20_000, numbers)
    assert (tokens.bincount(minlength=4) / 20_000).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)


@pytest.mark.parametrize("number", [0.0, math.nextafter(1.0, 0.0)])
def test_the_ends_of_the_range_still_choose_a_possible_token(number: float) -> None:
    logits = torch.full((1, 1000), -15.0)
    logits[0, 400:600] = 0.0
    token = int(draw(logits, [Sampling(temperature=0.01)], [number])[0])
    assert 400 <= token < 600
    assert int(draw(torch.zeros(1, 7), [Sampling(temperature=1.0)], [number])[0]) == (0 if number == 0 else 6)


def test_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = torch.tensor([[3.0, 3.5, -15.0]])
    assert int(draw(logits, [Sampling(temperature=1e-9)], [0.5])[0]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": math.nan},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": math.nan},
    ],
)
def test_nonsense_is_refused_in_words(wrong: dict[str, float]) -> None:
    with pytest.raises(FathomError, match="give"):
        Sampling(**wrong)  # type: ignore[arg-type]
