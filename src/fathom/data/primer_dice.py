"""Chance for the primer: the same throws on every version of Python, and a hash that says what is held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_SHARE = 0.15


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@cache
def is_held_out(combination: str) -> bool:
    """Whether a combination belongs to the quiz alone: a stable hash decides, never the seed, so that
    documents, conversations and quiz agree whatever seeds made them."""
    return _digest(f"held out: {combination}") < HELD_OUT_SHARE * 2**64


class Dice:
    """Throws that follow from a seed and a purpose.

    Only `random.Random.random` is used, whose sequence Python promises to keep; its `choice` and `shuffle` are
    not under that promise.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self.random = random.Random(_digest(f"{seed} {purpose}")).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = self.below(last + 1)
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed

    def some(self, items: Sequence[T], n: int) -> list[T]:
        """n different items, in random order."""
        return self.shuffled(items)[:n]

    def decks(self, items: Sequence[T]) -> Iterator[T]:
        """All items in random order, then all again, forever: even counts with a random order."""
        while True:
            yield from self.shuffled(items)
