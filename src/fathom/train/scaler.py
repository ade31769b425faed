"""A dynamic loss scale for float16, whose small gradients would vanish. Off, it changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16
GROW_AFTER = 2000


class LossScaler:
    """Doubles the scale after 2,000 good steps in a row, halves it after an overflow, whose step is skipped."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._scale, self._good = FIRST_SCALE, 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self._scale if self._enabled else loss

    def gradients_are_finite(self, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Take the scale out of the gradients; False (and a smaller scale) when one of them overflowed."""
        if not self._enabled:
            return True
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        torch._foreach_mul_(gradients, 1 / self._scale)
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        self._good = self._good + 1 if finite else 0
        if not finite:
            self._scale /= 2
        elif self._good % GROW_AFTER == 0:
            self._scale *= 2
        return finite

    def state(self) -> list[float] | None:
        return [self._scale, self._good] if self._enabled else None

    def load(self, state: list[float] | None) -> None:
        if state is not None:
            self._scale, self._good = state[0], int(state[1])
