"""Schedules pinned to the golden table of REFERENCE section 3."""

from __future__ import annotations

import pytest

from fathom.optim.schedule import Schedule


@pytest.mark.parametrize(
    ("steps", "step", "lr", "momentum", "decay"),
    [
        (10_000, 0, 0.025, 0.85, 0.0989949),
        (10_000, 399, 1, 0.9697, 0.0986066),
        (10_000, 3_500, 1, 0.97, 0.0719689),
        (10_000, 3_501, 0.999854, 0.969989, 0.071955),
        (10_000, 6_500, 0.561538, 0.937692, 0.0270261),
        (10_000, 9_999, 0.050146, 0.900011, 2.4e-9),
        (87_000, 30_450, 1, 0.97, 0.0719689),
        (87_000, 35_729, 0.911317, 0.963465, 0.0632055),
        (130_000, 87_000, 0.533432, 0.935621, 0.0244042),
        (200_000, 130_000, 0.561538, 0.937692, 0.0270261),
    ],
)
def test_golden(steps: int, step: int, lr: float, momentum: float, decay: float) -> None:
    schedule = Schedule(steps, weight_decay=0.0989949)
    assert schedule.lr(step) == pytest.approx(lr, abs=1e-6)
    assert schedule.momentum(step) == pytest.approx(momentum, abs=1e-6)
    assert schedule.decay(step) == pytest.approx(decay, abs=1e-7)


def test_warmup_has_precedence_in_a_run_shorter_than_it() -> None:
    assert Schedule(20).lr(19) == pytest.approx(0.5)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.25), (3, 1), (6, 1), (8, 0.75), (10, 0.5)])
def test_by_hand(step: int, lr: float) -> None:
    assert Schedule(10, warmup_steps=4, warmdown_share=0.4, final_lr=0.5).lr(step) == pytest.approx(lr)


def test_without_a_warmdown_the_rate_holds() -> None:
    schedule = Schedule(10, warmup_steps=0, warmdown_share=0.0)
    assert [schedule.lr(step) for step in range(10)] == [1.0] * 10
    assert schedule.momentum(9) == pytest.approx(0.85 + 9 / 400 * 0.12)
