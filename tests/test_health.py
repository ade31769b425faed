"""Faults in the middle of a run: numbers that are none, spikes, masked batches, no memory; nothing of it ends a run."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fathom import hardware
from fathom.errors import FathomError
from fathom.model.attention import DenseContext
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import Rates, adam_groups
from fathom.optim.schedule import Schedule
from fathom.record import metrics
from fathom.train import checkpoint, health
from fathom.train.health import FLOOR, IN_A_ROW, LEAST, RETURNS, SIGMAS, WINDOW, Health
from fathom.train.progress import load_progress
from fathom.train.scaler import LossScaler
from fathom.train.step import Stepper, is_out_of_memory
from tests.oracles.tiny_runs import events_of, hurry
from tests.test_loop import ROWS, SEQ_LEN, Dice, Training, made_model


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


# The judgement


def test_what_is_no_number_is_never_good() -> None:
    judge = Health()
    assert judge.judge(math.nan, 1.0) == "non-finite loss"
    assert judge.judge(math.inf, 1.0) == "non-finite loss"
    assert judge.judge(2.0, math.nan) == "non-finite gradient"
    assert judge.judge(2.0, 1.0) == ""
    assert (judge.skipped, judge.in_a_row, judge.losses) == (3, 0, [2.0])


def test_a_spike_is_told_from_noise_by_the_last_good_steps() -> None:
    judge = Health()
    losses = list(3.0 + 0.1 * np.random.default_rng(0).standard_normal(3 * WINDOW))
    assert [judge.judge(loss, 1.0) for loss in losses] == [""] * len(losses)
    last = losses[-WINDOW:]
    limit = np.mean(last) + SIGMAS * np.std(last)
    assert judge.highest() == pytest.approx(limit)
    assert judge.judge(limit + 0.01, 1.0) == "spike" and judge.losses == pytest.approx(last)
    assert judge.judge(limit - 0.01, 1.0) == ""
    assert Health(skip_spikes=False, losses=last).judge(1e9, 1.0) == ""


@given(st.lists(st.floats(0.001, 20), min_size=1, max_size=300))
def test_it_says_nothing_of_a_beginning_or_of_steps_that_hardly_move(losses: list[float]) -> None:
    judge = Health(losses=(losses * LEAST)[: LEAST - 1])
    assert judge.highest() == math.inf
    steady = Health(losses=[losses[0]] * WINDOW)
    assert steady.highest() == pytest.approx(losses[0] * (1 + SIGMAS * FLOOR))


def test_its_state_goes_on_in_another() -> None:
    one = Health(losses=[1.0, 2.0], in_a_row=2, skipped=5, returns=1, data_shift=7)
    other = Health()
    other.load(one.state())
    assert other == one
    other.load(None)
    assert other == Health()


# The run


def weights_of(training: Training) -> list[Tensor]:
    return [weight.detach().clone() for weight in training.model.parameters()]


def spoiled_gradient(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], bool]) -> None:
    """A gradient of NaN in the steps that `at` names, counted as they are taken."""
    real, taken = Stepper.take, iter(range(10_000))

    def take(self: Stepper, *arguments: Any) -> Any:
        broken = at(next(taken))
        judged = self.scaler.unscale

        def unscale(parameters: Any) -> None:
            if broken:
                self.model.blocks[0].q.grad[0, 0] = math.nan  # type: ignore[union-attr]
            judged(parameters)

        monkeypatch.setattr(self.scaler, "unscale", unscale)
        try:
            return real(self, *arguments)
        finally:
            monkeypatch.setattr(self.scaler, "unscale", judged)

    monkeypatch.setattr(Stepper, "take", take)


def test_a_gradient_that_is_no_number_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled_gradient(monkeypatch, lambda step: step == 3)
    training = Training(tmp_path, save_every_steps=None, eval_every=1, keep=9)
    assert training.run().finished
    before, after = ({}, {})
    for step, found in ((3, before), (4, after)):
        other = Training(tmp_path / "look")
        load_progress(tmp_path, step, other.model, other.optimizer)
        found["weights"] = weights_of(other)
        found["moments"] = [m for m, _ in other.optimizer._buffers]
    for kind in before:
        assert all(torch.equal(a, b) for a, b in zip(before[kind], after[kind], strict=True)), kind
    assert [(e["step"], e["why"]) for e in events_of(tmp_path, "skipped")] == [(3, "non-finite gradient")]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(8))
    assert all(weight.isfinite().all() for weight in training.model.parameters())


def test_weights_gone_bad_are_fetched_from_the_last_checkpoint(tmp_path: Path) -> None:
    training = Training(tmp_path, steps=16, eval_every=4, save_every_steps=None)
    poisoned = []

    def poison(step: int, seconds: float) -> dict[str, Any]:
        if step == 8 and not poisoned:
            poisoned.append(step)
            with torch.no_grad():
                training.model.head[3, 3] = math.nan
        return {}

    training.evaluate = poison
    assert training.run().finished
    assert [e["step"] for e in events_of(tmp_path, "skipped")] == [8, 9, 10, 11]
    assert [(e["from"], e["to"], e["data_shift"]) for e in events_of(tmp_path, "rolled_back")] == [(12, 8, 4)]
    assert all(weight.isfinite().all() for weight in training.model.parameters())
    assert all(math.isfinite(line["loss"]) for line in metrics(tmp_path) if line["step"] >= 8)


def fed(training: Training) -> list[int]:
    """The steps whose batches are asked for, as they are."""
    asked: list[int] = []
    real = training.source.batch

    def batch(step: int, first: int, last: int) -> Any:
        asked.append(step)
        return real(step, first, last)

    training.source.batch = batch  # type: ignore[method-assign]
    return asked


def test_a_return_goes_on_past_the_data_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 5 to 8 fail: back to the checkpoint of step 3, which goes on with the batch of step 9."""
    spoiled_gradient(monkeypatch, lambda taken: 5 <= taken <= 8)
    training = Training(tmp_path, steps=12)
    fed(training)
    trained: list[int] = []
    real = Stepper.take

    def take(self: Stepper, step: int, inputs: np.ndarray, targets: np.ndarray) -> Any:
        trained.append(next(s for s in range(40) if np.array_equal(Dice().batch(s, 0, ROWS)[0], inputs)))
        return real(self, step, inputs, targets)

    monkeypatch.setattr(Stepper, "take", take)
    assert training.run().finished
    assert trained == [*range(9), *range(9, 18)]
    assert [(e["from"], e["to"]) for e in events_of(tmp_path, "rolled_back")] == [(9, 3)]


