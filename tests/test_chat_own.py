"""A user's own task file: what it may say, and every way to get it wrong named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fathom.errors import FathomError
from fathom.evaluate.chat.own import own_task

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"


def task_of(tmp_path: Path, text: str, name: str = "mine.py") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


GOOD = """
def examples():
    for n in range(3):
        yield {"prompt": f"{n}?", "answer": str(n)}

def grade(reply, example):
    return reply.strip() == example["answer"]
"""


def test_written_answers_are_graded_by_the_file(tmp_path: Path) -> None:
    task = own_task(task_of(tmp_path, GOOD))
    assert (task.name, len(task.examples), task.chance, task.max_tokens, task.counts) == ("mine", 3, 0.0, 512, False)
    assert task.examples[2].messages == [{"role": "user", "content": "2?"}]
    assert task.grade is not None
    assert [task.grade(" 2\n", one) for one in task.examples] == [False, False, True]


def test_choices_need_no_grade_and_guessing_gets_one_in_so_many(tmp_path: Path) -> None:
    text = 'def examples():\n    yield {"prompt": "?", "choices": ["x", "y", "z", "w"], "answer": 2}\n'
    task = own_task(task_of(tmp_path, text))
    assert (task.grade, task.chance) == (None, 0.25)
    assert (task.examples[0].letters, task.examples[0].answer) == (("A", "B", "C", "D"), "C")
    assert "- z=C\n" in task.examples[0].messages[0]["content"]


def test_messages_dataclasses_and_settings_are_taken(tmp_path: Path) -> None:
    text = """
from dataclasses import dataclass

CHANCE, MAX_TOKENS = 0.1, 7

@dataclass
class One:
    messages: list

def examples():
    return [One([{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}])]

def grade(reply, example):
    return bool(example["messages"]) and reply == "ok"
"""
    task = own_task(task_of(tmp_path, text))
    assert (task.chance, task.max_tokens) == (0.1, 7)
    assert task.examples[0].messages == [{"role": "user", "content": "Be short.\n\nHi"}]
    assert task.grade is not None and task.grade("ok", task.examples[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def examples(:\n", "line 1 of"),
        ("x = 1\ny = 1 / 0\n", "line 2 of .*ZeroDivisionError"),
        ("import nothing_of_this_name\n", "line 1 of .*nothing_of_this_name"),
        ("exit(0)\n", "line 1 of .*SystemExit"),
        ("raise SystemExit\n", "SystemExit; mend it"),
        ("examples = 3\n", "defines no examples"),
        ("def examples():\n    return []\n", "yields nothing"),
        ("def examples():\n    return 5\n", "TypeError"),
        ("def examples():\n    yield 1\n", "example 1 of .*int, not a dict"),
        ("def examples():\n    yield {}\n", "example 1 of .*prompt"),
        ('def examples():\n    yield {"prompt": "?", "messages": []}\n', "either a prompt"),
        ('def examples():\n    yield {"messages": []}\n', "example 1 of .*message"),
        ('def examples():\n    yield {"prompt": "?"}\n', "defines no grade"),
        ('def examples():\n    yield {"prompt": "?"}\n    raise KeyError("gone")\n', "line 3 of .*gone"),
        ('def examples():\n    yield {"prompt": "?", "choices": ["x"], "answer": 0}\n', "2 to 26"),
        ('def examples():\n    yield {"prompt": "?", "choices": ["x", "y"], "answer": "C"}\n', "'C' is none of A, B"),
        ('def examples():\n    yield {"prompt": "?", "choices": ["x", "y"]}\n', "None is none of A, B"),
        (GOOD + "CHANCE = 2\n", "CHANCE"),
        (GOOD + "MAX_TOKENS = 0\n", "MAX_TOKENS"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FathomError) as caught:
        own_task(task_of(tmp_path, text))
    assert re.search(words, str(caught.value))
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_while_grading_names_the_line(tmp_path: Path) -> None:
    task = own_task(task_of(tmp_path, GOOD.replace('example["answer"]', 'example["anwser"]')))
    assert task.grade is not None
    with pytest.raises(FathomError, match=r"line 7 of .*mine.py: KeyError: 'anwser'"):
        task.grade("0", task.examples[0])


def test_a_file_that_is_not_there_or_mixed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="cannot be read"):
        own_task(tmp_path / "none.py")
    mixed = 'def examples():\n    yield {"prompt": ""}\n    yield {"prompt": "", "choices": ["x", "y"], "answer": 0}\n'
    with pytest.raises(FathomError, match="some examples of"):
        own_task(task_of(tmp_path, mixed))


def test_the_example_of_the_guide_works(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert blocks
    task = own_task(task_of(tmp_path, blocks[0]))
    assert len(task.examples) >= 20
    assert len(blocks[0].splitlines()) <= 16
