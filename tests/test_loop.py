"""The loop, attacked: uneven masks, failing evaluations and disks, signals at bad moments, a loss that explodes."""

from __future__ import annotations

import errno
import gc
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event, Timer
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.data import prefetch
from fathom.errors import FathomError
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import Rates, adam_groups
from fathom.optim.schedule import Schedule
from fathom.record import Record, events, metrics
from fathom.train import checkpoint, loop
from fathom.train import saver as saver_module
from fathom.train.health import Health
from fathom.train.loop import LoopSettings, Outcome, train
from fathom.train.progress import Progress
from fathom.train.recompiled import graphs
from fathom.train.saver import Saver
from fathom.train.scaler import LossScaler
from fathom.train.step import Stepper
from tests.oracles.gradient import loss_and_gradient
from tests.oracles.tiny_runs import events_of, hurry

VOCAB, SEQ_LEN, ROWS, STEPS = 50, 16, 4, 8
SHAPE = Shape(2, 2, 2, 16, VOCAB, SEQ_LEN, "L")

Arrays = tuple[np.ndarray, np.ndarray]


class Dice:
    """Batches from the step alone; `spoil` may change one."""

    def __init__(self, spoil: Callable[[int, np.ndarray, np.ndarray], None] = lambda *_: None) -> None:
        self._spoil = spoil

    def batch(self, step: int, first_row: int, last_row: int) -> Arrays:
        tokens = np.random.default_rng(step).integers(0, VOCAB, (ROWS, SEQ_LEN + 1))
        inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        self._spoil(step, inputs, targets)
        return inputs[first_row:last_row], targets[first_row:last_row]

    def epoch_of(self, step: int) -> float:
        return step / 10


