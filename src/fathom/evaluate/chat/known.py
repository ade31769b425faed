"""The chat tasks by name. REFERENCE 6.2"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fathom.errors import FathomError
from fathom.evaluate.chat import spelling
from fathom.evaluate.chat.example import ChatTask, Example, Grade, choice_of, text_in
from fathom.evaluate.chat.rows import Source, rows_of

_FINAL_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")
_FENCED = re.compile(r"```(?:python)?[^\S\n]*\n(.*?)```", re.DOTALL)
_ALONE = Lock()
PROGRAMS_AT_ONCE = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Known:
    """A published set, and how its rows become a task."""

    source: Source
    example: Callable[[Mapping[str, Any]], Example]
    chance: float
    grade: Grade | None = None
    graders: int = 1


def final_number(text: str) -> str | None:
    """What stands behind the first "#### ", without commas: a string, as it is written."""
    match = _FINAL_NUMBER.search(text)
    return match[1].replace(",", "") if match else None


def worked_problem(row: Mapping[str, Any]) -> Example:
    """A row of GSM8K."""
    answer = final_number(text_in(row, "answer"))
    if answer is None:
        raise FathomError('its answer has no "#### " with a number', "take the file as it was published")
    return Example([{"role": "user", "content": text_in(row, "question")}], answer, row=row)


def ends_in_number(reply: str, example: Example) -> bool:
    """Whether the reply's number is the example's, letter by letter ("18." is not "18")."""
    return final_number(reply) == example.answer


def function_to_write(row: Mapping[str, Any]) -> Example:
    """A row of HumanEval."""
    for key in ("test", "entry_point"):
        text_in(row, key)
    return Example([{"role": "user", "content": text_in(row, "prompt")}], row=row)


def program_of(reply: str, row: Mapping[str, Any]) -> str:
    """Imports of the prompt, the reply's first fenced block (or all of it), the tests, and the call of them."""
    fenced = _FENCED.search(reply)
    code = fenced[1] if fenced else reply
    parts = ["\n".join(imports_of(row["prompt"])), code.strip("\n"), row["test"], f"check({row['entry_point']})"]
    return "\n\n".join(parts) + "\n"


def imports_of(prompt: str) -> list[str]:
    """The import lines at the top of a prompt; empty lines and comments may stand between them."""
    found = []
    for line in map(str.strip, prompt.split("\n")):
        if line.startswith(("import ", "from ")):
            found.append(line)
        elif line and not line.startswith("#"):
            break
    return found


def passes_its_tests(reply: str, example: Example) -> bool:
    """Whether the program of a reply runs to its end, in the sandbox.

    One that met the time limit gets a second try with no other program beside it: the machine may have been busy.
    """
    from fathom.generate.sandbox import run_python

    program = program_of(reply, example.row)
    outcome = run_python(program)
    if outcome.why == "timeout":
        with _ALONE:
            outcome = run_python(program)
    return outcome.ok


KNOWN: dict[str, Known] = {
    "arc-easy": Known(Source("arc_easy_test", "allenai/ai2_arc", "ARC-Easy/test-*.parquet"), choice_of, 0.25),
    "arc-challenge": Known(
        Source("arc_challenge_test", "allenai/ai2_arc", "ARC-Challenge/test-*.parquet"), choice_of, 0.25
    ),
    "mmlu": Known(Source("mmlu_test", "cais/mmlu", "all/test-*.parquet"), choice_of, 0.25),
    "gsm8k": Known(Source("gsm8k_test", "openai/gsm8k", "main/test-*.parquet"), worked_problem, 0.0, ends_in_number),
    "humaneval": Known(
        Source("humaneval_test", "openai/openai_humaneval", "openai_humaneval/test-*.parquet"),
        function_to_write,
        0.0,
        passes_its_tests,
        PROGRAMS_AT_ONCE,
    ),
}
SPELLING = "spelling"
NAMES = (*KNOWN, SPELLING)


def open_task(name: str, folder: Path | None = None) -> ChatTask:
    """A task of NAMES with its examples in order, from `folder` or the hub. FathomError names a row that is none."""
    if name == SPELLING:
        return ChatTask(SPELLING, spelling.examples(), grade=spelling.grade, max_tokens=64, counts=False)
    known = KNOWN[name]
    examples = []
    for where, row in rows_of(known.source, folder):
        try:
            examples.append(known.example(row))
        except FathomError as error:
            raise FathomError(f"{where}: {error.problem}", error.remedy) from None
    return ChatTask(name, examples, known.chance, known.grade, known.grade is not None, graders=known.graders)
