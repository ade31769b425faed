"""What follows from a run's record by arithmetic: tokens, speed, MFU, waiting, memory, rates (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.hardware import gpu_figures
from fathom.optim.schedule import Schedule
from fathom.report.history import History
from fathom.report.phases import BEGINS
from fathom.report.words import figure

SETTLING = 5
"""Steps after a start, and after kernels were compiled, that say nothing of the speed."""
BRIEF_S = 900.0
"""Of training in all: a run that takes less is one of minutes."""
NONSENSE = 100.0
"""A share of the peak rate that no mistake in measuring it makes."""
FEWEST = 8
"""Logged steps without which a median is no measure."""


@dataclass(frozen=True)
class Measured:
    """One validation, in the order in which they were made; after a resume a step may come again."""

    step: int
    val_bpb: float
    train_s: float
    phase: int
    """Index into History.phases."""


@dataclass(frozen=True)
class Utilisation:
    """Share of the device's peak rate that training FLOPs come to."""

    share: float
    peak_flops: float
    """FLOP/s of one device; NaN where the record does not tell."""
    source: str

    @property
    def of_what(self) -> str:
        if not math.isfinite(self.peak_flops):
            return "of the peak rate, as the run logged it"
        return f"of {figure(self.peak_flops / 1e12, 3)} TFLOP/s ({self.source})"


def number(table: Mapping[str, Any], key: str) -> float:
    """A finite number of a table of the record; NaN where there is none."""
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def settings(history: History) -> Mapping[str, Any]:
    """The table [config] of run.toml."""
    table = history.config.get("config", {})
    return table if isinstance(table, Mapping) else {}


def tokens_planned(history: History) -> int | None:
    """Tokens of the whole run as run.toml has it."""
    if history.batch_tokens is None or history.steps_planned is None:
        return None
    return history.batch_tokens * history.steps_planned


def tokens_judged(history: History) -> int | None:
    """The tokens a run is judged by: what a finished one had, what one still under way is to have."""
    if history.state == "running":
        return tokens_planned(history) or history.tokens_done
    return history.tokens_done


def measured(history: History) -> list[Measured]:
    """Every validation with a finite bpb on the way to where the run is, in the order of the record."""
    found: list[Measured] = []
    phase = -1
    for line in history.events:
        kind = line.get("event")
        phase += kind in BEGINS
        step, value = line.get("step"), number(line, "val_bpb")
        back_to = line.get("to") if kind == "rolled_back" else step if kind in ("resumed", "extended") else None
        if type(back_to) is int:
            found = [one for one in found if one.step <= back_to]
        if kind == "evaluated" and type(step) is int and math.isfinite(value):
            found.append(Measured(step, value, number(line, "train_s"), max(phase, 0)))
    return found


def steady(history: History) -> np.ndarray:
    """(N,) bool: logged steps of the newest phase that tell its speed; all that have a time where those are few."""
    timed = np.isfinite(history.step_s) & (history.step_s > 0)
    if not history.phases:
        return timed
    first = history.phases[-1].first_step
    compiled = number(history.circumstances, "compile_from")
    begin = max(first, compiled if compiled >= first else first) + SETTLING
    settled = timed & (history.step > begin)
    return settled if settled.sum() >= FEWEST else timed


def step_seconds(history: History) -> float:
    """Median over steady steps; NaN where none is timed."""
    chosen = history.step_s[steady(history)]
    return float(np.median(chosen)) if len(chosen) else math.nan


def is_brief(history: History) -> bool:
    """Whether all its steps take minutes: a run to try something with, which was not meant to be as good as it gets."""
    return (history.steps_planned or history.steps_done) * step_seconds(history) < BRIEF_S


def tokens_per_s(history: History) -> float:
    return history.batch_tokens / step_seconds(history) if history.batch_tokens else math.nan


def overall_tokens_per_s(history: History) -> float:
    """Tokens trained by the time that training took; NaN where the record does not tell."""
    seconds = trained_s(history)
    if not history.batch_tokens or not seconds > 0:
        return math.nan
    first, step_s = int(history.step[0]), float(history.step_s[0])
    before = first - 1 if float(history.train_s[0]) <= 3 * step_s else 0  # its clock began with this record
    return history.batch_tokens * (int(history.step[-1]) - before) / seconds


