"""The quiz of the embedded corpus: questions that training never saw, answered greedily, calls really executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fathom.data.conversations import parse_reply, render_for_completion
from fathom.data.primer import Question
from fathom.generate.engine import Engine
from fathom.generate.running import Request
from fathom.model.gpt import GPT
from fathom.tokenizer import Tokenizer

MAX_TOKENS = 64


@dataclass(frozen=True)
class Graded:
    """A question, what a person reads of the reply, and whether it was right."""

    question: Question
    reply: str
    right: bool


def take_quiz(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], on_finished: Callable[[], None] | None = None
) -> list[Graded]:
    """Answer every question greedily; `on_finished` is called after each."""
    engine = Engine(model, tokenizer, max_batch=128)
    requests = [
        Request(prompt=tuple(render_for_completion(question.messages, tokenizer)), max_tokens=MAX_TOKENS)
        for question in questions
    ]
    graded = []
    for question, completion in zip(questions, engine.generate(requests, on_finished), strict=True):
        parts = parse_reply(completion.ids, tokenizer)
        reply = "".join(part["text"] for part in parts if part["type"] == "text")
        graded.append(Graded(question, reply, question.accept(reply)))
    return graded


def accuracy(graded: Sequence[Graded]) -> float:
    return sum(one.right for one in graded) / len(graded)


def by_kind(graded: Sequence[Graded]) -> dict[str, float]:
    """Share of right answers of each kind, the weakest first."""
    kinds: dict[str, list[Graded]] = {}
    for one in graded:
        kinds.setdefault(one.question.kind, []).append(one)
    return dict(sorted(((kind, accuracy(some)) for kind, some in kinds.items()), key=lambda pair: pair[1]))
