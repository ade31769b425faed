"""A user's own task: one small Python file, run because they named it.

def examples():                    yields {"prompt": …} or {"messages": […]}, with "choices" and "answer", or
    …                              whatever `grade` needs; dataclasses are taken too
def grade(reply, example): …       whether a written reply is right; not needed where there are choices

CHANCE = 0.25                      what guessing gets (by default one over the choices, or 0)
MAX_TOKENS = 64                    of a written reply (512)
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fathom.data.conversations.messages import LETTERS, canonical, multiple_choice
from fathom.errors import FathomError
from fathom.evaluate.chat.example import MAX_TOKENS, ChatTask, Example

HOW = "docs/evaluation.md shows one of 15 lines"


def own_task(path: Path) -> ChatTask:
    """The task that a file defines, called like the file. FathomError names what is wrong, with the line."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise FathomError(f"{path} cannot be read ({error.strerror})", "name a Python file with --task") from None
    module = _module(path, source)
    if not callable(module.get("examples")):
        raise FathomError(f"{path} defines no examples()", HOW)
    examples = with_line(path, lambda: [_example(path, n, one) for n, one in enumerate(_yielded(module), 1)])
    if not examples:
        raise FathomError(f"examples() of {path} yields nothing", HOW)
    lettered = [bool(example.letters) for example in examples]
    if any(lettered) != all(lettered):
        raise FathomError(f"some examples of {path} have choices and others none", "make two files of them")
    grade = module.get("grade")
    if not all(lettered) and not callable(grade):
        raise FathomError(f"{path} defines no grade(reply, example), and its examples have no choices", HOW)
    chance = module.get("CHANCE", 1 / len(examples[0].letters) if all(lettered) else 0.0)
    most = module.get("MAX_TOKENS", MAX_TOKENS)
    if not isinstance(chance, (int, float)) or not 0 <= chance < 1 or type(most) is not int or most < 1:
        raise FathomError(f"CHANCE of {path} is not a share, or MAX_TOKENS no number above 0", HOW)
    judge = None if all(lettered) else _judge(path, grade)
    return ChatTask(path.stem, examples, float(chance), judge, max_tokens=most, counts=False)


def _module(path: Path, source: bytes) -> dict[str, Any]:
    """What the file defines. Registered like an import, because dataclasses look for their module."""
    made = ModuleType(f"fathom.own_task.{path.stem}")
    made.__file__ = str(path)
    sys.modules[made.__name__] = made
    with_line(path, lambda: exec(compile(source, str(path), "exec", dont_inherit=True), made.__dict__))
    return made.__dict__


def _yielded(module: Mapping[str, Any]) -> Iterator[Any]:
    for one in module["examples"]():
        yield dataclasses.asdict(one) if dataclasses.is_dataclass(one) and not isinstance(one, type) else one


def _example(path: Path, number: int, row: Any) -> Example:
    """One example, with `row` as the file gave it for its own grade()."""
    try:
        return _checked(row)
    except FathomError as error:
        raise FathomError(f"example {number} of {path}: {error.problem}", error.remedy or HOW) from None


def _checked(row: Any) -> Example:
    if not isinstance(row, Mapping):
        raise FathomError(f"it is {type(row).__name__}, not a dict", HOW)
    prompt = row.get("prompt")
    if isinstance(prompt, str) == ("messages" in row):
        raise FathomError("it needs either a prompt, which is a text, or messages", HOW)
    if "choices" not in row:
        said = canonical(row["messages"]) if "messages" in row else [{"role": "user", "content": prompt}]
        return Example(said, row=row)
    texts, answer = row["choices"], row.get("answer")
    if not isinstance(prompt, str) or not isinstance(texts, list | tuple) or not 2 <= len(texts) <= len(LETTERS):
        raise FathomError("with choices goes a prompt, and the choices are a list of 2 to 26 texts", HOW)
    letters = LETTERS[: len(texts)]
    right = letters[answer] if type(answer) is int and 0 <= answer < len(letters) else answer
    if not isinstance(right, str) or len(right) != 1 or right not in letters:
        raise FathomError(f"its answer {answer!r} is none of {', '.join(letters)}", "give the right choice's letter")
    content = multiple_choice(prompt, [str(text) for text in texts])
    return Example([{"role": "user", "content": content}], right, tuple(letters), row)


def _judge(path: Path, grade: Any) -> Callable[[str, Example], bool]:
    def judge(reply: str, example: Example) -> bool:
        return bool(with_line(path, lambda: grade(reply, example.row)))

    return judge


def with_line(path: Path, work: Callable[[], Any]) -> Any:
    """`work`, whose exceptions become one sentence with the line of `path` that they came from."""
    try:
        return work()
    except FathomError:
        raise
    except SyntaxError as error:
        raise FathomError(f"line {error.lineno} of {path}: {error.msg}", "mend it") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"line {lines[-1]} of {path}" if lines else str(path)
        said = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise FathomError(f"{where}: {said}", "mend it") from None
