"""A run that goes on for longer: from before its rate fell, with the same settings, as a run of its own."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import Record, metrics, read_config
from fathom.report.history import history_of
from fathom.report.lineage import with_ancestors
from fathom.train import checkpoint, pretraining
from fathom.train.extend import Extension, bring_checkpoint
from fathom.train.pretrain import Pretrain, pretrain
from fathom.train.settings import settings_of
from tests.oracles.tiny_runs import PRETRAIN, STEPS, events_of, furnish, hurry

FALLS_FROM = STEPS - round(0.65 * STEPS)  # 3 of 9


@pytest.fixture(autouse=True)
def furnished(fathom_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    furnish()


def trained(config: Pretrain) -> dict[str, Any]:
    result, finished = pretrain(config)
    assert finished
    return result


def extending(**changes: Any) -> Pretrain:
    plain = Pretrain(extend="base", name="long", steps=20, save_every="3", compile="off", dtype="fp32", sample=False)
    return replace(plain, **changes)


def test_the_checkpoint_before_the_fall_and_the_best_stay() -> None:
    trained(replace(PRETRAIN, eval_every=2, save_every="1", keep=1))
    measured = {e["step"]: e["val_bpb"] for e in events_of(run_dir("base"), "evaluated") if e["step"] < STEPS}
    best = min(measured, key=measured.__getitem__)
    assert checkpoint.steps(run_dir("base")) == sorted({FALLS_FROM, best, STEPS})


def test_every_so_many_are_saved_and_kept_for_good() -> None:
    trained(replace(PRETRAIN, eval_every=0, save_every="100", keep=1, keep_every=4))
    assert checkpoint.steps(run_dir("base")) == sorted({FALLS_FROM, 4, 8, STEPS})


def test_an_extended_run_starts_before_the_fall_and_keeps_the_settings() -> None:
    trained(PRETRAIN)
    result = trained(extending())
    assert result["run"] == "long" and result["steps"] == 20
    assert [line["step"] for line in metrics(run_dir("long"))] == list(range(FALLS_FROM, 20))
    assert metrics(run_dir("long"))[0]["lr"] == 1.0
    old, new = (settings_of(read_config(name)) for name in ("base", "long"))
    assert new == replace(old, steps=20, planned_steps=STEPS, origin=new.origin)
    assert new.schedule.momentum_warmup_steps == old.schedule.momentum_warmup_steps
    assert events_of(run_dir("long"), "extended")[0]["from"] == "base"
    assert events_of(run_dir("base"), "extended_in") == [
        {**events_of(run_dir("base"), "extended_in")[0], "run": "long", "step": FALLS_FROM}
    ]
    joined, ancestors = with_ancestors(history_of("long"))
    assert [(one.name, one.step) for one in ancestors] == [("base", FALLS_FROM)]
    assert joined.step.tolist() == list(range(1, 21))


def test_it_meets_the_data_that_the_first_run_met() -> None:
    trained(PRETRAIN)
    trained(extending())
    losses = {line["step"]: line["loss"] for line in metrics(run_dir("long"))}
    base = {line["step"]: line["loss"] for line in metrics(run_dir("base"))}
    assert losses[FALLS_FROM] == base[FALLS_FROM]  # the same weights meet the same batch
    assert losses[FALLS_FROM + 2] != base[FALLS_FROM + 2]


def test_stopped_midway_it_resumes_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(PRETRAIN)
    whole = trained(extending())
    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        real(self, **values)
        if values["step"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "metric", metric)
        result, finished = pretrain(extending(name="stopped"))
    assert not finished and result["step"] == 11
    again = trained(extending(name="stopped", resume=True))
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert [line["step"] for line in metrics(run_dir("stopped"))] == list(range(FALLS_FROM, 20))
    assert len(events_of(run_dir("stopped"), "extended")) == 1


def test_killed_before_its_run_toml_it_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(PRETRAIN)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretraining, "begin", killed)
        trained(extending())
    assert checkpoint.steps(run_dir("long")) == [FALLS_FROM] and not (run_dir("long") / "run.toml").exists()
    assert trained(extending(resume=True))["weights_sha256"] == trained(extending(name="whole"))["weights_sha256"]


def test_finished_it_is_not_trained_again() -> None:
    trained(PRETRAIN)
    whole = trained(extending())
    assert trained(extending(resume=True)) == whole
    with pytest.raises(FathomError, match="the run 'long' exists already"):
        trained(extending())


def test_what_it_begins_with_is_on_the_disk_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(PRETRAIN)
    target = checkpoint.folder_of(run_dir("long"), FALLS_FROM)
    aside, synced, real = target.with_name(f".{target.name}.partial"), set[int](), os.fsync

    def fsync(handle: int) -> None:
        if not (aside / checkpoint.COMPLETE).exists() and not target.exists():
            synced.add(os.fstat(handle).st_ino)
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        bring_checkpoint(Extension("base", FALLS_FROM, settings_of(read_config("base")), STEPS, {}), run_dir("long"))
    files = {path.name: path.stat().st_ino for path in target.iterdir()}
    original = checkpoint.folder_of(run_dir("base"), FALLS_FROM)
    assert files.keys() == {path.name for path in original.iterdir()} and len(files) > 3
    assert set(files.values()) <= synced, "each file, and the mark last"
    assert all((target / name).read_bytes() == (original / name).read_bytes() for name in files)


def test_from_the_end_only_when_asked() -> None:
    trained(PRETRAIN)
    for step in checkpoint.steps(run_dir("base"))[:-1]:
        checkpoint._remove(checkpoint.folder_of(run_dir("base"), step))
    with pytest.raises(
        FathomError, match=r"no checkpoint from before its rate fell, at step 3 \(it has 9\); --from-end"
    ):
        trained(extending())
    assert not run_dir("long").exists()
    trained(extending(from_end=True))
    assert metrics(run_dir("long"))[0]["step"] == STEPS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": None}, "no length given with --extend; say how long"),
        ({"ratio": 3.0}, "--steps and --ratio given with --extend"),
        ({"steps": STEPS}, "9 steps are no more than the 9 of 'base'"),
        ({"depth": 2}, "--depth was given, but an extended run keeps the settings"),
        ({"lr_scale": 0.5}, "--lr-scale was given"),
        ({"recipe": "x.toml"}, "--recipe was given with --extend"),
        ({"steps": None, "hours": -1.0}, "--hours is -1"),
        ({"extend": "bse"}, "there is no run 'bse'"),
        ({"extend": None, "hours": 1.0, "corpus": "tiny", "tokenizer": "tiny"}, "--hours goes with --extend"),
        ({"extend": None, "from_end": True, "corpus": "tiny", "tokenizer": "tiny"}, "--from-end goes with --extend"),
        ({"extend": None, "tokenizer": "tiny"}, "no corpus was given; say which with --corpus"),
        ({"keep_every": -1}, "--keep-every is -1"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    trained(PRETRAIN)
    with pytest.raises(FathomError, match=words.replace("(", r"\(")):
        trained(extending(**changes))
    assert not run_dir("long").exists()


def test_hours_are_counted_from_where_it_goes_on() -> None:
    trained(PRETRAIN)
    step_s = sorted(line["step_s"] for line in metrics(run_dir("base")))[STEPS // 2]
    result = trained(extending(steps=None, hours=12.5 * step_s / 3600))
    assert result["steps"] == FALLS_FROM + 12


def test_resuming_for_longer_says_how_to_extend() -> None:
    trained(PRETRAIN)
    with pytest.raises(FathomError, match="began with --steps 9, not 20; `fathom pretrain --extend base --steps 20`"):
        trained(replace(PRETRAIN, steps=20, resume=True))


def test_a_run_is_resumed_by_its_name_alone() -> None:
    trained(PRETRAIN)
    whole = trained(extending())
    alone = Pretrain(name="long", resume=True, dtype="fp32", compile="off", sample=False)
    assert trained(alone) == whole
    with pytest.raises(FathomError, match="'long' began with --steps 20, not 30; `fathom pretrain --extend"):
        trained(replace(alone, steps=30))
    with pytest.raises(FathomError, match="no corpus was given"):
        trained(replace(alone, name="nothing"))


def unfinished(name: str) -> None:
    """As if it had been killed before it was noted as finished."""
    events = run_dir(name) / "events.jsonl"
    events.write_text("".join(line for line in events.read_text().splitlines(True) if '"finished"' not in line))


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.json"])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(
    name: str, fathom_home: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = trained(replace(PRETRAIN, keep=9)), run_dir("base")
    unfinished("base")
    damaged = checkpoint.folder_of(folder, STEPS) / name
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    assert trained(replace(PRETRAIN, keep=9, resume=True))["weights_sha256"] == whole["weights_sha256"]
    assert "going on from step 6, it is kept as 000009.damaged" in " ".join(capsys.readouterr().err.split())
    assert (folder / "checkpoints" / "000009.damaged").is_dir()
    assert [line["step"] for line in events_of(folder, "damaged")] == [STEPS]
    assert events_of(folder, "resumed")[-1]["step"] == 6


def test_with_no_checkpoint_before_it_a_damaged_one_is_one_sentence() -> None:
    trained(PRETRAIN)
    for step in checkpoint.steps(run_dir("base"))[:-1]:
        checkpoint._remove(checkpoint.folder_of(run_dir("base"), step))
    unfinished("base")
    (checkpoint.folder_of(run_dir("base"), STEPS) / "__0_0.distcp").unlink()
    with pytest.raises(FathomError, match="000009 cannot be loaded .*; use another, or remove that folder"):
        trained(replace(PRETRAIN, resume=True))
    assert checkpoint.steps(run_dir("base")) == [STEPS], "nothing is taken away"


def test_none_is_put_aside_where_none_can_be_loaded() -> None:
    trained(replace(PRETRAIN, keep=9))
    unfinished("base")
    before = checkpoint.steps(run_dir("base"))
    for step in before:
        (checkpoint.folder_of(run_dir("base"), step) / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(FathomError, match=f"{before[0]:06d} cannot be loaded"):
        trained(replace(PRETRAIN, keep=9, resume=True))
    assert checkpoint.steps(run_dir("base")) == before


def test_a_disk_that_does_not_answer_puts_no_checkpoint_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(replace(PRETRAIN, keep=9))
    unfinished("base")
    before, real = checkpoint.steps(run_dir("base")), Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "__0_0.distcp":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(FathomError, match="000009 cannot be loaded .*Input/output"):
        patch.setattr(Path, "open", opened)
        trained(replace(PRETRAIN, keep=9, resume=True))
    assert checkpoint.steps(run_dir("base")) == before
    assert not list((run_dir("base") / "checkpoints").glob("*.damaged"))
    assert trained(replace(PRETRAIN, keep=9, resume=True))["weights_sha256"] == whole["weights_sha256"]
