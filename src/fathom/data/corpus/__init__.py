"""A corpus: a folder of Parquet files with documents to train on and documents to measure on, and a manifest.

files ──`data add`──▶ corpora/NAME/ ──▶ tokenizer, shards         hub ──`data get`──▶ the same
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fathom.data.corpus.aside import gigabytes, making, only_one, refuse_existing, require_space
from fathom.data.corpus.builder import DISK_PER_TEXT_BYTE, Options, build, text_bytes_expected
from fathom.data.corpus.files import CorpusFile, ShardWriter, read_text, read_texts
from fathom.data.corpus.manifest import MANIFEST, SPLITS, Split, digest_of, write_manifest
from fathom.data.corpus.readers import KNOWN, Found, find_sources
from fathom.errors import FathomError
from fathom.home import corpus_dir, names


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
    return FathomError(f"there is no corpus {name!r}, {listed}", _how_to_have(name))


def _how_to_have(name: str) -> str:
    from fathom.data.hub.choice import KNOWN_DATASETS

    if name in KNOWN_DATASETS:
        return f"fetch it with `fathom data get {name}`"
    return f"make it with `fathom data add {name} PATH`"


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
            here = open_corpus(name)
            new = Corpus(name, folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
            if here.digest != new.digest and not _same_documents(here, new):
                raise FathomError(
                    f"corpus {name!r} is there with other documents than this version writes",
                    f"remove it, with rm -r {shlex.quote(str(corpus_dir(name)))}",
                )
            shutil.rmtree(folder)
    return open_corpus(name)


def _same_documents(one: Corpus, other: Corpus) -> bool:
    """Whether the documents are equal, which the files of two versions of pyarrow are not: they name it."""
    return all(
        one.n_documents(split) == other.n_documents(split)
        and all(a == b for a, b in zip(one.documents(split), other.documents(split), strict=True))
        for split in SPLITS
    )


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
