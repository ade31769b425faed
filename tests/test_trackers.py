"""TensorBoard really; the others with stand-ins that refuse, raise in the middle, and never answer."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import Record, metrics
from fathom.train import trackers
from fathom.train.pretrain import pretrain
from fathom.train.trackers import asked_for, figures_of, tracking
from tests.oracles.tiny_runs import STEPS, furnish, hurry, pretraining


def test_names_are_checked_before_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else name)
    assert asked_for(None) == asked_for("") == ()
    assert asked_for("TensorBoard, trackio,tensorboard") == ("tensorboard", "trackio")
    with pytest.raises(FathomError, match="--track names wandb, which is not installed; .*pip install wandb"):
        asked_for("tensorboard,wandb")
    with pytest.raises(FathomError, match="--track names 'tensorbord'; did you mean tensorboard?"):
        asked_for("tensorbord")
    with pytest.raises(FathomError, match="choose of tensorboard, wandb, trackio"):
        asked_for("x")


def test_figures_are_numbers_with_a_step() -> None:
    line = {"step": 3, "loss": 2.5, "time": 1.0, "lr": float("nan"), "why": "x", "ok": True}
    assert figures_of("metric", line) == {"train/loss": 2.5}
    assert figures_of("evaluated", {"step": 3, "val_bpb": 1.0, "train_s": 2}) == {"validation/val_bpb": 1.0}
    assert figures_of("core", {"step": 3, "core": 0.1, "core_error": 2}) == {"validation/core": 0.1}
    assert figures_of("saved", {"step": 3}) == figures_of("metric", {"loss": 1.0}) == {}


@pytest.mark.filterwarnings("default")  # tensorboard's own
def test_a_run_in_tensorboard(fathom_home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hurry(monkeypatch)
    furnish()
    assert pretrain(pretraining(track="tensorboard"))[1]
    found = EventAccumulator(str(run_dir("base") / "tensorboard")).Reload()
    losses = found.Scalars("train/loss")
    assert [point.step for point in losses] == list(range(STEPS))
    assert [point.value for point in losses] == pytest.approx([line["loss"] for line in metrics(run_dir("base"))])
    assert [point.step for point in found.Scalars("validation/val_bpb")] == [5, STEPS]


class StandIn(types.ModuleType):
    """A wandb or trackio that notes what it is told, and raises in the place that is named."""

    def __init__(self, name: str, raises_in: str = "", hangs: Event | None = None) -> None:
        super().__init__(name)
        self.told: list[tuple[int, dict[str, float]]] = []
        self.raises_in, self.hangs, self.ended = raises_in, hangs, False

    def init(self, **_: Any) -> StandIn:
        self._do("init")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._do("log")
        self.told.append((step, values))

    def finish(self) -> None:
        self._do("finish")
        self.ended = True

    def _do(self, what: str) -> None:
        if self.hangs is not None:
            self.hangs.wait()
        if what == self.raises_in:
            raise SystemExit("no login") if what == "init" else ConnectionError("network is unreachable\nat a socket")


def run_with(name: str, stand_in: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setitem(sys.modules, name, stand_in)
    record = Record(folder)
    with tracking((name,), "a run", record, {"config": {}}):
        for step in range(3):
            record.metric(step=step, loss=1.0 + step)
        record.event("evaluated", step=3, val_bpb=0.9)
    record.metric(step=4, loss=0.0)
    return record


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_are_told_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = StandIn(name)
    run_with(name, one, tmp_path, monkeypatch)
    assert one.told == [(step, {"train/loss": 1.0 + step}) for step in range(3)] + [(3, {"validation/val_bpb": 0.9})]
    assert one.ended


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize(("raises_in", "why"), [("init", "no login"), ("log", "unreachable"), ("finish", "unreach")])
def test_one_that_fails_is_said_once_and_stops_nothing(
    name: str, raises_in: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_with(name, StandIn(name, raises_in), tmp_path, monkeypatch)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"{name} gets no more figures") == 1 and why in said and "the run goes on" in said
    assert [line["step"] for line in metrics(tmp_path)] == [0, 1, 2, 4]


def test_one_that_never_answers_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.05)
    monkeypatch.setattr(trackers, "WAITING", 2)
    released = Event()
    run_with("wandb", StandIn("wandb", hangs=released), tmp_path, monkeypatch)
    released.set()
    assert capsys.readouterr().err.count("wandb gets no more figures") == 1
    assert len(metrics(tmp_path)) == 4
