"""What `fathom eval` left in a run's evals/: which result counts, and what stands in it (pure)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.report.history import History
from fathom.report.lines import whole
from fathom.report.measures import number

GPT2_CORE = 0.256525
"""Of GPT-2 with 1.5 billion parameters (REFERENCE 6.1)."""


@dataclass(frozen=True)
class Part:
    """One task of a result. NaN is what it does not tell."""

    name: str
    accuracy: float
    centered: float
    """0 is guessing, 1 all right."""
    standard_error: float
    """Of the accuracy."""
    n: int
    chance: float
    """What guessing gets, from accuracy and centred accuracy."""


@dataclass(frozen=True)
class Score:
    """A result of one step."""

    file: str
    task: str
    step: int
    value: float
    standard_error: float
    n: int
    limit: int | None
    """At most so many items of each task were taken; None for all."""
    same_as: str
    """Data and settings but the dtype in one word: results where it is equal can be compared."""
    parts: tuple[Part, ...]
    values: Mapping[str, Any]
    """As it was read."""


def scores(history: History, task: str) -> list[Score]:
    """The results of a task, by step; of equal steps that of most items last, then the newest."""
    found = [_score(file, value) for file, value in history.evals.items() if task_of(file, value) == task]
    kept = [one for one in found if one is not None]
    return sorted(kept, key=lambda one: (one.step, one.limit is None, one.n, number(one.values, "time")))


def task_of(file: str, value: Mapping[str, Any]) -> str:
    """The task as it is tagged, else what the file's name begins with."""
    told = value.get("task")
    return told if isinstance(told, str) else file.partition("-")[0]


def _score(file: str, value: Mapping[str, Any]) -> Score | None:
    step = whole(value.get("step"))
    if step is None:
        return None
    settings, data, tasks = (value.get(key) for key in ("settings", "data", "tasks"))
    settings = settings if isinstance(settings, Mapping) else {}
    shown = number(value, "core")
    return Score(
        file=file,
        task=task_of(file, value),
        step=step,
        value=shown if math.isfinite(shown) else number(value, "value"),
        standard_error=number(value, "standard_error"),
        n=whole(value.get("n")) or 0,
        limit=whole(settings.get("limit")),
        same_as=json.dumps([data, dict(settings) | {"dtype": None}], sort_keys=True, default=str),
        parts=tuple(_part(name, one) for name, one in tasks.items()) if isinstance(tasks, Mapping) else (),
        values=value,
    )


def _part(name: str, one: Any) -> Part:
    told = one if isinstance(one, Mapping) else {"accuracy": one}
    accuracy, centered = number(told, "accuracy"), number(told, "centered")
    chance = (accuracy - centered) / (1 - centered) if centered < 1 else math.nan
    chance = chance if -1e-9 <= chance < 1 else math.nan
    return Part(str(name), accuracy, centered, number(told, "standard_error"), whole(told.get("n")) or 0, chance)


def common_core(runs: Sequence[History]) -> list[Score] | None:
    """CORE of every run at its last step, all of the same data and settings, of most items; None where one lacks it."""
    known = [{one.same_as: one for one in scores(run, "core") if _is_of_the_end(one, run)} for run in runs]
    shared = set.intersection(*(set(found) for found in known)) if known else set()
    if not shared:
        return None
    chosen = max(shared, key=lambda word: (known[0][word].limit is None, known[0][word].n, word))
    return [found[chosen] for found in known]


def _is_of_the_end(one: Score, run: History) -> bool:
    return one.step == run.steps_done and math.isfinite(one.value)
