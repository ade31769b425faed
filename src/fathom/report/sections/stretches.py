"""Each phase of a run in figures: its steps, tokens, time, loss, rates, bpb (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fathom.report import measures
from fathom.report.history import History
from fathom.report.phases import BEGINS, Phase


@dataclass(frozen=True)
class Stretch:
    """What a phase added to the run: its steps that no later phase did again."""

    number: int
    """From 1."""
    phase: Phase
    last_step: int
    train_s: float
    losses: tuple[float, float]
    """Smoothed training loss at its beginning and its end; NaN where not logged."""
    rates: tuple[float, float]
    saved: int
    """Checkpoints written."""
    val_bpb: float
    """Of its last validation."""
    wait_s: float
    """Seconds by the clock between the end of the phase before and its beginning; NaN where either is unknown."""

    @property
    def steps(self) -> int:
        return max(0, self.last_step - self.phase.first_step)


def stretches(history: History) -> list[Stretch]:
    """Every phase of the run in order."""
    measured = measures.measured(history)
    found: list[Stretch] = []
    for i, phase in enumerate(history.phases):
        later = [other.first_step for other in history.phases[i + 1 :]]
        last = min([phase.last_step, *later])
        lines = (history.step > phase.first_step) & (history.step <= last)
        bpbs = [one.val_bpb for one in measured if one.phase == i]
        before = history.phases[i - 1].ended if i else None
        found.append(
            Stretch(
                number=i + 1,
                phase=phase,
                last_step=last,
                train_s=_train_s(history, lines),
                losses=_ends(history.loss_smooth[lines]),
                rates=_ends(history.lr[lines]),
                saved=_saved(history, i),
                val_bpb=bpbs[-1] if bpbs else math.nan,
                wait_s=phase.began - before if before is not None else math.nan,
            )
        )
    return found


def _train_s(history: History, lines: np.ndarray) -> float:
    """Seconds in training steps on these lines: by the training clock, from the line before them on."""
    known = np.isfinite(history.train_s)
    within = np.flatnonzero(lines & known)
    if not len(within):
        return math.nan
    earlier = np.flatnonzero(known[: within[0]])
    end = float(history.train_s[within[-1]])
    begin = float(history.train_s[earlier[-1]]) if len(earlier) else 0.0
    if begin > float(history.train_s[within[0]]):  # this phase counted from zero again
        begin = 0.0
    elif not len(earlier) and history.step[within[0]] > 1:  # what came before is not in this record
        begin = float(history.train_s[within[0]])
    return max(0.0, end - begin)


def _ends(values: np.ndarray) -> tuple[float, float]:
    good = values[np.isfinite(values)]
    return (float(good[0]), float(good[-1])) if len(good) else (math.nan, math.nan)


def _saved(history: History, phase: int) -> int:
    beginnings = [i for i, line in enumerate(history.events) if line.get("event") in BEGINS]
    if phase >= len(beginnings):
        return 0
    until = beginnings[phase + 1] if phase + 1 < len(beginnings) else len(history.events)
    return sum(line.get("event") == "saved" for line in history.events[beginnings[phase] : until])
