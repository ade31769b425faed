"""A corpus: a folder of Parquet files with documents to train on and documents to measure on, and a manifest.

files ──`data add`──▶ corpora/NAME/ ──▶ tokenizer, shards         hub ──`data get`──▶ the same
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import Any

import tyro

from fathom.data.aside import aside_dir, gigabytes, making, only_one, refuse_existing, require_space
from fathom.data.corpus_build import DISK_PER_TEXT_BYTE, Options, build, text_bytes_expected
from fathom.data.corpus_files import CorpusFile, ShardWriter, read_text, read_texts
from fathom.data.corpus_manifest import MANIFEST, SPLITS, Split, digest_of, write_manifest
from fathom.data.readers import KNOWN, Found, find_sources
from fathom.errors import FathomError
from fathom.home import corpus_dir, home, names
from fathom.screen import say


@dataclass(frozen=True)
class Corpus:
    """A whole corpus on disk. `manifest` is corpus.json; documents are read from the files as they are asked for."""

    name: str
    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def digest(self) -> str:
        """64 hex digits that change when any document does."""
        return str(self.manifest["digest"])

    @property
    def source(self) -> list[str]:
        """Where it came from, in words."""
        return list(self.manifest["source"])

    def files(self, split: Split) -> list[Path]:
        """Its Parquet files (column `text`), in order."""
        return [self.folder / file.name for file in self.described_files(split)]

    def described_files(self, split: Split) -> list[CorpusFile]:
        """The same files with digest and counts."""
        return [CorpusFile(**file) for file in self._split(split)["files"]]

    def documents(self, split: Split) -> Iterator[str]:
        """All documents in order, streamed: a few megabytes in memory at a time."""
        for path in self.files(split):
            yield from read_texts(path)

    def document(self, split: Split, index: int) -> str:
        """Document number `index` of a split, reading only the row group that it is in."""
        row = index
        for file in self.described_files(split):
            if 0 <= row < file.documents:
                return read_text(self.folder / file.name, row)
            row -= file.documents
        raise IndexError(f"{split} of corpus {self.name} has {self.n_documents(split)} documents, not one {index}")

    def n_documents(self, split: Split) -> int:
        return int(self._split(split)["documents"])

    def n_characters(self, split: Split) -> int:
        return int(self._split(split)["characters"])

    def n_bytes(self, split: Split) -> int:
        """Bytes of the documents in UTF-8."""
        return int(self._split(split)["bytes"])

    def _split(self, split: str) -> dict[str, Any]:
        if split not in SPLITS:
            raise ValueError(f"a corpus has the splits train and validation, not {split!r}")
        return dict(self.manifest["splits"][split])


def open_corpus(name: str) -> Corpus:
    """The corpus of that name. Raises FathomError when it is not there, or its files are not those it was made of."""
    folder = corpus_dir(name)
    if not folder.is_dir():
        raise _no_such_corpus(name)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        corpus = Corpus(name, folder, manifest)
        expected = [file for split in SPLITS for file in corpus.described_files(split)]
        recorded = corpus.digest
    except (OSError, ValueError, KeyError, TypeError):
        raise FathomError(f"{folder / MANIFEST} is missing or damaged", _MAKE_AGAIN.format(folder=folder)) from None
    for file in expected:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.file_bytes:
            raise FathomError(f"{path} is missing or was changed", _MAKE_AGAIN.format(folder=folder))
    if recorded != digest_of({split: corpus.described_files(split) for split in SPLITS}):
        raise FathomError(f"{folder / MANIFEST} was changed by hand", _MAKE_AGAIN.format(folder=folder))
    return corpus


_MAKE_AGAIN = "remove {folder} and make or fetch the corpus again"


def _no_such_corpus(name: str) -> FathomError:
    here = names("corpora")
    near = get_close_matches(name, here, n=1)
    if near:
        return FathomError(f"there is no corpus {name!r}", f"did you mean {near[0]!r}?")
    listed = f"those here are {', '.join(here)}" if here else "there are none yet"
    return FathomError(f"there is no corpus {name!r}, {listed}", f"make it with `fathom data add {name} PATH`")


def write_corpus(name: str, train: Iterable[str], validation: Iterable[str], source: str) -> Corpus:
    """Make a corpus of documents at hand, keeping their order.

    When a corpus of that name exists with exactly these documents it is returned; with others, FathomError.
    """
    with only_one(name, "making"), making(name, replace=True) as folder:
        files = {"train": _write(folder, "train", train), "validation": _write(folder, "validation", validation)}
        for split, written in files.items():
            if not written:
                raise FathomError(f"corpus {name!r} would have no {split} documents", "give at least one")
        write_manifest(folder, files, source=[source])
        if corpus_dir(name).exists():
            if open_corpus(name).digest != digest_of(files):
                refuse_existing(name)
            shutil.rmtree(folder)
    return open_corpus(name)


def _write(folder: Path, split: str, documents: Iterable[str]) -> list[CorpusFile]:
    writer = ShardWriter(folder, split)
    try:
        for document in documents:
            if document and not document.isspace():
                writer.add(document.encode())
        return writer.close()
    except BaseException:
        writer.abandon()
        raise


def add_corpus(
    name: str,
    paths: Iterable[Path],
    validation: Iterable[Path] = (),
    options: Options | None = None,
    *,
    replace: bool = False,
) -> Corpus:
    """Make corpus `name` of files and folders. `validation` names what is kept wholly for validation, and taken out
    of the training part should `paths` hold it too. Raises FathomError for anything a person can mend."""
    options, paths, validation = options or Options(), list(paths), list(validation)
    if validation and options.validation_share is not None:
        raise FathomError("--validation and --validation-share were both given", "give one of them")
    corpus_dir(name)
    with only_one(name, "making"):
        if not replace:
            refuse_existing(name)
        taken: set[tuple[int, int]] = set()
        held_out = find_sources(validation, taken) if validation else None
        train = find_sources(paths, taken)
        _refuse_no_files(train, paths, held_out)
        expected = text_bytes_expected([train] + ([held_out] if held_out else []), options.column)
        require_space(DISK_PER_TEXT_BYTE * expected, f"a corpus of about {gigabytes(expected)} of text")
        with making(name, replace=replace) as folder:
            build(folder, train, held_out, options, source=paths, held_out_from=validation)
    return open_corpus(name)


def _refuse_no_files(train: Found, paths: list[Path], held_out: Found | None) -> None:
    where = ", ".join(map(str, paths))
    if held_out is not None and not held_out.sources:
        raise FathomError("no file to read was found for validation", f"known are {KNOWN}")
    if train.sources:
        return
    if held_out is not None:
        raise FathomError(
            f"nothing is left to train on in {where} beside the validation files", "name more files to train on"
        )
    others = ", ".join(f"{count} {ending}" for ending, count in train.skipped.most_common(5))
    raise FathomError(f"no file to read in {where}" + (f", only {others}" if others else ""), f"known are {KNOWN}")


@dataclass(frozen=True)
class Add:
    """Make a corpus of text files, Markdown, JSON lines or Parquet.

    A text file is one document (a very long one is cut at paragraph ends), a line of JSON or a row of Parquet is one
    too. Folders are searched through. Documents are shuffled, and some are kept for validation.
    """

    name: tyro.conf.Positional[str]
    """What to call the corpus."""
    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files and folders: .txt, .md, .jsonl (each also as .gz or .zst) and .parquet."""
    validation: tuple[Path, ...] = ()
    """Files and folders kept whole for validation, and out of training."""
    validation_share: float | None = None
    """The share of the text that is kept for validation when no files are named for it (by default 1 %, of a small
    corpus up to 10 %, at most 20 MB)."""
    column: str = "text"
    """The field of JSON lines, or column of Parquet, that holds the text."""
    keep_order: bool = False
    """Do not shuffle: keep the order of files and rows."""
    dedup: bool = False
    """Drop exact duplicates, also between training and validation."""
    skip_broken: bool = False
    """Go on without files and lines that cannot be read, instead of stopping at the first."""
    replace: bool = False
    """Put the new corpus in the place of one that has this name."""
    seed: int = 0
    """Decides the order and the choice of validation documents."""
    shard_mb: float = 100.0
    """The size of a file of the corpus, in megabytes."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> dict[str, Any]:
        if not self.paths:
            raise FathomError("no files were named", f"name files or folders: `fathom data add {self.name} PATH`")
        started = time.monotonic()
        options = Options(
            column=self.column,
            seed=self.seed,
            keep_order=self.keep_order,
            dedup=self.dedup,
            validation_share=self.validation_share,
            skip_broken=self.skip_broken,
            shard_bytes=int(self.shard_mb * 1e6),
        )
        corpus = add_corpus(self.name, self.paths, self.validation, options, replace=self.replace)
        seconds = time.monotonic() - started
        tell(corpus, seconds)
        return summary(corpus) | {"seconds": round(seconds, 3)}


def tell(corpus: Corpus, seconds: float | None = None) -> None:
    """Say to a person what a corpus holds and what was left out of it."""
    took = "" if seconds is None else f" in {seconds:.1f} s"
    say(f"Corpus {corpus.name}{took}: {_held(corpus, 'train')} to train on, {_held(corpus, 'validation')} to validate.")
    left_out = left_out_words(corpus.manifest["dropped"])
    if left_out:
        say(f"Left out: {left_out}.")


def _held(corpus: Corpus, split: Split) -> str:
    return f"{counted(corpus.n_documents(split), 'document')} ({gigabytes(corpus.n_bytes(split))})"


def left_out_words(dropped: dict[str, Any]) -> str:
    skipped = dropped.get("files_of_unknown_type", {})
    parts = [
        (dropped.get("empty_documents", 0), "empty document", ""),
        (dropped.get("duplicate_documents", 0), "duplicate", f" ({gigabytes(dropped.get('duplicate_bytes', 0))})"),
        (dropped.get("broken", 0), "broken line or file", ""),
        (sum(skipped.values()), "file of unknown type", f" ({', '.join(list(skipped)[:6])})"),
    ]
    return ", ".join(counted(count, noun) + note for count, noun, note in parts if count)


def counted(count: int, noun: str) -> str:
    """ "1 file", "2,000 files"; the first word of `noun` takes the s."""
    first, _, rest = noun.partition(" of ")
    plural = {"broken line or file": "broken lines or files"}.get(noun, f"{first}s" + (f" of {rest}" if rest else ""))
    return f"{count:,} {noun if count == 1 else plural}"


def summary(corpus: Corpus) -> dict[str, Any]:
    """What `--json` says of a corpus."""
    splits: dict[str, Any] = {
        split: {
            "documents": corpus.n_documents(split),
            "characters": corpus.n_characters(split),
            "bytes": corpus.n_bytes(split),
            "files": len(corpus.files(split)),
        }
        for split in SPLITS
    }
    return {
        "corpus": corpus.name,
        "folder": str(corpus.folder),
        "digest": corpus.digest,
        "source": corpus.source,
        **splits,
        "dropped": corpus.manifest["dropped"],
    }


@dataclass(frozen=True)
class List:
    """What corpora are here."""

    json: bool = False
    """Print the list as one JSON object."""

    def run(self) -> dict[str, Any]:
        listed, damaged = [], []
        for name in names("corpora"):
            try:
                listed.append(summary(open_corpus(name)))
            except FathomError as error:
                damaged.append({"corpus": name, "problem": str(error)})
        unfinished = unfinished_corpora()
        if not self.json:
            _show_list(listed, damaged, unfinished)
        return {"corpora": listed, "damaged": damaged, "unfinished": unfinished}


def unfinished_corpora() -> list[str]:
    """Names of corpora that a fetch has begun and not ended."""
    return sorted(p.name[1:].removesuffix(".fetching") for p in (home() / "corpora").glob(".*.fetching"))


def _show_list(listed: list[dict[str, Any]], damaged: list[dict[str, Any]], unfinished: list[str]) -> None:
    if not listed and not damaged and not unfinished:
        say("No corpora yet: make one with `fathom data add NAME PATH`, or fetch one with `fathom data get climbmix`.")
    width = max((len(row["corpus"]) for row in listed), default=0)
    for row in listed:
        train, held_out = row["train"], row["validation"]
        say(
            f"{row['corpus']:<{width}}  {counted(train['documents'], 'document'):>21}  {gigabytes(train['bytes']):>9}"
            f"  + {gigabytes(held_out['bytes']):>8} validation  from {_shortened(', '.join(row['source']))}"
        )
    for row in damaged:
        say(f"{row['corpus']}: {row['problem']}", style="yellow")
    for name in unfinished:
        say(
            f"{name}: half fetched, in {aside_dir(name, 'fetching')}; `fathom data get` goes on with it", style="yellow"
        )


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Show:
    """Print a few documents of a corpus, chosen at random."""

    name: tyro.conf.Positional[str]
    """The corpus."""
    count: int = 3
    """How many documents."""
    split: Split = "train"
    """Which part of the corpus."""
    characters: int = 1000
    """How much of each document, at most."""
    seed: int = 0
    """Another seed shows other documents."""
    json: bool = False
    """Print them as one JSON object."""

    def run(self) -> dict[str, Any]:
        if self.count < 1 or self.characters < 1:
            raise FathomError("nothing would be shown", "give --count and --characters of at least 1")
        corpus = open_corpus(self.name)
        n_documents = corpus.n_documents(self.split)
        chosen = sorted(Random(self.seed).sample(range(n_documents), min(self.count, n_documents)))
        shown = []
        for index in chosen:
            text = corpus.document(self.split, index)
            shown.append(
                {"split": self.split, "index": index, "characters": len(text), "text": text[: self.characters]}
            )
            if not self.json:
                _print_document(shown[-1], n_documents)
        return {"corpus": self.name, "documents": shown}


def _print_document(row: dict[str, Any], n_documents: int) -> None:
    say(
        f"── {row['split']} document {row['index']:,} of {n_documents:,}, {counted(row['characters'], 'character')} ──",
        style="bold",
    )
    print(printable(row["text"]), flush=True)
    if row["characters"] > len(row["text"]):
        say(f"… {row['characters'] - len(row['text']):,} more", style="dim")
    sys.stdout.write("\n")


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
    code: 0xFFFD for code in range(0x7F, 0xA0)
}


def printable(text: str) -> str:
    """Text of strangers without the control characters that would command the terminal."""
    return text.translate(_PICTURES)
