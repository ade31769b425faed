"""What `fathom eval` left in a run's folder, as scores and in its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fathom.evaluate.results import write_result
from fathom.report.document import Document, Section
from fathom.report.history import History, history_of
from fathom.report.markdown import to_markdown
from fathom.report.scores import scores
from fathom.report.sections.evaluated import evaluations
from tests.oracles.measured_runs import falling, write_run

pytestmark = pytest.mark.usefixtures("fathom_home")
ARC = {"accuracy": 0.4, "centered": 0.2, "standard_error": 0.01, "n": 2376}
LAMBADA = {"accuracy": 0.3, "centered": 0.3, "standard_error": 0.02, "n": 500}


@pytest.fixture
def run() -> History:
    return write_run("mine", falling(400, 0.9))


def said() -> str:
    """The section of the run as it is now, on one line with single blanks."""
    found = evaluations(history_of("mine"))
    assert found is not None
    return " ".join(to_markdown(Document("", (Section("", ()), found))).replace("|", " ").split())


def core(step: int, value: float, limit: int | None = None, **tasks: Any) -> None:
    values = {"value": value, "standard_error": 0.0123, "n": 2876, "tasks": tasks}
    write_result("mine", step, "core", {"limit": limit, "dtype": "fp32"}, values, {"bundle": "b"})


def test_without_results_there_is_no_section(run: History) -> None:
    assert evaluations(run) is None, "bits per byte have a section of their own"


def test_core_stands_task_by_task_with_errors_and_what_guessing_gets(run: History) -> None:
    core(400, 0.25, arc_easy=ARC, lambada=LAMBADA)
    text = said()
    assert "CORE 0.2500 ± 0.012 at step 400" in text and "GPT-2 with 1.5 billion parameters has 0.256525" in text
    assert "arc_easy 2,376 40.0 1.0 25 +0.2000" in text
    assert "lambada 500 30.0 2.0 0 +0.3000" in text
    assert "CORE 0.0123 +0.2500" in text
    assert "At most" not in text and "also measured" not in text


def test_of_several_the_newest_step_and_of_that_all_items_count_and_the_others_are_told(run: History) -> None:
    core(400, 0.25, arc_easy=ARC)
    core(400, 0.31, limit=50, arc_easy=ARC)
    core(200, 0.11, arc_easy=ARC)
    assert [(one.step, one.limit, one.value) for one in scores(history_of("mine"), "core")] == [
        (200, None, 0.11),
        (400, 50, 0.31),
        (400, None, 0.25),
    ]
    text = said()
    assert text.index("CORE 0.2500") < text.index("CORE was also measured")
    assert "0.1100 ± 0.012 at step 200, 0.3100 ± 0.012 at step 400 (at most 50 items a task)" in text


def test_a_limit_is_told(run: History) -> None:
    core(400, 0.31, limit=50, arc_easy=ARC)
    assert "At most 50 items of each were taken" in said()


def test_chat_tasks_and_bits_per_byte_have_tables(run: History) -> None:
    tasks = {"mmlu": {"accuracy": 0.44, "centered": 0.2533, "standard_error": 0.05, "n": 90}}
    tasks["gsm8k"] = {"accuracy": 0.02, "centered": 0.02, "standard_error": 0.01, "n": 200}
    write_result("mine", 400, "chat", {"limit": None}, {"value": 0.1, "tasks": tasks, "chatcore": 0.1366})
    sets = [{"split": "validation", "rows_of": "lossless", "tokens": 38_400, "bpb": 1.0321, "standard_error": 0.004}]
    write_result("mine", 400, "bpb", {"limit": None}, {"value": 1.0321, "sets": sets}, {"corpus": "stories"})
    text = said()
    assert "mmlu 90 44.0 5.0 25 +0.2533" in text and "gsm8k 200 2.0 1.0 0 +0.0200" in text
    assert "ChatCORE +0.1366" in text
    assert "Bits per byte on stories at step 400." in text
    assert "validation whole documents 38,400 1.0321 0.0040" in text


def test_the_quiz_is_told_in_shares_and_columns_that_hold_nothing_are_left_out(run: History) -> None:
    quiz = {"step": 400, "questions": 80, "accuracy": 0.475, "by_kind": {"add": 0.0, "town_who": 0.95}}
    (run.folder / "evals" / "quiz-000400.json").write_text(json.dumps(quiz))
    text = said()
    assert "quiz-000400 accuracy 47.5 % step 400, 80 items" in text and "by kind / town who 95 %" in text
    assert "chance" not in text


@pytest.mark.parametrize(
    "value",
    [
        {"step": 400, "task": "core", "value": None, "tasks": [1]},
        {"step": 400, "task": "core", "value": 0.2, "settings": 3, "tasks": {"x": None, "y": {"accuracy": "much"}}},
        {"step": "last", "task": "core", "core": 0.2},
        {"step": 400, "task": "chat", "tasks": {"x": {"accuracy": 1.0, "centered": 1.0}}},
        {"step": 400, "task": 7, "sets": [{"bpb": None}, 3]},
        {"step": 400, "task": "bpb", "sets": [{"bpb": None, "tokens": -1}, 3], "data": []},
    ],
)
def test_no_result_is_too_strange(run: History, value: dict[str, Any]) -> None:
    (run.folder / "evals" / "odd-000400.json").write_text(json.dumps(value))
    found = evaluations(history_of("mine"))
    assert found is None or "nan" not in to_markdown(Document("", (Section("", ()), found)))


def test_results_of_other_runs_are_not_this_ones(run: History, tmp_path: Path) -> None:
    write_result(tmp_path, 400, "core", {"limit": None}, {"value": 0.9})
    assert scores(history_of("mine"), "core") == []
