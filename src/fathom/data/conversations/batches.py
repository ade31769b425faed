"""Conversations -> rows -> batches for fine-tuning: a pure function of the data, the seed, the step and the row.

A row holds seq_len + 1 tokens: whole conversations, one after another, and BOS to its end. Every row teaches
something: a conversation longer than a row is cut with its mask, and dropped when nothing to learn is left in it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fathom.errors import FathomError

IGNORE = -1
BUFFER = 100

Ints = NDArray[np.int64]


class _Rows(NamedTuple):
    """The rows of one epoch: row r holds conversations[starts[r] : starts[r + 1]], in this order."""

    conversations: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1


def pack_rows(lengths: Sequence[int], row_tokens: int, buffer: int = BUFFER) -> Iterator[list[int]]:
    """Indices of the conversations in each row: of the next `buffer`, always the longest that still fits.

    Of equally long ones the first comes first. Raises ValueError for a length that fits no row.
    """
    if len(lengths) and not 0 < min(lengths) <= max(lengths) <= row_tokens:
        raise ValueError(f"lengths from {min(lengths)} to {max(lengths)} do not fit rows of {row_tokens}")
    waiting: list[tuple[int, int]] = []  # (length, -index), sorted: the last that fits is the longest, then the first
    following, room, row = 0, row_tokens, list[int]()
    while waiting or following < len(lengths):
        while len(waiting) < buffer and following < len(lengths):
            insort(waiting, (lengths[following], -following))
            following += 1
        at = bisect_right(waiting, (room, 0)) - 1
        if at < 0:
            yield row
            room, row = row_tokens, []
            continue
        length, index = waiting.pop(at)
        row.append(-index)
        room -= length
    if row:
        yield row


class SftBatches:
    """Batches of packed conversations, epoch after epoch, each epoch in an order of its own.

    Rows go on from one epoch to the next without a gap, so every step is full. The same arguments give the same
    batches, whoever asks and in whatever order.
    """

    def __init__(
        self, conversations: Iterable[tuple[Sequence[int], Sequence[int]]], seq_len: int, rows_per_step: int, seed: int
    ) -> None:
        """`conversations`: ids and mask of each, as `conversations.render` gives them; gone through once."""
        if seq_len < 1 or rows_per_step < 1:
            raise ValueError(f"seq_len {seq_len} and rows_per_step {rows_per_step} must be positive")
        self.seq_len, self.rows_per_step, self.seed = seq_len, rows_per_step, seed
        self.dropped = self.cut = 0
        self._ids, self._trained, self._bos, self._lengths = self._gather(conversations)
        self._offsets = np.concatenate([[0], np.cumsum(self._lengths)])
        self._epochs: list[_Rows] = []
        self._epoch_ends = np.zeros(0, np.int64)

    def _gather(
        self, conversations: Iterable[tuple[Sequence[int], Sequence[int]]]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], int, Ints]:
        """Everything that is kept, end to end: tokens, whether each is trained, the BOS token, and the lengths."""
        row_tokens = self.seq_len + 1
        ids: list[NDArray[np.int32]] = []
        trained: list[NDArray[np.bool_]] = []
        total = 0
        for total, (tokens, mask) in enumerate(conversations, 1):
            if len(tokens) != len(mask):
                raise ValueError(f"conversation {total} has {len(tokens)} tokens and a mask of {len(mask)}")
            kept = np.asarray(mask[:row_tokens], np.bool_)
            if not kept[1:].any():  # nothing comes before the first token to predict it from
                self.dropped += 1
                continue
            self.cut += len(tokens) > row_tokens
            ids.append(np.asarray(tokens[:row_tokens], np.int32))
            trained.append(kept)
        if not ids:
            raise FathomError(
                f"none of the {total} conversations has anything to learn within {self.seq_len} tokens",
                "give conversations with answers of the assistant, or a longer --seq-len",
            )
        lengths = np.array([len(one) for one in ids], np.int64)
        return np.concatenate(ids), np.concatenate(trained), int(ids[0][0]), lengths

    @property
    def n_conversation(self) -> int:
        """How many are trained on, without those that were dropped."""
        return len(self._lengths)

    @property
    def digest(self) -> str:
        """Of all that decides the batches, but for the seed: resuming with another digest would be another run."""
        content = hashlib.sha256(f"{self.seq_len} {self.rows_per_step} {BUFFER} {self._bos}".encode())
        for array in (self._ids, self._trained, self._lengths):
            content.update(array.tobytes())
        return content.hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every conversation was seen; the last of them ends with rows of the second epoch."""
        return -(-len(self._epoch(0)) // self.rows_per_step)

    def epoch_of(self, step: int) -> float:
        """How many epochs lie before this step, as a fraction of rows."""
        epoch, row = self._locate(step * self.rows_per_step)
        return epoch + row / len(self._epoch(epoch))

    def batch(self, step: int, first_row: int, last_row: int) -> tuple[Ints, Ints]:
        """Rows first_row … last_row − 1 of a step: inputs and targets, (rows, seq_len) int64, IGNORE where untrained.

        Every row has at least one target.
        """
        if step < 0 or not 0 <= first_row < last_row <= self.rows_per_step:
            raise IndexError(f"step {step}, rows {first_row} to {last_row}: a step has {self.rows_per_step} rows")
        n_row = last_row - first_row
        tokens = np.full((n_row, self.seq_len + 1), self._bos, np.int64)
        trained = np.zeros((n_row, self.seq_len + 1), np.bool_)
        for row in range(n_row):
            at = 0
            for conversation in self._row(step * self.rows_per_step + first_row + row):
                first, length = self._offsets[conversation], self._lengths[conversation]
                tokens[row, at : at + length] = self._ids[first : first + length]
                trained[row, at : at + length] = self._trained[first : first + length]
                at += length
        return tokens[:, :-1].copy(), np.where(trained[:, 1:], tokens[:, 1:], IGNORE)

    def _row(self, number: int) -> Ints:
        """Conversations of a row, counted from the beginning of training."""
        epoch, row = self._locate(number)
        rows = self._epoch(epoch)
        return rows.conversations[rows.starts[row] : rows.starts[row + 1]]

    def _locate(self, number: int) -> tuple[int, int]:
        while not len(self._epoch_ends) or number >= self._epoch_ends[-1]:
            self._epoch(len(self._epochs))
        epoch = int(np.searchsorted(self._epoch_ends, number, side="right"))
        return epoch, number - (int(self._epoch_ends[epoch - 1]) if epoch else 0)

    def _epoch(self, epoch: int) -> _Rows:
        while len(self._epochs) <= epoch:
            order = np.random.default_rng((self.seed, len(self._epochs))).permutation(self.n_conversation)
            rows = list(pack_rows(self._lengths[order].tolist(), self.seq_len + 1))
            flat = np.fromiter((index for row in rows for index in row), np.int64, self.n_conversation)
            starts = np.cumsum([0] + [len(row) for row in rows])
            self._epochs.append(_Rows(order[flat], starts))
            self._epoch_ends = np.cumsum([len(rows) for rows in self._epochs])
        return self._epochs[epoch]
