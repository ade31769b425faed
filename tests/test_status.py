"""`fathom status`: pace, trend and ETA as numbers; each worry with and without its cause; the screen; watching."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fathom import cli
from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import Record
from fathom.report import outlook, standing, status, words
from fathom.report.findings.stability import Jump
from fathom.report.history import history_of, read_history
from fathom.report.standing import Checkpoint, Standing, plain, standing_of
from fathom.report.status import Status
from fathom.report.status_screen import curve, lines, screen, trend_words
from fathom.report.worries import RULES, Worry, worries

NOW = 1_800_000_000.0


# Numbers


def test_the_line_through_a_straight_curve_is_that_line() -> None:
    steps = np.arange(100, 200)
    line = outlook.trend(steps, 5 - 0.01 * steps)
    assert line is not None
    assert line.slope == pytest.approx(-0.01) and line.low == pytest.approx(line.high)
    assert (line.direction, line.points, line.first_step, line.last_step) == ("falling", 100, 100, 199)
    assert line.change == pytest.approx(-0.99)


def test_the_interval_is_the_textbooks() -> None:
    # y = 1, 3, 2, 5, 4 at x = 0..4: slope 0.8, residual sum of squares 3.6, Sxx 10, t(3) = 3.182.
    line = outlook.trend(np.arange(5), np.array([1.0, 3, 2, 5, 4]))
    assert line is not None
    assert line.slope == pytest.approx(0.8)
    assert line.high - line.slope == pytest.approx(3.182 * math.sqrt(3.6 / 3 / 10), rel=1e-3)
    assert line.direction == "level"


def test_noise_is_taken_for_a_trend_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(1)
    for memory in (0.0, 0.7):
        wrong = 0
        for _ in range(300):
            noise = rng.normal(size=400)
            for i in range(1, 400):
                noise[i] += memory * noise[i - 1]
            line = outlook.trend(np.arange(400), 3 + 0.1 * noise)
            wrong += line is not None and line.direction != "level"
        assert wrong <= 33, f"5 % are promised; {wrong} of 300 with memory {memory}"


def test_a_slow_fall_under_noise_is_seen() -> None:
    rng = np.random.default_rng(2)
    line = outlook.trend(np.arange(1000), 3 - 1e-4 * np.arange(1000) + rng.normal(0, 0.05, 1000))
    assert line is not None and line.direction == "falling"
    assert line.low < -1e-4 < line.high


def test_no_trend_from_too_little() -> None:
    assert outlook.trend(np.arange(3), np.arange(3.0)) is None
    assert outlook.trend(np.arange(9), np.full(9, np.nan)) is None
    assert outlook.trend(np.full(9, 4), np.arange(9.0)) is None
    line = outlook.trend(np.arange(4), np.full(4, 2.0))
    assert line is not None and line.direction == "level"


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60))
def test_no_numbers_are_too_strange_for_the_pace(values: list[float]) -> None:
    times = np.array(values, dtype=np.float64)
    for found in (outlook.pace(times), outlook.usual(times)):
        assert found is None or found > 0
    assert outlook.overhead(times, np.arange(len(times), dtype=np.float64)) >= 1


def test_the_pace_is_of_late_and_one_long_step_does_not_rule_it() -> None:
    times = np.full(1000, 0.5)
    times[-20:] = 1.0
    assert outlook.pace(times) == pytest.approx(0.7)
    assert outlook.usual(times) == 0.5
    assert outlook.pace(np.array([*[0.5] * 19, 60.0])) == pytest.approx((19 * 0.5 + 1.5) / 20)
    assert outlook.pace(np.zeros(0)) is None


def test_time_between_steps_that_was_no_training() -> None:
    train = np.arange(1.0, 11)
    clock = 1000 + train + np.where(np.arange(10) >= 5, 5.0, 0.0)
    assert outlook.overhead(clock, train) == pytest.approx(1 + 5 / 9)
    clock[7:] += 90_000  # the machine slept for a day
    assert outlook.overhead(clock, train) == pytest.approx(1 + 5 / 9)
    assert outlook.overhead(clock[::-1].copy(), train) == 1
    assert outlook.overhead(np.full(10, np.nan), train) == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.44, "0.4 s"),
        (47.6, "48 s"),
        (59.9, "1 min 00 s"),
        (281, "4 min 41 s"),
        (2500, "42 min"),
        (7500, "2 h 05 min"),
        (3599, "1 h 00 min"),
        (300_000, "3 d 11 h"),
        (3.6e9, "114 years"),
        (float("inf"), "–"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


def test_sizes_and_moments() -> None:
    assert [words.gb(x) for x in (0.0379, 1.194, 15.8, 4000)] == ["37.9 MB", "1.19 GB", "15.8 GB", "4,000 GB"]
    assert [words.count(x) for x in (4096, 1.76e6, 5.7e9, 2e12)] == [
        "4,096",
        "1.76 million",
        "5.7 billion",
        "2 trillion",
    ]
    assert [words.percent(x) for x in (0.0412, 0.5, 0.0)] == ["4.1 %", "50 %", "0 %"]
    assert [words.rate(x) for x in (5.83e13, 1.33e11, 7.912e15)] == [
        "58.3 TFLOP/s",
        "133 GFLOP/s",
        "7,912 TFLOP/s",
    ]
    assert re.fullmatch(r"\d\d:\d\d", words.lately(NOW, NOW))
    assert re.fullmatch(r"\w{3} \d\d:\d\d", words.lately(NOW + 2 * 86_400, NOW))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", words.lately(NOW + 30 * 86_400, NOW))
    assert "no clock" in words.lately(1e30, NOW)


# A run's folder


CONFIG: dict[str, dict[str, Any]] = {
    "run": {"name": "mine", "stage": "pretrain"},
    "model": {
        **{"n_layer": 4, "n_head": 4, "n_kv_head": 4, "head_dim": 64, "vocab_size": 1024, "seq_len": 256},
        "window_pattern": "L",
    },
    "config": {"steps": 1000, "batch_tokens": 4096, "dtype": "fp32"},
}


def write_checkpoint(place: Path) -> None:
    """Files as torch's distributed checkpoints have them: which tensor's bytes are where, and the bytes."""
    where = [SimpleNamespace(relative_path="__0_0.distcp", offset=at, length=500) for at in (0, 500)]
    (place / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(storage_data=dict(enumerate(where)))))
    (place / "__0_0.distcp").write_bytes(b"x" * 1000)


def make_run(
    name: str = "mine",
    steps: int = 400,
    ended: str = "",
    now: float = NOW,
    saved: tuple[int, ...] = (200,),
    config: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A run of half a second a step that did its last step at `now`."""
    folder = run_dir(name)
    record = Record(folder)
    record.config(CONFIG | (config or {}) | {"run": {"name": name, "stage": "pretrain"}})
    began = now - 0.5 * steps - 5

    def say(at: float, event: str, **values: Any) -> None:
        with open(folder / "events.jsonl", "a") as file:
            file.write(json.dumps({"event": event, "time": at} | values) + "\n")

    say(began, "started")
    say(
        *(began + 4, "training"),
        **{"step": 0, "device": "cpu", "device_name": "A Processor", "dtype": "fp32", "peak_flops": 1.33e11},
        **{"peak_source": "measured", "device_memory_gb": 16.0, "compile_from": None},
    )
    rng = np.random.default_rng(0)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(steps):
            loss = 2 + 4 * math.exp(-step / 150) + 0.02 * float(rng.normal())
            values = {"step": step, "loss": loss, "loss_smooth": loss, "lr": 1.0, "step_s": 0.5}
            values |= {"train_s": 0.5 * (step + 1), "mfu": 0.55, "epoch": step / 500, "loader_wait_s": 0.01}
            values |= {"memory_gb": 1.25, "time": began + 5 + 0.5 * (step + 1)}
            file.write(json.dumps(values) + "\n")
    for step in saved:
        place = folder / "checkpoints" / f"{step:06d}"
        place.mkdir(parents=True)
        write_checkpoint(place)
        (place / "COMPLETE").touch()
        at = began + 5 + 0.5 * step
        say(at, "saved", step=step)
        say(at, "evaluated", step=step, train_s=0.5 * step, val_bpb=round(2 - step / 1000, 4))
    if ended == "stopped":
        say(now, "stopped", step=steps, why="SIGINT")
    elif ended == "finished":
        say(now, "finished", result={"run": name, "steps": steps, "tokens_per_s": 8192.0})
    (folder / ".lock").touch()
    return folder


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that holds a run's lock, as training does; ended at the end."""
    children: list[subprocess.Popen[bytes]] = []
    code = "import fcntl,sys,time; f=open(sys.argv[1],'w'); fcntl.flock(f,2); print(flush=True); time.sleep(60)"

    def start(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        child = subprocess.Popen([sys.executable, "-S", "-c", code, folder / ".lock"], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_a_running_run(fathom_home: Path, hold: Any) -> None:
    hold(make_run())
    run = standing_of(history_of("mine"), now=NOW)
    assert (run.state, run.activity, run.steps_done, run.steps_planned) == ("running", "training", 400, 1000)
    assert (run.tokens_done, run.tokens_planned) == (400 * 4096, 1000 * 4096)
    assert run.train_s == 200 and run.remaining_s == pytest.approx(300)
    assert run.ends_at == pytest.approx(NOW + 300)
    assert run.tokens_per_s_now == pytest.approx(8192) and run.tokens_per_s == pytest.approx(8192)
    assert (run.mfu, run.peak_flops, run.peak_source) == (0.55, 1.33e11, "measured")
    assert (run.memory_gb, run.device_memory_gb) == (1.25, 16.0)
    assert run.checkpoint is not None
    assert (run.checkpoint.step, run.checkpoint.age_s, run.checkpoint.trouble) == (200, pytest.approx(100), "")
    assert run.checkpoint.gb == pytest.approx(1.2e-6, rel=0.2)
    assert (run.unsaved_steps, run.unsaved_s) == (200, pytest.approx(100))
    assert run.bpb == ((200, 1.8),) and run.bpb_trend is None
    assert run.loss_trend is not None and run.loss_trend.direction == "falling"
    assert run.loss_trend.first_step == 301
    assert run.epochs_planned == pytest.approx(399 / 500 * 2.5)
    assert worries(run) == []


def test_time_left_counts_what_measuring_takes(fathom_home: Path, hold: Any) -> None:
    folder = make_run()
    hold(folder)
    text = (folder / "metrics.jsonl").read_text().splitlines()
    later = [json.loads(line) for line in text]
    for line in later[200:]:
        line["time"] += 40  # an evaluation of 40 s after 100 s of training
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in later))
    run = standing_of(history_of("mine"), now=NOW + 40)
    assert run.remaining_s == pytest.approx(300 * (1 + 40 / 199.5))
    assert run.longest_pause_s == pytest.approx(40)


