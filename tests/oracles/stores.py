"""A token store in memory whose tokens tell where they come from."""

from __future__ import annotations

import numpy as np

DOCUMENT = 1_000_000


class ListStore:
    """Token i of document d is d * DOCUMENT + i."""

    digest = "a list of lengths"

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = np.array(lengths, dtype=np.int64)

    def lengths(self, split: str) -> np.ndarray:
        return self._lengths

    def fill(self, split: str, segments: np.ndarray, out: np.ndarray) -> None:
        at = 0
        for document, start, length in segments.tolist():
            assert start + length <= self._lengths[document]
            out[at : at + length] = document * DOCUMENT + np.arange(start, start + length)
            at += length
        assert at == len(out)
