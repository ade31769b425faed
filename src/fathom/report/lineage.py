"""A run that goes on from another, with what came before: one history from the first step to the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.report.history import COLUMNS, History, history_of
from fathom.report.phases import Phase

FARTHEST = 20


@dataclass(frozen=True)
class Ancestor:
    """The run that another goes on from, and after how many steps."""

    name: str
    step: int


def parent(history: History) -> Ancestor | None:
    """Where a run says that it was extended from another."""
    for line in history.events:
        source, step = line.get("from"), line.get("step")
        if line.get("event") == "extended" and isinstance(source, str) and type(step) is int:
            return Ancestor(source, step) if source != history.name else None
    return None


def with_ancestors(history: History) -> tuple[History, tuple[Ancestor, ...]]:
    """The run joined to those it goes on from, and these, the oldest first. Missing ones are said in `troubles`."""
    joined, seen = _without_empty_beginning(history), {history.name}
    found: list[Ancestor] = []
    while (before := parent(joined)) is not None and before.name not in seen and len(found) < FARTHEST:
        seen.add(before.name)
        try:
            older = history_of(before.name)
        except FathomError as error:
            trouble = f"the run {before.name} that it goes on from cannot be read: {error.problem}"
            joined = replace(joined, troubles=(*joined.troubles, trouble))
            break
        found.append(before)
        joined = _joined(_without_empty_beginning(older), joined, before)
    return joined, tuple(reversed(found))


def _joined(older: History, newer: History, at: Ancestor) -> History:
    early = older.step <= at.step
    late = newer.step > at.step
    troubles = [*newer.troubles, *(f"{older.name}: {trouble}" for trouble in older.troubles)]
    if older.batch_tokens != newer.batch_tokens:
        troubles.append(
            f"{older.name} had {older.batch_tokens or 0:,} tokens a step and {newer.name} has "
            f"{newer.batch_tokens or 0:,}; tokens are counted as if it had been the latter throughout"
        )
    return replace(
        newer,
        step=np.concatenate([older.step[early], newer.step[late]]),
        columns={name: np.concatenate([older.columns[name][early], newer.columns[name][late]]) for name in COLUMNS},
        events=(*(line for line in older.events if _is_up_to(line, at.step)), *_but_the_first_extension(newer, at)),
        phases=(*(_cut(phase, at.step) for phase in older.phases if phase.first_step <= at.step), *newer.phases),
        evaluations=(
            *(one for one in older.evaluations if one.step <= at.step),
            *(one for one in newer.evaluations if one.step >= at.step),
        ),
        troubles=tuple(troubles),
    )


def _is_up_to(line: Mapping[str, Any], step: int) -> bool:
    at = line.get("step")
    return not (type(at) is int and at > step)


def _but_the_first_extension(newer: History, at: Ancestor) -> list[Mapping[str, Any]]:
    """The newer run's events, the extension stripped of its source, so that the older run's own comes to light."""
    lines = list(newer.events)
    for i, line in enumerate(lines):
        if line.get("event") == "extended" and line.get("from") == at.name:
            lines[i] = {key: value for key, value in line.items() if key != "from"} | {"of": at.name}
            break
    return lines


def _cut(phase: Phase, step: int) -> Phase:
    return phase if phase.last_step <= step else replace(phase, last_step=step)


def _without_empty_beginning(history: History) -> History:
    """An extended run says `started` when its folder is made and `extended` when it trains: that is one beginning."""
    phases, events = history.phases, history.events
    if len(phases) < 2 or phases[0].kind != "started" or phases[1].kind != "extended" or phases[0].last_step > 0:
        return history
    first = next(i for i, line in enumerate(events) if line.get("event") == "started")
    return replace(history, phases=phases[1:], events=(*events[:first], *events[first + 1 :]))
