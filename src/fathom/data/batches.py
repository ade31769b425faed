"""(shards, seed, step) -> a batch: a pure function, whatever the number of ranks, the device batch or the past.

    lengths ──packing──▶ the endless stream of rows ──row = step · rows_per_step + r──▶ segments ──store──▶ tokens

Row r of step s is row s · rows_per_step + r of the stream. Epoch 0 of the stream packs the documents in the corpus's
order, every later one in an order of its own, named by (seed, epoch). Best-fit rows come as they are packed. Lossless
rows that stand side by side often come from one long document, so they are shuffled within windows of WINDOW rows by
(seed, epoch, window). Nothing else decides a batch, and nothing but the row number is needed to go on.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Literal, NamedTuple, Protocol

import numpy as np

from fathom.data.packing import Packing, Rows, pack
from fathom.data.permutation import permuted
from fathom.data.prefetch import Prefetcher as Prefetcher
from fathom.errors import FathomError
from fathom.screen import say

Split = Literal["train", "validation"]
APART = "documents apart"
"""Of which rows are measured, where a run's documents do not see each other."""


def rows_measured(packing: Packing, apart: bool) -> str:
    """What rows a validation was of, as records name them: "lossless", "best-fit, documents apart"."""
    return f"{packing}, {APART}" if apart else packing


WINDOW = 8192
_WINDOWS_KEPT = 3
_DOCUMENTS_TO_JUDGE_BY = 250_000
_SAY_EVERY_S = 2.0


PURPOSE: dict[Split, str] = {"train": "train on", "validation": "validate with"}


class Tokens(Protocol):
    """What is asked of a token store."""

    @property
    def digest(self) -> str: ...
    def lengths(self, split: Split) -> np.ndarray: ...
    def fill(self, split: Split, segments: np.ndarray, out: np.ndarray) -> None: ...


class Batch(NamedTuple):
    inputs: np.ndarray  # (rows, seq_len) int64
    targets: np.ndarray  # (rows, seq_len) int64, the inputs one token later


class _Progress(NamedTuple):
    """How far into which epoch the rows of one window go."""

    first_row: int
    end_row: int
    epoch: int
    documents_before: int
    documents: int


@dataclass(frozen=True)
class _Window:
    """Rows side by side in the stream, as packed, and the order in which they are handed out."""

    first_row: int
    rows: Rows
    order: np.ndarray | None

    @property
    def end_row(self) -> int:
        return self.first_row + len(self.rows.ends)

    def segments(self, first_row: int, last_row: int) -> np.ndarray:
        """The segments (n, 3) of rows [first_row, last_row), which lie in this window, one row after another."""
        places = np.arange(first_row - self.first_row, last_row - self.first_row)
        if self.order is not None:
            places = self.order[places]
        ends = self.rows.ends[places]
        begins = np.where(places > 0, self.rows.ends[places - 1], 0)
        counts = ends - begins
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        segments: np.ndarray = self.rows.segments[np.repeat(begins, counts) + offsets]
        return segments