def flops_per_s(history: History) -> float:
    """Of training, forward and backward; NaN where shape or times are unknown."""
    return tokens_per_s(history) * history.shape.flops_per_token if history.shape else math.nan


def ranks(history: History) -> int:
    """Devices that trained together."""
    found = number(history.circumstances, "ranks")
    return int(found) if found >= 1 else 1


def utilisation(history: History) -> Utilisation | None:
    """MFU as the run logged it; where it could not, from the data sheet of the device that it names."""
    about = history.circumstances
    peak, source = number(about, "peak_flops") / ranks(history), str(about.get("peak_source") or "as recorded")
    if not peak > 0:
        known = gpu_figures(str(about.get("device_name", "")))
        peak, source = (known[0] * 1e12, "data sheet") if known else (math.nan, "")
    logged = history.mfu[steady(history)]
    logged = logged[np.isfinite(logged) & (logged > 0)]
    share = float(np.median(logged)) if len(logged) else flops_per_s(history) / (peak * ranks(history))
    return Utilisation(share, peak, source) if 0 < share < NONSENSE else None


def waiting_share(history: History) -> float:
    """Share of the steady training time that went by waiting for the next batch; NaN where not recorded."""
    chosen = steady(history) & np.isfinite(history.loader_wait_s) & np.isfinite(history.train_s)
    if chosen.sum() < FEWEST:
        return math.nan
    waited, trained = history.loader_wait_s[chosen], history.train_s[chosen]
    spent = trained[-1] - trained[0]
    share = (waited[-1] - waited[0]) / spent if spent > 0 else math.nan
    return float(share) if 0 <= share <= 1 else math.nan


def peak_memory_gb(history: History) -> float:
    """The most that was held; NaN where not recorded."""
    held = history.memory_gb[np.isfinite(history.memory_gb)]
    if len(held):
        return float(held.max())
    return number(history.result or {}, "peak_memory_gb")


def trained_s(history: History) -> float:
    """Seconds in training steps; where a phase counts from zero again, the phases are added."""
    clock = history.train_s[np.isfinite(history.train_s)]
    if not len(clock):
        return math.nan
    ahead = np.diff(clock)
    total = clock[0] + np.where(ahead >= 0, ahead, clock[1:]).sum()
    return float(total)


def schedule(history: History) -> Schedule | None:
    """The rates' course as run.toml has it; None where it does not say."""
    about = settings(history)
    share = number(about, "warmdown_share")
    if not history.steps_planned or not 0 <= share <= 1:
        return None
    warmup, final = number(about, "warmup_steps"), number(about, "final_lr")
    return Schedule(
        history.steps_planned,
        warmup_steps=int(warmup) if warmup >= 0 else 0,
        warmdown_share=share,
        final_lr=final if final >= 0 else 0.0,
    )


def warmdown_from(history: History) -> int | None:
    """The last step at the full rate: by the settings, else by the rates logged. None where they never fall."""
    planned = schedule(history)
    if planned is not None:
        return planned.warmdown_from if planned.warmdown_steps else None
    known = np.isfinite(history.lr)
    rates, steps = history.lr[known], history.step[known]
    if not len(rates) or not rates[-1] < 0.999 * rates.max():
        return None
    return int(steps[np.flatnonzero(rates >= 0.999 * rates.max())[-1]])


def rate_at(history: History, step: int) -> float:
    """Share of the peak rate at the last logged step up to `step`; NaN where none was logged."""
    known = np.isfinite(history.lr) & (history.step <= step)
    return float(history.lr[known][-1]) if known.any() else math.nan


def starts_anew(history: History) -> bool:
    """Whether the weights began as random numbers, and the record holds that beginning."""
    is_base = history.stage == "pretrain" and not (history.phases and history.phases[0].kind == "extended")
    return bool(is_base and len(history.step) and history.step[0] <= 2)
