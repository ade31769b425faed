"""Asks a model the questions of a chat task and counts what is right. REFERENCE 6.2"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fathom.data.conversations import parse_reply, render_for_completion
from fathom.data.conversations.messages import text_of
from fathom.errors import FathomError
from fathom.evaluate.chat.example import ChatTask, Grade, Tally
from fathom.evaluate.scorer import Group, ModelScorer, Row, RowScore
from fathom.generate.engine import Engine, Request
from fathom.generate.running import Completion
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.tokenizer import Tokenizer

CACHE_BYTES = 4e9
MOST_AT_ONCE = 256  # answers
CHOICES_AT_ONCE = 512  # tokenized and held while they are scored, those of like length together

OnItems = Callable[[int, int], None]
Dump = Callable[[dict[str, Any]], None]
Judged = tuple[int, Tally, str | None]  # index, what it counts for, the reply


def score_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: ChatTask,
    *,
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
    on_items: OnItems = lambda done, right: None,
    dump: Dump | None = None,
) -> Tally:
    """The first `limit` examples, or of them those of one rank: `share` is (rank, ranks), items rank, rank + ranks, ….

    `on_items(done, right)` is told as answers are judged, and while they are written. `dump` gets an object for each
    item: task, index, tokens of the prompt, reply (None where the prompt leaves no room for one), correct.
    """
    rank, world = share
    mine = range(len(task.examples))[:limit][rank::world]
    total = Tally()

    def tell() -> None:
        on_items(total.n, total.right)

    def count(prompts: Mapping[int, list[int]], judged: Judged) -> None:
        nonlocal total
        index, tally, reply = judged
        total += tally
        tell()
        if dump is not None:
            said = {"tokens": prompts[index], "reply": reply, "correct": bool(tally.right)}
            dump({"task": task.name, "index": index} | said)

    if task.grade is not None:
        prompts = _prompts(task, mine, tokenizer)
        for judged in _written(model, tokenizer, task, task.grade, prompts, tell):
            count(prompts, judged)
        return total
    for first in range(0, len(mine), CHOICES_AT_ONCE):
        prompts = _prompts(task, mine[first : first + CHOICES_AT_ONCE], tokenizer)
        _choose(model, tokenizer, task, prompts, partial(count, prompts))
    return total


def _prompts(task: ChatTask, indices: Sequence[int], tokenizer: Tokenizer) -> dict[int, list[int]]:
    return {i: render_for_completion(task.examples[i].messages, tokenizer) for i in indices}


def _choose(
    model: GPT,
    tokenizer: Tokenizer,
    task: ChatTask,
    prompts: Mapping[int, list[int]],
    count: Callable[[Judged], None],
) -> None:
    """The likeliest of the letters' tokens after each prompt, the first of equal ones."""
    indices = list(prompts)
    groups = [_group(prompts[i], task.examples[i].letters, tokenizer) for i in indices]

    def on_scored(at: int, scores: list[RowScore]) -> None:
        example, losses = task.examples[indices[at]], [float(score.losses[0]) for score in scores]
        if not all(map(math.isfinite, losses)):
            raise _no_numbers()
        said = example.letters[losses.index(min(losses))]
        is_long = len(prompts[indices[at]]) > model.shape.seq_len
        count((indices[at], Tally(1, int(said == example.answer), n_long=int(is_long)), said))

    ModelScorer(model, tokenizer.bos_id).score(groups, on_scored)


def _group(prompt: list[int], letters: Sequence[str], tokenizer: Tokenizer) -> Group:
    """A row for each letter, of which only the letter counts: what foretells it is the prompt's last token."""
    rows = [np.array([*prompt, tokenizer.encode(letter)[0]], dtype=np.int64) for letter in letters]
    return Group(tuple(Row(row, len(prompt), len(row)) for row in rows))


def _written(
    model: GPT,
    tokenizer: Tokenizer,
    task: ChatTask,
    grade: Grade,
    prompts: Mapping[int, list[int]],
    on_step: Callable[[], None],
) -> Iterator[Judged]:
    """Greedy answers with the calculator, many at once, judged while others are still being written."""
    for index in [i for i, prompt in prompts.items() if len(prompt) >= model.shape.seq_len]:
        yield index, Tally(1, n_long=1), None
    fitting = [i for i, prompt in prompts.items() if len(prompt) < model.shape.seq_len]
    requests = [Request(tuple(prompts[i]), max_tokens=task.max_tokens) for i in fitting]
    engine = Engine(model, tokenizer, max_batch=_at_once(model.shape, model.dtype, task.max_tokens))
    waiting: list[tuple[int, Tally, str, Future[bool]]] = []
    pool = ThreadPoolExecutor(task.graders)
    try:
        for place, completion in engine.completions(requests, on_step):
            if completion.finish_reason == "error":
                raise _no_numbers()
            cut = completion.finish_reason == "length" and len(completion.ids) < task.max_tokens
            reply = _read(completion, tokenizer, task.reads_marks)
            index = fitting[place]
            grading = pool.submit(grade, reply, task.examples[index])
            waiting.append((index, Tally(1, n_cut=int(cut)), reply, grading))
            while waiting and (waiting[0][3].done() or task.graders == 1):
                yield _settled(*waiting.pop(0))
        for one in waiting:
            yield _settled(*one)
    finally:
        pool.shutdown(cancel_futures=True)


def _settled(index: int, tally: Tally, reply: str, grading: Future[bool]) -> Judged:
    return index, replace(tally, right=int(grading.result())), reply


def _read(completion: Completion, tokenizer: Tokenizer, with_marks: bool) -> str:
    """All that was said, marks by their names; or what a person reads."""
    return tokenizer.decode(completion.ids) if with_marks else text_of(parse_reply(completion.ids, tokenizer))


def _at_once(shape: Shape, dtype: torch.dtype, max_tokens: int) -> int:
    """Answers that are written together, so that the keys and values of all fit CACHE_BYTES."""
    tokens = min(2 * max_tokens, shape.seq_len)
    each = tokens * shape.n_layer * 2 * shape.d_kv * dtype.itemsize
    return int(min(MOST_AT_ONCE, max(1, CACHE_BYTES // each)))


def _no_numbers() -> FathomError:
    return FathomError(
        "the model computes no numbers (its logits are not finite)", "evaluate an earlier checkpoint with --step"
    )
