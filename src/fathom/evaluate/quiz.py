"""The quiz of the embedded corpus: questions that training never saw, answered greedily, calls really executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fathom.data.conversations import parse_reply, render_for_completion
from fathom.data.conversations.messages import parts_of
from fathom.data.primer import Question
from fathom.generate.engine import Engine
from fathom.generate.running import Request
from fathom.model.gpt import GPT
from fathom.tokenizer import Tokenizer

MAX_TOKENS = 64
LINES_READ = 3  # a calculation stands in the texts as question, call, result and reply, a line each


@dataclass(frozen=True)
class Graded:
    """A question, what a person reads of the reply, and whether it was right."""

    question: Question
    reply: str
    right: bool


def take_quiz(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], on_finished: Callable[[], None] | None = None
) -> list[Graded]:
    """Ask a model that can chat every question, greedily; `on_finished` is called after each."""
    prompts = [render_for_completion(question.messages, tokenizer) for question in questions]
    graded = []
    for question, ids in zip(questions, _answers(model, tokenizer, prompts, True, on_finished), strict=True):
        reply = "".join(part["text"] for part in parse_reply(ids, tokenizer) if part["type"] == "text")
        graded.append(Graded(question, reply, question.accept(reply)))
    return graded


def take_quiz_as_text(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question], on_finished: Callable[[], None] | None = None
) -> list[Graded]:
    """Let a base model go on after each question as it stands in its texts, a line for each turn, without a tool.

    Right is a reply within the first lines of what it writes.
    """
    prompts = []
    for question in questions:
        lines = [part["text"] for message in question.messages for part in parts_of(message["content"])]
        prompts.append([tokenizer.bos_id, *tokenizer.encode("\n".join(lines) + "\n")])
    graded = []
    for question, ids in zip(questions, _answers(model, tokenizer, prompts, False, on_finished), strict=True):
        lines = tokenizer.decode(ids).splitlines()[:LINES_READ]
        graded.append(Graded(question, "\n".join(lines), any(question.accept(line) for line in lines)))
    return graded


def _answers(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    tools: bool,
    on_finished: Callable[[], None] | None,
) -> list[tuple[int, ...]]:
    engine = Engine(model, tokenizer, max_batch=64)  # as fast as twice as many, and heard of twice as often
    requests = [Request(prompt=tuple(prompt), max_tokens=MAX_TOKENS, tools=tools) for prompt in prompts]
    return [completion.ids for completion in engine.generate(requests, on_finished)]


def accuracy(graded: Sequence[Graded]) -> float:
    return sum(one.right for one in graded) / len(graded)


def by_kind(graded: Sequence[Graded]) -> dict[str, float]:
    """Share of right answers of each kind, the weakest first."""
    kinds: dict[str, list[Graded]] = {}
    for one in graded:
        kinds.setdefault(one.question.kind, []).append(one)
    return dict(sorted(((kind, accuracy(some)) for kind, some in kinds.items()), key=lambda pair: pair[1]))
