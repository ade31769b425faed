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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from fathom import hardware
from fathom.data.prefetch import Prefetcher
from fathom.errors import FathomError
from fathom.model.gpt import GPT
from fathom.optim.optimizer import Optimizer
from fathom.optim.schedule import Schedule
from fathom.ranks import ALONE, Ranks
from fathom.record import Record, events, metrics
from fathom.screen import say
from fathom.train import checkpoint
from fathom.train.display import Display
from fathom.train.health import Health
from fathom.train.progress import Progress, load_progress
from fathom.train.recompiled import Recompilations
from fathom.train.saver import Saver, reason
from fathom.train.scaler import LossScaler
from fathom.train.sharing import share_of, state_of
from fathom.train.step import Step, Stepper
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
    skip_spikes: bool = True
    keep_every: int = 0
    """Every so many steps a checkpoint is saved and kept for good; 0 for none."""
    keep_step: int | None = None
    """One more that is: where a longer run would go on from."""
    document_start: int | None = None
    """The token that begins a document, where documents of a row do not see each other."""


@dataclass(frozen=True)
class Outcome:
    finished: bool
    seconds: float
    """Time in training steps alone, over all sessions of the run."""
    tokens_per_s: float
    first_step_s: float | None
    """From the start of the process to the end of its first step; None where none was left to do."""
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
    here: Ranks = ALONE,
) -> Outcome:
    """Train from `progress.step` to the end, or until Ctrl-C or SIGTERM, which are answered with a checkpoint.

    `evaluate(step, seconds trained)` measures the model and returns what to show; it is called after saving, at every
    `eval_every` and `core_every` steps and at the end, and what it raises does not end the run. Nor does a disk that
    refuses a checkpoint, but for the last one: FathomError, and resuming does again what was not kept.

    Under several ranks all of them call it, and leave a step out, save and stop together; only the main one's `record`
    writes.
    """
    rows, seq_len = settings.rows_per_step, model.shape.seq_len
    scaler, health = LossScaler(enabled=model.dtype == torch.float16), Health(settings.skip_spikes)
    scaler.load(progress.extra.get("loss_scale"))
    health.load(progress.extra.get("health"))
    stepper = Stepper(model, optimizer, schedule, scaler, health, settings.device_rows, settings.document_start, here)
    speeds: list[float] = []
    first_step_s: float | None = None
    last_save = time.monotonic()
    start_step = progress.step
    compiles = here.local == 0 and _compiles_ahead(settings, start_step, model.device.type)  # for a machine's ranks
    ahead = CompilerAhead(model, settings.device_rows) if compiles else None
    waited_before = progress.loader_wait_s
    recompiled = Recompilations()
    stepper.lower(progress.extra.get("fits"))
    fits = stepper.fits
    with (
        ExitStack() as at_the_end,
        Saver(record, start_step, lambda step: _tidy(record.folder, settings, step), here) as saver,
        _resting_garbage_collector() as rest_garbage_collector,
        Prefetcher(share_of(source, rows, here), start_step, stop=settings.steps) as batches,
        _StopSignals(is_alone=here.world == 1) as stop,
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
        while progress.step < settings.steps:
            step = progress.step
            if settings.compile_from is not None and step == max(settings.compile_from, start_step):
                if ahead is not None:
                    ahead.wait()
                else:
                    say("compiling the kernels; this step takes longer")
                here.gather(None)
                model.compile_kernels()
            began = time.perf_counter()
            try:
                batch = batches.get(step + health.data_shift, until=lambda: stop.asked)
                must_stop, is_late = here.most(
                    batch is None or stop.asked, here.is_main and _is_late(settings, last_save)
                )
                if must_stop or batch is None:
                    break
                found = stepper.take(step, *batch)
            except (FathomError, OSError):
                if here.world == 1 and stepper.is_whole:  # several save together or not at all
                    _save_what_there_is(saver, model, optimizer, progress)
                raise
            seconds = time.perf_counter() - began
            if stepper.fits != fits:
                fits = progress.extra["fits"] = stepper.fits
                record.event("out_of_memory", step=step, device_batch=fits[0], recompute=fits[1])
            progress.step, progress.seconds = step + 1, progress.seconds + seconds
            progress.loader_wait_s = waited_before + batches.wait_s
            progress.extra |= {"loss_scale": scaler.state(), "health": health.state()}
            if new := recompiled.since(is_expected=step in (start_step, settings.compile_from)):
                record.event("recompiled", step=step, times=new)
            if found.skipped:
                record.event("skipped", step=step, why=found.skipped, loss=_number(found.loss))
                say(f"step {step} left out: {found.skipped} (loss {found.loss:.4g})", style="yellow")
            else:
                progress.add_loss(found.loss)
            if first_step_s is None:
                first_step_s = hardware.process_age_s()
                rest_garbage_collector()
            speeds.append(rows * seq_len / seconds)
            display.step(step, progress.smooth_loss, schedule.lr(step), seconds)
            epoch = source.epoch_of(step + health.data_shift)
            _log(record, step, found, schedule.lr(step), seconds, epoch, progress, display.mfu, model.device.type)
            saver.poll()
            if health.must_go_back:
                _go_back(record, model, optimizer, progress, saver, health, found.skipped, here)
                continue
            watches = (settings.eval_every, settings.core_every)
            look = any(is_due(progress.step, every, settings.steps) for every in watches)
            due = (_save_due(settings, progress.step) or is_late) and not health.in_a_row
            if look or due:
                saver.begin(progress.step, state_of(model, optimizer), progress.meta())
                last_save = time.monotonic()
            if look:
                saver.wait()  # on the disk first: whatever a look at the model may do
                display.note(_evaluated(evaluate, record, progress))
        finished = progress.step == settings.steps
        if not finished:  # the signal may have come after this step's turn to save
            _save_what_there_is(saver, model, optimizer, progress)
        is_saved = saver.wait() == progress.step
    if not finished:
        record.event("stopped", step=progress.step, why=stop.name or "another rank was told to")
    elif not is_saved:
        raise FathomError(
            f"the last checkpoint of {label} could not be saved", "make room on the disk and go on with --resume"
        )
    pace = speeds[SPEED_FROM_STEP:] or _all_speeds(record.folder, rows * seq_len) or speeds or [0.0]
    return Outcome(
        finished=finished,
        seconds=progress.seconds,
        tokens_per_s=float(np.median(pace)),
        first_step_s=first_step_s,
        loader_wait_s=progress.loader_wait_s,
        step=progress.step,
    )


def _log(
    record: Record,
    step: int,
    found: Step,
    lr: float,
    seconds: float,
    epoch: float,
    progress: Progress,
    mfu: float,
    device: str,
) -> None:
    record.metric(
        step=step,
        loss=round(found.loss, 6),
        loss_smooth=round(progress.smooth_loss, 6),
        grad_norm=float(f"{found.gradient_norm:.6g}"),
        lr=round(lr, 6),
        step_s=round(seconds, 5),
        train_s=round(progress.seconds, 3),
        mfu=round(mfu, 4),
        epoch=round(epoch, 4),
        loader_wait_s=round(progress.loader_wait_s, 4),
        memory_gb=round(hardware.peak_memory_gb(device), 3),
        skipped=progress.extra["health"]["skipped"],
        time=round(time.time(), 3),
    )


def _all_speeds(folder: Path, tokens: int) -> list[float]:
    """Tokens/s of the steps that the run has logged in all its sessions, without the first ones where more follow."""
    speeds = [tokens / line["step_s"] for line in metrics(folder) if line.get("step_s", 0) > 0]
    return speeds[SPEED_FROM_STEP:] or speeds


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _go_back(
    record: Record,
    model: GPT,
    optimizer: Optimizer,
    progress: Progress,
    saver: Saver,
    health: Health,
    why: str,
    here: Ranks,
) -> None:
    """To the newest checkpoint, and on from there with the data that come after those that were left out.

    FathomError where that was done too often already, or where there is no checkpoint yet; one is there then.
    """
    saver.wait()
    at, saved = progress.step, here.from_main(lambda: _good_checkpoints(record.folder))
    trouble = f"{health.in_a_row} steps in a row were left out up to step {at - 1} ({why})"
    remedy = "start another run with lower rates (--lr-scale, of a fine-tuning --lr-share), or with --dtype fp32"
    if not saved:
        _save_what_there_is(saver, model, optimizer, progress)
        raise FathomError(f"{trouble}, before there was a checkpoint to go back to", remedy)
    if health.is_beyond_help:
        raise FathomError(
            f"{trouble}, and {health.returns} returns to a checkpoint did not help",
            f"{remedy}; that of step {saved[-1]} is whole",
        )
    returns, skipped, seconds, after = health.returns + 1, health.skipped, progress.seconds, at + health.data_shift
    progress.become(load_progress(record.folder, saved[-1], model, optimizer))
    saver.on_disk = progress.step
    health.load(progress.extra.get("health"))
    health.returns, health.skipped, health.in_a_row = returns, skipped, 0
    health.data_shift = after - progress.step
    progress.seconds = seconds
    progress.extra["health"] = health.state()
    record.event("rolled_back", **{"from": at, "to": progress.step, "why": why, "data_shift": health.data_shift})
    say(f"{trouble}: back to step {progress.step}, and on with the data after them", style="yellow")


def _good_checkpoints(folder: Path) -> list[int]:
    """Those of steps before which nothing had to be left out, ascending; one whose meta cannot be read is none."""
    good = []
    for step in checkpoint.steps(folder):
        with suppress(FathomError):
            if not (checkpoint.read_meta(checkpoint.folder_of(folder, step)).get("health") or {}).get("in_a_row"):
                good.append(step)
    return good


def _compiles_ahead(settings: LoopSettings, start_step: int, device: str) -> bool:
    """Whether another process is to compile meanwhile. Not on a GPU: its pass would take memory beside a run whose
    micro-batches fill it, and one of fewer rows would make other kernels, as they are compiled for their sizes.
    """
    comes = settings.compile_from is not None and start_step < settings.compile_from < settings.steps
    return comes and device != "cuda"


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether what is done every so many steps (0 for never) and at the end is done after `step`."""
    return step == steps or (every > 0 and step % every == 0)


def _is_for_good(settings: LoopSettings, step: int) -> bool:
    return step == settings.keep_step or (settings.keep_every > 0 and step % settings.keep_every == 0)


def _save_due(settings: LoopSettings, step: int) -> bool:
    by_step = bool(settings.save_every_steps) and step % (settings.save_every_steps or 1) == 0
    return by_step or _is_for_good(settings, step)


def _is_late(settings: LoopSettings, last_save: float) -> bool:
    """Whether a checkpoint is due by the clock, after the step that is about to begin."""
    return settings.save_every_s is not None and time.monotonic() - last_save >= settings.save_every_s


def _save_what_there_is(saver: Saver, model: GPT, optimizer: Optimizer, progress: Progress) -> None:
    """Before the run stops where it stands, with whole steps done that no checkpoint has."""
    if saver.wait() != progress.step:
        saver.begin(progress.step, state_of(model, optimizer), progress.meta())
        saver.wait()


def _tidy(folder: Path, settings: LoopSettings, step: int) -> None:
    """Remove what is not to be kept; amid trouble the last good checkpoint has to stay."""
    if _good_checkpoints(folder)[-1:] == [step]:
        checkpoint.keep(folder, settings.keep, also=_kept_for_good(folder, settings))


def _kept_for_good(folder: Path, settings: LoopSettings) -> set[int]:
    """What the settings name, and the step where bpb was best so far."""
    saved = checkpoint.steps(folder)
    kept = {step for step in saved if _is_for_good(settings, step)}
    measured = {line["step"]: line["val_bpb"] for line in events(folder) if line.get("event") == "evaluated"}
    measured = {step: bpb for step, bpb in measured.items() if step in saved and math.isfinite(bpb)}
    return kept | ({min(measured, key=measured.__getitem__)} if measured else set())


def attempt(what: str, look: Callable[[], Found], record: Record, step: int) -> Found | None:
    """What only looks at a run may fail (out of memory, a damaged file); the run goes on. None where it failed."""
    try:
        return look()
    except Exception as error:
        record.event("evaluation_failed", step=step, what=what, why=reason(error))
        say(f"{what} after step {step} failed ({reason(error)}); the run goes on", style="yellow")
        return None


@contextmanager
def end_noted(record: Record, progress: Progress) -> Iterator[None]:
    """What ends a run in its middle leaves its reason in the record, as far as the disk still takes a line."""
    try:
        yield
    except Exception as error:
        record.event("refused", step=progress.step, why=reason(error))
        raise


def _evaluated(
    evaluate: Callable[[int, float], Mapping[str, Any]], record: Record, progress: Progress
) -> Mapping[str, Any]:
    found = attempt("the evaluation", lambda: evaluate(progress.step, progress.seconds), record, progress.step)
    return {} if found is None else found


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

    def __init__(self, is_alone: bool) -> None:
        """`is_alone` is False under torchrun, which passes on to its ranks what the terminal has sent them already, and
        kills those that take too long.
        """
        self._is_alone = is_alone
        self.asked, self.name = False, ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            if not self._is_alone:
                return
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name
        say("stopping after this step; a checkpoint will be saved")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
