"""Learning the tokens of a byte-level BPE from a stream of documents, with rustbpe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from fathom.errors import FathomError
from fathom.screen import bar

MAX_CHARS = 2_000_000_000
DOC_CAP = 10_000

# A pattern's lookahead needs a stack as deep as a run of blanks is long, and both engines have room for a million.
_LONGEST_RUN = 500_000
_DOCUMENTS_AT_ONCE = 1024


class Sample:
    """The part of a stream of documents that a vocabulary is learned from: of each document the first `doc_cap`
    characters, and no more documents once more than `max_chars` characters have been read."""

    def __init__(self, texts: Iterable[str], max_chars: int = MAX_CHARS, doc_cap: int = DOC_CAP) -> None:
        self._texts, self._max_chars, self._doc_cap = texts, max_chars, doc_cap
        self.documents = self.characters = 0
        self.cut = 0
        """Documents of which only the beginning was taken."""
        self.is_full = False
        """Whether it ended by `max_chars`, with documents left or not."""

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.cut += len(text) > self._doc_cap
            text = text[: self._doc_cap]
            self.documents += 1
            self.characters += len(text)
            yield text
            self.is_full = self.characters > self._max_chars
            if self.is_full:
                return


def learn_tokens(sample: Sample, n_tokens: int, pattern: str, expected_chars: int | None = None) -> list[bytes]:
    """The 256 bytes and then up to `n_tokens` - 256 merges, in order: fewer when no pair is left to merge.

    Each merge is the most frequent pair of neighbours within a piece that `pattern` cuts; among equals the pair of
    the smallest ids. Raises FathomError when there is no text.
    """
    import rustbpe

    trainer = rustbpe.Tokenizer()
    with _heartbeat("Choosing merges") as start_heartbeat:
        pieces = _read(sample, expected_chars, start_heartbeat)
        trainer.train_from_iterator(pieces, n_tokens, buffer_size=_DOCUMENTS_AT_ONCE, pattern=pattern)
    if not sample.characters:
        raise FathomError("there is no text to learn a vocabulary from", "choose a corpus that has some")
    ranked = sorted(trainer.get_mergeable_ranks(), key=lambda token_and_rank: token_and_rank[1])
    return [bytes(token) for token, _ in ranked]


def _read(sample: Sample, expected_chars: int | None, at_end: Callable[[], None]) -> Iterator[str]:
    with bar("Counting words", expected_chars) as progress:
        for text in sample:
            yield from cut_runs(without_surrogates(text))
            progress.advance(len(text), f"{sample.characters / 1e6:,.0f} M characters")
    at_end()


def without_surrogates(text: str) -> str:
    """`text` as UTF-8 can hold it: pairs of surrogates joined, lone ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def cut_runs(text: str) -> list[str]:
    """`text` in pieces that hold no run of blanks longer than the engines can split."""
    if len(text) <= _LONGEST_RUN:
        return [text]
    cuts = [0]
    for run in re.finditer(r"\s+", text):
        cuts.extend(range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN))
    return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


_BEAT = """
import select, sys, time
began = time.monotonic()
while not select.select([sys.stdin], [], [], 2.0)[0]:
    print(f"{sys.argv[1]} … {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
"""


@contextmanager
def _heartbeat(text: str) -> Iterator[Callable[[], None]]:
    """Hands out a function that starts a line every two seconds; they end with the block, or with this process.

    The lines come from a process of their own because rustbpe holds the GIL while it merges.
    """
    beating: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [sys.executable, "-I", "-S", "-c", _BEAT, text]
        beating.append(subprocess.Popen(command, stdin=subprocess.PIPE))

    try:
        yield start
    finally:
        for process in beating:
            with process:
                pass
