"""Files -> a corpus: read everything once onto disk, then write it out in its final order.

    sources ──read──▶ spool (random or given order) ──▶ train-*.parquet
                └──▶ digests ──▶ duplicates to drop ──▶ validation-*.parquet

Memory stays within a few hundred megabytes whatever the input: the spool and the digests are on disk, and what is
validation is decided by each document's random key against a threshold that is known once all sizes are.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fathom.data.corpus.aside import gigabytes
from fathom.data.corpus.duplicates import Dropped, DuplicateFinder, nothing_dropped
from fathom.data.corpus.files import SHARD_BYTES, CorpusFile, ShardWriter
from fathom.data.corpus.manifest import write_manifest
from fathom.data.corpus.readers import Found, Source, break_at, expected_bytes, read_documents
from fathom.data.corpus.shuffle import BUCKET_BYTES, Document, Spool, key, keys
from fathom.errors import FathomError
from fathom.screen import Bar, bar, say

DISK_PER_TEXT_BYTE = 0.6
VALIDATION_SHARE = 0.01
VALIDATION_LEAST_BYTES = 256_000
VALIDATION_LARGEST_SHARE = 0.1
VALIDATION_MOST_BYTES = 20_000_000
BROKEN_SHOWN = 5
KEY_BLOCK = 1 << 20


@dataclass(frozen=True)
class Options:
    """How a corpus is made. Without a share, validation is what `validation_target` says."""

    column: str = "text"
    seed: int = 0
    keep_order: bool = False
    dedup: bool = False
    validation_share: float | None = None
    skip_broken: bool = False
    shard_bytes: int = SHARD_BYTES
    bucket_bytes: int = BUCKET_BYTES

    def __post_init__(self) -> None:
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise FathomError(f"a validation share of {self.validation_share} is no share", "give one between 0 and 1")
        if self.shard_bytes < 1:
            raise FathomError("a shard cannot be smaller than a byte", "give --shard-mb a number above 0")


@dataclass
class Taken:
    """What came in: documents are numbered as they were read, those of the validation files first."""

    n_documents: int = 0
    n_validation: int = 0
    n_bytes: int = 0
    empty: int = 0
    broken: int = 0
    broken_examples: list[str] = field(default_factory=list)


def text_bytes_expected(found: Sequence[Found], column: str) -> int:
    """About how many bytes of text the files hold."""
    return sum(expected_bytes(source, column) for part in found for source in part.sources)


def build(
    folder: Path,
    train: Found,
    validation: Found | None,
    options: Options,
    *,
    source: Sequence[object],
    held_out_from: Sequence[object] = (),
    hub: Mapping[str, Any] | None = None,
) -> None:
    """Fill the empty `folder` with the corpus of these files. Raises FathomError for input that cannot be one.

    `source` and `held_out_from` are what a person named, and `hub` where it was fetched: for the record.
    """
    spool_folder = folder / ".spool"
    held_out = validation.sources if validation is not None else []
    expected = text_bytes_expected([found for found in (train, validation) if found is not None], options.column)
    spool = Spool(
        spool_folder / "documents", None if options.keep_order else options.seed, expected, options.bucket_bytes
    )
    finder = DuplicateFinder(spool_folder / "digests") if options.dedup else None
    taken = _take_in(held_out, train.sources, spool, finder, options)
    dropped = _find_duplicates(finder) if finder is not None else nothing_dropped(taken.n_documents)
    is_validation = _division(taken, dropped, options, explicit=validation is not None)
    files = _write_out(folder, spool, taken, dropped, is_validation, options)
    shutil.rmtree(spool_folder)
    skipped = train.skipped + (validation.skipped if validation is not None else Counter())
    recorded = {name: value for name, value in asdict(options).items() if name != "bucket_bytes"}
    recorded["validation"] = [str(path) for path in held_out_from]
    account = _account(taken, dropped, dict(sorted(skipped.items())))
    write_manifest(folder, files, source=[str(path) for path in source], options=recorded, dropped=account, hub=hub)


def _account(taken: Taken, dropped: Dropped, skipped: dict[str, int]) -> dict[str, Any]:
    return {
        "empty_documents": taken.empty,
        "duplicate_documents": dropped.n_documents,
        "duplicate_bytes": dropped.n_bytes,
        "broken": taken.broken,
        "broken_examples": taken.broken_examples,
        "files_of_unknown_type": skipped,
    }


def _take_in(
    held_out: Sequence[Source],
    train: Sequence[Source],
    spool: Spool,
    finder: DuplicateFinder | None,
    options: Options,
) -> Taken:
    taken = Taken()

    def on_broken(sentence: str) -> None:
        taken.broken += 1
        if taken.broken <= BROKEN_SHOWN:
            taken.broken_examples.append(sentence)
            say(f"Left out: {sentence}.", style="yellow")

    with bar("reading", sum(source.size for source in (*held_out, *train))) as shown:
        advance = _with_speed(shown)
        for number, source in enumerate((*held_out, *train)):
            if number == len(held_out):
                taken.n_validation = taken.n_documents
            broken = on_broken if options.skip_broken else None
            for text in read_documents(source, options.column, on_broken=broken, advance=advance):
                if not text or text.isspace():
                    taken.empty += 1
                    continue
                encoded = text.encode()
                spool.add(Document(taken.n_documents, encoded))
                if finder is not None:
                    finder.add(taken.n_documents, encoded)
                taken.n_documents += 1
                taken.n_bytes += len(encoded)
    if not train:
        taken.n_validation = taken.n_documents
    return taken


def _find_duplicates(finder: DuplicateFinder) -> Dropped:
    with bar("looking for duplicates", 1) as shown:
        return finder.find(advance=shown.advance)


def _with_speed(shown: Bar) -> Callable[[int], None]:
    """Advance `shown` by bytes, a megabyte at a time: a document may be a line, and drawing costs more than that."""
    started, done, told = time.monotonic(), 0, 0

    def advance(n_bytes: int) -> None:
        nonlocal done, told
        done += n_bytes
        if done - told >= 1_000_000:
            shown.advance(done - told, f"{done / 1e6 / max(time.monotonic() - started, 1e-3):.0f} MB/s")
            told = done

    return advance


def validation_target(n_bytes: int, share: float | None) -> float:
    """Bytes of text to hold out of `n_bytes`: the share asked for, else 1 % within sensible bounds.

    A small corpus gives up to a tenth for a validation part worth measuring on; a large one never more than 20 MB.
    """
    if share is not None:
        return share * n_bytes
    wanted = max(VALIDATION_SHARE * n_bytes, VALIDATION_LEAST_BYTES)
    return min(wanted, VALIDATION_LARGEST_SHARE * n_bytes, VALIDATION_MOST_BYTES)


def _division(taken: Taken, dropped: Dropped, options: Options, *, explicit: bool) -> Callable[[int], bool]:
    """Which documents are validation: those of the validation files, else those of the lowest random keys."""
    remaining = taken.n_documents - dropped.n_documents
    if remaining == 0:
        raise FathomError("there is no text in these files", "give files with text in them")
    if explicit:
        _refuse_empty_parts(taken, dropped)
        return lambda index: index < taken.n_validation
    n_bytes = taken.n_bytes - dropped.n_bytes
    limit = threshold(
        options.seed, taken.n_documents, dropped, validation_target(n_bytes, options.validation_share) / n_bytes
    )
    return lambda index: key(options.seed, index) < limit


def _refuse_empty_parts(taken: Taken, dropped: Dropped) -> None:
    if taken.n_validation == 0:
        raise FathomError("there is no text in the validation files", "name others with --validation")
    if taken.n_validation == taken.n_documents:
        raise FathomError(
            "nothing is left to train on beside the validation files", "name more files, or fewer with --validation"
        )
    if dropped.n_documents and all(
        dropped.mask(first, min(first + KEY_BLOCK, taken.n_documents))[max(0, taken.n_validation - first) :].all()
        for first in range(0, taken.n_documents, KEY_BLOCK)
    ):
        raise FathomError("every document to train on is in the validation files too", "name other validation files")


def threshold(seed: int, n_documents: int, dropped: Dropped, share: float) -> int:
    """The key below which a document is validation, so that about `share` of them are, at least one, never all.

    (Of a single one all are: the caller divides it.)
    """
    lowest, highest = (1 << 64) - 1, 0
    for first in range(0, n_documents, KEY_BLOCK):
        last = min(first + KEY_BLOCK, n_documents)
        remaining = keys(seed, first, last)[~dropped.mask(first, last)]
        if len(remaining):
            lowest, highest = min(lowest, int(remaining.min())), max(highest, int(remaining.max()))
    return max(min(int(share * 2**64), highest), lowest + 1)


def _write_out(
    folder: Path,
    spool: Spool,
    taken: Taken,
    dropped: Dropped,
    is_validation: Callable[[int], bool],
    options: Options,
) -> dict[str, list[CorpusFile]]:
    writers = {split: ShardWriter(folder, split, options.shard_bytes) for split in ("train", "validation")}
    alone = taken.n_documents - dropped.n_documents == 1
    try:
        with bar("writing", taken.n_bytes) as shown:
            advance = _with_speed(shown)
            for document in spool:
                advance(len(document.text))
                if dropped.n_documents and document.index in dropped:
                    continue
                parts = _divided(document.text, options) if alone else [(is_validation(document.index), document.text)]
                for held_out, text in parts:
                    writers["validation" if held_out else "train"].add(text)
        return {split: writer.close() for split, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise


def _divided(text: bytes, options: Options) -> Iterator[tuple[bool, bytes]]:
    """The only document there is: its end becomes the validation part."""
    whole = text.decode()
    share = validation_target(len(text), options.validation_share) / len(text)
    at = break_at(whole, max(1, int(len(whole) * (1 - share))))
    if not whole[:at].strip() or not whole[at:].strip():
        raise FathomError(
            f"one document of {gigabytes(len(text))} is too little to divide into training and validation text",
            "give more text, or name a validation file with --validation",
        )
    say("There is only one document: its end is kept for validation.")
    yield False, whole[:at].encode()
    yield True, whole[at:].encode()
