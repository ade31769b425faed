"""Bytes in, text out: only whole characters, and nothing that could still become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Speech:
    """The text of one answer as it comes."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._stops = stops
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> str:
        """What can be said now that these bytes came. After a stop string nothing can."""
        return self._watch(self._decoder.decode(data))

    def end(self) -> str:
        """What was held back: nothing follows, or something that no character and no stop string goes through."""
        said = self._watch(self._decoder.decode(b"", final=True)) + self._held
        self._decoder.reset()
        self._held = ""
        return said

    def _watch(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self._held = ""
            return text[:at]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
