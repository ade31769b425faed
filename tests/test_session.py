"""What a run sets up: its lock, its record, how often it saves and looks, and when its kernels are compiled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom import hardware
from fathom.errors import FathomError
from fathom.hardware import Choice
from fathom.home import run_dir
from fathom.record import Record, read_config
from fathom.train import checkpoint, session
from fathom.train.beginning import begin, finished_result, locked_run, say_if_new
from fathom.train.intervals import EVALUATIONS_SHARE, FORWARD_SHARE, evaluation_plan, parse_save_every, saving
from fathom.train.session import COMPILE_FROM, Machine, compile_from
from tests.oracles.tiny_runs import events_of

# How often


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500", (500, None)),
        ("1", (1, None)),
        ("10m", (None, 600.0)),
        ("0.5m", (None, 30.0)),
        ("30s", (None, 30.0)),
        ("2h", (None, 7200.0)),
    ],
)
def test_an_interval_in_steps_or_in_time(text: str, expected: tuple[int | None, float | None]) -> None:
    assert parse_save_every(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "m", "0", "0m", "-5", "-5m", "1.5", "nan", "nanm", "inf", "infm", "ten", "10d", "10mm", "m10", "1e999"],
)
def test_no_interval_is_one_sentence(text: str) -> None:
    with pytest.raises(FathomError, match="says no interval.*10m"):
        parse_save_every(text)


@given(st.text(max_size=8))
def test_any_word_is_an_interval_above_zero_or_refused(text: str) -> None:
    try:
        steps, seconds = parse_save_every(text)
    except FathomError:
        return
    assert (steps is None) != (seconds is None)
    assert (steps or seconds or 0) > 0


def test_saving_keeps_at_least_one() -> None:
    kept = saving("10m", 3)
    assert (kept.every_steps, kept.every_s, kept.keep) == (None, 600.0, 3)
    for keep in (0, -1):
        with pytest.raises(FathomError, match=f"--keep is {keep}"):
            saving("500", keep)


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.sampled_from([32, 512, 2048]), st.integers(1, 10**6))
def test_evaluations_take_at_most_their_share_of_the_time(steps: int, rows: int, seq_len: int, available: int) -> None:
    every, eval_rows = evaluation_plan(None, None, steps, rows * seq_len, seq_len, available)
    assert every >= 1
    assert 1 <= eval_rows <= available
    times = max(1, math.ceil(steps / every))
    assert times <= 40
    share = FORWARD_SHARE * times * eval_rows / (steps * rows)
    assert share <= EVALUATIONS_SHARE + 1e-9 or eval_rows == 1


def test_what_is_asked_of_evaluations_is_what_they_do() -> None:
    assert evaluation_plan(7, 1000, 100, 128, 32, None) == (7, 31)
    assert evaluation_plan(7, 1000, 100, 128, 32, 10) == (7, 10)
    every, rows = evaluation_plan(0, None, 100, 128, 32, None)
    assert every == 0 and rows == int(0.05 * 3 * 100 * 128 / 32)
    with pytest.raises(FathomError, match="--eval-tokens 31 fills no row of 32"):
        evaluation_plan(None, 31, 100, 128, 32, None)
    with pytest.raises(FathomError, match="--eval-every is -1"):
        evaluation_plan(-1, None, 100, 128, 32, None)


# Compiled kernels


@pytest.mark.parametrize(
    ("asked", "possible", "device", "dtype", "flops", "expected"),
    [
        ("auto", "yes", "cpu", "fp32", 1e13, None),
        ("auto", "yes", "cpu", "fp32", 2e14, COMPILE_FROM),
        ("auto", "yes", "cpu", "bf16", 1e13, None),
        ("auto", "yes", "cpu", "bf16", 2e13, COMPILE_FROM),
        ("auto", "yes", "cuda", "bf16", 1.0, COMPILE_FROM),
        ("on", "yes", "cpu", "fp32", 1.0, COMPILE_FROM),
        ("off", "yes", "cuda", "bf16", 1e20, None),
        ("auto", "no", "cuda", "bf16", 1e20, None),
        ("on", "no", "cpu", "fp32", 1e20, None),
    ],
)
def test_kernels_are_compiled_by_the_size_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    possible: str,
    device: str,
    dtype: str,
    flops: float,
    expected: int | None,
) -> None:
    monkeypatch.setattr(hardware, "can_compile", lambda _: Choice(possible, "for a test"))
    assert compile_from(asked, Machine(device, dtype, 1e12), flops) == expected


def test_another_word_for_compile_is_refused() -> None:
    with pytest.raises(FathomError, match="no --compile 'maybe'"):
        compile_from("maybe", Machine("cpu", "fp32", 1e12), 1.0)


def test_no_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hardware, "can_compile", lambda _: Choice("no", "no C++ compiler"))
    compile_from("auto", Machine("cpu", "fp32", 1e12), 1e20)
    assert capsys.readouterr().err.count("no C++ compiler") == 1


# The lock


def test_a_run_is_held_by_one(fathom_home: Path) -> None:
    with locked_run("one") as folder:
        assert folder == run_dir("one")
        with locked_run("other"):
            pass
        with pytest.raises(FathomError, match="'one' is being trained by another process"), locked_run("one"):
            pass
    with locked_run("one"):
        pass


def test_a_run_that_raises_lets_go_of_its_lock(fathom_home: Path) -> None:
    with pytest.raises(ValueError, match="a reason"), locked_run("one"):
        raise ValueError("a reason")
    with locked_run("one"):
        pass


def test_a_lock_that_was_left_is_no_obstacle(fathom_home: Path) -> None:
    run_dir("one").mkdir(parents=True)
    (run_dir("one") / ".lock").write_text("12345")
    with locked_run("one"):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "-x", "a b", "x" * 101])
def test_a_name_that_is_no_folder_is_refused(fathom_home: Path, name: str) -> None:
    with pytest.raises(FathomError, match="cannot be the name of a run"), locked_run(name):
        pass
    assert not fathom_home.exists()


# The record

TABLES: dict[str, dict[str, Any]] = {
    "run": {"stage": "pretrain", "corpus_digest": "c"},
    "model": {"n_layer": 2, "window_pattern": "SL"},
    "config": {"steps": 10, "lr_scale": 0.1, "data": ["a", "b"], "extra": None, "dtype": "bf16"},
    "origin": {"steps": "flag"},
}


def changed(table: str, **values: Any) -> dict[str, dict[str, Any]]:
    return {**TABLES, table: TABLES[table] | values}


def begun(tables: dict[str, dict[str, Any]] = TABLES, resume: bool = False) -> tuple[Record, bool]:
    return begin("r", run_dir("r"), resume, tables)


def test_a_new_run_is_written_down(fathom_home: Path) -> None:
    record, existed = begun()
    assert not existed
    config = read_config("r")
    assert config["run"]["stage"] == "pretrain" and config["run"]["name"] == "r"
    assert config["config"] == {key: value for key, value in TABLES["config"].items() if value is not None}
    assert events_of(record.folder, "started")


def test_a_run_that_exists_is_never_begun_again(fathom_home: Path) -> None:
    begun()
    before = (run_dir("r") / "run.toml").read_bytes()
    with pytest.raises(FathomError, match="'r' exists already; go on with --resume"):
        begun(changed("config", steps=20))
    assert (run_dir("r") / "run.toml").read_bytes() == before


def test_resume_takes_what_it_began_with(fathom_home: Path) -> None:
    begun()
    for tables in (TABLES, changed("config", lr_scale=0.1 * (1 + 1e-12)), changed("origin", steps="recipe")):
        record, existed = begun(tables, resume=True)
        assert existed
    assert len(events_of(record.folder, "started")) == 1


@pytest.mark.parametrize(
    ("table", "values", "words"),
    [
        (
            "config",
            {"steps": 20},
            "--steps 10, not 20; `fathom pretrain --extend r --steps 20` trains it for longer",
        ),
        (
            "config",
            {"lr_scale": 0.2},
            "--lr-scale 0.1, not 0.2; `fathom pretrain --run r --resume .*goes on with it",
        ),
        ("config", {"data": ["a"]}, "began with --data a b, not a;"),
        ("config", {"dtype": "fp32"}, "began with --dtype bf16, not fp32"),
        ("model", {"window_pattern": "L"}, "began with --window SL, not L"),
        ("run", {"stage": "sft"}, "was made by `fathom pretrain`, not by `fathom sft`"),
        (
            "run",
            {"corpus_digest": "d"},
            "the corpus had other contents when .* began; put the old corpus back",
        ),
    ],
)
def test_a_changed_setting_is_named_on_resume(
    fathom_home: Path, table: str, values: dict[str, Any], words: str
) -> None:
    begun()
    with pytest.raises(FathomError, match=words):
        begun(changed(table, **values), resume=True)


def test_what_an_older_version_did_not_note_stands_in_no_resume_s_way(fathom_home: Path) -> None:
    begun()
    assert begun(changed("config", lr_share=0.8), resume=True)[1]


def test_resume_without_a_run_begins_one(fathom_home: Path) -> None:
    _, existed = begun(resume=True)
    assert not existed


def test_a_run_killed_before_it_was_written_down_begins_anew(fathom_home: Path) -> None:
    (run_dir("r") / "checkpoints").mkdir(parents=True)
    (run_dir("r") / ".run.toml.x").write_text("[run")
    _, existed = begun()
    assert not existed


@pytest.mark.parametrize("there", ["events.jsonl", "metrics.jsonl", "checkpoints"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_lost_its_run_toml_is_not_begun_anew(fathom_home: Path, there: str, resume: bool) -> None:
    if there == "checkpoints":
        checkpoint.save(run_dir("r"), 7, {"model": {"weight": torch.ones(2)}}, {})
    else:
        Record(run_dir("r"))
        (run_dir("r") / there).write_text("{}\n")
    before = sorted(run_dir("r").rglob("*"))
    with pytest.raises(FathomError, match=f"'r' has {there} but no run.toml, .*; copy it back into .* another --run"):
        begun(resume=resume)
    assert sorted(run_dir("r").rglob("*")) == before


def test_the_result_of_a_finished_run(fathom_home: Path) -> None:
    record, _ = begun()
    assert finished_result(record.folder) is None
    record.event("finished", result={"val_bpb": 1.25, "nothing": None})
    assert finished_result(record.folder) == {"val_bpb": 1.25, "nothing": None}


def test_the_last_evaluation_counts_and_only_that_of_the_last_step(fathom_home: Path) -> None:
    record, _ = begun()
    assert session._last_found(record.folder, "evaluated", "val_bpb", 8) is None
    for step, bpb in ((4, 2.0), (8, 1.5), (8, 1.4)):
        record.event("evaluated", step=step, val_bpb=bpb)
    assert session._last_found(record.folder, "evaluated", "val_bpb", 8) == 1.4
    assert session._last_found(record.folder, "evaluated", "val_bpb", 9) is None


def test_the_machine_is_said_with_its_reasons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "peak_flops", lambda device, dtype: (2e12, "made up"))
    machine = session.look_at_machine("fp32")
    said = capsys.readouterr().err
    assert machine.dtype == "fp32" and machine.peak_flops == 2e12
    assert "fp32: asked for; 2 TFLOP/s (made up)" in said
    session.look_at_machine("fp32", goes_on=True)
    assert "fp32: as the run began;" in capsys.readouterr().err
    session.look_at_machine("fp32", quiet=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(FathomError, match="no dtype 'fp64'"):
        session.look_at_machine("fp64")


def test_a_run_that_is_refused_before_it_begins_leaves_no_folder(fathom_home: Path) -> None:
    with pytest.raises(FathomError), locked_run("new"):
        raise FathomError("no", "never")
    assert not run_dir("new").exists()
    with locked_run("begun") as folder:
        (folder / "run.toml").touch()
    assert (run_dir("begun") / "run.toml").exists()


def test_a_mistyped_run_to_resume_is_named(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked_run("tiny") as folder:
        (folder / "run.toml").touch()
    say_if_new("tiny")
    assert capsys.readouterr().err == ""
    say_if_new("tinny")
    said = " ".join(capsys.readouterr().err.split())
    assert "there is no run 'tinny' to resume" in said and "did you mean 'tiny'?" in said
