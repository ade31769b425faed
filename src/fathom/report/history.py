"""A run as its folder tells it: steps, phases, evaluations, state. What is torn or contradictory is mended and said.

`status`, `report`, `compare` and the dashboard know a run only through here. No torch.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.model.shape import Shape
from fathom.record import read_config, read_lines

COLUMNS = ("loss", "loss_smooth", "lr", "step_s", "train_s", "mfu", "epoch", "loader_wait_s", "memory_gb", "time")
BEGINS = ("started", "resumed", "extended")


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


@dataclass(frozen=True)
class Evaluation:
    step: int
    val_bpb: float
    train_s: float
    time: float


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
        try:
            return Shape(**self.config["model"])
        except (KeyError, TypeError, FathomError):
            return None

    @property
    def steps_done(self) -> int:
        return int(self.step[-1]) if len(self.step) else 0

    @property
    def steps_planned(self) -> int | None:
        return _whole(self.config.get("config", {}).get("steps"))

    @property
    def batch_tokens(self) -> int | None:
        return _whole(self.config.get("config", {}).get("batch_tokens"))

    @property
    def tokens_done(self) -> int | None:
        return None if self.batch_tokens is None else self.steps_done * self.batch_tokens

    @property
    def circumstances(self) -> Mapping[str, Any]:
        """Those of the newest phase that has any."""
        return next((phase.circumstances for phase in reversed(self.phases) if phase.circumstances), {})

    @property
    def state(self) -> str:
        """running, finished, stopped (asked to), or broken off (killed or crashed; nothing says why)."""
        if self.is_running:
            return "running"
        if self.result is not None:
            return "finished"
        return "stopped" if self.phases and self.phases[-1].ended_by else "broken off"

    @property
    def checkpoints(self) -> tuple[tuple[int, float], ...]:
        """(step, unix time) of every whole checkpoint that is there, ascending."""
        marks = self.folder.glob("checkpoints/*/COMPLETE")
        return tuple(sorted((int(m.parent.name), m.stat().st_mtime) for m in marks if m.parent.name.isdecimal()))


def history_of(name: str) -> History:
    """The run of that name. Raises FathomError where there is none, or its run.toml cannot be read."""
    config = read_config(name)
    return read_history(run_dir(name), config)


def read_history(folder: Path, config: Mapping[str, Any]) -> History:
    """What the folder's files hold, whatever state they are in."""
    troubles: list[str] = []
    step, columns = _metrics(folder / "metrics.jsonl", troubles)
    events = _whole_lines(folder / "events.jsonl", troubles)
    evals = _evals(folder / "evals", troubles)
    results = [line["result"] for line in events if line.get("event") == "finished" and "result" in line]
    return History(
        name=str(config.get("run", {}).get("name", folder.name)),
        folder=folder,
        config=config,
        step=step,
        columns=columns,
        evaluations=_evaluations(events),
        phases=_phases(events, step, columns, troubles),
        events=tuple(events),
        samples=tuple(_whole_lines(folder / "samples.jsonl", troubles)),
        evals=evals,
        result=results[-1] if results else None,
        is_running=is_locked(folder / ".lock"),
        troubles=tuple(troubles),
    )