class Training:
    """A model, its optimizer and its record, to be trained in one go or in several."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
        self.record = Record(folder)
        self.model = made_model(dtype)
        self.optimizer = Optimizer(self.model.parameter_kinds(), adam_groups(Rates(), 0.1, 1.0), 0.02, self.model.dtype)
        given = {
            "steps": STEPS,
            "rows_per_step": ROWS,
            "device_rows": 2,
            "save_every_steps": 3,
            "save_every_s": None,
            "eval_every": 0,
            "keep": 2,
            "compile_from": None,
            "peak_flops": 1e9,
        }
        self.settings = LoopSettings(**(given | changes))
        self.progress = Progress()
        self.source = Dice()
        self.evaluate: Callable[[int, float], Mapping[str, Any]] = lambda step, seconds: {"step": step, "val_bpb": 1.0}

    def run(self) -> Outcome:
        schedule = Schedule(self.settings.steps, warmup_steps=2, momentum_warmup_steps=4, weight_decay=0.1)
        return train(
            self.model,
            self.optimizer,
            schedule,
            self.source,
            self.settings,
            self.record,
            self.progress,
            lambda step, seconds: self.evaluate(step, seconds),
            "test",
        )

    @property
    def sha256(self) -> str:
        return checkpoint.weights_sha256(self.model)

    @property
    def saved_steps(self) -> list[int]:
        return checkpoint.steps(self.record.folder)


def made_model(dtype: torch.dtype = torch.float32) -> GPT:
    model, generator = GPT(SHAPE, dtype), torch.Generator().manual_seed(0)
    model.to(dtype).init_weights(generator)
    with torch.no_grad():
        model.head.normal_(0, 0.2, generator=generator)
        for block in model.blocks:
            block.out.normal_(0, 0.1, generator=generator)
            block.down.normal_(0, 0.1, generator=generator)
    return model


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


# The step


class Catcher:
    """An optimizer that keeps the gradient it is given and moves nothing."""

    def __init__(self, model: GPT) -> None:
        self._model, self.gradient = model, dict[str, Tensor]()

    def step(self, *_: float) -> None:
        self.gradient = {n: w.grad.clone() for n, w in self._model.named_parameters() if w.grad is not None}

    def zero_grad(self) -> None:
        self._model.zero_grad()


def stepped(
    inputs: np.ndarray, targets: np.ndarray, device_rows: int, step: int = 0
) -> tuple[float, dict[str, Tensor]]:
    model = made_model()
    catcher = Catcher(model)
    scaler = LossScaler(enabled=False)
    found = Stepper(
        model,
        catcher,  # type: ignore[arg-type]
        Schedule(10),
        scaler,
        Health(),
        device_rows,
    ).take(step, inputs, targets)
    assert not found.skipped
    return found.loss, catcher.gradient


def unevenly_masked() -> Arrays:
    """Rows with all, one, none and half of their targets."""
    inputs, targets = Dice().batch(0, 0, ROWS)
    targets[1, 1:] = -1
    targets[2] = -1
    targets[3, ::2] = -1
    return inputs, targets


@pytest.mark.parametrize("device_rows", [1, 2, 4])
def test_the_gradient_is_per_supervised_token_of_the_whole_step(device_rows: int) -> None:
    inputs, targets = unevenly_masked()
    loss, gradient = stepped(inputs, targets, device_rows)
    expected_loss, expected = loss_and_gradient(made_model(), inputs, targets)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradient.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(gradient[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_fully_masked_micro_batch_contributes_nothing() -> None:
    inputs, targets = unevenly_masked()
    loss, gradient = stepped(inputs, targets, device_rows=1)
    kept = [0, 1, 3]
    loss_without, without = stepped(inputs[kept], targets[kept], device_rows=1)
    assert loss == loss_without
    for name, tensor in without.items():
        assert tensor.isfinite().all()
        assert torch.equal(gradient[name], tensor), name


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda inputs, targets: inputs.__setitem__((1, 2), VOCAB), "a token id outside 0 to 49"),
        (lambda inputs, targets: inputs.__setitem__((1, 2), -1), "a token id outside"),
        (lambda inputs, targets: targets.__setitem__((1, 2), VOCAB), "a target id outside"),
        (lambda inputs, targets: targets.__setitem__((1, 2), -2), "a target id outside"),
    ],
)
def test_a_broken_batch_is_named(spoil: Callable[[np.ndarray, np.ndarray], None], words: str) -> None:
    inputs, targets = Dice().batch(0, 0, ROWS)
    spoil(inputs, targets)
    with pytest.raises(FathomError, match=f"batch of step 7 has {words}"):
        stepped(inputs, targets, 2, step=7)


def test_a_batch_without_rows_or_with_other_targets_is_named() -> None:
    inputs, targets = Dice().batch(0, 0, ROWS)
    for broken in ((inputs[:0], targets[:0]), (inputs, targets[:2])):
        with pytest.raises(FathomError, match="batch of step 3 has inputs of .* and targets of"):
            stepped(*broken, 2, step=3)


def test_rows_of_another_width_are_named() -> None:
    inputs, targets = Dice().batch(0, 0, ROWS)
    with pytest.raises(FathomError, match="rows of 15 tokens"):
        stepped(inputs[:, 1:], targets[:, 1:], 2)


# The run


def test_every_step_is_logged_once_and_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    training = Training(tmp_path)
    before = training.sha256
    outcome = training.run()
    assert outcome.finished and outcome.step == STEPS
    assert training.sha256 != before
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(line["loss"] > 0 and line["step_s"] > 0 and line["mfu"] > 0 for line in lines)
    assert lines[3]["epoch"] == 0.3
    assert training.saved_steps == [6, 8]
    assert [line["step"] for line in events_of(tmp_path, "saved")] == [3, 6, 8]


def test_the_step_loss_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    training = Training(tmp_path, steps=1)

    def spoil(_: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        targets[1:3, 2:] = -1

    training.source = Dice(spoil)
    expected, _ = loss_and_gradient(made_model(), *training.source.batch(0, 0, ROWS))
    training.run()
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluations_come_after_saving(tmp_path: Path) -> None:
    training = Training(tmp_path, eval_every=2, save_every_steps=None)
    seen: list[tuple[int, int]] = []

    def evaluate(step: int, seconds: float) -> Mapping[str, Any]:
        assert seconds > 0
        seen.append((step, training.saved_steps[-1]))
        return {}

    training.evaluate = evaluate
    training.run()
    assert seen == [(2, 2), (4, 4), (6, 6), (8, 8)]


def test_an_evaluation_that_raises_is_recorded_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path, eval_every=1)
    reasons = [
        RuntimeError("out of memory"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        FathomError("a damaged file", "copy it again"),
        ValueError("shapes"),
        IndexError("row"),
        KeyError("val_bpb"),
    ]

    def evaluate(step: int, seconds: float) -> Mapping[str, Any]:
        if step <= len(reasons):
            raise reasons[step - 1]
        return {"step": step, "val_bpb": 0.5}

    training.evaluate = evaluate
    assert training.run().finished
    failed = events_of(tmp_path, "evaluation_failed")
    assert [line["step"] for line in failed] == list(range(1, len(reasons) + 1))
    assert all(line["why"] for line in failed)
    assert "out of memory" in capsys.readouterr().err


def test_what_a_finished_run_was_not_measured_on_is_measured_on_resuming(tmp_path: Path) -> None:
    training = Training(tmp_path)

    def killed(step: int, seconds: float) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    training.evaluate = killed
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert training.saved_steps[-1] == STEPS
    seen: list[int] = []
    training.evaluate = lambda step, seconds: seen.append(step) or {}
    before = training.sha256
    outcome = training.run()
    assert outcome.finished and seen == [STEPS]
    assert training.sha256 == before
    took = [line["step_s"] for line in metrics(tmp_path)][loop.SPEED_FROM_STEP :]
    assert outcome.tokens_per_s == pytest.approx(ROWS * SEQ_LEN / np.median(took), rel=1e-3), "of those before"
    assert outcome.first_step_s is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_ends_nothing_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    training = Training(tmp_path, save_every_steps=2)
    real = checkpoint.save

    def save(folder: Path, step: int, *rest: Any) -> Path:
        if step in (4, 6):
            assert training.saved_steps == [2]
            raise error
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    assert training.run().finished
    assert training.saved_steps == [2, 8]
    assert [line["step"] for line in events_of(tmp_path, "save_failed")] == [4, 6]
    said = capsys.readouterr().err
    assert str(error.args[-1]) in said
    assert "the run goes on" in said


def test_a_disk_full_at_the_end_finishes_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Training(tmp_path / "whole")
    whole.run()
    training = Training(tmp_path / "full")

    def full(_: int) -> None:
        if training.progress.step == STEPS:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(FathomError, match="last checkpoint.*--resume"):
        patch.setattr(os, "fsync", full)
        training.run()
    assert training.saved_steps == [3, 6]
    resumed = Training(tmp_path / "full")
    go_on(resumed)
    assert resumed.run().finished
    assert resumed.sha256 == whole.sha256


def test_what_ends_a_run_in_its_middle_is_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, save_every_steps=None)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FathomError, match="last checkpoint"), loop.end_noted(training.record, training.progress):
        training.run()
    (line,) = events_of(tmp_path, "refused")
    assert line["step"] == STEPS and "could not be saved; make room on the disk" in line["why"]


def test_an_older_checkpoint_whose_meta_is_damaged_holds_nothing_up(tmp_path: Path) -> None:
    training = Training(tmp_path, eval_every=2, save_every_steps=None, keep=1)

    def damage(step: int, seconds: float) -> Mapping[str, Any]:
        if step == 2:
            (checkpoint.folder_of(tmp_path, 2) / "meta.json").write_text("{")
        return {}

    training.evaluate = damage
    assert training.run().finished
    assert training.saved_steps == [8], "and is removed like any other"


@pytest.mark.parametrize("error", [FathomError("a meta", "that cannot be read"), ValueError("what it may be")])
def test_whatever_stops_the_tidying_a_checkpoint_is_whole(tmp_path: Path, error: Exception) -> None:
    def tidy(step: int) -> None:
        raise error

    saver = Saver(Record(tmp_path), 0, tidy)
    saver.begin(1, {"model": {"weight": torch.ones(2)}}, {})
    assert saver._coming is not None
    assert saver._coming[2].result(timeout=30) >= 0
    assert saver.wait() == 1


def test_memory_that_takes_no_copy_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, real, asked = Training(tmp_path), saver_module.copied, iter(range(100))

    def copied(state: Mapping[str, Any]) -> dict[str, Any]:
        if next(asked) == 1:
            raise MemoryError
        return real(state)

    monkeypatch.setattr(saver_module, "copied", copied)
    assert training.run().finished
    assert [(line["step"], line["why"]) for line in events_of(tmp_path, "save_failed")] == [(6, "MemoryError")]
    assert training.saved_steps == [3, 8]


def go_on(training: Training) -> None:
    """From the newest checkpoint, by the run's own function."""
    from fathom.train.session import restore

    training.progress = restore(training.record, training.model, training.optimizer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_with_a_checkpoint_of_its_step(tmp_path: Path, number: signal.Signals) -> None:
    whole = Training(tmp_path / "whole")
    whole.run()
    training = Training(tmp_path / "run", save_every_steps=None)

    real = training.record.metric

    def metric(**values: Any) -> None:
        real(**values)
        if values["step"] == 4:
            os.kill(os.getpid(), number)

    training.record.metric = metric  # type: ignore[method-assign]
    before = signal.getsignal(number)
    outcome = training.run()
    assert signal.getsignal(number) is before
    assert not outcome.finished and outcome.step == 5
    assert training.saved_steps == [5]
    assert events(tmp_path / "run")[-1]["why"] == number.name
    resumed = Training(tmp_path / "run")
    go_on(resumed)
    assert resumed.run().finished
    assert resumed.sha256 == whole.sha256
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(STEPS))


