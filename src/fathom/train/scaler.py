"""A dynamic loss scale for float16, whose small gradients would vanish. Off, it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16
GROW_AFTER = 2000
LEAST_SCALE = 1.0  # below, what overflows are the weights


class LossScaler:
    """Doubles the scale after 2,000 good steps in a row, halves it after an overflow, whose step is skipped."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._scale, self._good = FIRST_SCALE, 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self._scale if self._enabled else loss

    @property
    def inverse(self) -> float:
        """The factor that takes the scale out of a gradient."""
        return 1 / self._scale if self._enabled else 1.0

    def unscale(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take the scale out of the gradients."""
        if self._enabled:
            gradients = [weight.grad for weight in parameters if weight.grad is not None]
            torch._foreach_mul_(gradients, 1 / self._scale)

    def judge(self, loss: float, gradient_norm: float) -> str:
        """Why a step has to be left out for a smaller scale; "" where float16 is not to blame."""
        if not self._enabled or not math.isfinite(loss):
            return ""
        if math.isfinite(gradient_norm):
            self._good += 1
            if self._good % GROW_AFTER == 0:
                self._scale *= 2
            return ""
        self._good = 0
        self._scale /= 2
        return "float16 overflow" if self._scale >= LEAST_SCALE else ""

    def state(self) -> list[float] | None:
        return [self._scale, self._good] if self._enabled else None

    def load(self, state: list[float] | None) -> None:
        if state is not None:
            self._scale, self._good = state[0], int(state[1])
