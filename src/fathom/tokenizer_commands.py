"""`fathom tokenizer train | eval | encode | decode`."""

from __future__ import annotations

import json as json_module
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from fathom.bpe import DOC_CAP, MAX_CHARS, Sample
from fathom.errors import FathomError
from fathom.home import tokenizer_dir
from fathom.screen import console, say
from fathom.tokenizer import FILE, load, train_on
from fathom.tokenizer_samples import SAMPLES

if TYPE_CHECKING:
    import tiktoken

    from fathom.data.corpus import Corpus

PUBLISHED = ("gpt2", "cl100k_base", "o200k_base")
_VALIDATION_CHARS = 20_000_000


@dataclass(frozen=True)
class Train:
    """Train a tokenizer on the training part of a corpus."""

    corpus: str
    """The corpus."""
    name: str
    """What to call the tokenizer."""
    vocab: int = 32_768
    """Tokens of the vocabulary: 256 bytes, merges, and 9 special tokens."""
    max_chars: float = MAX_CHARS
    """Read no more documents after this many characters."""
    doc_cap: int = DOC_CAP
    """Read only this many characters of each document."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> dict[str, Any]:
        from fathom.data.corpus import open_corpus

        for flag, value in (("--max-chars", self.max_chars), ("--doc-cap", self.doc_cap)):
            if not value >= 1:
                raise FathomError(
                    f"{flag} is {str(value).removesuffix('.0')}, which leaves nothing to read", "give at least 1"
                )
        folder = tokenizer_dir(self.name)
        if (folder / FILE).exists():
            raise FathomError(
                f"there is a tokenizer {self.name!r} already", f"choose another --name or remove {folder}"
            )
        corpus = open_corpus(self.corpus)
        began = time.monotonic()
        sample = Sample(corpus.documents("train"), int(min(self.max_chars, sys.maxsize)), self.doc_cap)
        tokenizer = train_on(sample, self.vocab, expected_chars=self._expected_chars(corpus))
        tokenizer.save(folder, {"corpus": corpus.name, "corpus_digest": corpus.digest, "characters": sample.characters})
        seconds = time.monotonic() - began
        say(
            f"Tokenizer {self.name}: {tokenizer.vocab_size:,} tokens, learned from {sample.documents:,} documents "
            f"({sample.characters / 1e6:,.1f} M characters) in {seconds:.1f} s."
        )
        if left := self._left_out(sample, corpus):
            say(f"  Not read: {left}.", style="dim")
        say(f"  `fathom plan --depth 4 --corpus {corpus.name} --tokenizer {self.name}` says what a model of it takes")
        return {
            "tokenizer": self.name,
            "vocab_size": tokenizer.vocab_size,
            "merges": len(tokenizer.tokens) - 256,
            "documents": sample.documents,
            "characters": sample.characters,
            "seconds": round(seconds, 3),
            "digest": tokenizer.digest,
        }

    def _left_out(self, sample: Sample, corpus: Corpus) -> str:
        """What of the corpus no merge was learned from, and which flag says so."""
        parts, there = [], corpus.n_documents("train")
        if sample.cut:
            parts.append(
                f"what {sample.cut:,} documents have beyond their first {self.doc_cap:,} characters (--doc-cap)"
            )
        if sample.is_full and sample.documents < there:
            parts.append(
                f"{there - sample.documents:,} documents after the first {self.max_chars:,.0f} characters (--max-chars)"
            )
        return ", and ".join(parts)

    def _expected_chars(self, corpus: Corpus) -> int:
        """At most so many: the sizes of single documents are not known beforehand."""
        by_cap = corpus.n_documents("train") * self.doc_cap
        return int(min(self.max_chars, by_cap, corpus.n_bytes("train")))


@dataclass(frozen=True)
class Eval:
    """Bytes of text per token, on several kinds of text, beside published vocabularies where these are at hand."""

    tokenizer: tyro.conf.Positional[str]
    """Name of the tokenizer, or its folder."""
    corpus: str | None = None
    """Measure on the validation part of this corpus too."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> dict[str, Any]:
        tokenizer = load(self.tokenizer)
        texts: dict[str, Iterable[str]] = {kind: [text] for kind, text in SAMPLES.items()}
        if self.corpus is not None:
            texts[f"{self.corpus} (validation)"] = _validation(self.corpus)
        published = {name: encoding for name in PUBLISHED if (encoding := cached_encoding(name)) is not None}
        columns = {self.tokenizer: _bytes_per_token(tokenizer.encode, texts)}
        for name, encoding in published.items():
            columns[name] = _bytes_per_token(encoding.encode_ordinary, texts)
        sizes = {self.tokenizer: tokenizer.vocab_size} | {name: e.n_vocab for name, e in published.items()}
        absent = [name for name in PUBLISHED if name not in published]
        if not self.json:
            _show(columns, sizes)
            if absent:
                say(f"Not compared with {', '.join(absent)}: not in tiktoken's cache on this machine.")
        return {"tokenizer": self.tokenizer, "vocab_size": sizes, "bytes_per_token": columns, "not_here": absent}