class RowPlan:
    """Which pieces of which documents make up each row of an endless stream of epochs.

    Rows are packed only as they are asked for; rows asked for in order cost about a microsecond a document, and a
    jump costs the packing of what lies between (in lossless packing, only of its own epoch). Memory is a few windows,
    whatever the number of documents. With `cycle` documents are packed as one endless list without ends of epochs, as
    the reference reads them. Safe to ask from several threads.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        row_tokens: int,
        packing: Packing,
        *,
        seed: int = 0,
        cycle: bool = False,
        window: int = WINDOW,
        of: str = "documents",
    ) -> None:
        self._lengths, self._row_tokens, self._packing = lengths, row_tokens, packing
        self._seed, self._cycle, self._window = seed, cycle, window
        self.n_tokens = int(lengths.sum())
        if self.n_tokens < row_tokens:
            raise FathomError(
                f"the {of} hold {self.n_tokens:,} tokens altogether, fewer than the {row_tokens:,} of one row",
                "add text there or choose a smaller --seq-len",
            )
        self._lock = Lock()
        self._kept: list[_Window] = []
        self._epoch_starts = [0]
        self._progress: list[_Progress] = []
        self._coming = self._windows(0, 0)
        self._next_row = 0

    @property
    def rows_per_epoch(self) -> int | None:
        """Rows of every epoch in lossless packing; best-fit packing leaves another number in each."""
        return self.n_tokens // self._row_tokens if self._packing == "lossless" else None

    def segments(self, first_row: int, last_row: int) -> np.ndarray:
        """The segments (n, 3) int64 of rows [first_row, last_row) of the stream, one row after another."""
        parts = []
        with self._lock:
            while first_row < last_row:
                window = self._window_with(first_row)
                until = min(last_row, window.end_row)
                parts.append(window.segments(first_row, until))
                first_row = until
        return np.concatenate(parts) if parts else np.empty((0, 3), dtype=np.int64)

    def epoch_of(self, row: int) -> float:
        """How many epochs lie before this row: 1.25 is a quarter through the second."""
        if self.rows_per_epoch is not None:
            return row / self.rows_per_epoch
        with self._lock:
            if not self._progress or row >= self._progress[-1].end_row:
                self._window_with(row)
            at = self._progress[bisect_right(self._progress, row, key=lambda window: window.first_row) - 1]
        documents = at.documents_before + at.documents * (row - at.first_row) / (at.end_row - at.first_row)
        return at.epoch + documents / len(self._lengths)

    @cached_property
    def share_dropped(self) -> float:
        """The share of an epoch's tokens that stand in no row; judged by the first 250,000 documents of many."""
        lengths = self._lengths[:_DOCUMENTS_TO_JUDGE_BY]
        if self.rows_per_epoch is not None:
            return 1 - self.rows_per_epoch * self._row_tokens / self.n_tokens
        n_rows = sum(
            len(rows.ends) for rows in pack(lengths.__getitem__, len(lengths), self._row_tokens, self._packing)
        )
        return 1 - n_rows * self._row_tokens / int(lengths.sum())

    def _window_with(self, row: int) -> _Window:
        for window in self._kept:
            if window.first_row <= row < window.end_row:
                return window
        self._start_near(row)
        said = time.monotonic()
        while True:
            window = next(self._coming)
            self._next_row = window.end_row
            if row < window.end_row:
                break
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"Packing on to row {row:,}: {window.end_row:,} so far")
        self._kept = [*self._kept[-_WINDOWS_KEPT + 1 :], window]
        return window

    def _start_near(self, row: int) -> None:
        """Leave `_coming` at the latest place before `row` from which packing can go on."""
        per_epoch = self.rows_per_epoch
        if per_epoch is not None:
            epoch = row // per_epoch
            start = epoch * per_epoch
        else:
            epoch = max(i for i, first in enumerate(self._epoch_starts) if first <= row)
            start = self._epoch_starts[epoch]
        if not start <= self._next_row <= row:
            self._coming, self._next_row = self._windows(epoch, start), start

    def _windows(self, epoch: int, first_row: int) -> Iterator[_Window]:
        while True:
            documents = 0
            for number, rows in enumerate(_in_windows(self._packed(epoch), self._window)):
                window = _Window(first_row, rows, self._order(epoch, number, len(rows.ends)))
                if not self._progress or self._progress[-1].end_row == first_row:
                    self._progress.append(_Progress(first_row, window.end_row, epoch, documents, len(rows.segments)))
                yield window
                first_row = window.end_row
                documents += len(rows.segments)
            epoch += 1
            if len(self._epoch_starts) == epoch:
                self._epoch_starts.append(first_row)

    def _packed(self, epoch: int) -> Iterator[Rows]:
        n = len(self._lengths)

        def documents(arrivals: np.ndarray) -> np.ndarray:
            if self._cycle:
                return arrivals % n
            return permuted(arrivals, n, f"documents {self._seed} {epoch}") if epoch else arrivals

        lengths = self._lengths
        batches = pack(
            lambda arrivals: lengths[documents(arrivals)], None if self._cycle else n, self._row_tokens, self._packing
        )
        for rows in batches:
            rows.segments[:, 0] = documents(rows.segments[:, 0])
            yield rows

    def _order(self, epoch: int, window: int, n_rows: int) -> np.ndarray | None:
        if self._packing == "best-fit":
            return None
        return permuted(np.arange(n_rows), n_rows, f"rows {self._seed} {epoch} {window}")


