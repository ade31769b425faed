"""The loss scaler of float16, with made-up gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fathom.train import scaler as scalers
from fathom.train.scaler import FIRST_SCALE, LossScaler


def weights_with(*gradients: list[float] | None) -> list[nn.Parameter]:
    weights = []
    for gradient in gradients:
        weight = nn.Parameter(torch.zeros(2))
        weight.grad = None if gradient is None else torch.tensor(gradient)
        weights.append(weight)
    return weights


def good(scaler: LossScaler, weights: list[nn.Parameter]) -> bool:
    """Take the scale out and ask whether the step may be taken."""
    scaler.unscale(weights)
    gradients = torch.cat([weight.grad for weight in weights if weight.grad is not None])
    return not scaler.judge(1.0, float(gradients.norm()))


def test_off_it_changes_nothing() -> None:
    scaler, loss = LossScaler(enabled=False), torch.tensor(2.5)
    weights = weights_with([math.inf, math.nan])
    assert scaler.scale(loss) is loss
    assert good(scaler, weights)
    assert weights[0].grad is not None and weights[0].grad[0] == math.inf
    assert scaler.state() is None
    scaler.load([4.0, 7])
    assert scaler.scale(loss) == loss


def test_what_was_scaled_up_comes_down_exactly() -> None:
    scaler = LossScaler(enabled=True)
    gradient = torch.tensor([1e-7, -3.14159])
    weights = weights_with((gradient * FIRST_SCALE).tolist(), None)
    assert scaler.scale(torch.tensor(2.5)) == 2.5 * FIRST_SCALE
    assert good(scaler, weights)
    assert weights[0].grad is not None and torch.equal(weights[0].grad, gradient)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_overflow_anywhere_skips_the_step_and_halves_the_scale(bad: float) -> None:
    scaler = LossScaler(enabled=True)
    assert not good(scaler, weights_with([1.0, 2.0], None, [3.0, bad]))
    assert scaler.state() == [FIRST_SCALE / 2, 0]
    assert good(scaler, weights_with([1.0, 2.0]))
    assert scaler.state() == [FIRST_SCALE / 2, 1]


def test_where_the_weights_are_at_fault_it_leaves_the_judgement_to_others() -> None:
    scaler = LossScaler(enabled=True)
    assert scaler.judge(math.nan, math.nan) == "" and scaler.state() == [FIRST_SCALE, 0]
    said = [scaler.judge(1.0, math.inf) for _ in range(18)]
    assert said == ["float16 overflow"] * 16 + ["", ""]


def test_it_grows_after_good_steps_in_a_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalers, "GROW_AFTER", 3)
    scaler = LossScaler(enabled=True)
    scales = []
    for value in (1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        good(scaler, weights_with([value, value]))
        scales.append(scaler.scale(torch.tensor(1.0)).item() / FIRST_SCALE)
    assert scales == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2]


def test_its_state_goes_on_in_another() -> None:
    scaler = LossScaler(enabled=True)
    for value in (math.nan, 1.0, 1.0):
        good(scaler, weights_with([value, 0.0]))
    other = LossScaler(enabled=True)
    other.load(scaler.state())
    assert other.state() == scaler.state() == [FIRST_SCALE / 2, 2]
    other.load(None)
    assert other.state() == scaler.state()


def test_small_gradients_survive_float16_only_with_it() -> None:
    """What the scaler is for: a gradient below float16's smallest number."""
    scaler = LossScaler(enabled=True)
    weight = nn.Parameter(torch.ones(2))

    def gradient(enabled: bool) -> torch.Tensor:
        weight.grad = None
        loss = (weight.half() * 1e-4).sum().float() * 1e-5
        (scaler.scale(loss) if enabled else loss).backward()
        assert weight.grad is not None
        return weight.grad

    assert gradient(enabled=False).tolist() == [0, 0]
    gradient(enabled=True)
    assert good(scaler, [weight])
    assert weight.grad is not None and weight.grad.tolist() == pytest.approx([1e-9, 1e-9], rel=0.01)
