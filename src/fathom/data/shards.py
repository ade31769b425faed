"""Documents to token files: tokenized once, memory-mapped ever after.

corpora/NAME/tokens/<16 hex of the tokenizer's digest>/
  train-00000.bin           the tokens of train-00000.parquet, each document begun by BOS; uint16 if ids fit, or uint32
  train-00000.lengths.npy   int64, tokens of each of its documents
  train-00000.json          written last: the shard is whole
  train.lengths.npy         the same for the whole split
  train.offsets.npy         int64, where each document begins in the split, and where the last one ends
  meta.json                 written last of all: corpus, tokenizer, counts

Every file is written aside, synced and renamed, so that a run that was killed goes on with the shards that it lacks.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fathom.data.corpus import Corpus
from fathom.data.corpus.aside import disk_errors, only_one
from fathom.data.token_store import META, Split, TokenStore
from fathom.errors import FathomError
from fathom.home import fsync_folder, write_atomic
from fathom.screen import Bar, bar
from fathom.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = ("train", "validation")
_VERSION = 1


@dataclass(frozen=True)
class _Source:
    """One Parquet file of a corpus and the shard that it becomes."""

    split: Split
    path: Path
    shard: Path  # in the folder of tokens, without an ending

    @property
    def bin(self) -> Path:
        return self.shard.with_name(f"{self.shard.name}.bin")

    @property
    def lengths(self) -> Path:
        return self.shard.with_name(f"{self.shard.name}.lengths.npy")

    @property
    def record(self) -> Path:
        return self.shard.with_name(f"{self.shard.name}.json")


class _Encoded(NamedTuple):
    """A row group: its documents' tokens one after another, their lengths, and the bytes of text they were."""

    tokens: np.ndarray
    lengths: np.ndarray
    n_bytes: int


def tokenize(corpus: Corpus, tokenizer: Tokenizer, *, workers: int | None = None) -> TokenStore:
    """The tokens of a corpus; made now by `workers` threads (default: one a core) where they are not there yet.

    Of several processes one works and the others wait for it. Raises FathomError when the corpus has no documents to
    train on, or when what is there was made from another state of the corpus.
    """
    if not corpus.n_documents("train"):
        raise FathomError(f"corpus {corpus.name!r} has no documents to train on", "make it again from files with text")
    folder = corpus.folder / "tokens" / tokenizer.digest[:16]
    made_of = {"corpus": corpus.digest, "tokenizer": tokenizer.digest}
    if not _is_whole(folder, made_of):
        with only_one(corpus.name, "tokenizing"), disk_errors(folder):
            if not _is_whole(folder, made_of):
                _make(folder, corpus, tokenizer, made_of, workers or _cores())
    return TokenStore(folder, corpus.name)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_whole(folder: Path, made_of: dict[str, str]) -> bool:
    """Whether all is there. Raises FathomError when it was made of something else."""
    meta = _read_json(folder / META)
    if meta is None:
        return False
    _refuse_others(folder / META, meta, made_of)
    if meta.get("version") != _VERSION:
        return False
    itemsize = np.dtype(meta["dtype"]).itemsize
    return all(
        _holds(folder / f"{split}.lengths.npy", part["documents"])
        and _holds(folder / f"{split}.offsets.npy", part["documents"] + 1)
        and all(_has_size(folder / f"{shard['name']}.bin", shard["tokens"] * itemsize) for shard in part["shards"])
        for split, part in meta["splits"].items()
    )


