"""The Parquet files of a corpus: one column `text`, one document a row, small row groups, zstd."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fathom.data.corpus.readers import CHUNK_BYTES, Broken, check_column, parquet_batches

COLUMN = "text"
SHARD_BYTES = 100_000_000
GROUP_DOCUMENTS = 1024
GROUP_BYTES = 4_000_000
LARGEST_GROUP_BYTES = 64_000_000


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: its name in the corpus folder and what is in it. `bytes` are the text's, in UTF-8."""

    name: str
    sha256: str
    documents: int
    characters: int
    bytes: int
    file_bytes: int
    origin: str = ""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value != ""}


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet"


class ShardWriter:
    """Writes documents, in the order given, to `SPLIT-00000.parquet`, `SPLIT-00001.parquet`, … in `folder`.

    A file is closed, synced and summed up when it has reached `shard_bytes` (as written); a row group holds at most
    GROUP_DOCUMENTS documents and few more bytes than GROUP_BYTES, so that readers need little memory.
    """

    def __init__(self, folder: Path, split: str, shard_bytes: int = SHARD_BYTES, first: int = 0) -> None:
        self._folder, self._split, self._shard_bytes, self._number = folder, split, shard_bytes, first
        self._file: _OpenShard | None = None
        self._group: list[bytes] = []
        self._group_bytes = 0
        self._done: list[CorpusFile] = []

    def add(self, text: bytes) -> None:
        """`text` is one document in UTF-8."""
        self._group.append(text)
        self._group_bytes += len(text)
        if len(self._group) == GROUP_DOCUMENTS or self._group_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> list[CorpusFile]:
        """Finish the last file; all files in order."""
        self._flush()
        if self._file is not None:
            self._close_file()
        return self._done

    def abandon(self) -> None:
        """Let go of the open file, whose content nobody will want."""
        if self._file is not None:
            self._file.sink.close()
            self._file = None

    def _flush(self) -> None:
        if not self._group:
            return
        if self._file is None:
            self._file = _OpenShard(self._folder / shard_name(self._split, self._number))
            self._number += 1
        self._file.write(self._group)
        self._group, self._group_bytes = [], 0
        if self._file.sink.n_bytes >= self._shard_bytes:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._done.append(self._file.close())
            self._file = None


class _OpenShard:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.sink = path, _HashingFile(path)
        self._schema = pa.schema([pa.field(COLUMN, pa.string())])
        self._writer = pq.ParquetWriter(
            self.sink,
            self._schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_statistics=False,
        )
        self._documents = self._characters = self._bytes = 0

    def write(self, texts: list[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        column = pa.array(texts, pa.string())
        self._writer.write_table(pa.table([column], schema=self._schema), row_group_size=len(texts))
        self._documents += len(texts)
        self._characters += pc.sum(pc.utf8_length(column)).as_py()
        self._bytes += sum(map(len, texts))

    def close(self) -> CorpusFile:
        self._writer.close()
        self.sink.sync_and_close()
        return CorpusFile(
            self.path.name,
            self.sink.sha256.hexdigest(),
            self._documents,
            self._characters,
            self._bytes,
            self.sink.n_bytes,
        )


class _HashingFile:
    """A file to write from front to back that knows its digest when it is closed: nothing is read a second time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.sha256, self.n_bytes, self.closed = hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.sha256.update(data)
        n_bytes = memoryview(data).nbytes
        self.n_bytes += n_bytes
        return n_bytes

    def tell(self) -> int:
        return self.n_bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self.closed = True

    def sync_and_close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def fits_as_it_is(path: Path) -> bool:
    """Whether a file can be a corpus file unchanged: Parquet, plain strings in a column `text`, groups not too big."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    schema = footer.schema.to_arrow_schema()
    if COLUMN not in schema.names or schema.field(COLUMN).type not in (pa.string(), pa.large_string()):
        return False
    at = footer.schema.names.index(COLUMN)
    groups = (footer.row_group(i).column(at).total_uncompressed_size for i in range(footer.num_row_groups))
    return max(groups, default=0) <= LARGEST_GROUP_BYTES


def describe(path: Path, origin: str = "", sha256: str = "") -> CorpusFile:
    """Sum up a Parquet file that somebody else wrote, by reading all of its text.

    Raises FathomError when it is damaged or has no column `text`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    documents = characters = n_bytes = 0
    try:
        with pq.ParquetFile(path, buffer_size=CHUNK_BYTES, pre_buffer=False) as file:
            check_column(str(path), file.schema_arrow, COLUMN)
            for batch in file.iter_batches(batch_size=GROUP_DOCUMENTS, columns=[COLUMN]):
                texts = batch.column(0)
                documents += len(texts)
                characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
                n_bytes += pc.sum(pc.binary_length(texts)).as_py() or 0
    except (pa.ArrowException, OSError) as error:
        raise Broken(f"{path} is not whole Parquet ({str(error).splitlines()[0]})", "fetch it again") from None
    digest = sha256 or file_sha256(path)
    return CorpusFile(path.name, digest, documents, characters, n_bytes, path.stat().st_size, origin)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_texts(path: Path) -> Iterator[str]:
    """All documents of a corpus file in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=CHUNK_BYTES, pre_buffer=False) as file:
        for texts in parquet_batches(file, COLUMN):
            yield from texts


def read_text(path: Path, row: int) -> str:
    """Document `row` of a corpus file, reading only the row group that it is in."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if row < n_rows:
                return file.read_row_group(group, columns=[COLUMN]).column(0)[row].as_py() or ""
            row -= n_rows
    raise IndexError(f"{path} has no row {row}")