@pytest.mark.parametrize("ended", ["", "stopped", "finished"])
def test_what_is_over_has_no_end_before_it(fathom_home: Path, ended: str) -> None:
    make_run(ended=ended, steps=1000 if ended == "finished" else 400)
    run = standing_of(history_of("mine"), now=NOW + 3600)
    assert run.state == (ended or "broken off")
    assert run.ends_at is None and run.silence_s == pytest.approx(3600)
    assert run.stopped_by == ("SIGINT" if ended == "stopped" else "")


def test_a_truncated_checkpoint_is_told_and_nobody_is_sent_to_chat(fathom_home: Path) -> None:
    folder = make_run(ended="finished", saved=(200, 400))
    assert not any(worry.grade == "act" for worry in worries(standing_of(history_of("mine"), now=NOW)))
    (folder / "checkpoints" / "000400" / "__0_0.distcp").write_bytes(b"x" * 10)
    run = standing_of(history_of("mine"), now=NOW)
    (worry,) = [worry for worry in worries(run) if worry.grade == "act"]
    assert worry.rule == "damaged checkpoint" and "__0_0.distcp is cut off (10 of 1,000 bytes)" in worry.found
    assert "fathom chat" not in drawn(run) and "damaged: __0_0.distcp" in drawn(run)


def test_what_the_report_would_mend_is_a_worry_of_a_finished_run(fathom_home: Path) -> None:
    config = {"config": CONFIG["config"] | {"steps": 2000}}
    make_run(ended="finished", steps=2000, saved=(2000,), config=config)
    run = standing_of(history_of("mine"), now=NOW)
    assert any("Under-trained" in sentence for sentence in run.to_mend)
    assert "`fathom report mine` says what to do about it" in drawn(run)


