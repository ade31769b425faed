"""A network that says what a script has for each position, whatever it reads: whole answers can be written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fathom.model.shape import Shape


class Scripted:
    """At position p of a row (0 is BOS) the likeliest next token is script[p], else `otherwise`."""

    def __init__(self, script: Mapping[int, int], vocab_size: int, otherwise: int, seq_len: int = 256) -> None:
        self.shape = Shape(1, 1, 1, 32, vocab_size, seq_len)
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self._script, self._otherwise = script, otherwise

    def __call__(self, ids: torch.Tensor, context: Any) -> torch.Tensor:
        return context.positions.expand(ids.shape)[..., None].float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), self.shape.vocab_size)
        for row, position in zip(logits, hidden[:, 0].long().tolist(), strict=True):
            row[self._script.get(position, self._otherwise)] = 9.0
        return logits


def answering(prompt_length: int, parts: Sequence[Sequence[int]], gaps: Sequence[int], **more: Any) -> Scripted:
    """Says `parts` one after another after a prompt; after each, as many tokens as `gaps` says are a tool's."""
    script, at = {}, prompt_length - 1
    for part, gap in zip(parts, gaps, strict=True):
        for token in part:
            script[at] = token
            at += 1
        at += gap
    return Scripted(script, **more)
