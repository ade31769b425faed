"""Results in a run's folder: found again by what they are of, never mixed up, and those of training read too."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fathom.evaluate.results import find_result, read_results, write_result
from fathom.home import run_dir
from fathom.record import Record

SETTINGS = {"limit": None, "dtype": "fp32"}


def test_a_result_is_found_by_step_data_and_settings(fathom_home: Path) -> None:
    written = write_result("r", 5, "core/copa", SETTINGS, {"value": 0.5, "n": 100}, {"digest": "a"})
    assert (written["task"], written["step"], written["value"]) == ("core/copa", 5, 0.5)
    assert find_result("r", 5, "core/copa", SETTINGS, {"digest": "a"}) == written
    assert find_result("r", 6, "core/copa", SETTINGS, {"digest": "a"}) is None
    assert find_result("r", 5, "core/piqa", SETTINGS, {"digest": "a"}) is None
    assert find_result("r", 5, "core/copa", SETTINGS | {"limit": 5}, {"digest": "a"}) is None
    assert find_result("r", 5, "core/copa", SETTINGS, {"digest": "b"}) is None
    assert find_result("other", 5, "core/copa", SETTINGS, {"digest": "a"}) is None


def test_no_result_takes_anothers_place_but_one_of_the_same_measured_again(fathom_home: Path) -> None:
    for limit in (None, 5):
        for digest in "ab":
            write_result("r", 5, "core/copa", SETTINGS | {"limit": limit}, {"value": 0.5}, {"digest": digest})
    write_result("r", 5, "core", SETTINGS, {"value": 0.1})
    assert len(read_results("r")) == 5
    write_result("r", 5, "core", SETTINGS, {"value": 0.2})
    assert len(read_results("r")) == 5
    found = find_result("r", 5, "core", SETTINGS)
    assert found is not None and found["value"] == 0.2


def test_what_people_look_at_stands_in_the_folder_and_parts_below(fathom_home: Path) -> None:
    write_result("r", 5, "core", SETTINGS, {"value": 0.1})
    write_result("r", 5, "core/copa", SETTINGS | {"limit": 7}, {"value": 0.5})
    folder = run_dir("r") / "evals"
    assert [path.name[:11] for path in folder.glob("*.json")] == ["core-000005"]
    assert [path.name[:4] for path in (folder / "core-000005-limit7").glob("*.json")] == ["copa"]


def test_results_of_training_and_of_the_quiz_are_read_too(fathom_home: Path) -> None:
    record = Record(run_dir("r"))
    record.evaluation("bpb-000009", {"step": 9, "val_bpb": 1.5, "rows": 3, "rows_of": "lossless", "data_digest": "d"})
    record.evaluation("quiz-000009", {"step": 9, "accuracy": 0.5, "seed": 1, "dtype": "fp32"})
    bpb, quiz = read_results("r")
    assert (bpb["task"], bpb["data"], bpb["settings"]) == ("bpb", {"digest": "d"}, {"rows": 3, "rows_of": "lossless"})
    assert (quiz["task"], quiz["accuracy"], quiz["settings"]) == ("quiz", 0.5, {"seed": 1, "dtype": "fp32"})
    assert find_result("r", 9, "bpb", SETTINGS, {"digest": "d"}) is None


def test_what_cannot_be_read_is_passed_over(fathom_home: Path) -> None:
    good = write_result("r", 5, "bpb", SETTINGS, {"value": 1.0})
    folder = run_dir("r") / "evals"
    for name, content in (("torn", '{"step": 5'), ("list", "[]"), ("none", '{"value": 1}'), ("deep", "[" * 100_000)):
        (folder / f"{name}.json").write_text(content)
    (folder / "bytes.json").write_bytes(b"\xff\xfe")
    assert read_results("r") == [good] == [json.loads(next(folder.glob("bpb-*")).read_text())]
    assert read_results("never") == []


def test_what_is_not_a_number_is_null(fathom_home: Path) -> None:
    written = write_result(
        "r", 5, "core", SETTINGS, {"value": math.nan, "tasks": {"copa": {"n": 1, "error": math.inf}}}
    )
    assert (written["value"], written["tasks"]) == (None, {"copa": {"n": 1, "error": None}})
    assert read_results("r") == [written]


def test_results_can_be_kept_in_any_folder(tmp_path: Path) -> None:
    written = write_result(tmp_path / "gpt2", 0, "core", SETTINGS, {"value": 0.1})
    assert find_result(tmp_path / "gpt2", 0, "core", SETTINGS) == written