def _metrics(path: Path, troubles: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    lines = _whole_lines(path, troubles)
    kept: dict[int, Mapping[str, Any]] = {}
    again = strange = 0
    for line in lines:
        number = _whole(line.get("step"))
        if number is None or number < 0:
            strange += 1
            continue
        again += number in kept
        kept[number] = line
    if strange:
        troubles.append(f"{_lines(strange)} of {path.name} without a step passed over")
    if again:
        troubles.append(f"{again:,} steps were done more than once; what was logged last counts")
    order = sorted(kept)
    step = np.array(order, dtype=np.int64) + 1
    columns = {name: np.array([_number(kept[i].get(name)) for i in order], dtype=np.float64) for name in COLUMNS}
    bad = int((~np.isfinite(columns["loss"])).sum())
    if bad:
        troubles.append(f"the loss of {bad:,} logged step{'s' * (bad > 1)} is not a number")
    return step, columns


def _evaluations(events: Sequence[Mapping[str, Any]]) -> tuple[Evaluation, ...]:
    found: dict[int, Evaluation] = {}
    for line in events:
        step = _whole(line.get("step"))
        if line.get("event") == "evaluated" and step is not None and "val_bpb" in line:
            bpb, train_s, at = (_number(line.get(key)) for key in ("val_bpb", "train_s", "time"))
            found[step] = Evaluation(step, bpb, train_s, at)
    return tuple(found[step] for step in sorted(found))


def _phases(
    events: Sequence[Mapping[str, Any]], step: np.ndarray, columns: Mapping[str, np.ndarray], troubles: list[str]
) -> tuple[Phase, ...]:
    """Every `started`, `resumed` or `extended`, with what is said until the next of them."""
    beginnings = [i for i, line in enumerate(events) if line.get("event") in BEGINS]
    phases: list[Phase] = []
    for i, until in zip(beginnings, [*beginnings[1:], len(events)], strict=True):
        within = events[i:until]
        phases.append(_phase(within, is_last=until == len(events), step=step, columns=columns))
    _compare_clocks(phases, troubles)
    return tuple(phases)


def _phase(
    within: Sequence[Mapping[str, Any]], is_last: bool, step: np.ndarray, columns: Mapping[str, np.ndarray]
) -> Phase:
    head = within[0]
    first = _whole(head.get("step")) or 0
    seen = [number for line in within if (number := _whole(line.get("step"))) is not None]
    times = [at for line in within if not math.isnan(at := _number(line.get("time")))]
    last, ended = max([first, *seen]), max(times, default=None)
    if is_last and len(step):
        last = max(last, int(step[-1]))
        ended = max([at for at in (ended, columns["time"][-1]) if at is not None and at == at], default=None)
    ends = [line for line in within if line.get("event") in ("stopped", "finished")]
    why = "" if not ends else "finished" if ends[-1]["event"] == "finished" else str(ends[-1].get("why", "stopped"))
    training = [line for line in within if line.get("event") == "training"]
    facts = {k: v for k, v in training[-1].items() if k not in ("event", "time", "step")} if training else {}
    return Phase(str(head["event"]), first, last, _number(head.get("time")), ended, why, facts)


def _compare_clocks(phases: Sequence[Phase], troubles: list[str]) -> None:
    for before, after in zip(phases, phases[1:], strict=False):
        if before.ended is not None and after.began < before.ended:
            troubles.append(
                f"the clock went back by {before.ended - after.began:,.0f} s between two phases, "
                "or two processes wrote at once; durations are taken from the training time, not from the clock"
            )
        if after.kind == "resumed" and after.first_step < before.last_step:
            again = before.last_step - after.first_step
            troubles.append(f"{again:,} steps after step {after.first_step:,} were lost and done again")


def _evals(folder: Path, troubles: list[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            value = None
        if isinstance(value, dict):
            found[path.stem] = value
        else:
            troubles.append(f"evals/{path.name} cannot be read and was passed over")
    return found


def _whole_lines(path: Path, troubles: list[str]) -> list[dict[str, Any]]:
    """Objects of a .jsonl file; how many lines were not such is said."""
    try:
        lines = read_lines(path)
        count = sum(1 for line in path.read_bytes().splitlines() if line.strip()) if path.exists() else 0
    except OSError as error:
        troubles.append(f"{path.name} cannot be read ({error.strerror})")
        return []
    if count > len(lines):
        troubles.append(f"{_lines(count - len(lines))} of {path.name} torn or not JSON, passed over")
    return lines


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


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _lines(count: int) -> str:
    return f"{count:,} line{'s' * (count > 1)}"


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
