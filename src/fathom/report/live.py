"""What the dashboard sends: runs as their folders tell them, read again only when a file changed, curves thinned.

A curve is sent in pieces. Logged lines are averaged in blocks of a power of two, so a full block never changes while
lines are added: a page that has the first blocks gets only those that follow.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.home import names, run_dir
from fathom.report.charts import numbers
from fathom.report.findings import assess
from fathom.report.history import History, is_locked, salvaged, thin
from fathom.report.lineage import with_ancestors
from fathom.screen import typed

MOST_POINTS = 2000
DUTY = 0.1
"""The share of time that may go into reading one run again and again while it grows."""
LISTING_S = 1.0
"""So long a listing may take; runs that it did not come to are told of next time."""
FILES = ("run.toml", "events.jsonl", "metrics.jsonl")
"""Those without any of which a folder is no run."""
UNREADABLE = (FathomError, OSError, ValueError, TypeError, AttributeError, KeyError)
CURVES = ("loss", "loss_smooth", "grad_norm", "lr", "mfu", "memory_gb", "step_s", "train_s")


@dataclass(frozen=True)
class Reading:
    """One look at a run's folder."""

    signature: tuple[Any, ...]
    history: History | None
    problem: str
    """Why there is no history; "" where there is one."""
    not_before: float
    """When, by the monotonic clock, it may be read again."""

    @property
    def version(self) -> str:
        """Another one whenever anything about the run changed."""
        running = self.history is not None and self.history.is_running
        return f"{zlib.crc32(repr(self.signature).encode()):08x}{running:d}"