def test_a_run_that_was_fine_tuned_points_to_what_came_of_it(fathom_home: Path) -> None:
    make_run(ended="finished", steps=1000, saved=(1000,))
    tuned = fathom_home / "runs" / "mine-sft" / "run.toml"
    tuned.parent.mkdir()
    tuned.touch()
    run = standing_of(history_of("mine"), now=NOW)
    shown = " ".join(drawn(run).split())
    assert run.goes_on_in == ("mine-sft",) and "at most so far" not in shown
    assert "`fathom chat mine-sft` talks to what was fine-tuned from it" in shown and "fathom sft" not in shown


def test_where_a_run_came_from_and_goes_on(fathom_home: Path) -> None:
    folder = make_run(config={"config": CONFIG["config"] | {"base_step": 9}})
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": "extended_in", "run": "longer", "step": 200, "time": NOW + 5000}) + "\n")
    run = standing_of(history_of("mine"), now=NOW)
    assert (run.came_from, run.goes_on_in) == ("", ("longer from step 200",))
    assert run.last_sign == NOW, "what another run noted is no sign of this one"
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": "extended", "from": "old", "step": 200, "time": NOW}) + "\n")
    run = standing_of(history_of("mine"), now=NOW)
    assert "came from   old at step 200, to train for longer" in drawn(run)
    assert "goes on in  longer from step 200" in drawn(run)


def test_a_stopped_run_says_the_line_that_goes_on(fathom_home: Path) -> None:
    make_run(ended="stopped", config={"config": CONFIG["config"] | {"corpus": "c", "tokenizer": "t"}})
    shown = drawn(standing_of(history_of("mine"), now=NOW))
    assert "`fathom pretrain --run mine --resume` goes on from step 200" in shown


