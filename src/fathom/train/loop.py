"""THE loop. Pretraining and fine-tuning differ in where a batch comes from; everything else is here, once.

A step's gradient is per supervised token of the whole step, over all its micro-batches. Which kernels a step runs on
depends on the step alone (`compile_from`), so a resumed run computes what an unbroken one does.
"""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from fathom import hardware
from fathom.data.prefetch import Prefetcher
from fathom.errors import FathomError
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.loss import IGNORE
from fathom.optim.optimizer import Optimizer
from fathom.optim.schedule import Schedule
from fathom.record import Record
from fathom.screen import say
from fathom.train import checkpoint
from fathom.train.display import Display
from fathom.train.scaler import LossScaler
from fathom.train.warm import CompilerAhead

SPEED_FROM_STEP = 5

Found = TypeVar("Found")


class Source(Protocol):
    """Where a step's rows come from: a pure function of the step."""

    def batch(self, step: int, first_row: int, last_row: int) -> tuple[np.ndarray, np.ndarray]: ...

    def epoch_of(self, step: int) -> float: ...


@dataclass(frozen=True)
class LoopSettings:
    steps: int
    rows_per_step: int
    device_rows: int
    save_every_steps: int | None
    save_every_s: float | None
    eval_every: int
    keep: int
    compile_from: int | None
    """The step from which compiled kernels run; None for never."""
    peak_flops: float
    core_every: int = 0


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and moments."""

    step: int = 0
    seconds: float = 0.0
    loss_average: float = 0.0
    loader_wait_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def meta(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "loss_average": self.loss_average,
            "loader_wait_s": round(self.loader_wait_s, 4),
            **self.extra,
        }


@dataclass(frozen=True)
class Outcome:
    finished: bool
    seconds: float
    """Time in training steps alone, over all sessions of the run."""
    tokens_per_s: float
    first_step_s: float
    loader_wait_s: float
    step: int


def train(
    model: GPT,
    optimizer: Optimizer,
    schedule: Schedule,
    source: Source,
    settings: LoopSettings,
    record: Record,
    progress: Progress,
    evaluate: Callable[[int, float], Mapping[str, Any]],
    label: str,
) -> Outcome:
    """Train from `progress.step` to the end, or until Ctrl-C or SIGTERM, which are answered with a checkpoint.

    `evaluate(step, seconds trained)` measures the model and returns what to show; it is called after saving, at every
    `eval_every` and `core_every` steps and at the end, and what it raises does not end the run. Nor does a disk that
    refuses a checkpoint, but for the last one: FathomError, and resuming does again what was not kept.
    """
    rows, seq_len = settings.rows_per_step, model.shape.seq_len
    scaler = LossScaler(enabled=model.dtype == torch.float16)
    scaler.load(progress.extra.get("loss_scale"))
    context = DenseContext(seq_len, model.device)
    speeds: list[float] = []
    first_step_s = 0.0
    last_save = time.monotonic()
    start_step = progress.step
    ahead = CompilerAhead(model, settings.device_rows) if _will_compile(settings, start_step) else None
    waited_before = progress.loader_wait_s
    is_saved = True
    with (
        ExitStack() as at_the_end,
        _resting_garbage_collector() as rest_garbage_collector,
        Prefetcher(lambda step: source.batch(step, 0, rows), start_step, stop=settings.steps) as batches,
        _StopSignals() as stop,
        Display(
            label,
            settings.steps,
            rows * seq_len,
            model.shape.flops_per_token,
            settings.peak_flops,
            model.device.type,
        ) as display,
    ):
        if ahead is not None:
            at_the_end.callback(ahead.close)
        if progress.step == settings.steps:  # it was stopped between its last checkpoint and its last evaluation
            display.note(_evaluated(evaluate, record, progress))
        while progress.step < settings.steps and not stop.asked:
            step = progress.step
            if settings.compile_from is not None and step == max(settings.compile_from, start_step):
                if ahead is not None:
                    ahead.wait()
                model.compile_kernels()
            began = time.perf_counter()
            inputs, targets = batches.get(step)
            loss = _step(model, optimizer, schedule, scaler, context, inputs, targets, step, settings)
            seconds = time.perf_counter() - began
            progress.step, progress.seconds = step + 1, progress.seconds + seconds
            progress.loader_wait_s = waited_before + batches.wait_s
            progress.extra["loss_scale"] = scaler.state()
            progress.loss_average = 0.9 * progress.loss_average + 0.1 * loss
            if step == start_step:
                first_step_s = hardware.process_age_s()
                rest_garbage_collector()
            if step >= start_step + SPEED_FROM_STEP:
                speeds.append(rows * seq_len / seconds)
            smooth = progress.loss_average / (1 - 0.9 ** (step + 1))
            display.step(step, smooth, schedule.lr(step), seconds)
            device = model.device.type
            _log(record, step, loss, smooth, schedule.lr(step), seconds, source, progress, display.mfu, device)
            look = any(
                is_due(progress.step, every, settings.steps) for every in (settings.eval_every, settings.core_every)
            )
            is_saved = False
            if look or stop.asked or _save_due(settings, progress.step, last_save):
                is_saved = _save(record, model, optimizer, progress, settings.keep)
                last_save = time.monotonic()
            if look:
                display.note(_evaluated(evaluate, record, progress))
        finished = progress.step == settings.steps
        if not finished and not is_saved:  # the signal came after this step's turn to save
            _save(record, model, optimizer, progress, settings.keep)
    if not finished:
        record.event("stopped", step=progress.step, why=stop.name)
    elif not is_saved:
        raise FathomError(
            f"the last checkpoint of {label} could not be saved", "make room on the disk and go on with --resume"
        )
    return Outcome(
        finished=finished,
        seconds=progress.seconds,
        tokens_per_s=float(np.median(speeds)) if speeds else 0.0,
        first_step_s=first_step_s,
        loader_wait_s=progress.loader_wait_s,
        step=progress.step,
    )


def _step(
    model: GPT,
    optimizer: Optimizer,
    schedule: Schedule,
    scaler: LossScaler,
    context: DenseContext,
    inputs: np.ndarray,
    targets: np.ndarray,
    step: int,
    settings: LoopSettings,
) -> float:
    """One update; returns the loss of the step, in nats per supervised token."""
    _check(inputs, targets, model, step)
    n_targets = int((targets != IGNORE).sum())
    total = torch.zeros((), device=model.device)
    for first in range(0, settings.rows_per_step, settings.device_rows):
        part = slice(first, first + settings.device_rows)
        ids = torch.from_numpy(inputs[part]).to(model.device, non_blocking=True)
        wanted = torch.from_numpy(targets[part]).to(model.device, non_blocking=True)
        loss = model.loss(model(ids, context), wanted) / n_targets
        scaler.scale(loss).backward()
        total += loss.detach()
    if scaler.gradients_are_finite(model.parameters()):
        optimizer.step(schedule.lr(step), schedule.momentum(step), schedule.decay(step))
    optimizer.zero_grad()
    value = float(total)
    if not math.isfinite(value):
        raise FathomError(
            f"the loss of step {step} is {value}, and the weights can no longer be trusted",
            "go on from the last checkpoint with --resume and a lower --lr-scale, or with --dtype fp32",
        )
    return value


def _check(inputs: np.ndarray, targets: np.ndarray, model: GPT, step: int) -> None:
    """What must be true of every batch; a broken one is named."""
    vocab = model.shape.vocab_size
    broken = (
        (inputs.shape[1] != model.shape.seq_len, f"rows of {inputs.shape[1]} tokens"),
        (inputs.min() < 0 or inputs.max() >= vocab, f"a token id outside 0 to {vocab - 1}"),
        (targets.min() < IGNORE or targets.max() >= vocab, f"a target id outside 0 to {vocab - 1}"),
        (not (targets != IGNORE).any(), "no target to learn from"),
    )
    for is_broken, what in broken:
        if is_broken:
            raise FathomError(f"the batch of step {step} has {what}", "the data does not fit the tokenizer or context")


def _log(
    record: Record,
    step: int,
    loss: float,
    smooth: float,
    lr: float,
    seconds: float,
    source: Source,
    progress: Progress,
    mfu: float,
    device: str,
) -> None:
    record.metric(
        step=step,
        loss=round(loss, 6),
        loss_smooth=round(smooth, 6),
        lr=round(lr, 6),
        step_s=round(seconds, 5),
        train_s=round(progress.seconds, 3),
        mfu=round(mfu, 4),
        epoch=round(source.epoch_of(step), 4),
        loader_wait_s=round(progress.loader_wait_s, 4),
        memory_gb=round(hardware.peak_memory_gb(device), 3),
        time=round(time.time(), 3),
    )


def _will_compile(settings: LoopSettings, start_step: int) -> bool:
    return settings.compile_from is not None and start_step < settings.compile_from < settings.steps


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether what is done every so many steps (0 for never) and at the end is done after `step`."""
    return step == steps or (every > 0 and step % every == 0)


