"""A run's folder read back: whole, torn, half-written, contradictory, enormous."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import to_toml
from fathom.report import lines
from fathom.report.history import COLUMNS, History, age, history_of, read_history, salvaged, series, thin
from fathom.report.phases import lineage

CONFIG: dict[str, dict[str, Any]] = {
    "run": {"name": "r", "stage": "pretrain"},
    "model": {"n_layer": 4, "n_head": 4, "n_kv_head": 4, "head_dim": 64, "vocab_size": 1024, "seq_len": 256},
    "config": {"steps": 10, "batch_tokens": 4096},
}


def metric(step: int, at: float | None = None, **others: Any) -> dict[str, Any]:
    line = {"step": step, "loss": 5 - step / 100, "train_s": (step + 1) * 0.5, "step_s": 0.5}
    return line | ({} if at is None else {"time": at}) | others


def write(folder: Path, name: str, objects: Iterable[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in objects))


def run(folder: Path, metrics: Iterable[Mapping[str, Any]] = (), events: Iterable[Mapping[str, Any]] = ()) -> History:
    write(folder, "metrics.jsonl", metrics)
    write(folder, "events.jsonl", events)
    return read_history(folder, CONFIG)


def event(kind: str, at: float, **others: Any) -> dict[str, Any]:
    return {"event": kind, "time": at} | others


# A sound run


def test_a_run_that_went_well(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        [metric(step, 1000.5 + step / 2, mfu=0.5, unknown="x") for step in range(10)],
        [
            event("started", 1000),
            event("training", 1000.2, step=0, device="cpu", peak_flops=1e12),
            event("saved", 1005.1, step=10),
            event("evaluated", 1005.5, step=10, train_s=5.0, val_bpb=1.25),
            event("finished", 1006, result={"run": "r", "steps": 10}),
        ],
    )
    assert found.step.tolist() == list(range(1, 11))
    assert found.loss[[0, 9]].tolist() == [5.0, 4.91]
    assert found.mfu.tolist() == [0.5] * 10
    assert np.isnan(found.memory_gb).all()
    assert (found.steps_done, found.steps_planned, found.tokens_done) == (10, 10, 40_960)
    assert (found.state, found.troubles) == ("finished", ())
    assert found.result == {"run": "r", "steps": 10}
    assert [(e.step, e.val_bpb, e.train_s, e.time) for e in found.evaluations] == [(10, 1.25, 5.0, 1005.5)]
    (phase,) = found.phases
    assert (phase.kind, phase.first_step, phase.last_step, phase.began, phase.ended, phase.ended_by) == (
        *("started", 0, 10, 1000, 1006),
        "finished",
    )
    assert found.circumstances == {"device": "cpu", "peak_flops": 1e12}
    assert found.shape is not None and found.shape.d_model == 256
    with pytest.raises(AttributeError):
        _ = found.nonsense


def test_checkpoints_that_are_whole(tmp_path: Path) -> None:
    for name in ("000010", "000002", "nonsense", ".000004.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "COMPLETE").touch()
        os.utime(tmp_path / "checkpoints" / name / "COMPLETE", (500, 500))
    (tmp_path / "checkpoints" / "000006").mkdir()
    assert run(tmp_path).checkpoints == ((2, 500.0), (10, 500.0))


# Half-written folders


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    found = read_history(tmp_path / "not there", {})
    assert (len(found.step), found.steps_done, found.steps_planned, found.tokens_done) == (0, 0, None, None)
    assert (found.state, found.phases, found.evaluations, found.troubles, found.checkpoints) == (
        *("broken off", (), (), ()),
        (),
    )
    assert found.shape is None and found.result is None
    assert set(found.columns) == set(COLUMNS)


def test_empty_files(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl"):
        (tmp_path / name).touch()
    assert read_history(tmp_path, {}).troubles == ()


def begun(name: str, toml: bytes | None, metrics: Iterable[Mapping[str, Any]] = ()) -> None:
    write(run_dir(name), "metrics.jsonl", metrics)
    if toml is not None:
        (run_dir(name) / "run.toml").write_bytes(toml)


WHOLE = to_toml(CONFIG).encode()


@pytest.mark.parametrize(
    ("toml", "trouble"),
    [
        (None, "run.toml is missing"),
        (WHOLE[: WHOLE.index(b"n_head") + 9], "run.toml cannot be read"),
        (b"\x00\xff\xfe binary", "run.toml cannot be read"),
        (b"x = " + b"[" * 9000, "run.toml cannot be read"),
    ],
)
def test_without_a_readable_run_toml_the_rest_is_salvaged(fathom_home: Path, toml: bytes | None, trouble: str) -> None:
    begun("r", toml, [metric(0), metric(1)])
    with pytest.raises(FathomError):
        history_of("r")
    found = salvaged("r")
    assert (found.steps_done, found.name, found.config) == (2, "r", {})
    assert trouble in found.troubles[0]


def test_an_empty_run_toml_is_a_run_of_which_nothing_is_known(fathom_home: Path) -> None:
    begun("r", b"", [metric(0)])
    found = history_of("r")
    assert (found.steps_done, found.stage, found.steps_planned, found.shape) == (1, "pretrain", None, None)


def test_a_folder_in_the_place_of_run_toml(fathom_home: Path) -> None:
    (run_dir("r") / "run.toml").mkdir(parents=True)
    with pytest.raises(FathomError, match="directory"):
        history_of("r")
    write(run_dir("r"), "metrics.jsonl", [metric(0)])
    assert "directory" in salvaged("r").troubles[0]


def test_nothing_to_salvage_is_refused(fathom_home: Path) -> None:
    run_dir("refused").mkdir(parents=True)
    with pytest.raises(FathomError, match="no run 'refused'"):
        salvaged("refused")


def test_values_of_wrong_types_in_run_toml(tmp_path: Path) -> None:
    strange = {
        "run": 7,
        "model": CONFIG["model"] | {"n_layer": 4.0},
        "config": {"steps": 10**400, "batch_tokens": True},
    }
    found = read_history(tmp_path, strange)
    assert (found.stage, found.shape, found.steps_planned, found.batch_tokens) == ("pretrain", None, None, None)
    assert "outside its tables (run)" in found.troubles[0]


# Torn and strange lines


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    run(tmp_path, [metric(step) for step in range(4)])
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-20])
    found = read_history(tmp_path, CONFIG)
    assert found.step.tolist() == [1, 2, 3]
    assert found.troubles == ("1 line of metrics.jsonl torn or not JSON, passed over",)


def test_what_is_not_a_number_is_nan_and_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "loss": NaN}\n{"step": 1, "loss": Infinity}\n{"step": 2, "loss": -Infinity}\n{"step": 3}\n'
        '{"step": 4, "loss": 2.5}\n'
    )
    found = read_history(tmp_path, CONFIG)
    assert found.step.tolist() == [1, 2, 3, 4, 5]
    assert np.isfinite(found.loss).tolist() == [False] * 4 + [True]
    assert found.troubles == ("the loss of 4 logged steps is not a number",)
    assert [x.tolist() for x in series(found, "loss")] == [[5], [2.5]]


def test_lines_of_wrong_types(tmp_path: Path) -> None:
    texts = [
        '{"step": 0, "loss": "low", "mfu": [1], "train_s": {"a": 1}, "step_s": true, "lr": null}',
        '{"step": "1", "loss": 1}',
        '{"step": 1.5, "loss": 1}',
        '{"step": true, "loss": 1}',
        '{"step": -3, "loss": 1}',
        '{"step": 1e3}',
        '{"step": 99999999999999999999999}',
        '{"loss": 1}',
        "[1, 2]",
        "7",
        '"text"',
        "null",
        "",
        "   ",
        '{"step": 1, "loss": 1' + "0" * 400 + "}",
        '{"step": 2, "loss": ' + "[" * 100_000,
        '{"step": 3, "loss": 1}{"step": 4, "loss": 1}',
        '{"step": 5, "loss": 4}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(texts))
    found = read_history(tmp_path, CONFIG)
    assert found.step.tolist() == [1, 2, 6]
    assert np.isnan(found.loss).tolist() == [True, True, False]
    assert all(np.isnan(found.columns[name][0]) for name in COLUMNS)
    assert found.troubles[:2] == (
        "6 lines of metrics.jsonl torn or not JSON, passed over",
        "7 lines of metrics.jsonl without a step passed over",
    )


def test_events_of_wrong_types(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        [metric(0)],
        [
            {"event": ["started"], "time": 1},
            {"event": "started", "time": "noon", "step": "zero"},
            {"event": "training", "device": 7},
            {"event": "evaluated", "step": "last", "val_bpb": 1},
            {"event": "evaluated", "step": 1, "val_bpb": "good", "train_s": None},
            {"event": "stopped", "why": None},
            {"event": "finished", "result": "fine"},
            {"event": {}},
            {},
        ],
    )
    assert found.result is None
    assert [(one.step, math.isnan(one.val_bpb)) for one in found.evaluations] == [(1, True)]
    (phase,) = found.phases
    assert (phase.first_step, phase.last_step, phase.ended) == (0, 1, 1) or phase.ended is None
    assert phase.circumstances == {"device": 7}


def test_binary_garbage(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
    for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl"):
        (tmp_path / name).write_bytes(noise)
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "bpb-1.json").write_bytes(noise)
    (tmp_path / "evals" / "deep.json").write_text("[" * 100_000)
    (tmp_path / "evals" / "good.json").write_text('{"step": 1}')
    found = read_history(tmp_path, CONFIG)
    assert len(found.step) == len(found.events) == len(found.samples) == 0
    assert found.evals == {"good": {"step": 1}}
    assert len(found.troubles) == 5


def test_folders_in_the_place_of_files(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl", ".lock", "evals/x.json", "checkpoints/000001/x"):
        (tmp_path / name).mkdir(parents=True)
    found = read_history(tmp_path, CONFIG)
    assert (found.steps_done, found.is_running, found.checkpoints) == (0, False, ())
    assert sum("cannot be read" in trouble for trouble in found.troubles) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    run(tmp_path, [metric(0)], [event("started", 1)])
    (tmp_path / "metrics.jsonl").chmod(0)
    found = read_history(tmp_path, CONFIG)
    assert found.troubles == ("metrics.jsonl cannot be read (Permission denied)",)
    assert len(found.phases) == 1


def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, [metric(0)], [event("started", 1)])

    def refuse(path: Path, names: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fathom.report.history.read_columns", refuse)
    found = read_history(tmp_path, CONFIG)
    assert found.troubles == ("metrics.jsonl cannot be read (Permission denied)",)
    assert (len(found.step), len(found.phases)) == (0, 1)


# Steps done again


def test_steps_that_were_done_again_count_as_they_were_done_last(tmp_path: Path) -> None:
    first = [metric(step, 1000 + step) for step in range(8)]
    again = [metric(step, 2000 + step, loss=9.0) for step in range(4, 6)]
    events = [event("started", 999), event("saved", 1004, step=4), event("resumed", 1999, step=4)]
    found = run(tmp_path, first + again, events)
    assert found.step.tolist() == [1, 2, 3, 4, 5, 6], "steps 7 and 8 are not done"
    assert found.loss[4:].tolist() == [9.0, 9.0]
    assert found.steps_done == 6
    assert [(p.first_step, p.last_step) for p in found.phases] == [(0, 8), (4, 6)]
    assert found.troubles == ("4 steps after step 4 were lost and had to be done again",)


def test_a_resumed_run_is_at_its_checkpoint_before_its_first_step(tmp_path: Path) -> None:
    first = [metric(step, 1000 + step) for step in range(8)]
    events = [event("started", 999), event("saved", 1004, step=4), event("resumed", 1999, step=4)]
    found = run(tmp_path, first, events)
    assert found.step.tolist() == [1, 2, 3, 4]
    assert found.steps_done == 4


def test_steps_of_a_phase_whose_clock_was_set_back_are_kept(tmp_path: Path) -> None:
    first = [metric(step, 1000 + step) for step in range(4)]
    second = [metric(4, 2000.5), *(metric(step, 1500 + step) for step in range(5, 8))]
    events = [event("started", 999), event("saved", 1004, step=4), event("resumed", 2000, step=4)]
    assert run(tmp_path, first + second, events).steps_done == 8


def test_old_records_without_times(tmp_path: Path) -> None:
    events = [event("started", 999), event("resumed", 1999, step=4)]
    assert run(tmp_path, [metric(step) for step in range(8)], events).steps_done == 8
    redone = [*range(8), *range(4, 6)]
    assert run(tmp_path, [metric(step) for step in redone], events).steps_done == 6
    found = run(tmp_path, [metric(step) for step in redone], [])
    assert found.steps_done == 6
    assert found.troubles == ("4 logged steps were done more than once or taken back; what came last counts",)


def test_a_rollback_takes_back_its_evaluations(tmp_path: Path) -> None:
    events = [
        event("started", 999),
        event("evaluated", 1002, step=2, val_bpb=2.0),
        event("evaluated", 1004, step=4, val_bpb=8.0),
        {"event": "rolled_back", "from": 4, "to": 2, "time": 1005},
    ]
    found = run(tmp_path, [metric(step, 1000 + step) for step in (0, 1, 2, 3, 2)], events)
    assert [one.step for one in found.evaluations] == [2]
    assert found.steps_done == 3


def test_a_left_out_step_is_no_broken_loss_unless_the_run_went_back_over_it(tmp_path: Path) -> None:
    events = [
        event("started", 999),
        {"event": "skipped", "step": 2, "why": "non-finite loss", "time": 1003},
        {"event": "skipped", "step": 4, "why": "spike", "time": 1005},
        {"event": "rolled_back", "from": 5, "to": 4, "time": 1006},
    ]
    lines = [metric(step, 1000 + step) | ({"loss": None} if step == 2 else {}) for step in (0, 1, 2, 3, 4, 4)]
    found = run(tmp_path, lines, events)
    assert found.step[found.is_left_out].tolist() == [3]
    assert not any("is not a number" in trouble for trouble in found.troubles)
    events[1] = event("saved", 1003, step=2)
    (tmp_path / "again").mkdir()
    assert any("is not a number" in trouble for trouble in run(tmp_path / "again", lines, events).troubles)


def test_micro_batches_that_were_halved_are_those_of_the_phase(tmp_path: Path) -> None:
    events = [
        event("started", 999),
        event("training", 999, step=0, device_batch=16, grad_accum=2),
        event("out_of_memory", 1001, step=1, device_batch=8),
        event("out_of_memory", 1002, step=1, device_batch=4),
    ]
    facts = run(tmp_path, [metric(0, 1000), metric(1, 1001)], events).circumstances
    assert (facts["device_batch"], facts["grad_accum"]) == (4, 8)


def test_a_copied_or_renamed_folder_is_called_what_it_is_called_now(fathom_home: Path) -> None:
    run_dir("renamed").mkdir(parents=True)
    (run_dir("renamed") / "run.toml").write_text('[run]\nname = "old"\nstage = "pretrain"\n')
    assert salvaged("renamed").name == "renamed"


def test_a_run_that_was_extended_is_not_finished_yet(tmp_path: Path) -> None:
    events = [
        event("started", 1),
        event("finished", 2, result={"steps": 4}),
        {"event": "extended", "from": "r", "step": 4, "time": 3},
    ]
    found = run(tmp_path, [metric(step) for step in range(6)], events)
    assert (found.state, found.result, found.steps_done) == ("broken off", None, 6)


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ([], "broken off"),
        ([event("stopped", 3, step=2, why="SIGTERM")], "stopped"),
        ([event("finished", 3, result={})], "finished"),
    ],
)
def test_states(tmp_path: Path, last: list[dict[str, Any]], state: str) -> None:
    assert run(tmp_path, [metric(0), metric(1)], [event("started", 1), *last]).state == state


def test_a_run_that_gave_up_says_why_until_it_goes_on(tmp_path: Path) -> None:
    events = [event("started", 1), event("refused", 3, step=2, why="the data are gone; fetch them.")]
    found = run(tmp_path, [metric(0), metric(1)], events)
    assert (found.state, found.refusal, found.steps_done) == ("broken off", "the data are gone; fetch them.", 2)
    again = run(tmp_path, [metric(0), metric(1)], [*events, event("resumed", 4, step=2)])
    assert (again.state, again.refusal) == ("broken off", "")


def test_events_without_metrics_tell_how_far_it_came(tmp_path: Path) -> None:
    write(tmp_path, "events.jsonl", [event("started", 1), event("saved", 5, step=300)])
    found = read_history(tmp_path, CONFIG)
    assert (found.steps_done, len(found.step), found.state) == (300, 0, "broken off")


def test_a_clock_that_goes_back_is_said(tmp_path: Path) -> None:
    events = [event("started", 5000), event("stopped", 5100, step=2, why="SIGINT"), event("resumed", 4000, step=2)]
    found = run(tmp_path, [metric(0, 5010), metric(1, 5020), metric(2, 4010)], events)
    assert found.steps_done == 3
    assert len(found.troubles) == 1 and "the clock went back by 1,100 s" in found.troubles[0]
    assert age(since=time.time() + 1000) == 0
    assert age(since=10, now=25) == 15


def test_clocks_that_jump_within_a_phase_are_said(tmp_path: Path) -> None:
    times = [1000 + 0.5 * step for step in range(9)]
    for step in range(3, 9):
        times[step] -= 300
    for step in range(6, 9):
        times[step] += 36_000
    found = run(tmp_path, [metric(step, at) for step, at in enumerate(times)], [event("started", 999)])
    assert found.troubles == (
        "the clock went back by 5 min 00 s after step 3",
        "10 h 00 min passed after step 6 without training: the machine slept or hung, or its clock was set",
    )
    events = [event("started", 999), event("stopped", 1002, step=3, why="SIGINT"), event("resumed", 40_000, step=3)]
    later = [metric(step, 1000 + step if step < 3 else 40_000 + step) for step in range(6)]
    assert run(tmp_path, later, events).troubles == ()


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40))
def test_the_lineage_is_what_replaying_the_log_leaves(steps: list[int]) -> None:
    left: list[int] = []
    for step in steps:
        left = [one for one in left if one < step] + [step]
    kept = np.array(steps, dtype=np.int64)[lineage(np.array(steps, dtype=np.int64))]
    assert kept.tolist() == left


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["event", "step", "time", "to", "why", "result", "val_bpb", "train_s"]),
            st.one_of(
                st.sampled_from(["started", "resumed", "extended", "evaluated", "saved", "rolled_back", "finished"]),
                st.integers(-5, 2000),
                st.floats(),
                st.none(),
                st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
            ),
        ),
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(0, 30), st.floats(0, 2000)), max_size=12),
)
def test_no_record_is_too_strange(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]], logged: list[tuple[int, float]]
) -> None:
    found = run(tmp_path_factory.getbasetemp() / "strange", [metric(step, at) for step, at in logged], events)
    assert found.state in ("finished", "stopped", "broken off")
    assert (np.diff(found.step) > 0).all()
    assert all(len(values) == len(found.step) for values in found.columns.values())
    assert isinstance(found.steps_done, int)


# The lock


HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert not run(tmp_path, [metric(0)], [event("started", 1)]).is_running
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"held\n"
            found = read_history(tmp_path, CONFIG)
            assert (found.is_running, found.state) == (True, "running")
        finally:
            child.send_signal(signal.SIGKILL)
    assert read_history(tmp_path, CONFIG).state == "broken off"


def test_looking_leaves_the_lock_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    read_history(tmp_path, CONFIG)
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Large files


LINE = (
    '{"step": %d, "loss": 3.123456, "loss_smooth": 3.234567, "lr": 0.512345, "step_s": 0.93, "train_s": %d.5, '
    '"mfu": 0.5648, "epoch": 1.1353, "loader_wait_s": 0.0372, "memory_gb": 1.194, "time": 1795470633.301}\n'
)


def test_a_million_lines(tmp_path: Path) -> None:
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for thousand in range(1000):
            file.write("".join([LINE % (step, step) for step in range(1000 * thousand, 1000 * thousand + 1000)]))
        file.write('{"step": 1000000, "lo')
    began = time.process_time()
    found = read_history(tmp_path, CONFIG)
    seconds = time.process_time() - began
    assert found.steps_done == 1_000_000 and len(found.step) == 1_000_000
    assert found.train_s[-1] == 999_999.5
    assert found.troubles == ("1 line of metrics.jsonl torn or not JSON, passed over",)
    assert seconds < 10


VALUES = st.one_of(
    st.integers(-3, 10**7),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.integers(10**300, 10**301),
)
LINES = st.one_of(
    st.dictionaries(st.sampled_from(["step", "loss", "lr", "other"]), VALUES).map(json.dumps),
    st.dictionaries(st.just("step"), st.integers(0, 99), min_size=1).map(json.dumps),
    st.sampled_from(
        ["", " ", "{", "}", "[1]", "7", '{"step": 1}{"step": 2}', '{"step": 1,', '"loss": 2}', "\\", "null"]
    ),
)


@settings(deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_the_fast_reader_reads_what_the_patient_one_does(texts: list[str], end: str, is_ended: bool) -> None:
    chunk = (end.join(texts) + end * is_ended).encode()
    fast, patient = (read(chunk, ("loss", "lr")) for read in (lines._by_arrow, lines._by_line))
    if fast is not None:
        assert fast.step.tolist() == patient.step.tolist()
        assert (fast.torn, fast.without_step) == (patient.torn, patient.without_step)
        for name in ("loss", "lr"):
            np.testing.assert_array_equal(fast.values[name], patient.values[name])


@pytest.mark.parametrize("text", ["null", "null\n", '{"step": 1}\nnull\n', '{"step": 1}null{"step": 2}\n', "", "\n"])
def test_the_fast_reader_is_spared_what_kills_it(text: str) -> None:
    assert lines._by_arrow(text.encode(), COLUMNS) is None


def test_the_fast_reader_is_the_one_for_sound_lines() -> None:
    assert lines._by_arrow((LINE % (1, 2)).encode(), COLUMNS) is not None


def test_pieces_of_a_file_end_where_lines_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "metrics.jsonl", [metric(step) for step in range(50)])
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(lines, "CHUNK", size)
        for least in (0, 10**9):
            monkeypatch.setattr(lines, "ARROW_FROM", least)
            assert lines.read_columns(tmp_path / "metrics.jsonl", ("loss",)).step.tolist() == list(range(50))


def test_a_curve_for_the_eye() -> None:
    x, y = np.arange(1, 10_001), np.arange(10_000.0)
    few_x, few_y = thin(x, y, 100)
    assert (len(few_x), few_x[-1]) == (100, 10_000)
    assert few_y.mean() == pytest.approx(y.mean())
    assert thin(x[:50], y[:50], 100)[0] is not x and len(thin(x[:50], y[:50], 100)[0]) == 50
