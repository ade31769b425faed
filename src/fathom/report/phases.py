"""What of a run's record counts: its phases, its evaluations, and the steps that led to where it is now (pure).

A run that was killed goes on from its last checkpoint, and one that went astray is rolled back to one. What was logged
after that checkpoint is then no part of the run's past any more, whether or not those steps have been done again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from fathom.report.lines import number, whole
from fathom.report.words import duration

BEGINS = ("started", "resumed", "extended")
ENDS = ("stopped", "finished")
AFTERWARDS = "extended_in"
"""What another run, which goes on from this one, notes here: no part of this one's course."""
SLEPT_S = 3600.0

Events = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Phase:
    """One stretch of training by one process, from the step it began at."""

    kind: str
    """started, resumed or extended."""
    first_step: int
    """Steps done when it began."""
    last_step: int
    """Steps done when it ended, or so far."""
    began: float
    """Unix seconds."""
    ended: float | None
    """Unix seconds of the last that is known of it; None where nothing is."""
    ended_by: str
    """finished, a signal's name, or "" where the record only stops: killed, crashed, or still at work."""
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    """Device, dtype, peak rate, micro-batch: what the event `training` says. Empty in old records."""
    refusal: str = ""
    """Why training ended it by itself, in a sentence; "" where it did not, or could not write."""


@dataclass(frozen=True)
class Evaluation:
    step: int
    val_bpb: float
    train_s: float
    time: float


def lineage(step: np.ndarray) -> np.ndarray:
    """(N,) bool: the logged steps, in the order of the file, that no later line takes back.

    Going back to step k takes back what was logged of k and beyond, so what is left ascends.
    """
    if not len(step):
        return np.zeros(0, dtype=bool)
    least_from_here = np.minimum.accumulate(step[::-1])[::-1]
    return np.append(step[:-1] < least_from_here[1:], True)


def first_lost(events: Events, step: np.ndarray, time: np.ndarray) -> int:
    """How many of the logged steps (ascending) count when the newest phase resumed before some of them.

    Until it has logged a step of its own, they are still there. They are told by having been logged before it began;
    a record without times, or one where that phase has saved or measured since, keeps all.
    """
    heads = [i for i, line in enumerate(events) if line.get("event") in BEGINS]
    if not heads or events[heads[-1]].get("event") != "resumed":
        return len(step)
    first = whole(events[heads[-1]].get("step"))
    seen = [at for line in events[heads[-1] + 1 :] if (at := whole(line.get("step"))) is not None]
    if first is None or any(at > first for at in seen):
        return len(step)
    beyond = int(np.searchsorted(step, first))
    if beyond < len(step) and time[beyond] < number(events[heads[-1]].get("time")):
        return beyond
    return len(step)


def phases_of(events: Events, step: np.ndarray, time: np.ndarray, steps_done: int) -> tuple[Phase, ...]:
    """Every `started`, `resumed` or `extended`, with what is known until the next of them.

    `step` and `time` are (N,) of every logged line in the order of the file, taken back or not; `steps_done` is where
    the newest phase is.
    """
    heads = [i for i, line in enumerate(events) if line.get("event") in BEGINS]
    found: list[Phase] = []
    for place, until in pairwise([*heads, len(events)]):
        is_last = until == len(events)
        began = number(events[place].get("time"))
        before = math.inf if is_last else number(events[until].get("time"))
        within = (time >= began) & (time < before)
        last_step = int(step[within].max(initial=-1)) + 1
        last_time = float(time[within].max(initial=-math.inf))
        found.append(_phase(events[place:until], steps_done if is_last else None, last_step, last_time))
    return tuple(found)


def _phase(events: Events, steps_done: int | None, last_step: int, last_time: float) -> Phase:
    """From its events; the last step and moment are what the metrics know of it, 0 and minus infinity for nothing."""
    head = events[0]
    first = whole(head.get("step")) or 0
    seen = [at for line in events if (at := whole(line.get("step"))) is not None]
    own = [line for line in events if line.get("event") != AFTERWARDS]
    times = [when for line in own if not math.isnan(when := number(line.get("time")))]
    ended = max([*times, last_time])
    training = [line for line in events if line.get("event") == "training"]
    facts = {k: v for k, v in training[-1].items() if k not in ("event", "time", "step")} if training else {}
    facts |= _halved(events, whole(facts.get("device_batch")), whole(facts.get("grad_accum")) or 1)
    return Phase(
        kind=str(head["event"]),
        first_step=first,
        last_step=max([first, *seen, last_step]) if steps_done is None else steps_done,
        began=number(head.get("time")),
        ended=ended if math.isfinite(ended) else None,
        ended_by=_ending(events),
        refusal=next((str(line.get("why") or "") for line in events if line.get("event") == "refused"), ""),
        circumstances=facts,
    )


