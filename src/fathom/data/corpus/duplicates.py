"""Exact duplicates among more documents than memory holds: 28 bytes of disk and one bit of memory for each.

Digests (BLAKE2b, 128 bits: two of 10^9 different documents share one with a chance below 10^-20) are put aside in
files by their first byte; equal ones meet in the same file, where a sort finds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("index", "<u8"), ("n_bytes", "<u4")])
_FILES = 256
_BUFFER_RECORDS = 1024


@dataclass(frozen=True)
class Dropped:
    """Which documents repeat an earlier one."""

    bits: np.ndarray
    n_documents: int
    n_bytes: int

    def __contains__(self, index: int) -> bool:
        return bool(self.bits[index >> 3] >> (index & 7) & 1)

    def mask(self, first: int, last: int) -> np.ndarray:
        """bool (last - first,): True where a document is dropped. `first` is a multiple of 8."""
        return np.unpackbits(self.bits[first >> 3 : (last + 7) >> 3], bitorder="little")[: last - first].astype(bool)


def nothing_dropped(n_documents: int) -> Dropped:
    return Dropped(np.zeros((n_documents + 7) >> 3, np.uint8), 0, 0)


class DuplicateFinder:
    """Tell it of every document, then ask for those to drop: of equal ones the first (lowest index) stays."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"digests-{i:02x}" for i in range(_FILES)]
        self._buffers: list[list[bytes]] = [[] for _ in range(_FILES)]
        self._n_documents = 0

    def add(self, index: int, text: bytes) -> None:
        digest = hashlib.blake2b(text, digest_size=16).digest()
        buffer = self._buffers[digest[0]]
        buffer.append(digest + index.to_bytes(8, "little") + len(text).to_bytes(4, "little"))
        self._n_documents = max(self._n_documents, index + 1)
        if len(buffer) >= _BUFFER_RECORDS:
            self._flush(digest[0])

    def find(self, advance: Callable[[float], None] = lambda share: None) -> Dropped:
        """The repeats; call once. `advance` hears of each share of the work that is done."""
        dropped = nothing_dropped(self._n_documents)
        n_documents = n_bytes = 0
        for i, path in enumerate(self._paths):
            self._flush(i)
            advance(1 / _FILES)
            if not path.exists():
                continue
            repeats = _repeats(np.fromfile(path, _RECORD))
            path.unlink()
            np.bitwise_or.at(
                dropped.bits, repeats["index"] >> np.uint64(3), np.uint8(1) << (repeats["index"] & 7).astype(np.uint8)
            )
            n_documents += len(repeats)
            n_bytes += int(repeats["n_bytes"].sum(dtype=np.int64))
        return Dropped(dropped.bits, n_documents, n_bytes)

    def _flush(self, i: int) -> None:
        if self._buffers[i]:
            with self._paths[i].open("ab") as file:
                file.write(b"".join(self._buffers[i]))
            self._buffers[i] = []


def _repeats(records: np.ndarray) -> np.ndarray:
    records = records[np.lexsort((records["index"], records["low"], records["high"]))]
    same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    return records[1:][same]
