"""Rate, momentum and decay as functions of the step (pure). REFERENCE sections 3.2 to 3.4 and 8."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What changes during a run of `steps` updates; every method takes the step, counted from 0."""

    steps: int
    warmup_steps: int = 40
    warmdown_share: float = 0.65
    final_lr: float = 0.05
    momentum_start: float = 0.85
    momentum_peak: float = 0.97
    momentum_end: float = 0.90
    momentum_warmup_steps: int = 400
    weight_decay: float = 0.0

    @property
    def warmdown_steps(self) -> int:
        return round(self.warmdown_share * self.steps)

    @property
    def warmdown_from(self) -> int:
        """The last step at the full rate."""
        return self.steps - self.warmdown_steps

    @property
    def extendable_from(self) -> int | None:
        """After so many steps a longer run could go on, as nothing has fallen yet; None where nothing falls."""
        return self.warmdown_from if 0 < self.warmdown_from < self.steps else None

    def lr(self, step: int) -> float:
        """Share of the peak rate: climb, hold, then straight down to `final_lr` at the end."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step <= self.warmdown_from:
            return 1.0
        left = (self.steps - step) / self.warmdown_steps
        return left + (1 - left) * self.final_lr

    def momentum(self, step: int) -> float:
        """Muon's: rises over the first steps, falls with the warm-down; the rise has precedence."""
        if step < self.momentum_warmup_steps:
            share = step / self.momentum_warmup_steps
            return (1 - share) * self.momentum_start + share * self.momentum_peak
        if self.warmdown_steps and step >= self.warmdown_from:
            share = (step - self.warmdown_from) / self.warmdown_steps
            return (1 - share) * self.momentum_peak + share * self.momentum_end
        return self.momentum_peak

    def decay(self, step: int) -> float:
        """Muon's weight decay: half a cosine from `weight_decay` to zero."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * step / self.steps))
