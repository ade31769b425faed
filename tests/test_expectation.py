"""Expected bpb and CORE: the fit by hand, the seeds' runs, and silence where nothing is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.expectation import (
    BEST_RATIO,
    BPB,
    BPB_LINE,
    CORE,
    CORE_LINE,
    Expectation,
    capability,
    expected_bpb,
    expected_core,
    fit,
    from_own_run,
    why_unknown,
    worth_flops,
)


def test_a_line_by_hand() -> None:
    """Two parallel sets, each point off by 1 up or down."""
    line = fit([("a", 0, 1), ("a", 1, 1), ("a", 2, 5), ("a", 3, 5), ("b", 0, 11), ("b", 3, 15)])
    assert line.means["a"] == (1.5, 3, 4)
    assert line.freedom == 3
    assert line.within == 9.5
    assert line.slope == pytest.approx((1.5 * 2 + 0.5 * 2 + 0.5 * 2 + 1.5 * 2 + 1.5 * 2 * 2) / 9.5)


def test_most_points_lie_within_their_interval_and_the_slope_is_a_slope() -> None:
    for points, line, scale in ((BPB, BPB_LINE, math.log), (CORE, CORE_LINE, float)):
        inside = 0
        for point in points:
            value, half = line.at(math.log10(point.flops), point.texts)
            inside += abs(scale(point.value) - value) <= half
        assert inside >= 0.8 * len(points)
    assert -0.13 < BPB_LINE.slope < -0.10
    assert 0.08 < CORE_LINE.slope < 0.12


def known(found: Expectation | str) -> Expectation:
    assert isinstance(found, Expectation), found
    assert found.low <= found.expected <= found.high
    return found


def test_the_seeds_long_run_was_as_expected() -> None:
    """Depth 12, 130,000 steps: bpb 0.780 (0.810 on other texts), CORE 0.1916 and 0.1932."""
    flops, ratio = 887_098_032 * 8_519_680_000.0, 8_519_680_000 / 110_100_912
    bpb, core = known(expected_bpb(flops, ratio)), known(expected_core(flops, ratio))
    assert bpb.low <= 0.780026 <= bpb.high and bpb.low <= 0.810152 <= bpb.high
    assert core.low <= 0.1916 <= core.high and core.low <= 0.1932 <= core.high


def test_the_seeds_first_run_ended_at_the_upper_end() -> None:
    """Depth 12, 10,000 steps on FineWeb-Edu: 0.935."""
    flops, ratio = 887_098_032 * 655_360_000.0, 655_360_000 / 110_100_912
    assert known(expected_bpb(flops, ratio)).high == pytest.approx(0.935, rel=0.01)


def test_the_record_run() -> None:
    flops = 5_568 * 1_048_576 * 4_775_225_616.0
    bpb, core = known(expected_bpb(flops, 8.0)), known(expected_core(flops, 8.0))
    assert bpb.expected == pytest.approx(0.718, abs=0.008)
    assert core.low <= 0.2626 <= core.high


@settings(deadline=None)
@given(st.floats(17.5, 20), st.floats(2, 200))
def test_more_compute_is_expected_to_be_better(exponent: float, ratio: float) -> None:
    less, more = known(expected_bpb(10**exponent, ratio)), known(expected_bpb(10 ** (exponent + 0.1), ratio))
    assert more.expected < less.expected


@settings(deadline=None)
@given(st.floats(1.0, 20.0))
def test_compute_is_worth_most_at_the_best_ratio(factor: float) -> None:
    assert worth_flops(1e18, BEST_RATIO) == pytest.approx(1e18)
    assert worth_flops(1e18, BEST_RATIO * factor) <= 1e18 * 1.000001
    assert worth_flops(1e18, BEST_RATIO * factor) == pytest.approx(worth_flops(1e18, BEST_RATIO / factor))


def test_far_from_what_is_published_nothing_is_claimed() -> None:
    assert "published" in str(expected_bpb(1e14, 12)) and isinstance(expected_bpb(1e14, 12), str)
    assert isinstance(expected_core(1e17, 12), str)
    assert isinstance(expected_bpb(1e23, 12), str)
    assert why_unknown(12, 32_768, 12) == ""
    assert "depths under 8" in why_unknown(4, 32_768, 12)
    assert "vocabulary, not 1,024" in why_unknown(12, 1_024, 12)
    assert "tokens for each parameter" in why_unknown(12, 32_768, 0.1)
    assert why_unknown(64, 32_768, 12)


def test_where_a_line_ends_is_said() -> None:
    said = expected_core(6.2e17, 10.7)
    assert said == (
        "what is published spans 4.2e+18 to 4.8e+19 FLOPs, believed from 7e+17 to 2.9e+20; this run is worth 6.2e+17"
    )
    assert isinstance(expected_core(7.1e17, 10.7), Expectation)


def test_an_own_run_leads_to_its_neighbours() -> None:
    same = from_own_run(1e14, 1.5, 1e14, "mine")
    assert same is not None and same.expected == pytest.approx(1.5) and same.low < 1.5 < same.high
    more = from_own_run(5e14, 1.5, 1e14, "mine")
    assert more is not None and more.expected < 1.5 and more.high - more.low > same.high - same.low
    assert "mine" in more.source
    unlike = from_own_run(1e14, 1.5, 1e14, "mine", 2.0)
    assert unlike is not None and unlike.low < same.low < same.high < unlike.high
    assert from_own_run(1e16, 1.5, 1e14, "mine") is None
    assert from_own_run(1e14, math.nan, 1e14, "mine") is None


def test_every_depth_has_its_words() -> None:
    words = [capability(depth, 12, None) for depth in (1, 4, 8, 12, 16, 20, 24, 28)]
    assert len(set(words)) == 8
    assert "GPT-1" in capability(12, 12, None) and "GPT-2" in capability(26, 2, 12)


def test_words_are_smaller_for_less_training() -> None:
    assert capability(8, 0.75, 4).startswith("At most: Grammatical sentences")
    assert "are few for depth 8; the same budget trains depth 4 best." in capability(8, 0.75, 4)
    hardly = capability(8, 0.0335, 2)
    assert hardly.startswith("Scraps of words") and "Grammatical" not in hardly
    assert "far too little for depth 8; the same budget trains depth 2 best." in hardly
    assert capability(2, 0.1, 2).endswith("far too little for depth 2.")
