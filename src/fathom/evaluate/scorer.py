"""What CORE, the letters of a multiple choice and lm-eval ask of any model: how well it foretells part of a row.

Row      token ids, and which of them count          RowScore   their losses, and what was likeliest there
Group    rows that begin alike (an item's choices)   Scorer     scores groups, in batches as it sees fit
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fathom.evaluate.tree import MASK_NUMBERS, Tree, TreeContext, grow
from fathom.model.gpt import GPT, narrowed
from fathom.model.loss import chunk_rows

# Tokens that pass through the network together, padding counted; a row that is longer passes alone.
CPU_BATCH_TOKENS = 2_048  # whose numbers stay in a cache
GPU_BATCH_TOKENS = 32_768


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


class ModelScorer:
    """Our network as a `Scorer`, in float32 within rounding of the plain forward pass on every row.

    Rows beyond the context are scored whole: the windows are those of its shape, the rotary angles go on. Memory is
    bounded by `batch_tokens` (by default for the device), or by the longest row where that is longer.
    """

    def __init__(self, model: GPT, bos_id: int, batch_tokens: int | None = None) -> None:
        self._model = model
        self.bos_id, self.seq_len = bos_id, model.shape.seq_len
        self.max_tokens: int | None = None
        self._batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if model.device.type == "cpu" else GPU_BATCH_TOKENS)
        # Each layer looks back one window, and the token before the first of all that was smeared into it.
        self._reach = sum(model.shape.windows) + 1

    @torch.inference_mode()
    def score(self, groups: Sequence[Group], on_scored: OnScored | None = None) -> list[list[RowScore]]:
        """As `Scorer.score` says; the longest groups come first."""
        nothing = RowScore(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64))
        found = [[nothing] * len(group.rows) for group in groups]
        trees = [(at, tree) for at, group in enumerate(groups) for tree in grow(group, self._reach)]
        left = Counter(at for at, _ in trees)
        if on_scored is not None:
            for at in range(len(groups)):
                if not left[at]:
                    on_scored(at, found[at])
        for batch in self._batches(trees):
            for (at, tree), scores in zip(batch, self._score(batch, groups), strict=True):
                for number, score in zip(tree.rows, scores, strict=True):
                    found[at][number] = score
                left[at] -= 1
                if not left[at] and on_scored is not None:
                    on_scored(at, found[at])
        return found

    def _batches(self, trees: Sequence[tuple[int, Tree]]) -> Iterator[list[tuple[int, Tree]]]:
        """Trees of about the same width together, the widest first."""
        batch: list[tuple[int, Tree]] = []
        width = trunk = 0
        for at, tree in sorted(trees, key=lambda pair: -pair[1].width):
            count, least = len(batch) + 1, min(trunk, tree.trunk)
            fits = count * width <= self._batch_tokens and count * width * (width - least) <= MASK_NUMBERS
            if batch and not (fits and width - tree.width <= max(16, width // 8)):
                yield batch
                batch = []
            if not batch:
                width, least = tree.width, tree.trunk
            trunk = least
            batch.append((at, tree))
        if batch:
            yield batch

    def _score(self, batch: Sequence[tuple[int, Tree]], groups: Sequence[Group]) -> Iterator[list[RowScore]]:
        """For each tree, which stands beside the number of its group, the scores of its rows."""
        context = TreeContext([tree for _, tree in batch], self._model.shape.n_layer, self._model.device)
        hidden = self._model(context.ids, context)
        if context.wanted is None:
            hidden = narrowed(hidden, context.columns)
        counts = torch.tensor([sum(map(len, tree.wants)) for _, tree in batch], device=hidden.device)
        read = torch.arange(hidden.shape[1], device=hidden.device) < counts[:, None]  # (B, W), the rest is padding
        targets = [groups[at].rows[number].targets for at, tree in batch for number in tree.rows]
        ids = torch.from_numpy(np.concatenate(targets)).to(hidden.device)
        ends = np.cumsum([len(part) for part in targets])[:-1]
        losses, likeliest = (np.split(values, ends) for values in self._read(hidden[read], ids))
        scores = map(RowScore, losses, likeliest)
        for _, tree in batch:
            yield [next(scores) for _ in tree.rows]

    def _read(self, hidden: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """hidden (N, C) and targets (N,) -> losses (N,) float32 and the likeliest tokens (N,) int64."""
        losses, likeliest = [], []
        rows = chunk_rows(self._model.shape.vocab_size, hidden.device.type)
        for part, ids in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = self._model.logits(part)
            losses.append(logits.logsumexp(dim=1) - logits.gather(1, ids[:, None])[:, 0])
            likeliest.append(logits.argmax(dim=1))
        return torch.cat(losses).float().cpu().numpy(), torch.cat(likeliest).cpu().numpy()