class Shelf:
    """The runs, each with what was last read of it. Safe to ask from several threads.

    A folder in which nothing has begun is no run yet.
    """

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def reading(self, name: str) -> Reading | None:
        """The run as it is now; None where there is no such run."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            found = self._look(name)
        if found is None:
            self._forget(name)
        return found

    def listing(self) -> list[dict[str, Any]]:
        """A line for each run, running ones first, then the newest."""
        until = time.monotonic() + LISTING_S
        there = [name for name in names("runs") if _is_run(run_dir(name))]
        lines = []
        for name in sorted(there, key=lambda run: -_touched(run_dir(run))):
            found = self._readings.get(name) if time.monotonic() > until else self.reading(name)
            lines.append(_line(name, found))
        for name in self._readings.keys() - set(there):
            self._forget(name)
        return sorted(lines, key=lambda line: (line["state"] != "running", -(line["updated"] or 0)))

    def _look(self, name: str) -> Reading | None:
        folder = run_dir(name)
        if not _is_run(folder):
            return None
        before, now = self._readings.get(name), time.monotonic()
        signature = _signature(folder)
        if before is not None and (signature == before.signature or now < before.not_before):
            reading = _still_running(before, folder)
        else:
            reading = _read(name, signature)
            spent = time.monotonic() - now
            reading = replace(reading, not_before=time.monotonic() + spent * (1 / DUTY - 1))
        self._readings[name] = reading
        return reading

    def _forget(self, name: str) -> None:
        self._readings.pop(name, None)


def curves(history: History, has: str = "") -> dict[str, Any]:
    """The thinned columns of a run, without the blocks that whoever asks has already.

    has: the `mark` of what was sent before; "" for nothing. The answer's `from` says how many points of the earlier
    answer stay; what follows them is replaced by the answer's.
    """
    n = len(history.step)
    size = 1
    while n > size * MOST_POINTS:
        size *= 2
    full = n - n % size
    columns = {"step": _blocks(history.step.astype(np.float64), full, size, last=True)}
    for name in CURVES:
        columns[name] = _blocks(history.columns[name], full, size, last=name == "train_s")
    kept = _kept(columns, full // size, size, has)
    count = full // size
    return {
        "from": kept,
        "mark": f"{size}-{count}-{_digest(columns, count)}",
        "columns": {name: numbers(values[kept:]) for name, values in columns.items()},
    }


def _blocks(values: np.ndarray, full: int, size: int, last: bool) -> np.ndarray:
    """(N,) -> a value for each `size` of them, and one for the rest: the last, or the mean of what is finite."""
    if size == 1:
        return values
    if last:
        ends = np.append(np.arange(size, full + 1, size), len(values) if len(values) > full else [])
        return values[ends.astype(int) - 1]
    parts = [_means(values[:full], full // size)] if full else []
    if len(values) > full:
        parts.append(_means(values[full:], 1))
    return np.concatenate(parts)


def _means(values: np.ndarray, count: int) -> np.ndarray:
    place = np.arange(len(values))
    good = np.isfinite(values)
    _, total = thin(place, np.where(good, values, 0.0), count)
    _, share = thin(place, good.astype(np.float64), count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / share)


def _kept(columns: Mapping[str, np.ndarray], full: int, size: int, has: str) -> int:
    """How many points of an earlier answer are still true."""
    try:
        had_size, had_count, digest = has.split("-")
        count = int(had_count)
    except ValueError:
        return 0
    same = had_size == str(size) and 0 < count <= full and digest == _digest(columns, count)
    return count if same else 0


def _digest(columns: Mapping[str, np.ndarray], count: int) -> str:
    check = 0
    for values in columns.values():
        check = zlib.crc32(np.ascontiguousarray(values[:count], dtype=np.float64).tobytes(), check)
    return f"{check:08x}"


def summary(reading: Reading, name: str) -> dict[str, Any]:
    """What changes as a run goes on, without its curves."""
    history = reading.history
    assert history is not None
    shape = history.shape
    return _line(name, reading) | {
        "batch_tokens": history.batch_tokens,
        "flops_per_token": shape.flops_per_token if shape else None,
        "text": _text_of(history),
        "parameters": shape.parameters.get("total") if shape else None,
        "evaluations": [_finite(asdict(evaluation)) for evaluation in history.evaluations],
        "beginnings": [[phase.first_step, phase.kind] for phase in history.phases if phase.first_step > 0],
    }


def _text_of(history: History) -> list[str]:
    """What bits per byte are of: a digest, and what a person calls it."""
    config = history.config.get("config", {})
    called = str(config.get("corpus") or ("conversations" if history.stage == "sft" else "unknown text"))
    return [f"{config.get('data_digest', '')}", called]


def details(reading: Reading, name: str) -> dict[str, Any]:
    """What a run said, what was measured of it, what it ran on, what is to be thought of it."""
    history = reading.history
    assert history is not None
    return {
        "name": name,
        "version": reading.version,
        "samples": _finite(list(history.samples)),
        "evals": _finite(dict(history.evals)),
        "phases": [_finite(asdict(phase)) for phase in history.phases],
        "peak_memory_gb": _finite(_largest(history.memory_gb)),
        "config": _finite({table: values for table, values in history.config.items() if table in ("model", "config")}),
        "troubles": list(history.troubles),
        "findings": [_typed(_finite(asdict(finding))) for finding in assess(with_ancestors(history)[0])],
    }


def _line(name: str, reading: Reading | None) -> dict[str, Any]:
    """A run in one line; what is not known of it is None."""
    folder = run_dir(name)
    line: dict[str, Any] = {"name": name, "version": "", "state": "reading", "updated": _touched(folder) or None}
    if reading is None:
        return line
    if reading.history is None:
        return line | {"version": reading.version, "state": "unreadable", "problem": reading.problem}
    history = reading.history
    good = np.flatnonzero(np.isfinite(history.loss_smooth))
    return line | {
        "version": reading.version,
        "state": history.state,
        "stage": history.stage,
        "steps_done": history.steps_done,
        "steps_planned": history.steps_planned,
        "updated": _finite(_spoke(history)) or line["updated"],
        "loss": _finite(float(history.loss_smooth[good[-1]])) if len(good) else None,
        "val_bpb": _finite(history.evaluations[-1].val_bpb) if history.evaluations else None,
        "troubles": len(history.troubles),
    }


def _spoke(history: History) -> float | None:
    """Unix time of the newest line of the record, which copying does not change."""
    return history.phases[-1].ended if history.phases else None


def _read(name: str, signature: tuple[Any, ...]) -> Reading:
    try:
        return Reading(signature, salvaged(name), "", 0.0)
    except UNREADABLE as error:
        problem = str(error) if isinstance(error, FathomError) else f"its record cannot be read ({error})"
        return Reading(signature, None, problem, 0.0)


def _still_running(reading: Reading, folder: Path) -> Reading:
    """A process that was killed let go of its lock and wrote nothing.

    Looked at only where a run was running: to look is to hold the lock for a moment, which a run that begins may want.
    """
    history = reading.history
    if history is None or not history.is_running or is_locked(folder / ".lock"):
        return reading
    return replace(reading, history=replace(history, is_running=False))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def _signature(folder: Path) -> tuple[Any, ...]:
    """Size and time of every file that a history is made of."""
    files = [folder / name for name in (*FILES, "samples.jsonl")]
    return tuple(_stamp(path) for path in [*files, folder / "evals", *sorted(folder.glob("evals/*.json"))])


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return path.name, 0, -1
    return path.name, found.st_mtime_ns, found.st_size


def _touched(folder: Path) -> float:
    """Unix time of the last line logged, or of the folder."""
    stamps = [_stamp(folder / name)[1] for name in ("metrics.jsonl", "events.jsonl", "run.toml")]
    return max(stamps[:2]) / 1e9 or stamps[2] / 1e9


def _largest(values: np.ndarray) -> float | None:
    good = values[np.isfinite(values)]
    return float(good.max()) if len(good) else None


def _typed(finding: dict[str, Any]) -> dict[str, Any]:
    """With the commands in it as they are typed here."""
    texts = {key: typed(finding[key]) for key in ("sentence", "advice")}
    return finding | texts | {"evidence": [typed(line) for line in finding["evidence"]]}


def _finite(value: Any) -> Any:
    """The same with None for every number that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)
