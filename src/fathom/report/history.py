"""A run as its folder tells it: steps, phases, evaluations, state. What is torn or contradictory is mended and said.

`status`, `report`, `compare` and the dashboard know a run only through here. No torch.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.model.shape import MOST, Shape
from fathom.record import read_config
from fathom.report.lines import Columns, read_columns, read_objects, whole
from fathom.report.phases import (
    BEGINS,
    Evaluation,
    Phase,
    clock_oddities,
    evaluations_of,
    first_lost,
    left_out,
    lineage,
    oddities,
    phases_of,
)
from fathom.screen import plural

COLUMNS = (
    *("loss", "loss_smooth", "grad_norm", "lr", "step_s", "train_s", "mfu", "epoch", "loader_wait_s", "memory_gb"),
    "time",
)


@dataclass(frozen=True)
class History:
    """Everything a run's folder holds, in order of steps; where a step was done again, the later one counts."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    """The tables of run.toml."""
    step: np.ndarray
    """(N,) int64: steps done after each logged line, ascending, each once (the first is 1)."""
    columns: Mapping[str, np.ndarray]
    """(N,) float64 for each of COLUMNS, NaN where a line lacks it."""
    evaluations: tuple[Evaluation, ...]
    phases: tuple[Phase, ...]
    events: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    evals: Mapping[str, Mapping[str, Any]]
    """The results in evals/, by file name without its ending."""
    result: Mapping[str, Any] | None
    """What the run printed when it finished."""
    is_running: bool
    """A process holds the run's lock."""
    troubles: tuple[str, ...]
    """What in the record was broken, a sentence each."""

    def __getattr__(self, name: str) -> np.ndarray:
        if name in COLUMNS:
            return self.columns[name]
        raise AttributeError(name)

    @property
    def stage(self) -> str:
        return str(self.config.get("run", {}).get("stage", "pretrain"))

    @cached_property
    def shape(self) -> Shape | None:
        """None where run.toml does not hold a whole one."""
        model = self.config.get("model", {})
        if not all(isinstance(model.get(size), int) for size in MOST):
            return None
        try:
            return Shape(**model)
        except (TypeError, AttributeError, FathomError):
            return None

    @property
    def steps_done(self) -> int:
        """Where the run is: what a resumed one has to do again is not done."""
        if self.phases:
            return self.phases[-1].last_step
        return int(self.step[-1]) if len(self.step) else 0

    @property
    def steps_planned(self) -> int | None:
        return whole(self.config.get("config", {}).get("steps"))

    @property
    def batch_tokens(self) -> int | None:
        return whole(self.config.get("config", {}).get("batch_tokens"))

    @property
    def tokens_done(self) -> int | None:
        return None if self.batch_tokens is None else self.steps_done * self.batch_tokens

    @property
    def circumstances(self) -> Mapping[str, Any]:
        """Those of the newest phase that has any."""
        return next((phase.circumstances for phase in reversed(self.phases) if phase.circumstances), {})

    @property
    def state(self) -> str:
        """running, finished, stopped (asked to), or broken off (killed or crashed, or for the reason in `refusal`)."""
        if self.is_running:
            return "running"
        if self.result is not None:
            return "finished"
        return "stopped" if self.phases and self.phases[-1].ended_by else "broken off"

    @property
    def refusal(self) -> str:
        """Why a run that broke off did, in training's own words; "" where the record does not say."""
        return self.phases[-1].refusal if self.phases and self.state == "broken off" else ""

    @cached_property
    def is_left_out(self) -> np.ndarray:
        """(N,) bool: logged steps that moved no weight."""
        return np.isin(self.step, left_out(self.events))

    @property
    def checkpoints(self) -> tuple[tuple[int, float], ...]:
        """(step, unix time) of every whole checkpoint that is there, ascending."""
        found = []
        for mark in self.folder.glob("checkpoints/*/COMPLETE"):
            with suppress(OSError):  # training removes old ones
                found.append((mark.parent.name, mark.stat().st_mtime))
        return tuple(sorted((int(name), at) for name, at in found if name.isdecimal()))


def history_of(name: str) -> History:
    """The run of that name. Raises FathomError where there is none, or its run.toml cannot be read."""
    config = read_config(name)
    return read_history(run_dir(name), config)


def salvaged(name: str) -> History:
    """The same, and where run.toml is missing or broken what the rest of the folder tells, if there is a rest."""
    try:
        return history_of(name)
    except FathomError as error:
        folder = run_dir(name)
        if not any((folder / file).is_file() for file in ("metrics.jsonl", "events.jsonl")):
            raise
        missing = not (folder / "run.toml").exists()
        trouble = "run.toml is missing: what was to be trained is not known" if missing else error.problem
        found = read_history(folder, {})
        return replace(found, troubles=(trouble, *found.troubles))


