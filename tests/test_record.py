"""A run's folder: what is written survives torn lines, full disks and odd values, and is read back as it was."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import Record, events, metrics, newest_run, read_config, read_lines, to_toml

PLAIN = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    record.event("started")
    record.event("saved", step=4)
    record.metric(step=0, loss=5.5)
    record.sample(step=4, prompt="Ünïcode ☃", text="line\nbreak\u2028and a separator")
    assert [line["event"] for line in events(record.folder)] == ["started", "saved"]
    assert metrics(record.folder) == [{"step": 0, "loss": 5.5}]
    assert read_lines(record.folder / "samples.jsonl") == [
        {"step": 4, "prompt": "Ünïcode ☃", "text": "line\nbreak\u2028and a separator"}
    ]


def test_a_line_torn_at_any_byte_costs_only_itself(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for step in range(3):
        record.metric(step=step, note="schön")
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) + 1):
        path.write_bytes(whole[:cut])
        is_complete = cut >= len(whole) - 1
        assert [line["step"] for line in metrics(tmp_path)] == ([0, 1, 2] if is_complete else [0, 1]), cut
        record.metric(step=9)
        assert [line["step"] for line in metrics(tmp_path)] == ([0, 1, 2, 9] if is_complete else [0, 1, 9]), cut


def test_garbage_between_lines_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00\n[1, 2]\n7\n\n{"loss": 1}\n{"step": 2}\n')
    assert metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    assert events(tmp_path) == []


def test_a_repeated_step_counts_as_it_was_logged_last(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for step, loss in ((0, 5.0), (1, 4.0), (2, 3.0), (1, 4.5), (2, 3.5)):
        record.metric(step=step, loss=loss)
    assert [(line["step"], line["loss"]) for line in metrics(tmp_path)] == [(0, 5.0), (1, 4.5), (2, 3.5)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's disk without room")
def test_a_full_disk_stops_no_run_and_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("metrics.jsonl", "events.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
    record = Record(tmp_path)
    for step in range(3):
        record.metric(step=step)
    record.event("save_failed", step=3)
    assert capsys.readouterr().err.count("No space left") == 1


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), st.one_of(PLAIN, st.lists(PLAIN))))
def test_toml_is_read_back_as_it_was(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml({"table": values}))["table"] == values


def test_toml_of_what_is_not_plain() -> None:
    text = to_toml({"a": {"none": None, "path": Path("/x/y"), "tuple": (1, 2), "nan": math.nan}, "b": {}})
    read = tomllib.loads(text)
    assert math.isnan(read["a"].pop("nan"))
    assert read == {"a": {"path": "/x/y", "tuple": [1, 2]}, "b": {}}


def test_a_missing_run_is_told_beside_the_runs_there_are(fathom_home: Path) -> None:
    with pytest.raises(FathomError, match="no run 'gone'.*none yet"):
        read_config("gone")
    begun("here", stage="sft")
    (fathom_home / "runs" / "refused").mkdir()  # a run that was refused before it began leaves its lock's folder
    with pytest.raises(FathomError, match=r"the runs there are: here\.$"):
        read_config("gone")
    with pytest.raises(FathomError, match="no run 'refused'"):
        read_config("refused")


def test_a_damaged_run_toml_is_one_sentence(fathom_home: Path) -> None:
    begun("broken", stage="sft")
    (run_dir("broken") / "run.toml").write_bytes(b"[run\nstage = \xff")
    with pytest.raises(FathomError, match="run.toml cannot be read"):
        read_config("broken")


def test_the_newest_run_is_the_one_trained_last_with_a_whole_checkpoint(fathom_home: Path) -> None:
    assert newest_run(["sft"]) is None
    for age, name, stage in ((50, "old", "sft"), (30, "new", "sft"), (10, "base", "pretrain")):
        begun(name, stage)
        checkpointed(name, "000004", age + 5)
        checkpointed(name, "000008", age)
    begun("unsaved", "sft")
    torn = run_dir("unsaved") / "checkpoints" / "000004"
    torn.mkdir(parents=True)
    assert newest_run(["sft"]) == "new"
    assert newest_run(["sft", "pretrain"]) == "base"
    assert newest_run(["rl"]) is None


def test_the_newest_run_passes_over_a_damaged_one(fathom_home: Path) -> None:
    for name in ("good", "worse"):
        begun(name, "sft")
        checkpointed(name, "000004", 10)
    (run_dir("worse") / "run.toml").write_text("[run")
    assert newest_run(["sft"]) == "good"


def test_the_newest_checkpoint_is_so_by_time_not_by_its_name(fathom_home: Path) -> None:
    for name, age in (("long", 5), ("short", 20)):
        begun(name, "sft")
        checkpointed(name, "1000000", age)
    checkpointed("long", "999999", 30)
    assert newest_run(["sft"]) == "long"


def begun(name: str, stage: str) -> None:
    Record(run_dir(name)).config({"run": {"name": name, "stage": stage}})


def checkpointed(name: str, step: str, age_s: float) -> None:
    mark = run_dir(name) / "checkpoints" / step / "COMPLETE"
    mark.parent.mkdir(parents=True)
    mark.touch()
    then = mark.stat().st_mtime - age_s
    os.utime(mark, (then, then))