def _refuse_others(path: Path, record: dict[str, Any], made_of: dict[str, str]) -> None:
    for what, digest in made_of.items():
        if record.get(what) != digest:
            raise FathomError(
                f"the tokens in {path.parent} were made of another state of the {what} than the one that is here",
                f"remove {path.parent} to have them made again",
            )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _has_size(path: Path, n_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == n_bytes


def _holds(path: Path, n: int) -> bool:
    """Whether a .npy file holds n whole int64."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            return shape == (n,) and dtype == np.int64 and _has_size(path, file.tell() + 8 * n)
    except (OSError, ValueError, EOFError):
        return False


def _make(folder: Path, corpus: Corpus, tokenizer: Tokenizer, made_of: dict[str, str], workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*"):
        torn.unlink()
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    sources = [_Source(split, path, folder / path.stem) for split in SPLITS for path in corpus.files(split)]
    missing = [source for source in sources if not _is_done(source, made_of, dtype)]
    n_bytes = sum(corpus.n_bytes(split) for split in SPLITS)
    left = n_bytes * _file_bytes(missing) / max(_file_bytes(sources), 1)
    with (
        bar(f"Tokenizing {corpus.name}", left) as progress,
        closing(_encoded(missing, tokenizer, dtype, workers)) as pieces,
    ):
        for source, group in groupby(_told(pieces, progress), key=itemgetter(0)):
            _write_shard(source, (encoded for _, encoded in group), made_of)
    splits = {split: _write_split(folder, split, [s for s in sources if s.split == split]) for split in SPLITS}
    meta = {"version": _VERSION, **made_of, "vocab_size": tokenizer.vocab_size, "dtype": dtype.name, "splits": splits}
    write_atomic(folder / META, json.dumps(meta, indent=1))


def _file_bytes(sources: list[_Source]) -> int:
    total = 0
    for source in sources:
        try:
            total += source.path.stat().st_size
        except OSError as error:
            raise _unreadable(source.path, error) from None
    return total


def _is_done(source: _Source, made_of: dict[str, str], dtype: np.dtype) -> bool:
    record = _read_json(source.record)
    if record is None:
        return False
    _refuse_others(source.record, record, made_of)
    return _holds(source.lengths, record["documents"]) and _has_size(source.bin, record["tokens"] * dtype.itemsize)


def _encoded(
    sources: list[_Source], tokenizer: Tokenizer, dtype: np.dtype, workers: int
) -> Generator[tuple[_Source, _Encoded], None, None]:
    """Every row group of every file, in order, encoded a few ahead of whoever asks.

    Threads are enough: reading Parquet and encoding are nearly all of the work, and release the GIL.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenize")
    ahead: deque[tuple[_Source, Future[_Encoded]]] = deque()
    try:
        for source in sources:
            for group in _row_groups(source.path):
                ahead.append((source, pool.submit(_encode_group, source.path, group, tokenizer, dtype)))
                if len(ahead) > workers + 2:
                    first, future = ahead.popleft()
                    yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _row_groups(path: Path) -> Iterable[int | None]:
    """The numbers of a file's row groups; [None] when it has none, so that it gets its (empty) shard too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        n_groups = pq.read_metadata(path).num_row_groups
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    return range(n_groups) if n_groups else [None]


def _encode_group(path: Path, group: int | None, tokenizer: Tokenizer, dtype: np.dtype) -> _Encoded:
    texts, n_bytes = _read_group(path, group)
    documents = [tokenizer.encode_to_array(text) for text in texts]
    lengths = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    tokens = np.empty(lengths.sum(), dtype=dtype)
    at = 0
    for document, length in zip(documents, lengths.tolist(), strict=True):
        tokens[at] = tokenizer.bos_id
        tokens[at + 1 : at + length] = document
        at += length
    return _Encoded(tokens, lengths, n_bytes)


def _read_group(path: Path, group: int | None) -> tuple[list[str], int]:
    """The documents of a row group, and their bytes in UTF-8."""
    if group is None:
        return [], 0
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            column = file.read_row_group(group, columns=["text"], use_threads=False).column(0)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _unreadable(path, error) from None
    return [text or "" for text in column.to_pylist()], pc.sum(pc.binary_length(column)).as_py() or 0


def _unreadable(path: Path, error: Exception) -> FathomError:
    return FathomError(f"{path} cannot be read ({str(error).splitlines()[0]})", "make or fetch the corpus again")


def _told(pieces: Iterator[tuple[_Source, _Encoded]], progress: Bar) -> Iterator[tuple[_Source, _Encoded]]:
    began, done = monotonic(), 0
    for source, encoded in pieces:
        done += encoded.n_bytes
        progress.advance(encoded.n_bytes, f"{done / 1e6 / (monotonic() - began):.1f} MB/s")
        yield source, encoded


def _write_shard(source: _Source, pieces: Iterable[_Encoded], made_of: dict[str, str]) -> None:
    lengths, n_tokens = [], 0
    with _aside(source.bin) as file:
        for encoded in pieces:
            encoded.tokens.tofile(file)
            lengths.append(encoded.lengths)
            n_tokens += len(encoded.tokens)
    _save(source.lengths, np.concatenate(lengths))
    record = {**made_of, "source": source.path.name, "documents": sum(map(len, lengths)), "tokens": n_tokens}
    write_atomic(source.record, json.dumps(record, indent=1))


@contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is whole. What a crash leaves behind begins with a dot."""
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    fsync_folder(path.parent)


def _save(path: Path, array: np.ndarray) -> None:
    with _aside(path) as file:
        np.save(file, array)


def _write_split(folder: Path, split: Split, sources: list[_Source]) -> dict[str, Any]:
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *(np.load(source.lengths) for source in sources)])
    _save(folder / f"{split}.lengths.npy", lengths)
    _save(folder / f"{split}.offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
    shards = [{"name": source.shard.name, "tokens": int(np.load(source.lengths).sum())} for source in sources]
    return {"documents": len(lengths), "tokens": int(lengths.sum()), "shards": shards}
