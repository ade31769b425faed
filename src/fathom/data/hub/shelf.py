"""Where fetched files wait until their corpus is whole: half-fetched, whole, and read through.

KEY-NAME.part       the beginning of a file
KEY-NAME            the whole file, checked
KEY-NAME.rewritten  a folder with the same text in our form, where the file was not in it
KEY-NAME.json       what is in it: written last, so a file with it need not be looked at again
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from fathom.data.corpus.files import COLUMN, CorpusFile, ShardWriter, describe, fits_as_it_is
from fathom.data.corpus.readers import Source, kind_of, read_documents
from fathom.data.hub.fetching import RemoteFile
from fathom.home import write_atomic
from fathom.screen import say


@dataclass(frozen=True)
class Arrived:
    """A remote file as a corpus file at `path`; `file` is None when it held no text."""

    path: Path
    file: CorpusFile | None
    broken: int


@dataclass(frozen=True)
class Shelf:
    """The hidden folder of one corpus, and how its files are to be read."""

    folder: Path
    column: str
    skip_broken: bool

    def place(self, remote: RemoteFile) -> Path:
        """Named by path and content, so that a file whose content changed upstream is another file."""
        key = hashlib.sha256(f"{remote.path}\0{remote.sha256}{remote.git_sha1}".encode()).hexdigest()[:12]
        return self.folder / f"{key}-{remote.path.rsplit('/', 1)[-1]}"

    def part(self, remote: RemoteFile) -> Path:
        return _with_suffix(self.place(remote), ".part")

    def bytes_here(self, remote: RemoteFile) -> int:
        """How much of the file need not be fetched."""
        return sum(path.stat().st_size for path in (self.place(remote), self.part(remote)) if path.exists())

    def source(self, remote: RemoteFile) -> Source:
        kind, packing = kind_of(remote.path) or ("", "")
        return Source(str(self.place(remote)), remote.size, kind, packing)

    def is_read(self, remote: RemoteFile) -> bool:
        return _with_suffix(self.place(remote), ".json").exists()

    def read(self, remote: RemoteFile) -> Arrived:
        """Count what is in a whole file, rewriting it first unless it is in our form. Remembered on disk.

        Raises FathomError when it is damaged or has no such column.
        """
        place = self.place(remote)
        record = _with_suffix(place, ".json")
        if record.exists():
            known = json.loads(record.read_text(encoding="utf-8"))
            return Arrived(
                self.folder / known["at"], CorpusFile(**known["file"]) if known["file"] else None, known["broken"]
            )
        if self.column == COLUMN and fits_as_it_is(place):
            arrived = Arrived(place, describe(place, remote.path, remote.sha256), 0)
        else:
            arrived = self._rewrite(self.source(remote), remote.path)
        at = arrived.path.relative_to(self.folder).as_posix()
        described = arrived.file.as_json() if arrived.file else None
        write_atomic(record, json.dumps({"at": at, "file": described, "broken": arrived.broken}))
        return arrived

    def _rewrite(self, source: Source, origin: str) -> Arrived:
        folder = _with_suffix(Path(source.path), ".rewritten")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        left_out: list[str] = []
        writer = ShardWriter(folder, "all", shard_bytes=1 << 62)
        try:
            for text in read_documents(source, self.column, on_broken=left_out.append if self.skip_broken else None):
                if text and not text.isspace():
                    writer.add(text.encode())
            written = writer.close()
        except BaseException:
            writer.abandon()
            raise
        if left_out:
            say(f"Left out of {origin}: {len(left_out):,} broken, such as {left_out[0]}.", style="yellow")
        if not written:
            return Arrived(folder, None, len(left_out))
        file = CorpusFile(**(written[0].as_json() | {"origin": origin}))
        return Arrived(folder / file.name, file, len(left_out))


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
