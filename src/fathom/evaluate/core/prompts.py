"""From the items of a task to what a model is asked: which, with which examples before them, in which words.

Everything here is REFERENCE 6.1 to the letter, for a score is only worth something if others get the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fathom.evaluate.core.bundle import LANGUAGE_MODELING, MULTIPLE_CHOICE, SCHEMA

SHUFFLE_SEED, SHOTS_SEED = 1337, 1234

T = TypeVar("T")


def shuffled(items: Sequence[T], limit: int | None) -> list[T]:
    """The items in the order of the evaluation, the first `limit` of them (None for all)."""
    order = list(items)
    random.Random(SHUFFLE_SEED).shuffle(order)
    return order[:limit]


def shots_for(index: int, n_items: int, shots: int) -> list[int]:
    """Which of `n_items` stand as examples before item `index`: never itself; all others where they are too few."""
    others = range(n_items - 1)  # as if `index` were left out: every number from there on stands for the next
    picked = random.Random(SHOTS_SEED + index).sample(others, min(shots, len(others)))
    return [other + (other >= index) for other in picked]


def prompts_for(kind: str, item: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], delimiter: str) -> list[str]:
    """The prompts of one item. Multiple choice: one a choice. Schema: one a context. Language modelling: two, without
    the continuation and with it.
    """
    return _PROMPTS[kind](item, examples, delimiter)


def _multiple_choice(item: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], delimiter: str) -> list[str]:
    before = "".join(f"{one['query']}{delimiter}{one['choices'][one['gold']]}\n\n" for one in examples)
    return [f"{before}{item['query']}{delimiter}{choice}" for choice in item["choices"]]


def _schema(item: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], delimiter: str) -> list[str]:
    def words(one: Mapping[str, Any], option: int) -> str:
        return f"{one['context_options'][option]}{delimiter}{one['continuation']}"

    before = "".join(f"{words(one, one['gold'])}\n\n" for one in examples)
    return [before + words(item, option) for option in range(len(item["context_options"]))]


def _language_modeling(item: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], delimiter: str) -> list[str]:
    before = "".join(f"{one['context'].strip()}{delimiter}{one['continuation']}\n\n" for one in examples)
    without = f"{before}{item['context'].strip()}{delimiter}"
    return [without.strip(), without + item["continuation"]]


_PROMPTS: dict[str, Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]], str], list[str]]] = {
    MULTIPLE_CHOICE: _multiple_choice,
    SCHEMA: _schema,
    LANGUAGE_MODELING: _language_modeling,
}