def test_a_return_passes_over_a_checkpoint_whose_meta_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled_gradient(monkeypatch, lambda taken: 7 <= taken <= 10)
    training = Training(tmp_path, steps=12, eval_every=6, keep=9)

    def damage(step: int, seconds: float) -> dict[str, Any]:
        if step == 6 and not events_of(tmp_path, "rolled_back"):
            (checkpoint.folder_of(tmp_path, 6) / "meta.json").write_text("{")
        return {}

    training.evaluate = damage
    assert training.run().finished
    assert [(e["from"], e["to"]) for e in events_of(tmp_path, "rolled_back")] == [(11, 3)]


def test_the_first_step_of_a_session_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 3 to 6 fail: the session goes back to where it began."""
    first = Training(tmp_path, eval_every=3)
    first.evaluate = lambda step, seconds: os.kill(os.getpid(), signal.SIGTERM) or {}
    assert first.run().step == 3
    ages = iter([1.5, 99.0])
    monkeypatch.setattr(hardware, "process_age_s", lambda: next(ages))
    spoiled_gradient(monkeypatch, lambda taken: taken < IN_A_ROW)
    training = Training(tmp_path)
    training.progress = load_progress(tmp_path, 3, training.model, training.optimizer)
    outcome = training.run()
    assert outcome.finished and [e["to"] for e in events_of(tmp_path, "rolled_back")] == [3]
    assert outcome.first_step_s == 1.5


def test_a_run_killed_after_a_return_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(step: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        if 4 <= step <= 7:
            targets[0, 0] = -1  # marks the batch for the injected fault

    def break_marked(patch: pytest.MonkeyPatch) -> None:
        real = Stepper._accumulate

        def accumulate(self: Stepper, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> Tensor:
            total = real(self, inputs, targets, n_targets)
            return total * math.nan if targets[0, 0] == -1 else total

        patch.setattr(Stepper, "_accumulate", accumulate)

    def training(name: str) -> Training:
        made = Training(tmp_path / name, steps=12, keep=9)
        made.source = Dice(bad)
        return made

    break_marked(monkeypatch)
    whole = training("whole")
    assert whole.run().finished
    first = training("killed")
    killed_at = 5  # after the return to step 3, before the next checkpoint

    class Killed(BaseException):
        pass

    real_event = first.record.event

    def event(kind: str, **values: Any) -> None:
        real_event(kind, **values)
        if kind == "rolled_back":
            raise Killed

    first.record.event = event  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.run()
    resumed = training("killed")
    saved = checkpoint.steps(resumed.record.folder)
    resumed.progress = load_progress(resumed.record.folder, saved[-1], resumed.model, resumed.optimizer)
    assert resumed.progress.step <= killed_at + 1
    assert resumed.run().finished
    assert resumed.sha256 == whole.sha256


def test_what_is_saved_amid_trouble_takes_no_good_checkpoint_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations at steps 6, 7 and 8, each with a checkpoint, while steps 5 to 8 fail."""
    spoiled_gradient(monkeypatch, lambda taken: 5 <= taken <= 8)
    training = Training(tmp_path, steps=12, save_every_steps=5, eval_every=1, keep=1)
    assert training.run().finished
    assert [(e["from"], e["to"]) for e in events_of(tmp_path, "rolled_back")] == [(9, 5)]


