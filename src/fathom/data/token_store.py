"""The tokens of a corpus, memory-mapped: any piece of any document, quickly. `shards.tokenize` makes and opens it."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fathom.errors import FathomError

Split = Literal["train", "validation"]

META = "meta.json"


class _Part(NamedTuple):
    """One split: its documents lie end to end, in shards that each begin and end with a document."""

    lengths: np.ndarray  # (documents,) int64
    offsets: np.ndarray  # (documents + 1,) int64: where in the split's tokens each document begins
    shards: list[Path]
    dtype: np.dtype
    first_token: np.ndarray  # (shards,) int64: where in the split's tokens each shard begins


class TokenStore:
    """Tokens by (split, document, position). Every document begins with BOS. May be read from several threads."""

    def __init__(self, folder: Path, corpus_name: str) -> None:
        self._folder, self._corpus_name = folder, corpus_name
        self._meta = json.loads((folder / META).read_text())
        self._parts: dict[Split, _Part] = {}
        self._handles: dict[Path, int] = {}
        self.vocab_size: int = self._meta["vocab_size"]
        self.digest: str = hashlib.sha256(f"{self._meta['corpus']} {self._meta['tokenizer']}".encode()).hexdigest()

    def n_documents(self, split: Split) -> int:
        return int(self._meta["splits"][split]["documents"])

    def n_tokens(self, split: Split) -> int:
        """Tokens of a split, BOS included."""
        return int(self._meta["splits"][split]["tokens"])

    def lengths(self, split: Split) -> np.ndarray:
        """Tokens of each document, BOS included, (documents,) int64, memory-mapped. FathomError when it has none."""
        return self._part(split).lengths

    def read(self, split: Split, document: int, start: int, length: int) -> np.ndarray:
        """Tokens [start, start + length) of one document, int64."""
        out = np.empty(length, dtype=np.int64)
        self.fill(split, np.array([[document, start, length]], dtype=np.int64), out)
        return out

    def fill(self, split: Split, segments: np.ndarray, out: np.ndarray) -> None:
        """Write the tokens of segments (n, 3) [document, start, length], one after another, into `out` (tokens,).

        Raises IndexError when a segment reaches out of its document or `out` is not as long as all of them.
        """
        part = self._part(split)
        documents, starts, lengths = segments[:, 0], segments[:, 1], segments[:, 2]
        if len(segments) and (
            documents.min() < 0
            or documents.max() >= len(part.lengths)
            or starts.min() < 0
            or lengths.min() < 0
            or (starts + lengths > part.lengths[documents]).any()
        ):
            raise IndexError(f"segments reach out of the {len(part.lengths)} documents of {split}")
        if out.shape != (lengths.sum(),):
            raise IndexError(f"segments of {lengths.sum()} tokens do not fill an array of shape {out.shape}")
        begins = part.offsets[documents] + starts
        shards = np.searchsorted(part.first_token, begins, side="right") - 1
        within = begins - part.first_token[shards]
        at = 0
        for shard, begin, length in zip(shards.tolist(), within.tolist(), lengths.tolist(), strict=True):
            out[at : at + length] = self._read(part.shards[shard], part.dtype, begin, length)
            at += length

    def _read(self, shard: Path, dtype: np.dtype, begin: int, length: int) -> np.ndarray:
        """By reading, not by mapping: of a disk that fails a mapped file tells with a signal that ends the process."""
        try:
            if shard not in self._handles:
                self._handles[shard] = handle = os.open(shard, os.O_RDONLY)
                weakref.finalize(self, os.close, handle)
            content = os.pread(self._handles[shard], length * dtype.itemsize, begin * dtype.itemsize)
        except OSError as error:
            raise FathomError(f"{shard} cannot be read ({error.strerror})", "look at that disk") from None
        if len(content) < length * dtype.itemsize:
            raise FathomError(f"{shard} ends too early", f"remove {shard.parent}; its tokens are made again")
        return np.frombuffer(content, dtype)

    def _part(self, split: Split) -> _Part:
        if split not in self._parts:
            self._parts[split] = self._open(split)
        return self._parts[split]

    def _open(self, split: Split) -> _Part:
        if not self.n_documents(split):
            raise FathomError(
                f"corpus {self._corpus_name!r} has no {split} documents", "make it again with files for that part"
            )
        shards = [shard for shard in self._meta["splits"][split]["shards"] if shard["tokens"]]
        counts = np.array([shard["tokens"] for shard in shards], dtype=np.int64)
        dtype = np.dtype(self._meta["dtype"])
        return _Part(
            self._mapped(f"{split}.lengths.npy"),
            self._mapped(f"{split}.offsets.npy"),
            [self._folder / f"{shard['name']}.bin" for shard in shards],
            dtype,
            np.cumsum(counts) - counts,
        )

    def _mapped(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self._folder / name, mmap_mode="r"))
