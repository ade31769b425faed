"""A network that always follows one token with the same other one: its answers can be written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fathom.model.shape import Shape
from oracles.byte_tokenizer import ByteTokenizer

TOKENIZER: Any = ByteTokenizer()
END = int(TOKENIZER.special("<|assistant_end|>"))
ANSWER = int(TOKENIZER.special("<|assistant_start|>"))


class Chain:
    """After token t comes follow[t], else the end of the answer; "not a number" where that is None."""

    def __init__(self, follow: dict[int, int | None], seq_len: int = 64) -> None:
        self.shape = Shape(1, 1, 1, 32, TOKENIZER.vocab_size, seq_len)
        self.dtype, self.device, self.follow = torch.float32, torch.device("cpu"), follow
        self.before_each_pass: Callable[[], None] = lambda: None

    def __call__(self, ids: torch.Tensor, context: Any) -> torch.Tensor:
        self.before_each_pass()
        return ids[..., None].float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), self.shape.vocab_size)
        for row, token in zip(logits, hidden[:, 0].long().tolist(), strict=True):
            after = self.follow.get(token, END)
            row[after or 0] = torch.nan if after is None else 99.0
        return logits


def saying(after: int, tokens: list[int | None], seq_len: int = 64) -> Chain:
    """A network that says these tokens, each of which may be named once, after the token `after`."""
    known = [token for token in (after, *tokens) if token is not None]
    return Chain(dict(zip(known, tokens, strict=False)), seq_len)