@pytest.mark.parametrize(
    ("events", "activity"),
    [
        ([{"event": "saved", "step": 400, "time": NOW + 1}], "measuring"),
        (
            [{"event": "saved", "step": 400, "time": NOW + 1}, {"event": "evaluated", "step": 400, "time": NOW}],
            "training",
        ),
        ([{"event": "resumed", "step": 200, "time": NOW + 1}], "starting"),
        ([{"event": "training", "compile_from": 400, "time": NOW}], "compiling"),
    ],
)
def test_what_a_running_run_is_at(fathom_home: Path, hold: Any, events: list[dict[str, Any]], activity: str) -> None:
    folder = make_run()
    with open(folder / "events.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in events)
    hold(folder)
    run = standing_of(history_of("mine"), now=NOW + 60)
    assert run.activity == activity
    if activity != "training":
        assert worries(run) == [], "these take longer than a step"
        assert [w.rule for w in worries(standing_of(history_of("mine"), now=NOW + 700))][:1] == ["stalled"]


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    run = standing_of(read_history(tmp_path, {}), now=NOW)
    assert (run.steps_done, run.loss, run.checkpoint, run.remaining_s, run.memory_gb) == (0, None, None, None, None)
    assert [worry.rule for worry in worries(run)] == ["broken off", "no run.toml"]
    assert "how many are planned is not known" in drawn(run)


def test_what_a_stranger_wrote_cannot_command_the_terminal(fathom_home: Path) -> None:
    folder = make_run()
    with open(folder / "samples.jsonl", "w") as file:
        file.write(json.dumps({"step": 400, "prompt": "a\x1b[2Jb", "text": "c\n\x07d\u202ee"}) + "\n")
    shown = drawn(standing_of(history_of("mine"), now=NOW))
    assert "a\ufffd[2Jb … c \ufffdd\ufffde" in shown
    assert plain({"x": "\x1b"}) == "{'x': '\\x1b'}"


# Worries, each with its cause and without


HEALTHY = Standing(
    run="r",
    stage="pretrain",
    state="running",
    activity="training",
    stopped_by="",
    refusal="",
    size="",
    steps_done=10_000,
    steps_planned=20_000,
    tokens_done=10_000 * 4096,
    tokens_planned=20_000 * 4096,
    train_s=5000.0,
    began=NOW - 5500,
    phase_began=NOW - 5500,
    last_sign=NOW - 1,
    silence_s=1.0,
    longest_pause_s=0.0,
    remaining_s=5000.0,
    ends_at=NOW + 5000,
    step_s_now=0.5,
    step_s_usual=0.5,
    tokens_per_s_now=8192.0,
    tokens_per_s=8192.0,
    phase_steps=10_000,
    loader_share=0.01,
    mfu=0.5,
    peak_flops=1e12,
    peak_source="measured",
    device="cpu",
    device_name="",
    dtype="bf16",
    loss=3.0,
    losses=(5.0, 4.0, 3.0),
    loss_trend=outlook.Trend(-1e-4, -1.5e-4, -0.5e-4, 2000, 8000, 10_000),
    jump=None,
    bad_losses=0,
    loss_is_bad_now=False,
    bpb=((5000, 1.1), (10_000, 1.0)),
    bpb_trend=None,
    epochs_planned=1.0,
    memory_gb=8.0,
    device_memory_gb=16.0,
    checkpoint=Checkpoint(9500, 300.0, 1.0),
    unsaved_steps=500,
    unsaved_s=250.0,
    disk_free_gb=100.0,
    counts={},
    save_failed_last="",
    came_from="",
    goes_on_in=(),
    samples=(),
    samples_step=None,
    resume="`fathom pretrain --run r --resume`",
    is_described=True,
    to_mend=(),
    longer="",
    troubles=(),
)


def test_a_healthy_run_has_no_worries() -> None:
    assert worries(HEALTHY) == []
    assert "Nothing to worry about" in drawn(HEALTHY)


RISING = outlook.Trend(1e-4, 0.5e-4, 1.5e-4, 2000, 8000, 10_000)
BY_CHANCE = outlook.Trend(1e-4, -0.5e-4, 2.5e-4, 2000, 8000, 10_000)
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("broken off", {"state": "broken off"}, "500 steps (4 min 10 s of training)", {"state": "stopped"}),
    (
        *("broken off", {"state": "broken off", "refusal": "the data are gone"}),
        *("after step 10,000: the data are gone (500 steps", {}),
    ),
    ("broken off", {"state": "broken off"}, "killed or crashed after step 10,000", {}),
    ("broken off", {"state": "broken off", "disk_free_gb": 0.2}, "or the disk was full, after step 10,000", {}),
    ("broken off", {"state": "broken off", "save_failed_last": "No space left"}, "or the disk was full", {}),
    ("broken off", {"state": "broken off", "memory_gb": 15.5}, "15.5 GB of 16 GB", {"state": "finished"}),
    ("broken off", {"state": "broken off", "checkpoint": None}, "nothing was saved", {"checkpoint": None}),
    ("broken off", {"state": "broken off", "steps_done": 0}, "before its first step", {}),
    ("stalled", {"silence_s": 60.0}, "120 times the usual 0.5 s", {"silence_s": 14.0}),
    ("stalled", {"silence_s": 60.0}, "no new step for 1 min 00 s", {"silence_s": 60.0, "longest_pause_s": 40.0}),
    ("stalled", {"silence_s": 700.0, "activity": "starting"}, "12 min", {"silence_s": 500.0, "activity": "starting"}),
    ("stalled", {"silence_s": 60.0}, "no new step for 1 min 00 s", {"silence_s": 60.0, "step_s_usual": 7.0}),
    ("stalled", {"silence_s": 60.0}, "no new step for 1 min 00 s", {"silence_s": 60.0, "state": "stopped"}),
    (
        *("not a number", {"bad_losses": 3, "loss_is_bad_now": True}),
        *("3 logged steps is not a number, that of the last", {}),
    ),
    ("not a number", {"bad_losses": 1}, "1 logged step is not a number, the last one is 3.000", {}),
    ("save failed", {"save_failed_last": "No space left", "counts": {"save_failed": 2}}, "2 failed saves", {}),
    (
        "old checkpoint",
        {"checkpoint": Checkpoint(9500, 1000.0, 1.0)},
        "17 min old: 500 steps (4 min 10 s of training)",
        {"checkpoint": Checkpoint(9500, 890.0, 1.0)},
    ),
    (
        "old checkpoint",
        {"checkpoint": None, "unsaved_s": 1800.0},
        "after 30 min",
        {"checkpoint": None, "unsaved_s": 9.0},
    ),
    ("disk", {"disk_free_gb": 1.5}, "1.5 GB left, and a checkpoint takes 1 GB", {"disk_free_gb": 2.0}),
    ("slower", {"step_s_now": 0.65}, "fell by 23 %", {"step_s_now": 0.6}),
    ("slower", {"step_s_now": 0.65}, "23 %", {"step_s_now": 0.65, "phase_steps": 30}),
    ("waiting for data", {"loader_share": 0.25}, "25 % of the time", {"loader_share": 0.09}),
    (
        "bpb rose",
        {"bpb": ((1, 3.221), (10_000, 0.935), (20_000, 1.016), (30_000, 1.002))},
        "1.0020 bits per byte at step 30,000, 7.2 % above the best, 0.9350 at step 10,000",
        {"bpb": ((10_000, 0.935), (20_000, 0.937))},
    ),
    ("bpb rose", {"bpb": ((1, 1.0), (2, math.nan), (3, 1.1))}, "10 %", {"bpb": ((1, 1.1), (2, math.nan))}),
    (
        "loss rises",
        {"loss_trend": outlook.Trend(1e-4, 0.5e-4, 1.5e-4, 2000, 8000, 10_000)},
        "rose by 0.200 (to 3.000) since step 8,000",
        {"loss_trend": outlook.Trend(1e-4, -0.5e-4, 2.5e-4, 2000, 8000, 10_000)},
    ),
    (
        "loss rises",
        {"loss_trend": outlook.Trend(1e-4, 0.5e-4, 1.5e-4, 2000, 8000, 10_000)},
        "0.2",
        {"loss_trend": None},
    ),
    (
        *(
            "loss jumped",
            {"jump": Jump(21, 6.351, 16.12, 8.44)},
            "jumped from 6.35 to 16.1 nats at step 21, and is at 8.44",
        ),
        {"jump": Jump(21, 6.351, 16.12, 8.44), "state": "finished"},
    ),
    ("skipped steps", {"counts": {"skipped": 200}}, "200 steps left out, 2 % of those", {"counts": {"skipped": 50}}),
    ("rolled back", {"counts": {"rolled_back": 1}}, "had to be left out 1 time", {"counts": {"rolled_back": 0}}),
    ("evaluation failed", {"counts": {"evaluation_failed": 2}}, "2 evaluations failed, 2 succeeded", {"counts": {}}),
    ("memory", {"memory_gb": 15.0}, "15 GB of 16 GB of memory are used (94 %)", {"memory_gb": 14.0}),
    (
        *("out of memory", {"counts": {"out_of_memory": 2}}, "did not fit 2 times, and micro-batches were halved"),
        {"counts": {"out_of_memory": 2}, "state": "finished"},
    ),
    (
        *("no checkpoint", {"state": "finished", "checkpoint": None}, "0 whole checkpoints are there"),
        {"state": "running", "checkpoint": None},
    ),
    (
        *("damaged checkpoint", {"checkpoint": Checkpoint(9500, 300.0, 0.1, "x is cut off (1 of 2 bytes)")}),
        *("step 9,500 cannot be loaded: x is cut off (1 of 2 bytes)", {}),
    ),
    ("no run.toml", {"is_described": False}, "what was trained in 10,000 steps is not known", {}),
    (
        *("report", {"state": "finished", "to_mend": ("The loss is 9.", "MFU is 3 %.")}, "The loss is 9, and 1 more"),
        {"state": "finished"},
    ),
    ("repeated data", {"epochs_planned": 11.2}, "11.2 times", {"epochs_planned": 11.2, "stage": "sft"}),
]