def _save_due(settings: LoopSettings, step: int, last_save: float) -> bool:
    by_step = bool(settings.save_every_steps) and step % (settings.save_every_steps or 1) == 0
    return by_step or (settings.save_every_s is not None and time.monotonic() - last_save >= settings.save_every_s)


def _save(record: Record, model: GPT, optimizer: Optimizer, progress: Progress, keep: int) -> bool:
    """Whether it is on the disk. Whatever stands in the way of a checkpoint does not stand in the run's."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state()}
    try:
        checkpoint.save(record.folder, progress.step, state, progress.meta())
    except Exception as error:  # torch has more words for a full disk than OSError
        record.event("save_failed", step=progress.step, why=_why(error))
        say(f"the checkpoint of step {progress.step} was not saved ({_why(error)}); the run goes on", style="yellow")
        return False
    checkpoint.keep_newest(record.folder, keep)
    record.event("saved", step=progress.step)
    return True


def attempt(what: str, look: Callable[[], Found], record: Record, step: int) -> Found | None:
    """What only looks at a run may fail (out of memory, a damaged file); the run goes on. None where it failed."""
    try:
        return look()
    except Exception as error:
        record.event("evaluation_failed", step=step, what=what, why=_why(error))
        say(f"{what} after step {step} failed ({_why(error)}); the run goes on", style="yellow")
        return None


def _evaluated(
    evaluate: Callable[[int, float], Mapping[str, Any]], record: Record, progress: Progress
) -> Mapping[str, Any]:
    found = attempt("the evaluation", lambda: evaluate(progress.step, progress.seconds), record, progress.step)
    return {} if found is None else found


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:300]


@contextmanager
def _resting_garbage_collector() -> Iterator[Callable[[], None]]:
    """Yields what lays it to rest until the end: what lives after the first step lives as long as the run, and looking
    through it again costs up to half a second a time.
    """

    def rest() -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    was_enabled = gc.isenabled()
    try:
        yield rest
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class _StopSignals:
    """Ctrl-C and SIGTERM ask the loop to stop after its step; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked, self.name = False, ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name
        say("stopping after this step; a checkpoint will be saved")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