def test_without_a_checkpoint_one_is_saved_before_it_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled_gradient(monkeypatch, lambda taken: taken >= 1)
    training = Training(tmp_path, save_every_steps=None)
    with pytest.raises(FathomError, match=rf"{IN_A_ROW} steps in a row were left out up to step 4 .*lower rates"):
        training.run()
    assert training.saved_steps == [5]


def test_after_some_returns_it_stops_with_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled_gradient(monkeypatch, lambda taken: taken >= 4)
    training = Training(tmp_path, steps=30)
    with pytest.raises(FathomError, match=rf"{RETURNS} returns .* did not help; .*that of step 3 is whole"):
        training.run()
    assert len(events_of(tmp_path, "rolled_back")) == RETURNS
    other = Training(tmp_path / "look")
    load_progress(tmp_path, 3, other.model, other.optimizer)
    assert all(weight.isfinite().all() for weight in other.model.parameters())


def test_a_spike_in_a_run_is_left_out_and_not_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LEAST", 4)
    real = Stepper._accumulate

    def accumulate(self: Stepper, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> Tensor:
        loud = np.array_equal(inputs, Dice().batch(6, 0, ROWS)[0])
        return real(self, inputs, targets, n_targets) * (9 if loud else 1)

    monkeypatch.setattr(Stepper, "_accumulate", accumulate)
    training = Training(tmp_path)
    assert training.run().finished
    assert [(e["step"], e["why"]) for e in events_of(tmp_path, "skipped")] == [(6, "spike")]
    assert training.progress.averaged == 7 and training.progress.smooth_loss < 10


def test_a_batch_without_any_target_is_left_out(tmp_path: Path) -> None:
    def mask(step: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        if step in (2, 3):
            targets.fill(-1)

    training = Training(tmp_path)
    training.source = Dice(mask)
    assert training.run().finished
    assert [e["step"] for e in events_of(tmp_path, "skipped")] == [2, 3]
    assert [line["skipped"] for line in metrics(tmp_path)] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert math.isfinite(training.progress.smooth_loss) and training.progress.averaged == 6


def test_an_overflow_of_float16_is_counted_and_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_model()
    optimizer = Optimizer(model.parameter_kinds(), adam_groups(Rates(), 0.1, 1.0), 0.02, model.dtype)
    stepper = Stepper(model, optimizer, Schedule(10), LossScaler(enabled=True), Health(), ROWS)
    monkeypatch.setattr(stepper, "_summed", lambda *_: (2.0, math.inf))
    assert stepper.take(0, *Dice().batch(0, 0, ROWS)).skipped == "float16 overflow"
    assert (stepper.health.skipped, stepper.health.in_a_row) == (1, 0)


@pytest.mark.parametrize(
    ("fits", "error"),
    [
        (2, torch.OutOfMemoryError("CUDA out of memory")),
        (1, torch.OutOfMemoryError("CUDA out of memory")),
        (
            2,
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        ),
        (2, RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GiB)")),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, error: RuntimeError
) -> None:
    real = Stepper._add_gradient

    def add(self: Stepper, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> Tensor:
        found = real(self, inputs, targets, n_targets)
        if len(inputs) > fits:
            raise error  # after the gradient was touched
        return found

    expected = Training(tmp_path / "a", device_rows=fits)
    assert expected.run().finished
    monkeypatch.setattr(Stepper, "_add_gradient", add)
    training = Training(tmp_path / "b", device_rows=ROWS)
    assert training.run().finished
    assert training.sha256 == expected.sha256
    assert [(e["step"], e["device_batch"]) for e in events_of(tmp_path / "b", "out_of_memory")] == [(0, fits)]


def test_where_one_row_does_not_fit_each_layer_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last resort: the same weights, bit for bit, for a third more work; also in a run that is resumed."""
    real = Stepper._add_gradient

    def add(self: Stepper, *arguments: Any) -> Tensor:
        if not self.model.recompute:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *arguments)

    expected = Training(tmp_path / "a", device_rows=1)
    assert expected.run().finished
    monkeypatch.setattr(Stepper, "_add_gradient", add)
    training = Training(tmp_path / "b", device_rows=ROWS)
    assert training.run().finished
    assert training.sha256 == expected.sha256
    assert "as a last resort each layer is computed again" in capsys.readouterr().err
    assert [(e["device_batch"], e["recompute"]) for e in events_of(tmp_path / "b", "out_of_memory")] == [(1, True)]
    assert training.progress.extra["fits"] == (1, True)
    resumed = Training(tmp_path / "b", device_rows=ROWS)
    checkpoint._remove(checkpoint.folder_of(tmp_path / "b", 8))
    resumed.progress = load_progress(tmp_path / "b", 6, resumed.model, resumed.optimizer)
    assert resumed.run().finished
    assert resumed.sha256 == expected.sha256
    assert len(events_of(tmp_path / "b", "out_of_memory")) == 1, "a resumed run knows what fits"


def test_an_update_that_breaks_off_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, whole = Training(tmp_path / "broken"), Training(tmp_path / "whole")
    whole.run()
    real, updates = training.optimizer.step, iter(range(100))

    def step(*arguments: float) -> None:
        if next(updates) == 5:
            with torch.no_grad():
                training.model.head.add_(1.0)
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(*arguments)

    monkeypatch.setattr(training.optimizer, "step", step)
    with pytest.raises(FathomError, match="the optimizer's update does not fit the device's memory; .*--resume"):
        training.run()
    assert training.saved_steps == [3]
    resumed = Training(tmp_path / "broken")
    resumed.progress = load_progress(tmp_path / "broken", 3, resumed.model, resumed.optimizer)
    assert resumed.run().finished
    assert resumed.sha256 == whole.sha256


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_computing_layers_again_keeps_a_layers_input_only() -> None:
    """Numbers that autograd keeps, counted: a small part of them, for the same gradients."""

    def kept(recompute: bool) -> tuple[int, list[Tensor]]:
        model = made_model()
        model.recompute = recompute
        inputs, targets = Dice().batch(0, 0, ROWS)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = model(torch.from_numpy(inputs), DenseContext(SEQ_LEN, "cpu"))
        model.loss(hidden, torch.from_numpy(targets)).backward()
        return sum(found.values()), [weight.grad for weight in model.parameters() if weight.grad is not None]

    (all_of_it, gradients), (inputs_only, again) = kept(False), kept(True)
    assert inputs_only < 0.4 * all_of_it
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_one_row_that_does_not_fit_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: Stepper, *_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stepper, "_add_gradient", add)
    with pytest.raises(FathomError, match="one row of this network does not fit the device's memory; "):
        Training(tmp_path).run()


def test_the_norm_is_that_of_all_gradients_together() -> None:
    from fathom.train.step import gradient_norm

    model = made_model()
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    together = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    assert float(gradient_norm(model)) == pytest.approx(float(together.norm()), rel=1e-5)


@pytest.mark.parametrize("key", ["step", "seconds", "loss_average", "loader_wait_s"])
def test_a_checkpoint_that_lacks_a_figure_is_damaged(tmp_path: Path, key: str) -> None:
    training = Training(tmp_path, eval_every=0)
    assert training.run().finished
    path = max(tmp_path.glob("checkpoints/*/meta.json"))
    meta = json.loads(path.read_text())
    del meta[key]
    path.write_text(json.dumps(meta))
    with pytest.raises(checkpoint.Damaged, match=f"does not say '{key}'"):
        load_progress(tmp_path, int(path.parent.name), training.model, training.optimizer)
