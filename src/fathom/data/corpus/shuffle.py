"""A random order for more text than memory holds: documents sorted on disk by a random key.

    document i ──▶ key = mix(seed, i) ──▶ bucket file by the key's first bits ──▶ each bucket sorted in memory

Keys of different documents differ (the mixing is a bijection), so the order is a pure function of seed and number of
documents: how many buckets there were, and when a full one was divided, cannot be seen in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_RECORD = struct.Struct("<QI")
_BLOCK = struct.Struct("<II")
_SPLIT_BITS = 4

BUCKET_BYTES = 64_000_000
BUFFER_BYTES = 64_000_000
MAX_BITS = 10


class Document(NamedTuple):
    """Its number in the order of reading, and its text in UTF-8."""

    index: int  # type: ignore[assignment]  # tuple.index is not used
    text: bytes


def key(seed: int, index: int) -> int:
    """The place of document `index` in the random order of `seed`: 64 bits, different for every index.

    The finaliser of splitmix64 (Steele, Lea and Flood 2014).
    """
    return _mix((_mix(seed & _MASK) + _GOLDEN * (index + 1)) & _MASK)


def keys(seed: int, first: int, last: int) -> np.ndarray:
    """`key` of documents first … last - 1 at once, uint64 (last - first,)."""
    with np.errstate(over="ignore"):
        x = np.uint64(_mix(seed & _MASK)) + np.uint64(_GOLDEN) * np.arange(first + 1, last + 1, dtype=np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Spool:
    """Documents put aside in `folder`, given back once: in the order of their keys, or as they came.

    Memory: BUFFER_BYTES while writing, about twice `bucket_bytes` while reading. Disk: the text, lightly compressed;
    every bucket is deleted as soon as it is read. Without a seed the order stays.
    """

    def __init__(self, folder: Path, seed: int | None, expected_bytes: int, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._folder, self._seed, self._bucket_bytes = folder, seed, bucket_bytes
        self._bits = 0 if seed is None else min(MAX_BITS, max(0, (expected_bytes // bucket_bytes).bit_length()))
        folder.mkdir(parents=True, exist_ok=True)
        self._buckets = self._open_buckets(folder, self._bits)

    def add(self, document: Document) -> None:
        self._buckets[self._bucket_of(document.index, self._bits)].add(document)

    def __iter__(self) -> Iterator[Document]:
        for bucket in self._buckets:
            bucket.close()
        for bucket in self._buckets:
            if self._seed is None:
                yield from bucket.read()
            else:
                yield from self._in_order(bucket, self._bits)
            bucket.path.unlink(missing_ok=True)

    def _bucket_of(self, index: int, bits: int) -> int:
        return 0 if self._seed is None else key(self._seed, index) >> (64 - bits)

    def _open_buckets(self, folder: Path, bits: int) -> list[_Bucket]:
        buffer_bytes = max(BUFFER_BYTES >> bits, 1 << 14)
        return [_Bucket(folder / f"{i:04x}", buffer_bytes) for i in range(1 << bits)]

    def _in_order(self, bucket: _Bucket, bits: int) -> Iterator[Document]:
        seed = self._seed or 0
        if bucket.size <= 2 * self._bucket_bytes or bucket.n_documents == 1:
            yield from sorted(bucket.read(), key=lambda document: key(seed, document.index))
            return
        deeper = bits + _SPLIT_BITS
        folder = bucket.path.with_suffix(".parts")
        folder.mkdir()
        parts = self._open_buckets(folder, _SPLIT_BITS)
        for document in bucket.read():
            parts[self._bucket_of(document.index, deeper) & (len(parts) - 1)].add(document)
        bucket.path.unlink()
        for part in parts:
            part.close()
        for part in parts:
            yield from self._in_order(part, deeper)
            part.path.unlink(missing_ok=True)
        folder.rmdir()


class _Bucket:
    """A file of compressed blocks of records. It is open only while a block is written: there may be a thousand."""

    def __init__(self, path: Path, buffer_bytes: int) -> None:
        self.path, self.size, self.n_documents = path, 0, 0
        self._buffer_bytes, self._parts, self._pending = buffer_bytes, [], 0  # type: int, list[bytes], int

    def add(self, document: Document) -> None:
        self._parts += (_RECORD.pack(document.index, len(document.text)), document.text)
        self._pending += _RECORD.size + len(document.text)
        self.size += len(document.text)
        self.n_documents += 1
        if self._pending >= self._buffer_bytes:
            self.close()

    def close(self) -> None:
        """Write what is pending; more may be added afterwards."""
        if not self._parts:
            return
        raw = b"".join(self._parts)
        packed = _codec().compress(raw, asbytes=True)
        with self.path.open("ab") as file:
            file.write(_BLOCK.pack(len(raw), len(packed)) + packed)
        self._parts, self._pending = [], 0

    def read(self) -> Iterator[Document]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while header := file.read(_BLOCK.size):
                raw_bytes, packed_bytes = _BLOCK.unpack(header)
                raw = _codec().decompress(file.read(packed_bytes), raw_bytes, asbytes=True)
                yield from _records(raw)


def _records(raw: bytes) -> Iterator[Document]:
    at = 0
    while at < len(raw):
        index, n_bytes = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        yield Document(index, raw[at : at + n_bytes])
        at += n_bytes


def _codec() -> Any:
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=1)