def read_history(folder: Path, config: Mapping[str, Any]) -> History:
    """What the folder's files hold, whatever state they are in."""
    troubles: list[str] = []
    tables = {key: table for key, table in config.items() if isinstance(table, Mapping)}
    if len(tables) < len(config):
        troubles.append(f"run.toml has values outside its tables ({', '.join(sorted(config.keys() - tables.keys()))})")
    events = _objects(folder / "events.jsonl", troubles)
    logged = _columns(folder / "metrics.jsonl", troubles)
    step, columns = _counted(logged, events)
    bad = int((~np.isfinite(columns["loss"]) & ~np.isin(step, left_out(events))).sum())
    if bad:
        troubles.append(f"the loss of {bad:,} logged step{'s' * (bad > 1)} is not a number")
    position = _position(events, int(step[-1]) if len(step) else 0)
    phases = phases_of(events, logged.step, logged.values["time"], position)
    troubles += oddities(phases, len(logged.step) - len(step))
    troubles += clock_oddities(step, columns["time"], columns["train_s"], phases)
    return History(
        name=folder.name,  # a copied or renamed folder is the run that it is called now
        folder=folder,
        config=tables,
        step=step,
        columns=columns,
        evaluations=evaluations_of(events),
        phases=phases,
        events=tuple(events),
        samples=tuple(_objects(folder / "samples.jsonl", troubles)),
        evals=_evals(folder / "evals", troubles),
        result=_result(events),
        is_running=is_locked(folder / ".lock"),
        troubles=tuple(troubles),
    )


def _columns(path: Path, troubles: list[str]) -> Columns:
    """Every logged line, taken back or not."""
    try:
        read = read_columns(path, COLUMNS)
    except OSError as error:
        troubles.append(f"{path.name} cannot be read ({error.strerror})")
        return Columns(np.zeros(0, np.int64), {name: np.zeros(0) for name in COLUMNS}, 0, 0)
    if read.torn:
        troubles.append(f"{plural(read.torn, 'line')} of {path.name} torn or not JSON, passed over")
    if read.without_step:
        troubles.append(f"{plural(read.without_step, 'line')} of {path.name} without a step passed over")
    return read


def _counted(logged: Columns, events: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(steps done after each line that counts, its columns)."""
    rows = np.flatnonzero(lineage(logged.step))
    rows = rows[: first_lost(events, logged.step[rows], logged.values["time"][rows])]
    return logged.step[rows] + 1, {name: values[rows] for name, values in logged.values.items()}


def _position(events: Sequence[Mapping[str, Any]], logged: int) -> int:
    """Steps done. Where the lines of the last ones are missing, what happened after them tells."""
    done = 0
    for line in events:
        step, kind = whole(line.get("step")) or 0, line.get("event")
        if kind in BEGINS:
            done = step
        elif kind == "rolled_back":
            done = whole(line.get("to")) or 0
        elif kind in ("saved", "evaluated", "stopped", "refused"):
            done = max(done, step)
    return max(logged, done)


def _result(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the newest phase: a run that was extended is not finished by having been so before."""
    found = None
    for line in events:
        if line.get("event") in BEGINS:
            found = None
        elif line.get("event") == "finished" and isinstance(line.get("result"), Mapping):
            found = line["result"]
    return found


def _evals(folder: Path, troubles: list[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found[path.stem] = value
        else:
            troubles.append(f"evals/{path.name} cannot be read and was passed over")
    return found


def _objects(path: Path, troubles: list[str]) -> list[dict[str, Any]]:
    """Objects of a .jsonl file; how many lines were not such is said."""
    try:
        found, torn = read_objects(path)
    except OSError as error:
        troubles.append(f"{path.name} cannot be read ({error.strerror})")
        return []
    if torn:
        troubles.append(f"{plural(torn, 'line')} of {path.name} torn or not JSON, passed over")
    return found


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock that training takes on a run."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def age(since: float, now: float | None = None) -> float:
    """Seconds since a moment, never negative, whatever the clock did."""
    return max(0.0, (time.time() if now is None else now) - since)


def series(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a column, without what is not a number."""
    values = history.columns[name]
    good = np.isfinite(values)
    return history.step[good], values[good]


def thin(x: np.ndarray, y: np.ndarray, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a curve for the eye: the mean of each stretch of equally many."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most + 1).astype(int)
    starts, counts = edges[:-1], np.diff(edges)
    return x[edges[1:] - 1], np.add.reduceat(y, starts) / counts
