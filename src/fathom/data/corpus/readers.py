"""Files that people have -> documents, one at a time, in bounded memory.

A text file is a document, a line of JSON or a row of Parquet is one too. Whatever the format, a document longer than
MAX_DOCUMENT characters is cut at paragraph ends, so that nothing downstream ever holds a gigabyte string.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fathom.errors import FathomError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_DOCUMENT = 4_000_000
MAX_LINE_BYTES = 64_000_000
CHUNK_BYTES = 1 << 20
PARQUET_BATCH_BYTES = 8_000_000

KNOWN = ".txt, .md, .jsonl (each also as .gz or .zst) and .parquet"
_KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".parquet": "parquet",
}
_PACKINGS = (".gz", ".zst")
_GUESSED_EXPANSION = {"": 1.0, ".gz": 4.0, ".zst": 4.0}

Advance = Callable[[int], None]
OnBroken = Callable[[str], None]


class Source(NamedTuple):
    """One file to read. A tuple of plain values, because a folder may hold millions."""

    path: str
    size: int
    kind: str
    packing: str


@dataclass
class Found:
    """What lies under the paths a person named."""

    sources: list[Source] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        return sum(source.size for source in self.sources)


def kind_of(name: str) -> tuple[str, str] | None:
    """("text" | "lines" | "parquet", "" | ".gz" | ".zst") by the end of a file's name, or None."""
    stem, ending = os.path.splitext(name.lower())
    packing = ending if ending in _PACKINGS else ""
    if packing:
        ending = os.path.splitext(stem)[1]
    kind = _KINDS.get(ending)
    return None if kind is None or (kind == "parquet" and packing) else (kind, packing)


def find_sources(paths: Iterable[Path], taken: set[tuple[int, int]] | None = None) -> Found:
    """Files in the order of `paths`; in folders recursively, sorted, without hidden and unknown ones (counted).

    `taken` holds (device, inode) of files already spoken for, which are left out, and grows by those found here:
    no file is read twice, however often it is named. Raises FathomError for a path that is not there and for a
    named file of an unknown type.
    """
    found, taken = Found(), set() if taken is None else taken
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise FathomError(f"{path} cannot be read ({error.strerror})", "check the path") from None
        if path.is_dir():
            _walk(str(path), found, taken, {(status.st_dev, status.st_ino)})
        elif kind_of(path.name) is None:
            raise FathomError(f"{path} is of a type that is not known here", _remedy_for_unknown(path.name))
        else:
            _take(str(path), status, found, taken)
    return found


def _remedy_for_unknown(name: str) -> str:
    if name.lower().endswith((".json", ".json.gz", ".json.zst")):
        return "if it holds one JSON object a line, rename it to .jsonl"
    return f"known are {KNOWN}"


