"""A run's folder: what is written survives torn lines, full disks and odd values, and is read back as it was."""

from __future__ import annotations

import json
import math
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import Record, events, last_words, metrics, newest_run, read_config, read_lines, to_toml

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
    for ago, name, stage in ((10, "base", "pretrain"), (50, "old", "sft"), (30, "new", "sft")):
        begun(name, stage, ago)
        checkpointed(name, "000004")
    begun("unsaved", "sft", 5)
    torn = run_dir("unsaved") / "checkpoints" / "000004"
    torn.mkdir(parents=True)
    assert newest_run(["sft"]) == "new"
    assert newest_run(["sft", "pretrain"]) == "base"
    assert newest_run(["rl"]) is None


def test_the_newest_run_passes_over_a_damaged_one(fathom_home: Path) -> None:
    for name in ("good", "worse"):
        begun(name, "sft", 10)
        checkpointed(name, "000004")
    (run_dir("worse") / "run.toml").write_text("[run")
    assert newest_run(["sft"]) == "good"


def test_when_a_run_spoke_last_is_what_its_record_says_not_the_date_of_a_copy(fathom_home: Path) -> None:
    begun("here", "sft", 100)
    said_in = run_dir("here") / "events.jsonl"
    said = json.loads(said_in.read_text())["time"]
    assert last_words(run_dir("here")) == said
    with open(said_in, "a") as file:
        file.write('{"event": "extended_in", "run": "longer", "time": 9e9}\n{"event": "torn')
    assert last_words(run_dir("here")) == said, "what another run noted here is no word of this one"
    (run_dir("here") / "metrics.jsonl").write_text(json.dumps({"step": 0, "time": said + 5}) + "\n")
    assert last_words(run_dir("here")) == said + 5
    begun("untold", "sft")
    assert last_words(run_dir("untold")) == (run_dir("untold") / "run.toml").stat().st_mtime
    assert last_words(run_dir("nowhere")) is None


def test_a_run_without_run_toml_and_a_name_with_a_slip_are_told(fathom_home: Path) -> None:
    begun("quickstart", "sft")
    with pytest.raises(FathomError, match="did you mean 'quickstart'"):
        read_config("quikstart")
    (run_dir("quickstart") / "run.toml").rename(run_dir("quickstart") / "metrics.jsonl")
    with pytest.raises(FathomError, match="'quickstart' has no run.toml"):
        read_config("quickstart")


def begun(name: str, stage: str, ago: float | None = None) -> None:
    """A run, which said something so many seconds ago."""
    record = Record(run_dir(name))
    record.config({"run": {"name": name, "stage": stage}})
    if ago is not None:
        (run_dir(name) / "events.jsonl").write_text(json.dumps({"event": "started", "time": time.time() - ago}) + "\n")


def checkpointed(name: str, step: str) -> None:
    mark = run_dir(name) / "checkpoints" / step / "COMPLETE"
    mark.parent.mkdir(parents=True)
    mark.touch()
