"""`fathom data add`, `list` and `show`: what a person asks of corpora, and what is said of one."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import tyro

from fathom.data.corpus import Corpus, add_corpus, open_corpus
from fathom.data.corpus.aside import aside_dir, gigabytes
from fathom.data.corpus.builder import Options
from fathom.data.corpus.manifest import SPLITS, Split
from fathom.errors import FathomError
from fathom.home import home, names
from fathom.screen import plural, say


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
        if not 0 < self.shard_mb * 1e6 < math.inf:
            raise FathomError(f"--shard-mb is {self.shard_mb}", "give a number above 0")
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
    if seconds is not None:
        say(f"  `fathom tokenizer train --corpus {corpus.name} --name {corpus.name}` makes a vocabulary for it")


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
    many = {"broken line or file": "broken lines or files"}.get(noun, f"{first}s" + (f" of {rest}" if rest else ""))
    return plural(count, noun, many)


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
