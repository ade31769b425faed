"""How a run stands at this moment: every number that `fathom status` shows, from the run's folder alone."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fathom.report import commands, measures
from fathom.report.findings import assess
from fathom.report.findings.budget import longer_ratio
from fathom.report.findings.stability import JUMP_NATS, Jump, jump
from fathom.report.history import History, age
from fathom.report.lineage import with_ancestors
from fathom.report.lines import number
from fathom.report.outlook import Trend, end_of, overhead, pace, pauses, train_s_between, trend, usual
from fathom.report.phases import AFTERWARDS
from fathom.report.wholeness import trouble_with

EVALUATIONS_IN_TREND = 6
COUNTED = ("skipped", "rolled_back", "out_of_memory", "save_failed", "evaluation_failed")
MOST_ASSESSED = 200_000
"""Logged steps beyond which the report's findings are left to the report."""
LOOK_BACK = 2000
"""Logged steps that are searched for a jump of the loss."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    age_s: float
    gb: float
    trouble: str = ""
    """Why it cannot be loaded, as far as that can be told without loading it."""


@dataclass(frozen=True)
class Standing:
    """None is what the record does not tell."""

    run: str
    stage: str
    state: str
    """running, finished, stopped or broken off."""
    activity: str
    """Of a running one: starting, training, compiling or measuring; else empty."""
    stopped_by: str
    refusal: str
    """Of a broken off one: the sentence with which training gave up; else empty."""
    size: str
    """Layers, width and parameters in words; empty where unknown."""
    steps_done: int
    steps_planned: int | None
    tokens_done: int | None
    tokens_planned: int | None
    train_s: float | None
    """Training alone, over all phases."""
    began: float | None
    """Unix seconds when the run began."""
    phase_began: float | None
    last_sign: float | None
    """Unix seconds of the newest line."""
    silence_s: float | None
    """Since that line."""
    longest_pause_s: float
    remaining_s: float | None
    """By the clock, with the saving and measuring that is to be expected; None where nothing is left or known."""
    ends_at: float | None
    step_s_now: float | None
    step_s_usual: float | None
    tokens_per_s_now: float | None
    tokens_per_s: float | None
    """Tokens trained by the time that training took."""
    phase_steps: int
    loader_share: float | None
    """Of the training time of late, what was spent waiting for batches."""
    mfu: float | None
    """Of a running one over the steps that its speed of late is taken from, else of the usual step."""
    peak_flops: float | None
    peak_source: str
    device: str
    device_name: str
    dtype: str
    loss: float | None
    """Nats a token, smoothed."""
    losses: tuple[float, ...]
    """The curve for the eye."""
    loss_trend: Trend | None
    jump: Jump | None
    """A loss that jumped in this phase and has not come back."""
    bad_losses: int
    loss_is_bad_now: bool
    bpb: tuple[tuple[int, float], ...]
    """(step, bits per byte) of every evaluation."""
    bpb_trend: Trend | None
    epochs_planned: float | None
    memory_gb: float | None
    device_memory_gb: float | None
    checkpoint: Checkpoint | None
    unsaved_steps: int
    unsaved_s: float | None
    """Training time that would be lost if it died now."""
    disk_free_gb: float | None
    counts: Mapping[str, int]
    """Events of each kind in COUNTED."""
    save_failed_last: str
    """Why the newest save failed; empty where it did not."""
    came_from: str
    """The run and step that it was extended from, or fine-tuned from; empty where it began with random weights."""
    goes_on_in: tuple[str, ...]
    """Runs that were extended from this one, each with the step, and its fine-tuning."""
    samples: tuple[tuple[str, str], ...]
    """(prompt, text) of the newest sheet."""
    samples_step: int | None
    resume: str
    """What goes on with it; empty where nothing is to go on, or the record does not tell."""
    is_described: bool
    """Whether run.toml tells what it is: without it nothing can be done with the run."""
    to_mend: tuple[str, ...]
    """Of a finished run, what its report finds to be mended, a sentence each."""
    longer: str
    """What trains a finished run of minutes for longer; empty where it is no such run."""
    troubles: tuple[str, ...]


@np.errstate(all="ignore")
def standing_of(history: History, now: float | None = None) -> Standing:
    """Take stock at `now` (unix seconds, default the clock's). Reads no file but the checkpoints' sizes."""
    now = time.time() if now is None else now
    step, columns = history.step, history.columns
    first = history.phases[-1].first_step if history.phases else 0
    here = step > first
    # A process that has just begun is taken to be as fast as the ones before it.
    step_s = columns["step_s"][here] if here.sum() >= 5 else columns["step_s"]
    now_s, usual_s = pace(step_s), usual(step_s)
    done, planned, batch = history.steps_done, history.steps_planned, history.batch_tokens
    to_mend, longer = _assessed(history)
    batch = batch if batch and batch > 0 else None
    planned = planned if planned and planned > 0 else None
    last_sign, began = _last_sign(history), _finite(history.phases[-1].began) if history.phases else None
    activity = _activity(history) if history.is_running else ""
    taken = _touched(history.folder / ".lock") if history.is_running else None
    if taken is not None and taken > (last_sign or 0.0) and activity != "evaluating":
        last_sign, began, activity = taken, taken, "starting"  # it has written nothing yet
    between = overhead(columns["time"][here], columns["train_s"][here])
    left = max(0, planned - done) if planned else 0
    remaining = left * now_s * between if left and now_s else None
    checkpoint = _checkpoint(history, now)
    saved_at = checkpoint.step if checkpoint else 0
    facts = history.circumstances
    smooth = columns["loss_smooth"] if np.isfinite(columns["loss_smooth"]).any() else columns["loss"]
    is_bad = ~np.isfinite(columns["loss"]) & ~history.is_left_out
    window = end_of(len(step))
    evaluated = [(one.step, one.val_bpb) for one in history.evaluations]
    sheet = _newest_sheet(history.samples)
    return Standing(
        run=plain(history.name),
        stage=plain(history.stage),
        state=history.state,
        activity=activity,
        stopped_by=plain(history.phases[-1].ended_by) if history.state == "stopped" else "",
        refusal=plain(history.refusal).rstrip("."),
        size=_size(history),
        steps_done=done,
        steps_planned=planned,
        tokens_done=done * batch if batch else None,
        tokens_planned=planned * batch if batch and planned else None,
        train_s=_last(columns["train_s"]),
        began=_finite(history.phases[0].began) if history.phases else None,
        phase_began=began,
        last_sign=last_sign,
        silence_s=None if last_sign is None else age(last_sign, now),
        longest_pause_s=float(pauses(columns["time"][here], columns["train_s"][here]).max(initial=0.0)),
        remaining_s=remaining,
        ends_at=now + remaining if remaining is not None and history.is_running else None,
        step_s_now=now_s,
        step_s_usual=usual_s,
        tokens_per_s_now=batch / now_s if batch and now_s else None,
        tokens_per_s=_finite(measures.overall_tokens_per_s(history)) or None,
        phase_steps=int(here.sum()),
        loader_share=_loader_share(columns["loader_wait_s"][here], columns["train_s"][here]),
        mfu=_mfu(history, columns["mfu"][here], step_s),
        peak_flops=_finite(number(facts.get("peak_flops"))),
        peak_source=plain(facts.get("peak_source", "")),
        device=plain(facts.get("device", "")),
        device_name=plain(facts.get("device_name", "")),
        dtype=plain(facts.get("dtype") or history.config.get("config", {}).get("dtype", "")),
        loss=_last(columns["loss_smooth"]) if _last(columns["loss_smooth"]) is not None else _last(columns["loss"]),
        losses=tuple(_curve(smooth[np.isfinite(smooth)])),
        loss_trend=trend(step[window], columns["loss"][window]),
        jump=_jump(step[here], columns["loss"][here]),
        bad_losses=int(is_bad.sum()),
        loss_is_bad_now=bool(len(step)) and bool(is_bad[-1]),
        bpb=tuple(evaluated),
        bpb_trend=_bpb_trend(evaluated),
        epochs_planned=_epochs(columns["epoch"], done, planned),
        memory_gb=_finite(float(np.nanmax(columns["memory_gb"], initial=-np.inf))),
        device_memory_gb=_finite(number(facts.get("device_memory_gb"))),
        checkpoint=checkpoint,
        unsaved_steps=max(0, done - saved_at),
        unsaved_s=train_s_between(step, columns["train_s"], saved_at, usual_s) if done > saved_at else 0.0,
        disk_free_gb=_disk_free_gb(history.folder),
        counts=_counts(history.events),
        save_failed_last=_save_failed_last(history.events),
        came_from=plain(_came_from(history)),
        goes_on_in=tuple(plain(name) for name in _goes_on_in(history)),
        samples=sheet[1],
        samples_step=sheet[0],
        resume=commands.awaited_stage(history) if history.state == "finished" else commands.resume(history),
        is_described=bool(history.config),
        to_mend=to_mend,
        longer=longer,
        troubles=tuple(plain(trouble) for trouble in history.troubles),
    )


def plain(value: Any) -> str:
    """Text of a folder that may be a stranger's, on one line, without what would command the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _last(column: np.ndarray) -> float | None:
    good = column[np.isfinite(column)]
    return float(good[-1]) if len(good) else None


def _came_from(history: History) -> str:
    for line in history.events:
        if line.get("event") == "extended" and line.get("from"):
            return f"{line['from']} at step {line.get('step')}, to train for longer"
    about, config = history.config.get("run", {}), history.config.get("config", {})
    return f"{about['base']} at step {config.get('base_step', '?')}" if about.get("base") else ""


def _goes_on_in(history: History) -> list[str]:
    longer = [line for line in history.events if line.get("event") == AFTERWARDS]
    found = [f"{line.get('run')} from step {line.get('step')}" for line in longer]
    return [*found, *filter(None, [commands.fine_tuning(history)])]


def _last_sign(history: History) -> float | None:
    """When the newest line was written: as it says itself. Old metrics have no times, and while training writes them
    the file's date tells.
    """
    own = [line for line in history.events[-2:] if line.get("event") != AFTERWARDS]
    said = [at for line in own[-1:] if math.isfinite(at := number(line.get("time")))]
    logged = _last(history.columns["time"])
    if logged is None and len(history.step) and (history.is_running or not said):
        said += [at for at in [_touched(history.folder / "metrics.jsonl")] if at is not None]
    return max([*said, *([logged] if logged is not None else [])], default=None)


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _activity(history: History) -> str:
    """What the process that holds the lock is at, as far as the newest lines tell."""
    first = history.phases[-1].first_step if history.phases else 0
    newest = history.events[-1] if history.events else {}
    if newest.get("event") == "finished":
        return "evaluating"
    logged, at = _last(history.columns["time"]), number(newest.get("time"))
    if newest.get("event") in ("saved", "save_failed") and (logged is None or at >= logged):
        return "measuring"
    if history.steps_done <= first:
        return "starting"
    if history.steps_done == history.circumstances.get("compile_from"):
        return "compiling"
    return "training"


def _size(history: History) -> str:
    shape = history.shape
    if shape is None:
        return ""
    layers = f"{shape.n_layer} layer{'s' * (shape.n_layer > 1)}"
    return f"{layers}, {shape.d_model:,} wide, {shape.parameters['total']:,} parameters"


def _checkpoint(history: History, now: float) -> Checkpoint | None:
    """The newest whole one on the way to where the run is."""
    there = [(step, at) for step, at in history.checkpoints if step <= history.steps_done or not len(history.step)]
    if not there:
        return None
    step, at = there[-1]
    said = [line.get("time") for line in history.events if (line.get("event"), line.get("step")) == ("saved", step)]
    moment = number(said[-1]) if said and math.isfinite(number(said[-1])) else at
    folder = history.folder / "checkpoints" / f"{step:06d}"
    return Checkpoint(step, age(moment, now), _folder_gb(folder), trouble_with(folder))


def _folder_gb(folder: Path) -> float:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total / 1e9


def _disk_free_gb(folder: Path) -> float | None:
    try:
        return shutil.disk_usage(folder).free / 1e9
    except OSError:
        return None


def _mfu(history: History, mfu: np.ndarray, step_s: np.ndarray) -> float | None:
    """(N,) shares of the peak rate, and seconds, of the steps of this phase."""
    usual_mfu = measures.utilisation(history)
    late_s, typical_s = pace(step_s), usual(step_s)
    if usual_mfu is None or not history.is_running or not late_s or not typical_s:
        return usual_mfu.share if usual_mfu else None
    good = np.isfinite(mfu) & (mfu > 0)
    typical = float(np.median(mfu[good])) if good.any() else usual_mfu.share
    return typical * typical_s / late_s


def _jump(step: np.ndarray, loss: np.ndarray) -> Jump | None:
    """Of the last LOOK_BACK steps, if the loss is still up."""
    found = jump(step[-LOOK_BACK:], loss[-LOOK_BACK:])
    return found if found is not None and found.last > found.before + JUMP_NATS else None


def _assessed(history: History) -> tuple[tuple[str, ...], str]:
    """What a finished run's report finds to be mended, and what trains it for longer where it was short."""
    if history.state != "finished" or len(history.step) > MOST_ASSESSED:
        return (), ""
    whole = with_ancestors(history)[0]
    found = assess(whole)
    ratio = longer_ratio(whole) if any(one.kind == "short" for one in found) else None
    to_mend = tuple(plain(one.sentence) for one in found if one.severity in ("bad", "warn"))
    return to_mend, "" if ratio is None or to_mend else commands.longer(whole, ratio)


def _loader_share(waited: np.ndarray, trained: np.ndarray) -> float | None:
    """Over the last quarter of the phase. (N,) cumulative seconds each."""
    good = np.isfinite(waited) & np.isfinite(trained)
    waited, trained = waited[good], trained[good]
    part = end_of(len(trained))
    if len(trained) < 10 or trained[-1] <= trained[part][0]:
        return None
    share = (waited[-1] - waited[part][0]) / (trained[-1] - trained[part][0])
    return float(share) if share >= 0 else None


def _curve(losses: np.ndarray, points: int = 48) -> list[float]:
    """Medians of so many equal stretches."""
    if not len(losses):
        return []
    edges = np.linspace(0, len(losses), min(points, len(losses)) + 1).astype(int)
    return [float(np.median(losses[a:b])) for a, b in zip(edges, edges[1:], strict=False)]


def _bpb_trend(evaluated: Sequence[tuple[int, float]]) -> Trend | None:
    late = evaluated[-EVALUATIONS_IN_TREND:]
    steps, measured = np.array([step for step, _ in late]), np.array([bpb for _, bpb in late], dtype=np.float64)
    return trend(steps, measured, resemble=False)


def _epochs(epoch: np.ndarray, done: int, planned: int | None) -> float | None:
    now = _last(epoch)
    return None if now is None or not done or not planned else now * planned / done


def _counts(events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    kinds = Counter(str(line.get("event")) for line in events)
    return {kind: kinds[kind] for kind in COUNTED}


def _save_failed_last(events: Sequence[Mapping[str, Any]]) -> str:
    saves = [line for line in events if line.get("event") in ("saved", "save_failed")]
    return plain(saves[-1].get("why", "no reason given")) if saves and saves[-1]["event"] == "save_failed" else ""


def _newest_sheet(samples: Sequence[Mapping[str, Any]]) -> tuple[int | None, tuple[tuple[str, str], ...]]:
    if not samples:
        return None, ()
    step = samples[-1].get("step")
    sheet = [line for line in samples if line.get("step") == step]
    pairs = tuple((plain(line.get("prompt", "")), plain(line.get("text", ""))) for line in sheet)
    return step if isinstance(step, int) else None, pairs
