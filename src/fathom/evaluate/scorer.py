"""What CORE, the letters of a multiple choice and lm-eval ask of any model: how well it foretells part of a row.

Row      token ids, and which of them count          RowScore   their losses, and what was likeliest there
Group    rows that begin alike (an item's choices)   Scorer     scores groups, in batches as it sees fit
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Row:
    """A text as the model reads it, BOS first, unpadded: `ids` (n,) int64, of which ids[start:end] are foretold.

    What foretells token t is position t - 1, so nothing foretells token 0: a span from 0 counts no token at all, as
    does an empty one. Tokens from `end` on do not matter.
    """

    ids: np.ndarray
    start: int
    end: int

    @property
    def targets(self) -> np.ndarray:
        """(n,) the tokens that count: those of the span, none where it begins at 0."""
        return self.ids[self.start : self.end] if self.start > 0 else self.ids[:0]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one item. Those that begin with the same tokens share the work for them."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class RowScore:
    """What a model made of a row's targets, at positions start-1 … end-2.

    `losses` (n,) float32, nats: cross-entropy of each; `likeliest` (n,) int64: the most likely token in its place (the
    first of several).
    """

    losses: np.ndarray
    likeliest: np.ndarray

    @property
    def mean(self) -> float:
        """Mean loss, nan where no token counts."""
        return float(self.losses.mean(dtype=np.float64)) if len(self.losses) else float("nan")

    def is_greedy(self, row: Row) -> bool:
        """Whether greedy decoding would have said exactly the targets of `row` (true where there are none)."""
        return bool(np.array_equal(self.likeliest, row.targets))


OnScored = Callable[[int, list[RowScore]], None]


class Scorer(Protocol):
    """A model that can be evaluated: our network (`ModelScorer`) or a foreign one."""

    bos_id: int
    """What stands before every text."""
    seq_len: int
    """The context it was made for: longer rows are counted, not refused."""
    max_tokens: int | None
    """Most tokens of a row; None where there is no limit. Whoever makes the rows crops them to it (`cropped`)."""

    def score(self, groups: Sequence[Group], on_scored: OnScored | None = None) -> list[list[RowScore]]:
        """A score for each row of each group, in the order given.

        `on_scored(index, scores)` is called once for each group as soon as it is done, in any order.
        """
        ...


def cropped(row: Row, max_tokens: int | None) -> Row:
    """The last `max_tokens` tokens of a row that is longer, its span moved with them. REFERENCE 6.1"""
    cut = 0 if max_tokens is None else len(row.ids) - max_tokens
    if cut <= 0:
        return row
    return Row(row.ids[cut:], max(row.start - cut, 1), row.end - cut)