def test_a_signal_during_an_evaluation_loses_no_step(tmp_path: Path) -> None:
    training = Training(tmp_path, eval_every=4, save_every_steps=None)

    def evaluate(step: int, seconds: float) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    training.evaluate = evaluate
    assert not training.run().finished
    assert training.saved_steps == [4]


def test_a_signal_between_saving_and_the_next_step_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, save_every_steps=None)
    real = loop._save_due

    def due(settings: LoopSettings, step: int) -> bool:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(settings, step)

    monkeypatch.setattr(loop, "_save_due", due)
    assert not training.run().finished
    assert training.saved_steps == [5]


def test_a_signal_before_the_first_step_leaves_a_run_that_can_begin(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole")
    whole.run()
    training = Training(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._StopSignals, "__enter__", lambda self: setattr(self, "asked", True) or self)
        outcome = training.run()
    assert not outcome.finished and outcome.step == 0
    assert training.saved_steps == []
    resumed = Training(tmp_path / "run")
    go_on(resumed)
    resumed.run()
    assert resumed.sha256 == whole.sha256


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    training = Training(tmp_path)

    def metric(**values: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    training.record.metric = metric  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path, ends: str) -> None:
    training = Training(tmp_path)
    if ends == "badly":
        training.model.head.data.fill_(math.nan)
        with pytest.raises(FathomError):
            training.run()
    else:
        training.run()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_the_source_raises_comes_through(tmp_path: Path) -> None:
    training = Training(tmp_path)

    def spoil(step: int, *_: Any) -> None:
        if step == 5:
            raise FathomError("a shard is damaged", "copy it again")

    training.source = Dice(spoil)
    with pytest.raises(FathomError, match="a shard is damaged"):
        training.run()
    assert training.saved_steps == [3, 5], "no step is lost for want of data"
    resumed, whole = Training(tmp_path), Training(tmp_path / "whole")
    go_on(resumed)
    resumed.run()
    whole.run()
    assert resumed.sha256 == whole.sha256


def test_a_loader_that_hangs_ends_the_run_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, released = Training(tmp_path), Event()
    training.source = Dice(lambda step, *_: released.wait() and None if step == 5 else None)
    monkeypatch.setattr(prefetch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(prefetch, "CLOSE_S", 0.01)
    monkeypatch.setattr(loop, "Prefetcher", partial(prefetch.Prefetcher, patience_s=0.05))
    with pytest.raises(FathomError, match="batch of step 5 was not there after .* --resume"):
        training.run()
    released.set()
    assert training.saved_steps == [3, 5]


def test_a_signal_is_answered_though_the_loader_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, released = Training(tmp_path), Event()

    training.source = Dice(lambda step, *_: released.wait() and None if step == 5 else None)
    real = training.record.metric

    def metric(**values: Any) -> None:
        real(**values)
        if values["step"] == 4:
            Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    training.record.metric = metric  # type: ignore[method-assign]
    monkeypatch.setattr(prefetch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(prefetch, "CLOSE_S", 0.01)
    assert not training.run().finished
    released.set()
    assert training.saved_steps == [3, 5]


# Checkpoints beside training


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, whole = Training(tmp_path / "slow", save_every_steps=2, keep=9), Training(tmp_path / "whole")
    whole.run()
    real, steps_meanwhile = checkpoint.save, {}

    def slow(folder: Path, step: int, *rest: Any) -> Path:
        if step == 2:
            while training.progress.step < 4:  # the run must come this far before the disk has answered
                time.sleep(0.001)
        steps_meanwhile[step] = training.progress.step
        return real(folder, step, *rest)

    monkeypatch.setattr(checkpoint, "save", slow)
    assert training.run().finished
    assert steps_meanwhile[2] == 4, "the next checkpoint waits for the one before"
    assert training.saved_steps == [2, 4, 6, 8]
    assert training.sha256 == whole.sha256
    resumed = Training(tmp_path / "slow")
    for step in (4, 6, 8):
        checkpoint._remove(checkpoint.folder_of(tmp_path / "slow", step))
    go_on(resumed)
    assert resumed.progress.step == 2, "a copy of step 2, whatever the weights became meanwhile"
    resumed.run()
    assert resumed.sha256 == whole.sha256
    written = events_of(tmp_path / "slow", "saved")
    assert all(line["copy_s"] >= 0 and line["write_s"] > 0 for line in written)


def test_saving_by_the_clock(tmp_path: Path) -> None:
    training = Training(tmp_path, save_every_steps=None, save_every_s=0.0, keep=100)
    training.run()
    assert training.saved_steps == list(range(1, STEPS + 1))
    patient = Training(tmp_path / "patient", save_every_steps=None, save_every_s=3600.0)
    patient.run()
    assert patient.saved_steps == [STEPS]


def test_time_and_averages_go_on_over_sessions(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole")
    whole.run()
    first = Training(tmp_path / "run", eval_every=6)
    first.evaluate = lambda step, seconds: os.kill(os.getpid(), signal.SIGTERM) or {}
    first.run()
    second = Training(tmp_path / "run")
    go_on(second)
    assert second.progress.seconds == pytest.approx(first.progress.seconds, abs=1e-3)
    assert second.progress.loss_average == first.progress.loss_average
    outcome = second.run()
    assert outcome.seconds > first.progress.seconds
    assert metrics(tmp_path / "run")[-1]["loss_smooth"] == metrics(tmp_path / "whole")[-1]["loss_smooth"]


def test_how_rows_are_split_over_the_device_does_not_matter(tmp_path: Path) -> None:
    """In float64: AdamW divides by a gradient's own size, so that in float32 rounding alone moves a few scalars."""
    ends = []
    for device_rows in (1, 2, 4):
        training = Training(tmp_path / str(device_rows), dtype=torch.float64, device_rows=device_rows)
        training.source = Dice(lambda step, inputs, targets: targets[step % ROWS, 1:].fill(-1))
        training.run()
        ends.append(training.model.state_dict())
    start = made_model().state_dict()
    for name, weight in ends[0].items():
        moved = (weight - start[name]).norm()
        assert moved > 0
        assert all((weight - other[name]).norm() <= 1e-5 * moved for other in ends[1:]), name


# Compiled kernels (which nothing here compiles)


class FakeCompiler:
    made: list[FakeCompiler] = []

    def __init__(self, model: GPT, device_rows: int) -> None:
        self.log = ["started"]
        FakeCompiler.made.append(self)

    def wait(self) -> None:
        self.log.append("waited for")

    def close(self) -> None:
        self.log.append("closed")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[FakeCompiler]:
    monkeypatch.setattr(loop, "CompilerAhead", FakeCompiler)
    monkeypatch.setattr(FakeCompiler, "made", [])
    return FakeCompiler.made


def compiled_before(training: Training) -> list[int]:
    """The steps that were done when the model was asked to compile its kernels."""
    found: list[int] = []
    training.model.compile_kernels = lambda: found.append(training.progress.step)  # type: ignore[method-assign]
    training.run()
    return found


def test_kernels_change_at_their_step_after_the_wait(tmp_path: Path, compilations: list[FakeCompiler]) -> None:
    assert compiled_before(Training(tmp_path, compile_from=3)) == [3]
    assert [one.log for one in compilations] == [["started", "waited for", "closed"]]


def test_a_run_resumed_after_that_step_compiles_at_once(
    tmp_path: Path, compilations: list[FakeCompiler], capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path, compile_from=3)
    training.progress.step = 5
    assert compiled_before(training) == [5]
    assert compilations == []
    assert "compiling the kernels; this step takes longer" in capsys.readouterr().err


def test_no_second_process_takes_memory_of_a_gpu(tmp_path: Path) -> None:
    settings = Training(tmp_path, compile_from=3).settings
    assert loop._compiles_ahead(settings, 0, "cpu")
    assert not loop._compiles_ahead(settings, 0, "cuda")


def test_a_run_that_ends_before_compiles_nothing(tmp_path: Path, compilations: list[FakeCompiler]) -> None:
    assert compiled_before(Training(tmp_path, compile_from=STEPS)) == []
    assert compiled_before(Training(tmp_path / "never", compile_from=None)) == []
    assert compilations == []


def test_the_compiler_is_closed_when_the_run_breaks(tmp_path: Path, compilations: list[FakeCompiler]) -> None:
    training = Training(tmp_path, compile_from=3)
    training.source = Dice(lambda step, inputs, targets: inputs.fill(VOCAB) if step == 1 else None)
    with pytest.raises(FathomError):
        training.run()
    assert [one.log for one in compilations] == [["started", "closed"]]


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_nothing_is_compiled_again_when_rates_and_decay_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's front end alone, which is what decides whether to compile again."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(loop, "CompilerAhead", FakeCompiler)
    before = graphs()
    training = Training(tmp_path, compile_from=2)
    rates = [Schedule(STEPS, warmup_steps=2, weight_decay=0.1).lr(step) for step in range(STEPS)]
    assert len(set(rates)) > 3
    training.run()
    assert graphs() > before, "kernels were compiled, at step 2"
    assert events_of(tmp_path, "recompiled") == []
    other = Training(tmp_path / "other", compile_from=0)
    other.source = Dice(lambda step, inputs, targets: None)
    real, asked = Stepper._add_gradient, iter(range(1000))

    def add(self: Stepper, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> Tensor:
        if next(asked) == 9:  # in step 4: rows of a size that no kernel was made for
            return sum(real(self, inputs[i : i + 1], targets[i : i + 1], n_targets) for i in range(len(inputs)))  # type: ignore[return-value]
        return real(self, inputs, targets, n_targets)

    monkeypatch.setattr(Stepper, "_add_gradient", add)
    other.run()
    assert [line["step"] for line in events_of(tmp_path / "other", "recompiled")] == [4]
