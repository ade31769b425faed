"""What a chat task is made of: questions to an assistant, and how an answer is judged."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.data.conversations.messages import LETTERS, Message, multiple_choice
from fathom.errors import FathomError

MAX_TOKENS = 512  # of a written answer


@dataclass(frozen=True)
class Example:
    """A conversation up to the user's last turn, and what is right."""

    messages: Sequence[Message]
    answer: str = ""
    """The right letter of a choice; of a written answer what its judge compares with."""
    letters: tuple[str, ...] = ()
    """What a choice may be answered with; empty for a written answer."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """What the example was made of."""


Grade = Callable[[str, Example], bool]


@dataclass(frozen=True)
class ChatTask:
    """Examples in the order in which they are taken, and everything that decides a score."""

    name: str
    examples: Sequence[Example]
    chance: float = 0.0
    """What guessing gets."""
    grade: Grade | None = None
    """Judges a written reply. Called from several threads where `graders` is above 1."""
    reads_marks: bool = False
    """The judge sees all that was said, with the marks, calls and outputs of tools; else only the text."""
    max_tokens: int = MAX_TOKENS
    graders: int = 1
    counts: bool = True
    """Whether it is part of ChatCORE."""

    def digest(self) -> str:
        """Of all examples, 64 hex digits."""
        content = hashlib.sha256()
        for one in self.examples:
            what = [list(one.messages), one.answer, one.letters, dict(one.row)]
            content.update(json.dumps(what, sort_keys=True, default=repr).encode())
        return content.hexdigest()


@dataclass(frozen=True)
class Tally:
    """How many answers were right; tallies of different items add up."""

    n: int = 0
    right: int = 0
    n_long: int = 0
    """Prompts longer than the context: letters are read there all the same, a written answer counts as wrong."""
    n_cut: int = 0
    """Written answers that the end of the context cut off."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.n + other.n, self.right + other.right, self.n_long + other.n_long, self.n_cut + other.n_cut)

    @property
    def accuracy(self) -> float:
        return self.right / self.n if self.n else math.nan

    @property
    def standard_error(self) -> float:
        """Of the accuracy, were these items drawn from many like them; nan for fewer than two."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (self.n - 1)) if self.n > 1 else math.nan


def choice(question: str, texts: Sequence[str], letters: Sequence[str], answer: str, row: Mapping[str, Any]) -> Example:
    """A question with its choices, one letter each; `answer` is the right one's letter."""
    content = multiple_choice(question, texts, letters)
    return Example([{"role": "user", "content": content}], answer, tuple(letters), row)


def choice_of(row: Mapping[str, Any]) -> Example:
    """From a row {question, choices, answer}, as of our files, MMLU (an index answers) or ARC (letters of its own).

    FathomError says what is wrong with the row, not where it stands.
    """
    choices: Any = row.get("choices")
    texts, letters = (choices.get("text"), choices.get("label")) if isinstance(choices, Mapping) else (choices, LETTERS)
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(LETTERS) or not all(map(_is_text, texts)):
        raise FathomError("its choices are not a list of 2 to 26 texts", "give the choices in the order of letters")
    if not isinstance(letters, str | list) or len(letters) < len(texts) or not all(map(_is_letter, letters)):
        raise FathomError("its choices have no letters", "give as many labels of one character as choices")
    letters, answer = list(letters[: len(texts)]), row.get("answer", row.get("answerKey"))
    if type(answer) is int and 0 <= answer < len(letters):
        answer = letters[answer]
    if answer not in letters:
        raise FathomError(f"its answer {answer!r} is none of {', '.join(letters)}", "name the right choice's letter")
    return choice(text_in(row, "question"), texts, letters, answer, row)


def text_in(row: Mapping[str, Any], key: str) -> str:
    """A text that a row must have."""
    value = row.get(key)
    if not isinstance(value, str):
        raise FathomError(f"its {key} is not a text", "take the file as it was published")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_letter(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 1 and value.isascii()