def _walk(folder: str, found: Found, taken: set[tuple[int, int]], above: set[tuple[int, int]]) -> None:
    """`above` are the folders we are inside of: a link back to one of them would never end."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise FathomError(f"{folder} cannot be read ({error.strerror})", "check its permissions") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            status = entry.stat()
        except OSError:
            found.skipped["broken link"] += 1
            continue
        identity = (status.st_dev, status.st_ino)
        if entry.is_dir():
            if identity not in above:
                _walk(entry.path, found, taken, above | {identity})
        elif kind_of(entry.name) is None:
            found.skipped[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
        else:
            _take(entry.path, status, found, taken)


def _take(path: str, status: os.stat_result, found: Found, taken: set[tuple[int, int]]) -> None:
    identity = (status.st_dev, status.st_ino)
    if identity not in taken:
        taken.add(identity)
        kind, packing = kind_of(path) or ("", "")
        found.sources.append(Source(path, status.st_size, kind, packing))


def expected_bytes(source: Source, column: str = "text") -> int:
    """About how many bytes of text a file holds; from the footer of Parquet, guessed for packed files."""
    if source.kind == "parquet":
        import pyarrow.parquet as pq

        try:
            footer = pq.read_metadata(source.path)
            at = footer.schema.names.index(column)
            groups = range(footer.num_row_groups)
            return sum(footer.row_group(i).column(at).total_uncompressed_size for i in groups)
        except (OSError, ValueError):
            return source.size
    return int(source.size * _GUESSED_EXPANSION[source.packing])


def read_documents(
    source: Source,
    column: str = "text",
    *,
    on_broken: OnBroken | None = None,
    advance: Advance = lambda n_bytes: None,
) -> Iterator[str]:
    """The documents of one file in order; empty ones come as "" (the caller drops and counts them).

    `advance` hears how many bytes of the file were read since the last call. What cannot be read raises FathomError
    naming file and line or byte; with `on_broken` that sentence goes there and reading goes on where it can: after a
    broken line with the next one, after a broken file not at all.
    """
    read = {"text": _read_text, "lines": _read_lines, "parquet": _read_parquet}[source.kind]
    trouble = _Trouble(on_broken)
    try:
        for document in read(source, column, trouble, advance):
            yield from cut([document])
    except Broken as broken:
        trouble.report(broken)
    except (EOFError, zlib.error):
        trouble.report(Broken(f"{source.path} ends too early", "it is damaged or half copied: copy it again"))
    except OSError as error:
        reason = error.strerror or str(error)
        trouble.report(Broken(f"{source.path} cannot be read ({reason})", "copy it again or leave it out"))


def cut(chunks: Iterable[str], limit: int = MAX_DOCUMENT) -> Iterator[str]:
    """Join `chunks` and cut what is longer than `limit` characters at paragraph, line or word ends.

    The pieces joined are the chunks joined. Without chunks there is one piece, "".
    """
    pending = ""
    for chunk in chunks:
        pending += chunk
        while len(pending) > limit:
            at = break_at(pending, limit)
            yield pending[:at]
            pending = pending[at:]
    yield pending


def break_at(text: str, limit: int) -> int:
    """Where to cut `text`: after the last paragraph end, else line end, else blank, of the half before `limit`."""
    for mark in ("\n\n", "\n", " "):
        at = text.rfind(mark, limit // 2, limit)
        if at >= 0:
            return at + len(mark)
    return limit


class Broken(FathomError):
    """A file, or a line of one, that cannot be read as what its name says it is."""


class _Trouble:
    def __init__(self, on_broken: OnBroken | None) -> None:
        self._on_broken = on_broken

    def report(self, broken: Broken) -> None:
        if self._on_broken is None:
            remedy = f"{broken.remedy}, or pass --skip-broken to go on without what cannot be read"
            raise FathomError(broken.problem, remedy) from None
        self._on_broken(broken.problem)


class _MeteredFile(io.FileIO):
    """A file that tells how much of it was read, so that progress is known inside a compressed one too."""

    def __init__(self, path: str, advance: Advance) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, buffer: Any) -> int | None:
        n_bytes = super().readinto(buffer)
        self._advance(n_bytes or 0)
        return n_bytes

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]  # typeshed disagrees with itself
        data = super().read(-1 if size is None else size)
        self._advance(len(data or b""))
        return data or b""


@contextmanager
def _open(source: Source, advance: Advance) -> Iterator[io.BufferedReader]:
    """The unpacked bytes of a file."""
    with _MeteredFile(source.path, advance) as raw:
        if source.packing == ".gz":
            unpacked: Any = gzip.GzipFile(fileobj=io.BufferedReader(raw, CHUNK_BYTES))  # type: ignore[type-var]
        elif source.packing == ".zst":
            import pyarrow as pa

            unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        else:
            unpacked = raw
        with io.BufferedReader(unpacked, CHUNK_BYTES) as stream:
            yield stream


def _read_text(source: Source, column: str, trouble: _Trouble, advance: Advance) -> Iterator[str]:
    with _open(source, advance) as stream:
        yield from cut(_decoded(source.path, iter(lambda: stream.read(CHUNK_BYTES), b"")))


def _decoded(path: str, chunks: Iterator[bytes]) -> Iterator[str]:
    """Strict UTF-8 without a byte order mark, line ends as "\\n"; a bad byte is named by its offset in the file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    while True:
        chunk = next(chunks, b"")
        held_back = len(decoder.getstate()[0])
        if offset == 0 and chunk.startswith(codecs.BOM_UTF8):
            chunk, offset = chunk[3:], 3
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset - held_back + error.start, error) from None
        offset += len(chunk)
        yield line_ends.decode(text, final=not chunk)
        if not chunk:
            return


