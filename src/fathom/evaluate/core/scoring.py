"""A whole task: every item asked, answered and counted; and CORE, the mean of all tasks. REFERENCE 6.1"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fathom.evaluate.core.bundle import LANGUAGE_MODELING, Bundle, Task
from fathom.evaluate.core.items import Encodes, Item, PromptEncoder, chosen, is_right, make_item
from fathom.evaluate.core.prompts import prompts_for, shots_for, shuffled
from fathom.evaluate.scorer import RowScore, Scorer

ITEMS_AT_ONCE = 512  # tokenized and held while they are scored, those of like length together


@dataclass(frozen=True)
class TaskScore:
    """What a model scored on a task, or one rank's share of it: shares are joined by `+`."""

    label: str
    n: int
    right: int
    n_long: int
    """Items with a row beyond the model's context."""
    pool_short: int
    """By how many examples each prompt has fewer than the task asks for, since there were too few items."""
    seconds: float

    def __add__(self, other: TaskScore) -> TaskScore:
        return TaskScore(
            self.label,
            self.n + other.n,
            self.right + other.right,
            self.n_long + other.n_long,
            max(self.pool_short, other.pool_short),
            max(self.seconds, other.seconds),
        )

    @property
    def accuracy(self) -> float:
        return self.right / self.n if self.n else math.nan

    @property
    def standard_error(self) -> float:
        """Of the accuracy, were these items drawn from many like them; nan for fewer than two."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (self.n - 1)) if self.n > 1 else math.nan

    def centered(self, baseline: float) -> float:
        """The accuracy on a scale where guessing (`baseline` per cent) is 0 and all right is 1."""
        return (self.accuracy - 0.01 * baseline) / (1 - 0.01 * baseline)

    def centered_error(self, baseline: float) -> float:
        """The standard error on the same scale."""
        return self.standard_error / (1 - 0.01 * baseline)


def core_metric(centered: Mapping[str, float], errors: Mapping[str, float] | None = None) -> tuple[float, float]:
    """CORE, the plain mean of the centred accuracies of all tasks, and its standard error (nan without `errors`, the
    tasks' own on the same scale).
    """
    mean = sum(centered.values()) / len(centered)
    return mean, math.sqrt(sum(errors[label] ** 2 for label in centered)) / len(centered) if errors else math.nan


def score_bundle(
    scorer: Scorer,
    tokenizer: Encodes,
    bundle: Bundle,
    limit: int | None,
    on_task: Callable[[TaskScore], None] = lambda score: None,
    on_items: Callable[[str, int, int], None] = lambda label, done, right: None,
) -> dict[str, Any]:
    """All tasks one after the other -> {value, standard_error, n, tasks: {label: {accuracy, centered, n}}}, of which
    `value` is CORE.

    `on_task` is given each score, `on_items(label, done, right)` hears how a task gets on.
    """
    centered, errors, tasks, n = {}, {}, {}, 0
    for task in bundle.tasks:
        score = score_task(scorer, tokenizer, task, limit=limit, on_items=partial(on_items, task.label))
        centered[task.label] = score.centered(task.baseline)
        errors[task.label] = score.centered_error(task.baseline)
        tasks[task.label] = {"accuracy": score.accuracy, "centered": centered[task.label], "n": score.n}
        n += score.n
        on_task(score)
    core, error = core_metric(centered, errors)
    return {"value": core, "standard_error": error, "n": n, "tasks": tasks}


def score_task(
    scorer: Scorer,
    tokenizer: Encodes,
    task: Task,
    *,
    limit: int | None,
    share: tuple[int, int] = (0, 1),
    on_items: Callable[[int, int], None] | None = None,
    dump: Callable[[dict[str, Any]], None] | None = None,
) -> TaskScore:
    """Ask a model the items of a task: all, or the first `limit` of the shuffled list.

    `share` (rank, ranks) takes items rank, rank + ranks, …; `on_items(done, right)` hears how many were answered so
    far; `dump` is given what `as_dumped` says of every item, in order. Raises FathomError for a broken task file, or a
    tokenizer that cannot split a continuation from its context.
    """
    began = time.perf_counter()
    data = shuffled(task.items(), limit)
    encode = PromptEncoder(tokenizer, scorer.bos_id)
    mine = range(share[0], len(data), share[1])
    done = right = n_long = 0
    for first in range(0, len(mine), ITEMS_AT_ONCE):
        items = [_item(task, data, index, encode, scorer.max_tokens) for index in mine[first : first + ITEMS_AT_ONCE]]
        n_long += sum(item.n_tokens > scorer.seq_len for item in items)

        def count(at: int, scores: list[RowScore], items: list[Item] = items) -> None:
            nonlocal done, right
            done, right = done + 1, right + is_right(items[at], scores)
            if on_items is not None:
                on_items(done, right)

        found = scorer.score([item.group for item in items], count)
        if dump is not None:
            for item, scores in zip(items, found, strict=True):
                dump(as_dumped(task, item, scores))
    short = max(0, task.shots - (len(data) - 1))
    return TaskScore(task.label, done, right, n_long, short, time.perf_counter() - began)


def _item(task: Task, data: list[dict[str, Any]], index: int, encode: PromptEncoder, max_tokens: int | None) -> Item:
    item, examples = data[index], [data[shot] for shot in shots_for(index, len(data), task.shots)]
    prompts = prompts_for(task.kind, item, examples, task.delimiter)
    return make_item(task, index, item.get("gold", 0), prompts, encode, max_tokens)


def as_dumped(task: Task, item: Item, scores: list[RowScore]) -> dict[str, Any]:
    """An item as one line of a dump.

    task, index   the label in core.yaml, the place in the shuffled list
    prompts       the texts: one a choice or context; of language modelling that without the continuation, that with it
    tokens        rows of ids, BOS included, unpadded: one a prompt; of language modelling the second prompt's only
    start, end    of each row, the span: tokens start … end-1 count
    losses        of each row, nats of each token of the span
    predicted     the row of the least mean loss; of language modelling the likeliest tokens in place of the span's
    correct       whether that is the gold row, or the span itself
    """
    rows = item.group.rows
    return {
        "task": task.label,
        "index": item.index,
        "prompts": list(item.prompts),
        "tokens": [row.ids.tolist() for row in rows],
        "start": [row.start for row in rows],
        "end": [row.end for row in rows],
        "losses": [score.losses.tolist() for score in scores],
        "predicted": scores[0].likeliest.tolist() if task.kind == LANGUAGE_MODELING else chosen(scores),
        "correct": is_right(item, scores),
    }