@pytest.mark.parametrize(
    ("rule", "cause", "words", "without"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_a_worry_and_its_absence(rule: str, cause: dict[str, Any], words: str, without: dict[str, Any]) -> None:
    run = dataclasses.replace(HEALTHY, **cause)
    (found,) = [worry for worry in worries(run) if worry.rule == rule]
    assert words in found.found
    assert re.search(r"\d", found.found) or rule == "broken off", "never without a number"
    assert found.do
    shown = " ".join(drawn(run, 400).split())
    assert found.found in shown and found.do in shown
    assert rule not in [worry.rule for worry in worries(dataclasses.replace(HEALTHY, **without))]


def test_a_process_that_has_written_nothing_yet_is_starting(fathom_home: Path, hold: Any) -> None:
    """What ran before it broke off two days ago: its silence is not this process's."""
    at = time.time()
    folder = make_run("mine", now=at - 2 * 86_400)
    hold(folder)
    stand, worried = status.look_at("mine", at + 40)
    assert (stand.state, stand.activity) == ("running", "starting")
    assert stand.silence_s == pytest.approx(40, abs=30) and stand.phase_began == pytest.approx(at, abs=30)
    assert "stalled" not in [one.rule for one in worried]
    assert "starting, no step yet" in drawn(stand)


def test_what_has_recorded_nothing_yet_is_no_reason_to_begin_another(fathom_home: Path, hold: Any) -> None:
    with pytest.raises(FathomError, match="there are no runs"):
        status.newest()
    hold(run_dir("quickstart"))
    with pytest.raises(FathomError, match="a process has begun with the run 'quickstart'"):
        status.newest()


def test_a_run_that_is_taken_its_quiz_is_at_work(fathom_home: Path, hold: Any) -> None:
    folder = make_run("mine", ended="finished", now=time.time())
    hold(folder)
    stand, worried = status.look_at("mine", time.time() + 60)
    assert (stand.state, stand.activity) == ("running", "evaluating")
    assert "trained to its end; being evaluated" in drawn(stand) and "stalled" not in [one.rule for one in worried]


def test_a_jump_counts_while_the_loss_is_up(fathom_home: Path) -> None:
    """The rates were twice too high: of the real run that a newcomer made."""
    up = [8.32, 7.9, 7.4, 7.0, 6.8, 6.6, 6.5, 6.4, 6.35, 16.1, 13.9, 9.2, 8.4]
    steps = np.arange(1, len(up) + 1)
    assert standing._jump(steps, np.array(up)) == Jump(10, pytest.approx(6.4), 16.1, 9.2)
    assert standing._jump(np.arange(1, 22), np.array(up + [7.0, 6.5, 6.2, 6.1, 6.0, 5.9, 5.9, 5.8])) is None


def test_every_rule_is_tried() -> None:
    assert len({case[0] for case in CASES}) == len(RULES)


def test_the_urgent_comes_first() -> None:
    run = dataclasses.replace(HEALTHY, loader_share=0.5, disk_free_gb=0.1)
    assert [worry.grade for worry in worries(run)] == ["act", "watch"]


EITHER = st.one_of(st.none(), st.floats(0, 1e12))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_standing_is_too_strange_to_draw(data: st.DataObject) -> None:
    changes: dict[str, Any] = {}
    for one in dataclasses.fields(Standing):
        if "float" in str(one.type) and "None" in str(one.type) and "tuple" not in str(one.type):
            changes[one.name] = data.draw(EITHER, one.name)
    changes["state"] = data.draw(st.sampled_from(["running", "finished", "stopped", "broken off"]))
    changes["checkpoint"] = data.draw(st.sampled_from([None, HEALTHY.checkpoint]))
    changes["steps_planned"] = data.draw(st.sampled_from([None, 1, 10_000, 20_000]))
    assert drawn(dataclasses.replace(HEALTHY, **changes))


# The screen


def drawn(run: Standing, width: int = 100, newest: bool = False, height: int | None = None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    console.print(screen(run, worries(run), NOW, newest, height=height))
    return out.getvalue()


def test_a_low_window_has_room_for_what_to_worry_about() -> None:
    run = dataclasses.replace(HEALTHY, state="finished", samples=(("the sun", "is warm"),))
    whole, low = drawn(run, 80), drawn(run, 80, height=24)
    assert "samples" in whole and "mishaps" in whole
    assert "samples" not in low and "mishaps" not in low and "checkpoint" in low
    assert len(low.splitlines()) < 24 and drawn(run, 80, height=50) == whole
    harmed = dataclasses.replace(run, counts={"skipped": 2})
    assert "2 steps left out" in drawn(harmed, 80, height=24)


def test_one_screen_holds_what_was_asked_for(fathom_home: Path, hold: Any) -> None:
    folder = make_run(saved=(50, 100, 150, 200, 250))
    with open(folder / "samples.jsonl", "w") as file:
        for step, text in ((100, "old"), (200, "in Paris."), (200, "two " * 100)):
            file.write(json.dumps({"step": step, "prompt": "The capital", "text": text}) + "\n")
    hold(folder)
    shown = drawn(standing_of(history_of("mine"), now=NOW), newest=True)
    for phrase in (
        "mine  pretrain · 4 layers, 256 wide, 4,194,434 parameters",
        "running since",
        "(the run that did something last; --all shows every one)",
        "step 400 of 1,000 (40 %)",
        "1.64 million of 4.1 million",
        "3 min 20 s of training, about 5 min 00 s to go: ends",
        "8,192 tokens/s of late, 8,192 over all",
        "0.5 s a step",
        "55 % of 133 GFLOP/s (measured)",
        "fp32 on cpu, A Processor",
        "1.25 GB of 16 GB at most so far (7.8 %)",
        "nats a token",
        "falls by",
        "since step 301",
        "1.7500 bits per byte at step 250",
        "step 250, 1 min 15 s ago; 150 steps (1 min 15 s of training) would be lost now",
        "none: no step left out",
        "The capital … in Paris.",
        "Nothing to worry about.",
    ):
        assert phrase in shown, f"{phrase!r} in:\n{shown}"
    assert "old" not in shown
    assert len(shown.splitlines()) <= 24
    assert all(len(line) <= 80 for line in drawn(standing_of(history_of("mine"), now=NOW), 80).splitlines())


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("", ["broken off", "200 steps (1 min 40 s of training) are lost", "goes on from step 200"]),
        ("stopped", ["stopped by SIGINT", "goes on from step 200"]),
        ("finished", ["finished", "fathom report mine", "fathom sft mine"]),
    ],
)
def test_what_to_do_after_the_end(fathom_home: Path, ended: str, words: list[str]) -> None:
    make_run(ended=ended)
    shown = " ".join(drawn(standing_of(history_of("mine"), now=NOW + 60), 300).split())
    assert all(word in shown for word in words), shown


def test_trends_in_words() -> None:
    falls = outlook.Trend(-2e-4, -2.5e-4, -1.5e-4, 900, 100, 1000)
    assert trend_words(falls) == "falls by 0.200 ± 0.050 per 1,000 steps (since step 100)"
    level = outlook.Trend(-1e-5, -1e-4, 8e-5, 90, 900, 1000)
    assert trend_words(level) == "level within chance: −0.0010 ± 0.0090 since step 900"
    assert trend_words(level, 0.1) == "too few points, or too noisy, to tell a trend (since step 900)"
    assert trend_words(level, 1.0).startswith("level"), "what chance could hide is under 5 % of it"
    assert trend_words(outlook.Trend(1.0, -math.inf, math.inf, 4, 1, 4)) == (
        "too few points, or too noisy, to tell a trend (since step 1)"
    )
    assert trend_words(None) == ""


def test_a_curve_in_blocks() -> None:
    assert curve([3.0, 2.0, 1.0]) == "█▅▁"
    assert curve([1.0, 1.0]) == "▁▁"


# The command


def asked(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[Any, Any, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["status", *argv])
    said = capsys.readouterr()
    return stop.value.code, json.loads(said.out) if said.out else None, said.err


def copied(folder: Path) -> None:
    """As cp leaves it: every file is of now, whatever it says."""
    for file in folder.glob("*.*"):
        if file.is_file():
            os.utime(file)


def test_json_holds_everything(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(ended="stopped", saved=(50, 100, 150, 200, 250))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 400, "loss": NaN, "step_s": 0.5}\n')
    code, found, err = asked(capsys, "mine", "--json")
    assert (code, err) == (0, "")
    assert {one.name for one in dataclasses.fields(Standing)} <= set(found)
    assert found["bpb"][-1] == {"step": 250, "val_bpb": 1.75}
    assert found["bpb_trend"]["direction"] == "falling"
    assert found["bpb_trend"]["slope_per_1000_steps"] == pytest.approx(-1.0)
    assert found["bpb_trend"]["slope_per_hour"] == pytest.approx(-7.2)
    assert found["worries"][0]["rule"] == "not a number"
    assert found["worries"][0]["grade"] == "act"
    assert found["state"] == "stopped" and "--resume" in found["next"]


def test_without_a_name_it_is_the_run_that_did_something_last(
    fathom_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, ago in (("newer", 10), ("older", 100), ("oldest", 1000)):
        copied(make_run(name, steps=20, saved=(), now=NOW - ago))
    (fathom_home / "runs" / "refused").mkdir()
    code, found, _ = asked(capsys, "--json")
    assert (code, found["run"]) == (0, "newer")
    code, found, err = asked(capsys)
    assert code == 0 and "the run that did something last" in err and found is None
    assert "did something last" not in asked(capsys, "older")[2]


def test_a_finished_run_with_something_to_mend_points_at_its_report(
    fathom_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("ended", ended="finished")
    monkeypatch.setattr(standing, "_assessed", lambda history: (("The loss is 9.",), ""))
    assert "see its report" in asked(capsys, "--all")[2]


def test_all_runs_one_line_each(fathom_home: Path, hold: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("ended", ended="finished")
    hold(make_run("going", now=time.time()))
    assert "also running: going" in asked(capsys, "ended")[2]
    assert "also running" not in asked(capsys, "going")[2]
    broken = make_run("hurt", steps=5, saved=())
    (broken / "run.toml").write_text("[")
    hopeless = fathom_home / "runs" / "hopeless"
    hopeless.mkdir()
    (hopeless / "run.toml").write_text("[")
    code, found, err = asked(capsys, "--all", "--json")
    assert (code, err) == (0, "")
    assert {run["run"]: run["state"] for run in found["runs"]} == {
        **{"ended": "finished", "going": "running"},
        "hurt": "broken off",
    }
    assert [one["run"] for one in found["unreadable"]] == ["hopeless"]
    code, _, err = asked(capsys, "--all")
    assert code == 0
    shown = {line.split()[0]: line for line in err.splitlines() if line.strip()}
    assert "400/1,000" in shown["going"] and "1.8000" in shown["going"] and "ends" in shown["going"]
    assert "broken off" in shown["hurt"] and "unreadable" in shown["hopeless"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "there are no runs in"),
        (["--all"], "there are no runs in"),
        (["gone"], "there is no run 'gone'"),
        (["../x"], "cannot be the name of a run"),
        (["--watch", "--json"], "--watch draws on a terminal and --json does not"),
        (["x", "--all"], "--all is every run, and 'x' is one"),
        (["--watch"], "--watch needs a terminal"),
    ],
)
def test_refusals(fathom_home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    code, found, err = asked(capsys, *argv)
    assert (code, found) == (2, None)
    assert words in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_run_that_has_recorded_nothing_yet(fathom_home: Path, hold: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hold(run_dir("fresh"))
    code, _, err = asked(capsys, "fresh")
    assert code == 2 and "recorded nothing yet" in err


def test_a_screen_that_follows_the_newest_stays_with_a_run_that_goes_on(fathom_home: Path, hold: Any) -> None:
    going = make_run("going", steps=5, saved=(), now=NOW - 100)
    make_run("other", steps=5, saved=())
    child = hold(going)
    assert status.still_the_newest("going") == "going"
    assert status.still_the_newest("") == "other"
    child.kill()
    child.wait()
    assert status.still_the_newest("going") == "other"


def test_status_knows_no_torch() -> None:
    code = "import sys, fathom.report.status; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_ordinary_run_is_read_at_once(fathom_home: Path) -> None:
    make_run(steps=5000, saved=(1000, 2000))
    began = time.process_time()
    found = standing_of(history_of("mine"))
    worries(found)
    assert time.process_time() - began < 0.5


def test_many_lines_are_drawn_as_one(fathom_home: Path) -> None:
    out = io.StringIO()
    odd = dataclasses.replace(HEALTHY, stage="[/x]")
    rows = [(odd, [Worry("disk", "act", "1", "2")])] * 3
    Console(file=out, width=100).print(lines(rows, [("bad", "why")], NOW))
    assert len(out.getvalue().splitlines()) == 5


# Watching


class Watched:
    """`fathom status --watch` on a terminal of its own, 100 columns wide."""

    def __init__(self, *argv: str) -> None:
        self._master, slave = pty.openpty()
        env = os.environ | {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"}
        code = "import sys; from fathom.report import status; status.EVERY_S = 0.1; from fathom import cli; cli.main()"
        command = [sys.executable, "-c", code, "status", *argv, "--watch"]
        self.child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)
        self.seen = ""

    def until(self, words: str, seconds: float = 30) -> None:
        """Reads on until `words` were drawn after this call."""
        new, limit = "", time.monotonic() + seconds
        while words not in new:
            assert time.monotonic() < limit, f"{words!r} not in {new[-3000:]!r}"
            new += self._read()

    def _read(self) -> str:
        if not select.select([self._master], [], [], 0.2)[0]:
            return ""
        try:
            text = os.read(self._master, 1 << 16).decode(errors="replace")
        except OSError as error:
            assert error.errno == errno.EIO
            return ""
        self.seen += text
        return text

    def leave(self, number: int = signal.SIGINT) -> int:
        self.child.send_signal(number)
        limit = time.monotonic() + 20
        while self.child.poll() is None and time.monotonic() < limit:
            self._read()
        for _ in range(5):
            self._read()
        return self.child.wait(timeout=1)

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self._master)


@pytest.fixture
def watched() -> Iterator[Any]:
    open_ones: list[Watched] = []

    def start(*argv: str) -> Watched:
        open_ones.append(Watched(*argv))
        return open_ones[-1]

    yield start
    for one in open_ones:
        one.close()


def test_watching_a_run_begin_go_on_and_be_killed(fathom_home: Path, hold: Any, watched: Any) -> None:
    screen = watched("mine")
    screen.until("there is no run 'mine'")
    folder = make_run(now=time.time())
    child = hold(folder)
    screen.until("step 400 of 1,000")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 400, "loss": 2.0, "step_s": 0.5, "train_s": 200.5, "time": time.time()}) + "\n")
    screen.until("step 401 of 1,000")
    screen.until("Ctrl-C leaves")
    child.kill()
    child.wait()
    screen.until("killed or crashed after step 401")
    assert screen.leave() == 0
    assert screen.seen.rindex("\x1b[?1049l") > screen.seen.rindex("\x1b[?1049h"), "the first screen is back"
    assert screen.seen.rindex("\x1b[?25h") > screen.seen.rindex("\x1b[?25l"), "the cursor is back"
    left = screen.seen[screen.seen.rindex("\x1b[?1049l") :]
    assert "step 401 of 1,000" in left, "the last picture stays"
    assert "Traceback" not in screen.seen


def test_sigterm_leaves_the_terminal_as_it_was(fathom_home: Path, watched: Any) -> None:
    make_run(ended="finished")
    screen = watched()
    screen.until("did something last")
    assert screen.leave(signal.SIGTERM) == 0
    assert screen.seen.rindex("\x1b[?25h") > screen.seen.rindex("\x1b[?25l")


def test_watching_a_run_that_is_finished_ends(fathom_home: Path, watched: Any) -> None:
    make_run(ended="finished")
    screen = watched("mine")
    screen.until("tells the whole story")
    limit = time.monotonic() + 30
    while screen.child.poll() is None and time.monotonic() < limit:
        screen._read()
    assert screen.child.poll() == 0


def test_watching_all(fathom_home: Path, watched: Any) -> None:
    make_run("one", ended="finished")
    make_run("two", ended="stopped")
    screen = watched("--all")
    screen.until("worries")
    assert screen.leave() == 0
    assert "one" in screen.seen and "two" in screen.seen


def test_watch_and_json_are_refused_before_anything_is_read(fathom_home: Path) -> None:
    with pytest.raises(FathomError):
        Status(watch=True, json=True).run()
