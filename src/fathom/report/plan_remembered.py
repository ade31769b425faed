"""How fast a planned run will be by those that were trained on this device: the most similar one lends its rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.estimate import Work
from fathom.home import names, run_dir
from fathom.model.shape import Shape
from fathom.record import read_config
from fathom.report import measures
from fathom.report.history import history_of, series
from fathom.report.plan_machine import PROBE_SHARE, Machine, Speed, listed_speed, work_cost

LEAST_STEPS = 30  # measured ones: fewer are mostly warming up
MOST_LOOKED_AT = 50
ALIKE_SPREAD = 0.3  # two runs of one kind, on a machine that does other things too
SPREAD_A_DISTANCE = 0.4
PEAK_SPREAD = 1.0
ANOTHER_STAGE = 1.0  # fine-tuning's rows hold what is not trained on
SAME, FAR = 0.1, 1.0  # distances: hardly any; as far as e times the FLOPs a token


@dataclass(frozen=True)
class _Run:
    name: str
    shape: Shape
    batch_tokens: int
    distance: float
    rate: float = math.nan
    """FLOP/s of one device, its updates counted."""

    @property
    def spread(self) -> float:
        return ALIKE_SPREAD + SPREAD_A_DISTANCE * self.distance


def speed_of(machine: Machine, work: Work) -> Speed | None:
    """What is known without measuring: a similar run's that was done here, else the table's, else a guess from what
    was done here. None where nothing was.
    """
    nearest, peak = _nearest(machine, work) if machine.is_here else (None, 0.0)
    if nearest is not None and (nearest.distance <= FAR or not (machine.gpu or peak)):
        return _by_cost(nearest.rate, nearest.spread, _words(nearest))
    if machine.gpu is not None:
        return listed_speed(machine.gpu)
    if nearest is not None and nearest.spread <= PEAK_SPREAD:
        return _by_cost(nearest.rate, nearest.spread, _words(nearest))
    if not peak:
        return None
    of = f"half of the {peak / 1e9:,.0f} GFLOP/s that products reached here"
    return _by_cost(PROBE_SHARE * peak, PEAK_SPREAD, f"{of}, for no run of yours is like this one; --probe measures")


def _nearest(machine: Machine, work: Work) -> tuple[_Run | None, float]:
    """The most similar run on this device of at least LEAST_STEPS, and what products reached on one in any run."""
    nearest, peak = None, 0.0
    for run in _by_distance(work):
        if nearest is not None and run.distance >= nearest.distance:
            break
        try:
            history = history_of(run.name)
        except FathomError:
            continue
        facts = history.circumstances
        if (facts.get("device"), facts.get("device_name")) != (machine.device, machine.label):
            continue
        if facts.get("dtype", machine.dtype) != machine.dtype:
            continue
        ranks = measures.ranks(history)
        if ranks > 1 and machine.device != "cuda":
            continue  # processes that shared one processor
        found = facts.get("peak_flops")
        if not peak and isinstance(found, float) and math.isfinite(found):
            peak = found / ranks
        _, seconds = series(history, "step_s")
        if len(seconds) < LEAST_STEPS:
            continue
        rows = facts.get("device_batch")
        micro = _log(work.micro_tokens, rows * run.shape.seq_len) / 2 if isinstance(rows, int) and rows > 0 else 0.0
        distance = math.hypot(run.distance, micro, _log(work.ranks, ranks) / 4)
        if nearest is None or distance < nearest.distance:
            median = float(np.median(seconds[len(seconds) // 2 :]))  # the first ones warm up, and compile
            rate = work_cost(run.shape, run.batch_tokens) / ranks / median
            nearest = _Run(run.name, run.shape, run.batch_tokens, distance, rate)
    return nearest, peak


def _by_distance(work: Work) -> Iterator[_Run]:
    """The newest runs here, the most similar first."""
    runs = [name for name in names("runs") if (run_dir(name) / "metrics.jsonl").exists()]
    newest = sorted(runs, key=lambda run: -(run_dir(run) / "metrics.jsonl").stat().st_mtime)[:MOST_LOOKED_AT]
    found = [run for name in newest if (run := _run(name, work))]
    yield from sorted(found, key=lambda run: run.distance)


def _run(name: str, work: Work) -> _Run | None:
    """By its run.toml alone. Distance in logarithms: FLOPs a token (parameters, vocabulary and context), context, and a
    quarter of the tokens of a step, whose updates are counted.
    """
    try:
        tables: dict[str, Any] = read_config(name)
        shape, batch = Shape(**tables["model"]), int(tables["config"]["batch_tokens"])
        stage = tables["run"]["stage"]
    except (FathomError, KeyError, TypeError, ValueError):
        return None
    if batch < 1:
        return None
    distance = math.hypot(
        _log(work.shape.flops_per_token, shape.flops_per_token),
        _log(work.shape.seq_len, shape.seq_len),
        _log(work.step_tokens, batch) / 4,
        0.0 if stage == "pretrain" else ANOTHER_STAGE,
    )
    return _Run(name, shape, batch, distance)


def _log(one: float, other: float) -> float:
    return abs(math.log(one / other))


def _by_cost(rate: float, spread: float, source: str) -> Speed:
    return Speed(lambda work: work_cost(work.shape, work.step_tokens) / work.ranks / rate, spread, source)


def _words(run: _Run) -> str:
    if run.distance < SAME:
        return f"as your run {run.name} had it here"
    of = f"the most similar here (depth {run.shape.n_layer}, context {run.shape.seq_len:,})"
    far = ", which is far from this one; --probe measures" if run.distance > FAR else ""
    return f"by the FLOP/s of your run {run.name}, {of}{far}"
