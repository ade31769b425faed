"""Which steps to leave out: a loss or a gradient that is no number, or a loss far above the last ones.

A step that is left out moves no weight and no moment. Several in a row say that the trouble is in the weights already:
the run goes back to its last checkpoint and on past the data where it began; after a few returns it stops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW = 128  # losses of the last good steps
LEAST = 64  # of them before a spike is told from the noise of a beginning
SIGMAS = 6.0
FLOOR = 0.01  # of the mean loss, as the least standard deviation: learnt by heart, a loss has nearly none
IN_A_ROW = 4
RETURNS = 3


@dataclass
class Health:
    """What a run remembers of its last steps; part of every checkpoint, so that a resumed run decides alike."""

    skip_spikes: bool = True
    losses: list[float] = field(default_factory=list)
    in_a_row: int = 0
    skipped: int = 0
    """All steps that were left out, also those that say nothing of data or weights and are not judged here."""
    returns: int = 0
    data_shift: int = 0
    """Batches passed over for good: step s trains on the batch of step s + data_shift."""

    def judge(self, loss: float, gradient_norm: float) -> str:
        """Why this step must not move a weight; "" where it may. Counts it either way."""
        why = self._why(loss, gradient_norm)
        if why:
            self.in_a_row += 1
            self.skipped += 1
        else:
            self.in_a_row = 0
            self.losses = [*self.losses[-WINDOW + 1 :], loss]
        return why

    def _why(self, loss: float, gradient_norm: float) -> str:
        if not math.isfinite(loss):
            return "non-finite loss"
        if not math.isfinite(gradient_norm):
            return "non-finite gradient"
        return "spike" if self.skip_spikes and loss > self.highest() else ""

    def highest(self) -> float:
        """The loss above which a step is a spike: six standard deviations over the mean of the last good ones."""
        if len(self.losses) < LEAST:
            return math.inf
        mean, sigma = float(np.mean(self.losses)), float(np.std(self.losses))
        return mean + SIGMAS * max(sigma, FLOOR * abs(mean))

    @property
    def must_go_back(self) -> bool:
        return self.in_a_row >= IN_A_ROW

    @property
    def is_beyond_help(self) -> bool:
        return self.must_go_back and self.returns >= RETURNS

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint's meta."""
        return {
            "losses": self.losses,
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
            "returns": self.returns,
            "data_shift": self.data_shift,
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take `state()` back; None, from before there was any, is a clean record."""
        clean = Health().state()
        for name, value in (clean | dict(state or {})).items():
            setattr(self, name, value)
