"""What a conversation is: messages of user and assistant in turn, checked, and the task rows that become one.

A message is {"role": "user" | "assistant", "content": …}. The user's content is a text; the assistant's a text or a
list of parts {"type": "text" | "python" | "python_output", "text": …}: calls of the tool and what came back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from fathom.bpe import without_surrogates
from fathom.errors import FathomError

Message = dict[str, Any]
Part = dict[str, str]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORM = 'a line holds {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


def parts_of(content: str | list[Part]) -> list[Part]:
    """An assistant's content as parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(parts: Iterable[Part]) -> str:
    """What a person reads of a reply: its text, without calls and results."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def canonical(messages: Sequence[Message]) -> list[Message]:
    """The plain form: a system message joined to the first user message, roles in turn, contents checked.

    Raises FathomError that names the message (counted from 1).
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise FathomError("the messages are not a list with at least one message", FORM)
    turns = [(number, *_checked(message, number)) for number, message in enumerate(messages, 1)]
    if turns[0][1] == "system":
        if len(turns) < 2 or turns[1][1] != "user":
            raise FathomError("no user message follows the system message", "it is joined to the user's first words")
        turns[:2] = [(2, "user", f"{turns[0][2]}\n\n{turns[1][2]}")]
    for index, (number, role, _) in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise FathomError(
                f"message {number} is from {role!r} where it is the turn of {expected!r}",
                "after an optional system message user and assistant take turns, the user first",
            )
    return [{"role": role, "content": content} for _, role, content in turns]


def _checked(message: Any, number: int) -> tuple[str, str | list[Part]]:
    """Role and content of one message: text, or for the assistant parts."""
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise FathomError(f"message {number} has no role and content", FORM)
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise FathomError(f"message {number} has the role {role!r}", "use system (first only), user and assistant")
    if isinstance(content, str):
        return role, without_surrogates(content)
    if not isinstance(content, list):
        raise FathomError(f"the content of message {number} is not a text", "give a string, or a list of parts")
    parts = [_checked_part(part, number) for part in content]
    if role == "assistant":
        return role, parts
    if any(part["type"] != "text" for part in parts):
        raise FathomError(f"message {number} is from {role!r} and calls a tool", "only the assistant calls tools")
    return role, "".join(part["text"] for part in parts)


def _checked_part(part: Any, number: int) -> Part:
    known = isinstance(part, dict) and part.get("type") in ("text", "python", "python_output")
    if not known or not isinstance(part.get("text"), str):
        kind = f" (its type is {part['type']!r})" if isinstance(part, dict) and "type" in part else ""
        raise FathomError(
            f"message {number} has a part that is no text{kind}",
            'a part is {"type": "text", "text": "…"}; the assistant may also have python and python_output',
        )
    return {"type": part["type"], "text": without_surrogates(part["text"])}


def multiple_choice(question: str, choices: Sequence[str], letters: Sequence[str] = LETTERS) -> str:
    """What the user asks when the answer is a letter: A for the first choice, and so on, or other `letters`."""
    lines = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=False))
    return f"Multiple Choice question: {question}\n{lines}\nRespond only with the letter of the correct answer."


def worked_answer(answer: str) -> list[Part]:
    """An answer with <<1+1=2>> in its text, as parts: what stands before the last "=" is called, the rest came back."""
    parts: list[Part] = []
    for number, piece in enumerate(re.split(r"<<([^>]+)>>", answer)):
        if number % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
            continue
        call, equals, result = piece.rpartition("=")
        parts.append({"type": "python", "text": call if equals else piece})
        parts.append({"type": "python_output", "text": result if equals else ""})
    return parts


def conversation_of(row: Any) -> list[Message]:
    """The conversation in one row of a file: messages, a question with a worked answer, or a multiple choice."""
    if isinstance(row, list):
        return canonical(row)
    if not isinstance(row, dict):
        raise FathomError("it is not an object", FORM)
    if "messages" in row:
        return canonical(row["messages"])
    if not isinstance(row.get("question"), str) or "answer" not in row:
        found = ", ".join(map(repr, list(row)[:6])) or "nothing"
        raise FathomError(f"it holds {found}, but no messages and no question with an answer", FORM)
    if "choices" in row:
        return _choice(row["question"], row["choices"], row["answer"])
    if not isinstance(row["answer"], str):
        raise FathomError("its answer is not a text", "give a string")
    messages = [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": worked_answer(row["answer"])},
    ]
    return canonical(messages)


def _choice(question: str, choices: Any, answer: Any) -> list[Message]:
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise FathomError("its choices are not a list of 2 to 26 texts", "give the choices in the order of letters")
    if not all(isinstance(choice, str) for choice in choices):
        raise FathomError("a choice is not a text", "give strings")
    letters = LETTERS[: len(choices)]
    letter = letters[answer] if type(answer) is int and 0 <= answer < len(letters) else answer
    if not isinstance(letter, str) or len(letter) != 1 or letter not in letters:
        raise FathomError(f"its answer {answer!r} is none of {', '.join(letters)}", "name the right choice's letter")
    return canonical(
        [
            {"role": "user", "content": multiple_choice(question, choices)},
            {"role": "assistant", "content": letter},
        ]
    )