def _in_windows(batches: Iterator[Rows], n_rows: int) -> Iterator[Rows]:
    """The same rows in batches of exactly `n_rows`, but for the last."""
    segments, ends = np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=np.int64)
    for batch in batches:
        ends = np.concatenate((ends, batch.ends + len(segments)))
        segments = np.concatenate((segments, batch.segments))
        while len(ends) >= n_rows:
            cut = int(ends[n_rows - 1])
            yield Rows(segments[:cut], ends[:n_rows])
            segments, ends = segments[cut:], ends[n_rows:] - cut
    if len(ends):
        yield Rows(segments, ends)


def _batch(store: Tokens, split: Split, segments: np.ndarray, n_rows: int, seq_len: int) -> Batch:
    tokens = np.empty((n_rows, seq_len + 1), dtype=np.int64)
    store.fill(split, segments, tokens.reshape(-1))
    return Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))


class PretrainBatches:
    """The batches of a pretraining run: `batch(step)` for all of a step's rows, or a rank's or micro-batch's share."""

    def __init__(
        self,
        store: Tokens,
        split: Split = "train",
        *,
        packing: Packing,
        seq_len: int,
        rows_per_step: int,
        seed: int,
    ) -> None:
        self._store, self._split, self._seq_len = store, split, seq_len
        self.rows_per_step = rows_per_step
        self.plan = RowPlan(store.lengths(split), seq_len + 1, packing, seed=seed, of=f"documents to {PURPOSE[split]}")
        self.digest = hashlib.sha256(
            f"{store.digest} {split} {packing} {seq_len} {rows_per_step} {seed}".encode()
        ).hexdigest()
        """Equal digests mean equal batches at equal steps."""

    def batch(self, step: int, first_row: int = 0, last_row: int | None = None) -> Batch:
        """Rows [first_row, last_row) of the step's `rows_per_step`: inputs and targets, each (rows, seq_len) int64."""
        last_row = self.rows_per_step if last_row is None else last_row
        if not 0 <= first_row <= last_row <= self.rows_per_step or step < 0:
            raise IndexError(
                f"rows {first_row} to {last_row} of step {step}: a step has rows 0 to {self.rows_per_step}"
            )
        start = step * self.rows_per_step
        segments = self.plan.segments(start + first_row, start + last_row)
        return _batch(self._store, self._split, segments, last_row - first_row, self._seq_len)

    def epoch_of(self, step: int) -> float:
        """How many times the corpus has been read before this step: 1.25 is a quarter through the second time."""
        return self.plan.epoch_of(step * self.rows_per_step)

    @property
    def share_dropped(self) -> float:
        """The share of the corpus's tokens that packing leaves out of an epoch."""
        return self.plan.share_dropped


class ValidationRows:
    """The rows that a model is measured on, of the validation documents or others: always the same, from the first on.

    best-fit: the reference's rows, of documents read over and over, so there is no last row. lossless: whole documents,
    every row once, in a fixed shuffled order so that the first few hundred are a fair sample of all.
    """

    def __init__(self, store: Tokens, packing: Packing, seq_len: int, split: Split = "validation") -> None:
        self._store, self._seq_len, self._split = store, seq_len, split
        of = f"documents to {PURPOSE[split]}"
        self._plan = RowPlan(store.lengths(split), seq_len + 1, packing, cycle=packing == "best-fit", of=of)

    @property
    def n_rows(self) -> int | None:
        """How many different rows there are; None for the endless best-fit stream."""
        return self._plan.rows_per_epoch

    @property
    def rows_read_once(self) -> int:
        """Rows until every document was read once, in the best-fit stream about once."""
        kept = self._plan.n_tokens * (1 - self._plan.share_dropped)
        return max(1, round(kept / (self._seq_len + 1)))

    def rows(self, first_row: int, last_row: int) -> Batch:
        """Rows [first_row, last_row): inputs and targets, each (rows, seq_len) int64."""
        if not 0 <= first_row <= last_row or (self.n_rows is not None and last_row > self.n_rows):
            raise IndexError(f"rows {first_row} to {last_row} of {self.n_rows} {self._split} rows")
        segments = self._plan.segments(first_row, last_row)
        return _batch(self._store, self._split, segments, last_row - first_row, self._seq_len)
