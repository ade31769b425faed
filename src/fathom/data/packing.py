"""Document lengths to rows: pure, lazy, and quick enough to be done again after every resume.

A row holds `row_tokens` = seq_len + 1 tokens: the inputs are all but its last token, the targets all but its first.
It is a list of segments [document, start, length]. Two ways to fill rows from a pool of waiting documents:

* best-fit: the longest waiting document that fits; where none fits, the shortest one is cut and its rest is lost.
* lossless: a document first gives away its full rows; what is left of it (shorter than a row) waits in the pool.
  Rows are filled from the pool by the same rule, but the rest of a cut document goes back into the pool.

In both, the pool is filled up to `buffer` documents before each choice, and among equals the first to arrive goes
first. A last row that is not full is left out.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fathom.errors import FathomError
from fathom.screen import say

Packing = Literal["best-fit", "lossless"]
Row = list[tuple[int, int, int]]
LengthsOf = Callable[[np.ndarray], np.ndarray]

BUFFER = 1000
_CHUNK = 4096

# A waiting document is one integer that sorts by length, then latest arrival first: `length << 36 | last - arrival`.
# So "the longest that fits, first arrived among equals" is what stands just left of one bisection.
_ARRIVAL_BITS = 36
_LAST = (1 << _ARRIVAL_BITS) - 1
_LONGEST = (1 << (63 - _ARRIVAL_BITS)) - 1


class Rows(NamedTuple):
    """Some full rows: row i is segments[ends[i-1]:ends[i]], each segment [document, start, length]."""

    segments: np.ndarray  # (n, 3) int64
    ends: np.ndarray  # (rows,) int64


def best_fit(lengths: Sequence[int] | np.ndarray, row_tokens: int, buffer: int = BUFFER) -> Iterator[Row]:
    """The rows of one epoch of documents with these lengths (in tokens, BOS included), packed best-fit."""
    return _rows(lengths, row_tokens, "best-fit", buffer)


def lossless(lengths: Sequence[int] | np.ndarray, row_tokens: int, buffer: int = BUFFER) -> Iterator[Row]:
    """The rows of one epoch in which every token stands exactly once, but for a last row that is not full."""
    return _rows(lengths, row_tokens, "lossless", buffer)


def _rows(lengths: Sequence[int] | np.ndarray, row_tokens: int, packing: Packing, buffer: int) -> Iterator[Row]:
    array = np.asarray(lengths, dtype=np.int64)
    for batch in pack(array.__getitem__, len(array), row_tokens, packing, buffer):
        segments = [tuple(segment) for segment in batch.segments.tolist()]
        begin = 0
        for end in batch.ends.tolist():
            yield segments[begin:end]
            begin = end


def pack(
    lengths_of: LengthsOf, documents: int | None, row_tokens: int, packing: Packing, buffer: int = BUFFER
) -> Iterator[Rows]:
    """Full rows of documents 0, 1, 2, … in order of arrival, some at a time.

    `lengths_of` gives the lengths (n,) of the documents (n,) asked for; `documents` None means that they never end.
    """
    if row_tokens < 1 or buffer < 1:
        raise ValueError(f"a row of {row_tokens} tokens and a buffer of {buffer} documents: both must be at least 1")
    tails = packing == "lossless"
    pool = _Pool(row_tokens, buffer, tails)
    first = 0
    while documents is None or first < documents:
        arrivals = np.arange(first, first + _CHUNK if documents is None else min(first + _CHUNK, documents))
        lengths = lengths_of(arrivals)
        first += len(arrivals)
        if tails:
            from_pool = pool.feed(_keys(arrivals, lengths % row_tokens))
            yield _interleave(_full_rows(arrivals, lengths, row_tokens), *_decode(from_pool, row_tokens, lengths_of))
        else:
            yield _decode(pool.feed(_keys(arrivals, lengths)), row_tokens, None)[0]
    yield _decode(pool.drain(), row_tokens, lengths_of if tails else None)[0]


def _keys(arrivals: np.ndarray, lengths: np.ndarray) -> list[int]:
    keys: np.ndarray = np.minimum(lengths, _LONGEST) << _ARRIVAL_BITS | _LAST - arrivals
    return list(keys[lengths > 0].tolist())


class _Filled(NamedTuple):
    keys: list[int]  # what went into the rows, one after another
    ends: list[int]  # where in `keys` each row ends
    arrived: list[int]  # the key that had arrived last when the row was full


class _Pool:
    """Waiting documents, sorted, and the row being filled from them."""

    def __init__(self, row_tokens: int, buffer: int, tails: bool) -> None:
        self._row_tokens, self._buffer, self._tails = row_tokens, buffer, tails
        self._waiting: list[int] = []
        self._row: list[int] = []
        self._room = row_tokens
        self._arrived = _LAST

    def drain(self) -> _Filled:
        """The rows that can still be filled when no document comes any more."""
        self._buffer = 1
        return self.feed([])

    def feed(self, keys: list[int]) -> _Filled:
        """Let documents arrive as room is made for them, until all have; the rows filled meanwhile."""
        waiting, row, room, arrived = self._waiting, self._row, self._room, self._arrived
        buffer, row_tokens, tails = self._buffer, self._row_tokens, self._tails
        coming = iter(keys)
        done = row
        ends: list[int] = []
        when: list[int] = []
        while True:
            while len(waiting) < buffer:
                key = next(coming, None)
                if key is None:
                    begin = ends[-1] if ends else 0
                    self._row, self._room, self._arrived = done[begin:], room, arrived
                    del done[begin:]
                    return _Filled(done, ends, when)
                insort(waiting, key)
                arrived = key
            fitting = bisect_right(waiting, room << _ARRIVAL_BITS | _LAST)
            if fitting:
                key = waiting.pop(fitting - 1)
                room -= key >> _ARRIVAL_BITS
            else:
                shortest = waiting[0] >> _ARRIVAL_BITS
                key = waiting.pop(bisect_left(waiting, shortest + 1 << _ARRIVAL_BITS) - 1)
                if tails:
                    insort(waiting, key - (room << _ARRIVAL_BITS))
                room = 0
            done.append(key)
            if not room:
                ends.append(len(done))
                when.append(arrived)
                room = row_tokens


def _decode(filled: _Filled, row_tokens: int, lengths_of: LengthsOf | None) -> tuple[Rows, np.ndarray]:
    """Keys to segments, and the document that had arrived last when each row was full.

    A waiting piece always reaches to the end of its document, so its length tells where it starts. Without
    `lengths_of` documents are taken from their beginning.
    """
    keys = np.array(filled.keys, dtype=np.int64)
    ends = np.array(filled.ends, dtype=np.int64)
    documents, lengths = _LAST - (keys & _LAST), keys >> _ARRIVAL_BITS
    starts = lengths_of(documents) - lengths if lengths_of is not None else np.zeros_like(documents)
    if len(ends):
        begins = np.concatenate(([0], ends[:-1]))
        lengths[ends - 1] -= np.add.reduceat(lengths, begins) - row_tokens
    segments = np.stack((documents, starts, lengths), axis=1)
    return Rows(segments, ends), _LAST - (np.array(filled.arrived, dtype=np.int64) & _LAST)


def _full_rows(arrivals: np.ndarray, lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """The rows (n, 3) that documents fill by themselves, from their beginnings, in order."""
    counts = lengths // row_tokens
    documents = np.repeat(arrivals, counts)
    first_of_document = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(len(documents)) - first_of_document) * row_tokens
    return np.stack((documents, starts, np.full_like(documents, row_tokens)), axis=1)


def _interleave(full: np.ndarray, pooled: Rows, arrived: np.ndarray) -> Rows:
    """Full rows in order of arrival, and each pooled row after those of the document that arrived last before it."""
    places = np.arange(len(arrived)) + np.searchsorted(full[:, 0], arrived, side="right")
    counts = np.ones(len(full) + len(arrived), dtype=np.int64)
    counts[places] = np.diff(pooled.ends, prepend=0)
    is_pooled = np.zeros(len(counts), dtype=bool)
    is_pooled[places] = True
    of_pooled = np.repeat(is_pooled, counts)
    segments = np.empty((len(of_pooled), 3), dtype=np.int64)
    segments[of_pooled], segments[~of_pooled] = pooled.segments, full
    return Rows(segments, np.cumsum(counts))


@dataclass(frozen=True)
class Pack:
    """Show how documents of given lengths fill rows, without any data: one epoch."""

    lengths: str
    """Lengths of the documents in tokens, BOS included, with commas between; `-` reads them from standard input."""
    seq_len: int = 512
    """Tokens of context: a row holds one token more."""
    packing: Packing = "best-fit"
    """best-fit cuts documents and drops the rest; lossless lets the rest go on in later rows."""
    json: bool = False
    """Print {"rows": [[[document, start, length], …], …]}."""

    def run(self) -> dict[str, list[Row]]:
        if self.seq_len < 1:
            raise FathomError(f"--seq-len is {self.seq_len}", "give at least 1")
        given = sys.stdin.read() if self.lengths.strip() == "-" else self.lengths
        lengths = parse_lengths(given)
        rows = list(_rows(lengths, self.seq_len + 1, self.packing, BUFFER))
        if not self.json:
            _show(rows, lengths, self.seq_len + 1)
        return {"rows": rows}


def parse_lengths(text: str) -> list[int]:
    """Whole positive numbers between commas or blanks. Raises FathomError naming the first that is not one."""
    words = text.replace(",", " ").split()
    if not words:
        raise FathomError("no lengths were given", "give some, as in `--lengths 700,20,300`")
    for place, word in enumerate(words):
        if not (word.isascii() and word.isdigit()) or int(word) == 0:
            raise FathomError(
                f"{word!r}, number {place + 1} of the lengths, is not the length of a document",
                "give whole numbers from 1 on: every document holds at least its BOS",
            )
    return [int(word) for word in words]


def _show(rows: list[Row], lengths: list[int], row_tokens: int) -> None:
    for number, row in enumerate(rows):
        pieces = [_piece(lengths[document], document, start, length) for document, start, length in row]
        print(f"row {number}: {' · '.join(pieces)}")
    total, kept = sum(lengths), len(rows) * row_tokens
    count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
    say(f"{count} of {row_tokens} tokens; of all {total} tokens {total - kept} ({1 - kept / total:.1%}) are left out.")


def _piece(whole: int, document: int, start: int, length: int) -> str:
    if length == whole:
        return f"document {document} ({length})"
    return f"document {document} ({start}–{start + length} of {whole})"
