"""Intervals over seeds, crossings and verdicts, against tables and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.report.verdict import (
    Verdict,
    cost_interval,
    crossing,
    difference,
    judge,
    judge_costs,
    mean_interval,
    over_all,
    t_quantile,
)

# From any printed table of Student's t, two-sided.
TABLE = [
    (0.95, 1, 12.7062),
    (0.95, 2, 4.3027),
    (0.95, 4, 2.7764),
    (0.95, 30, 2.0423),
    (0.99, 5, 4.0321),
    (0.90, 10, 1.8125),
    (0.95, 1e9, 1.9600),
]


@pytest.mark.parametrize(("level", "degrees", "expected"), TABLE)
def test_students_t_is_that_of_the_tables(level: float, degrees: float, expected: float) -> None:
    assert t_quantile(level, degrees) == pytest.approx(expected, abs=3e-3 if degrees > 1000 else 5.1e-5)


def test_the_mean_of_three_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mid, found.high - found.mid) == (2.0, pytest.approx(4.30265 / math.sqrt(3), rel=1e-5))
    assert mean_interval([1.0]) is None


def test_costs_have_intervals_by_factors() -> None:
    found = cost_interval([100.0, 400.0])
    assert found is not None and found.low > 0
    assert found.mid == pytest.approx(200)
    assert found.high / found.mid == pytest.approx(found.mid / found.low)


def test_welch_by_hand() -> None:
    """Equal counts and equal variances: Student's interval with 2(n-1) degrees."""
    found = difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert found is not None
    assert found.mid == -1
    assert found.high - found.mid == pytest.approx(2.77645 * math.sqrt(2 / 3), rel=1e-5)


def test_verdicts() -> None:
    few, many = [0.900, 0.901, 0.902], [0.920, 0.921, 0.922]
    assert judge(few, many).word == "better"
    assert judge(many, few).word == "worse"
    close = judge(few, [0.901, 0.902, 0.903])
    assert (close.word, close.reason) == ("not shown", "the interval holds zero")
    assert close.interval is not None and close.interval.low < 0 < close.interval.high


def test_one_seed_has_no_interval_however_far_it_is() -> None:
    alone = judge([0.5], [0.9, 0.91])
    assert (alone.word, alone.interval) == ("not shown", None)
    assert "one seed" in alone.reason


def test_seeds_that_agree_to_the_last_digit_show_nothing() -> None:
    assert judge([0.5, 0.5], [0.9, 0.9]).word == "not shown"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_seed_without_a_number_is_no_win_for_the_others(broken: float) -> None:
    assert judge([0.5, 0.5001], [0.9, broken]).word == "not shown"
    assert judge_costs([5, 5.1], [9, broken]).word == "not shown"


def test_costs_are_judged_by_their_ratio() -> None:
    found = judge_costs([100, 101, 102], [200, 202, 204])
    assert found.word == "better"
    assert found.interval is not None and found.interval.mid == pytest.approx(-0.5)


def test_better_needs_every_axis() -> None:
    better, worse, unknown = (Verdict(word, None) for word in ("better", "worse", "not shown"))
    assert over_all({"steps": better, "FLOPs": better, "time": better}).word == "better"
    mixed = over_all({"steps": better, "FLOPs": better, "time": worse})
    assert (mixed.word, mixed.reason) == ("not shown", "better in steps, better in FLOPs, worse in time")
    assert over_all({"steps": unknown, "FLOPs": unknown}).reason == "on no axis"


def test_an_interval_of_95_percent_holds_the_truth_95_times_of_100() -> None:
    dice = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = difference(dice.normal(1, 1, 3), dice.normal(0, 1, 4))  # type: ignore[arg-type]
        assert found is not None
        held += found.low <= 1 <= found.high
    assert 0.93 < held / 2000 < 0.975


# bpb of the 10,000-step run of the seeds, every 500 steps; REFERENCE section 16.
SEED_BPB = [3.221, 1.280, 1.167, 1.124, 1.100, 1.082, 1.070, 1.060, 1.044, 1.031, 1.018, 1.006, 0.995, 0.985]
SEED_BPB += [0.976, 0.967, 0.959, 0.951, 0.945, 0.939, 0.935]


def test_the_seeds_run_goes_below_one_between_5500_and_6000() -> None:
    steps = np.arange(0, 10_001, 500)
    assert crossing(steps, np.array(SEED_BPB), 1.0) == pytest.approx(5500 + 500 * 6 / 11)
    assert crossing(steps, np.array(SEED_BPB), 0.935) == 10_000
    assert crossing(steps, np.array(SEED_BPB), 0.9) == math.inf


def test_a_crossing_passes_over_what_is_not_a_number_and_takes_the_first() -> None:
    x = np.arange(5.0)
    assert crossing(x, np.array([3, math.nan, 1, 2, 0.5]), 2.0) == 1.0
    assert crossing(x, np.array([math.nan, 1, 1, 1, 1.0]), 2.0) == 1.0
    assert crossing(x, np.full(5, math.nan), 2.0) == math.inf


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_crossing_is_on_the_curve(falls: list[float], target: float) -> None:
    y = np.array(falls)
    x = np.arange(len(y)) * 10.0
    where = crossing(x, y, target)
    if where == math.inf:
        assert y.min() > target
    elif y[0] <= target:
        assert where == 0
    else:
        assert np.interp(where, x, y) == pytest.approx(target, abs=1e-6)
