"""How far a run is: what a checkpoint remembers besides weights and moments, and how it comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fathom.model.gpt import GPT
from fathom.optim.optimizer import Optimizer
from fathom.train import checkpoint
from fathom.train.sharing import state_of


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0
    """In training steps alone, over all sessions of the run."""
    loss_average: float = 0.0
    averaged: int = 0
    """Steps that are in the average: those that were not left out."""
    loader_wait_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def meta(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "loss_average": self.loss_average,
            "averaged": self.averaged,
            "loader_wait_s": round(self.loader_wait_s, 4),
            **self.extra,
        }

    def add_loss(self, loss: float) -> None:
        self.loss_average = 0.9 * self.loss_average + 0.1 * loss
        self.averaged += 1

    @property
    def smooth_loss(self) -> float:
        """The running mean of the loss, corrected for its start at zero; no number before the first."""
        return self.loss_average / (1 - 0.9**self.averaged) if self.averaged else math.nan

    def become(self, other: Progress) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(other, one.name))


def load_progress(run_folder: Path, step: int, model: GPT, optimizer: Optimizer) -> Progress:
    """Put weights and moments as the checkpoint of `step` has them. Raises FathomError where it cannot be loaded."""
    folder = checkpoint.folder_of(run_folder, step)
    meta = load_weights_and_moments(folder, model, optimizer)
    known = {"seconds", "loss_average", "loader_wait_s"}
    if lacking := sorted((known | {"step"}) - meta.keys()):
        raise checkpoint.Damaged(f"{folder / 'meta.json'} does not say {lacking[0]!r}", "use another checkpoint")
    return Progress(
        step=meta["step"],
        **{key: meta[key] for key in known},
        averaged=meta.get("averaged", meta["step"]),
        extra={key: value for key, value in meta.items() if key not in known | {"step", "averaged"}},
    )


def load_weights_and_moments(folder: Path, model: GPT, optimizer: Optimizer) -> dict[str, Any]:
    """Fill both from a checkpoint; returns its meta."""
    optimizer.prime()
    state = state_of(model, optimizer)
    meta = checkpoint.load(folder, state)
    optimizer.load_state(state["optimizer"])
    return meta
