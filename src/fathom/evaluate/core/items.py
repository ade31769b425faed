"""One item as rows of tokens with their spans, and what a model's losses make of it. REFERENCE 6.1"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from fathom.errors import FathomError
from fathom.evaluate.core.bundle import LANGUAGE_MODELING, SCHEMA, Task
from fathom.evaluate.scorer import Group, Row, RowScore, cropped
from fathom.evaluate.tree import shared_start
from fathom.tokenizer import PATTERN

PIECES_KEPT = 32_768  # an example of a few hundred tokens each: some ten megabytes


class Encodes(Protocol):
    """All that is asked of a tokenizer, ours or a foreign one."""

    def encode(self, text: str) -> list[int]: ...


class PromptEncoder:
    """Prompts to ids, BOS first. What stands between blank lines is encoded once: examples recur in many prompts."""

    def __init__(self, tokenizer: Encodes, bos_id: int) -> None:
        self._tokenizer, self._bos = tokenizer, np.array([bos_id], dtype=np.int64)
        # No word of our pattern goes on after a line's end with anything but white space: cut there, text becomes the
        # same ids. Of other patterns nothing is known.
        self._cut = re.compile(r"(?<=\n\n)(?=\S)") if getattr(tokenizer, "pattern", None) == PATTERN else None
        self._ids = lru_cache(maxsize=PIECES_KEPT)(self._encode)

    def _encode(self, piece: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(piece), dtype=np.int64)

    def __call__(self, prompt: str) -> np.ndarray:
        """(n,) int64"""
        pieces = [prompt] if self._cut is None else self._cut.split(prompt)
        return np.concatenate([self._bos, *map(self._ids, pieces)])


@dataclass(frozen=True, eq=False)
class Item:
    """What is asked: `group` holds a row for each prompt, of language modelling only the one with the continuation."""

    index: int
    kind: str
    gold: int
    prompts: tuple[str, ...]
    group: Group
    n_tokens: int
    """Of the longest row, before any was cropped."""


def as_rows(kind: str, rows: Sequence[np.ndarray]) -> tuple[Row, ...]:
    """The rows to score and their spans, from the ids of all prompts of an item.

    Multiple choice: from where the rows begin to differ to the end of each. Schema: the end that all share. Language
    modelling: what the row with the continuation has more than the one without, which must be its beginning
    (ValueError).
    """
    if kind == LANGUAGE_MODELING:
        without, whole = rows
        if len(without) >= len(whole) or shared_start(rows) < len(without):
            raise ValueError("the tokens without the continuation are not the beginning of those with it")
        return (Row(whole, len(without), len(whole)),)
    if kind == SCHEMA:
        alike = shared_start([row[::-1] for row in rows])
        return tuple(Row(row, len(row) - alike, len(row)) for row in rows)
    alike = shared_start(rows)
    return tuple(Row(row, alike, len(row)) for row in rows)


def make_item(
    task: Task, index: int, gold: int, prompts: Sequence[str], encode: PromptEncoder, max_tokens: int | None
) -> Item:
    """An item ready to be scored; rows beyond `max_tokens` keep their last tokens. FathomError names what cannot be."""
    try:
        rows = as_rows(task.kind, [encode(prompt) for prompt in prompts])
    except ValueError as error:
        raise FathomError(f"item {index} of {task.label}: {error}", "CORE needs another tokenizer here") from None
    longest = max(len(row.ids) for row in rows)
    return Item(index, task.kind, gold, tuple(prompts), Group(tuple(cropped(row, max_tokens) for row in rows)), longest)


def chosen(scores: Sequence[RowScore]) -> int:
    """The row with the least mean loss, the first of several.

    Nothing is less than nan, the mean of an empty span, and nan is less than nothing: as the reference compares.
    """
    best = 0
    for at, score in enumerate(scores):
        if score.mean < scores[best].mean:
            best = at
    return best


def is_right(item: Item, scores: Sequence[RowScore]) -> bool:
    """Multiple choice and schema: the gold row was chosen. Language modelling: every token was foretold."""
    if item.kind == LANGUAGE_MODELING:
        return scores[0].is_greedy(item.group.rows[0])
    return chosen(scores) == item.gold