def _not_utf8(path: str, offset: int, error: UnicodeDecodeError) -> Broken:
    beginning = error.object[:2]
    if offset == 0 and beginning in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return Broken(f"{path} is UTF-16, not UTF-8", "convert it (iconv -f UTF-16 -t UTF-8)")
    byte = error.object[error.start]
    problem = f"{path} is not UTF-8 (0x{byte:02x} at byte {offset:,})"
    return Broken(problem, "convert it (for example iconv -f WINDOWS-1252 -t UTF-8)")


def _read_lines(source: Source, column: str, trouble: _Trouble, advance: Advance) -> Iterator[str]:
    with _open(source, advance) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            where = f"line {number:,} of {source.path}"
            try:
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    _skip_line(stream)
                    raise Broken(f"{where} is longer than {MAX_LINE_BYTES:,} bytes", "split it")
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _text_of_line(line, column, where)
            except Broken as broken:
                trouble.report(broken)


def _skip_line(stream: io.BufferedReader) -> None:
    while (rest := stream.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
        pass


def _text_of_line(line: bytes, column: str, where: str) -> str:
    try:
        row = json.loads(line.rstrip().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Broken(f"{where} is not UTF-8 (at its byte {error.start:,})", "convert the file to UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno:,}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise Broken(f"{where} is not JSON ({reason})", "mend that line") from None
    if not isinstance(row, dict):
        raise Broken(f"{where} is not a JSON object", 'every line is one object such as {"text": "..."}')
    if column not in row:
        raise Broken(f"{where} has no field {column!r}, only {_listed(row)}", _remedy_for_fields(row))
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise Broken(f"field {column!r} in {where} is not a string", "name the field with the text with --column")
    return _encodable(text or "")


def _remedy_for_fields(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "conversations are for `fathom sft --data`; for another field give its name with --column"
    return "give the name of the one with the text with --column"


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:8]) + (" and more" if len(shown) > 8 else "") if shown else "nothing"


def _encodable(text: str) -> str:
    """JSON can write half of a surrogate pair, which no UTF-8 can: it becomes the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_parquet(source: Source, column: str, trouble: _Trouble, advance: Advance) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    remedy = "copy it again or leave it out"
    rows_read = bytes_told = 0
    try:
        with pq.ParquetFile(source.path, buffer_size=CHUNK_BYTES, pre_buffer=False) as file:
            check_column(source.path, file.schema_arrow, column)
            for texts in parquet_batches(file, column):
                yield from texts
                rows_read += len(texts)
                bytes_now = source.size * rows_read // file.metadata.num_rows
                advance(bytes_now - bytes_told)
                bytes_told = bytes_now
    except UnicodeDecodeError as error:
        raise Broken(f"{source.path} holds text that is not UTF-8 ({error.reason})", remedy) from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise Broken(f"{source.path} is not whole Parquet ({reason})", remedy) from None


def parquet_batches(file: pq.ParquetFile, column: str) -> Iterator[list[str]]:
    """All rows of an open Parquet file in order, in lists of a few megabytes whatever a row is long; null is ""."""
    for group in range(file.num_row_groups):
        footer = file.metadata.row_group(group)
        bytes_per_row = footer.total_byte_size / max(footer.num_rows, 1)
        rows = max(1, min(1024, int(PARQUET_BATCH_BYTES / max(bytes_per_row, 1))))
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=[column]):
            yield [text or "" for text in batch.column(0).to_pylist()]


def check_column(path: str, schema: pa.Schema, column: str) -> None:
    """Raise Broken when the schema of the Parquet file at `path` has no column of text by that name."""
    import pyarrow as pa

    if column not in schema.names:
        problem = f"{path} has no column {column!r}, only {_listed(schema.names)}"
        raise Broken(problem, "give the name of the one with the text with --column")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        raise Broken(f"column {column!r} of {path} holds {kind}, not text", "name the one with the text with --column")