def _halved(events: Events, rows: int | None, accumulated: int) -> dict[str, int]:
    """The micro-batch that a phase came down to for want of memory, and how many make a step; else empty."""
    found = [
        now for line in events if line.get("event") == "out_of_memory" and (now := whole(line.get("device_batch")))
    ]
    if not found or not rows or found[-1] < 1:
        return {}
    return {"device_batch": found[-1], "grad_accum": -(-accumulated * rows // found[-1])}


def _ending(events: Events) -> str:
    ends = [line for line in events if line.get("event") in ENDS]
    if not ends:
        return ""
    return "finished" if ends[-1]["event"] == "finished" else str(ends[-1].get("why") or "stopped")


def evaluations_of(events: Events) -> tuple[Evaluation, ...]:
    """What was measured on the way to where the run is, by step."""
    found: dict[int, Evaluation] = {}
    for line in events:
        step = whole(line.get("step"))
        if line.get("event") == "evaluated" and step is not None and "val_bpb" in line:
            bpb, train_s, at = (number(line.get(key)) for key in ("val_bpb", "train_s", "time"))
            found[step] = Evaluation(step, bpb, train_s, at)
        back_to = {"resumed": step, "rolled_back": whole(line.get("to"))}.get(str(line.get("event")))
        if back_to is not None:
            found = {step: one for step, one in found.items() if step <= back_to}
    return tuple(found[step] for step in sorted(found))


def left_out(events: Events) -> list[int]:
    """Steps done after each step that moved no weight, but for those that the run went back over."""
    found: list[int] = []
    for line in events:
        step = whole(line.get("step"))
        if line.get("event") == "skipped" and step is not None:
            found.append(step + 1)
        back_to = {"resumed": step, "rolled_back": whole(line.get("to"))}.get(str(line.get("event")))
        if back_to is not None:
            found = [step for step in found if step <= back_to]
    return found


def oddities(phases: Sequence[Phase], taken_back: int) -> list[str]:
    """What does not fit between phases, a sentence each. `taken_back` counts logged steps that do not count any more.

    Of these it is said how many are there even where no phase tells of them.
    """
    found, told = [], 0
    for before, after in pairwise(phases):
        if before.ended is not None and after.began < before.ended:
            found.append(
                f"the clock went back by {before.ended - after.began:,.0f} s between two phases, "
                "or two processes wrote at once; durations are taken from the training time, not from the clock"
            )
        if after.kind == "resumed" and after.first_step < before.last_step:
            again = before.last_step - after.first_step
            told += again
            found.append(f"{again:,} steps after step {after.first_step:,} were lost and had to be done again")
    if taken_back > told:
        found.append(f"{taken_back:,} logged steps were done more than once or taken back; what came last counts")
    return found


@np.errstate(all="ignore")
def clock_oddities(step: np.ndarray, time: np.ndarray, train_s: np.ndarray, phases: Sequence[Phase]) -> list[str]:
    """Where the clock of one phase went back, and where hours passed without training. (N,) of the steps that count."""
    passed = np.diff(time)
    idle = passed - np.diff(train_s)
    for phase in phases:  # what lies between two phases is no oddity
        first = int(np.searchsorted(step, phase.first_step, side="right"))
        passed[max(0, first - 1) : first] = idle[max(0, first - 1) : first] = 0.0
    found = []
    for places, sentence in (
        (np.flatnonzero(passed < -1.0), "the clock went back by {} after step {:,}"),
        (
            np.flatnonzero(idle > SLEPT_S),
            "{} passed after step {:,} without training: the machine slept or hung, or its clock was set",
        ),
    ):
        if len(places):
            seconds = abs(float((passed if passed[places[0]] < 0 else idle)[places[0]]))
            again = f", and {len(places) - 1:,} more times" if len(places) > 1 else ""
            found.append(sentence.format(duration(seconds), int(step[places[0]])) + again)
    return found
