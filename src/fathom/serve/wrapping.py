"""An answer that streams into a terminal, its lines broken between words."""

from __future__ import annotations

import re
from collections.abc import Callable

LONGEST_HELD = 30
"""Of a word without an end: what is longer, or written without blanks, is not held back."""


class Wrapping:
    """Hands on what it is given, a word at a time, so that one that does not fit any more begins the next line."""

    def __init__(self, write: Callable[[str], None], width: int) -> None:
        """`width` in columns; 0 hands everything on at once and as it is."""
        self._emit, self._width = write, width
        self._column = 0
        self._held = ""

    def write(self, text: str) -> None:
        if not self._width:
            self._emit(text)
            return
        self._held += text
        while found := re.match(r"([^\S\n]*)(\S+)(?=\s)|[^\S\n]*\n", self._held):
            if found[2]:
                self._place(found[1], found[2])
            else:
                self._emit("\n")
                self._column = 0
            self._held = self._held[found.end() :]
        if len(self._held.strip()) > LONGEST_HELD:
            self.flush()

    def flush(self) -> None:
        """Hand on the last word, which no blank has ended."""
        blank = re.match(r"\s*", self._held)
        assert blank is not None
        self._place(blank[0], self._held[blank.end() :])
        self._held = ""

    def mark(self, text: str, columns: int) -> None:
        """A sign of so many columns, which stands right behind the word before it."""
        self.flush()
        self._emit(text)
        self._column += columns

    def _place(self, blank: str, word: str) -> None:
        from rich.cells import cell_len

        needed = cell_len(word)
        if blank and word and self._column and self._column + len(blank) + needed > self._width:
            self._emit("\n" + word)
            self._column = needed
        elif blank or word:
            self._emit(blank + word)
            self._column += len(blank) + needed
            while self._column > self._width:  # the terminal has broken it
                self._column -= self._width