def _validation(name: str) -> list[str]:
    from fathom.data.corpus import open_corpus

    texts, characters = [], 0
    for text in open_corpus(name).documents("validation"):
        texts.append(text)
        characters += len(text)
        if characters >= _VALIDATION_CHARS:
            break
    return texts


def _bytes_per_token(encode: Callable[[str], list[int]], texts: dict[str, Iterable[str]]) -> dict[str, float]:
    """Of each kind of text, and as `all kinds` the mean over the kinds embedded here."""
    measured = {}
    for kind, documents in texts.items():
        n_bytes = n_tokens = 0
        for text in documents:
            n_bytes += len(text.encode())
            n_tokens += len(encode(text))
        measured[kind] = n_bytes / max(n_tokens, 1)
    measured["all kinds"] = sum(measured[kind] for kind in SAMPLES) / len(SAMPLES)
    return {kind: round(value, 4) for kind, value in measured.items()}


def cached_encoding(name: str) -> tiktoken.Encoding | None:
    """A published vocabulary from tiktoken's own cache, or None: nothing is ever fetched."""
    import tiktoken
    import tiktoken.load

    def refuse(blobpath: str) -> bytes:
        raise _NotHere(blobpath)

    fetch = tiktoken.load.read_file
    tiktoken.load.read_file = refuse
    try:
        return tiktoken.get_encoding(name)
    except (_NotHere, OSError, ValueError):
        return None
    finally:
        tiktoken.load.read_file = fetch


class _NotHere(Exception):
    """A vocabulary would have to be fetched."""


def _show(columns: dict[str, dict[str, float]], sizes: dict[str, int]) -> None:
    from rich.table import Table

    table = Table(title="Bytes per token (more is better)", title_justify="left")
    table.add_column("text")
    for name in columns:
        table.add_column(f"{name}\n{sizes[name]:,}", justify="right")
    for kind in next(iter(columns.values())):
        table.add_row(kind, *(f"{column[kind]:.2f}" for column in columns.values()))
    console().print(table)


@dataclass(frozen=True)
class Encode:
    """Turn standard input, to its last byte, into token ids. No BOS is added; special tokens in it are plain text."""

    tokenizer: tyro.conf.Positional[str]
    """Name of the tokenizer, or its folder."""
    json: bool = False
    """Print {"ids": [...]} instead of the ids with blanks between."""

    def run(self) -> dict[str, list[int]]:
        ids = load(self.tokenizer).encode_bytes(_standard_input("text"))
        if not self.json:
            print(*ids)
        return {"ids": ids}


@dataclass(frozen=True)
class Decode:
    """Turn token ids on standard input back into bytes on standard output."""

    tokenizer: tyro.conf.Positional[str]
    """Name of the tokenizer, or its folder."""
    json: bool = False
    """Print {"text": "..."} instead of the bytes; what is no UTF-8 becomes U+FFFD there."""

    def run(self) -> dict[str, str]:
        data = load(self.tokenizer).decode_bytes(parse_ids(_standard_input("ids")))
        if not self.json:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return {"text": data.decode("utf-8", "replace")}


def _standard_input(what: str) -> bytes:
    if sys.stdin.isatty():
        say(f"Type the {what} and end with Ctrl-D on a line of its own.")
    return sys.stdin.buffer.read()


def parse_ids(text: bytes) -> list[int]:
    """Ids with blanks or commas between, in brackets or not, or as `encode --json` printed them."""
    try:
        if text.lstrip().startswith(b"{"):
            ids = json_module.loads(text)["ids"]
        else:
            ids = [int(word) for word in re.split(rb"[\s,\[\]]+", text) if word]
    except (ValueError, KeyError, TypeError):
        ids = None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise FathomError(
            "standard input holds something else than token ids", "give ids as `fathom tokenizer encode` prints them"
        )
    return ids
