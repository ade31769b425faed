"""One request on its way: what it asked for, what it said so far, and when a tool speaks instead of the model.

Knows no network and no batch: a sampled token goes in, an event comes out.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from fathom.data import conversations
from fathom.errors import FathomError
from fathom.generate.sampling import Sampling

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

Finish = Literal["stop", "length", "error"]
PartType = Literal["text", "python", "python_output"]
Tool = Callable[[str], str | None]  # a call's text -> its result, or None for none

DEFAULT_SEED = 42


@dataclass(frozen=True)
class Request:
    """A prompt to go on from, and how. The same request gives the same tokens, whatever else is in the batch."""

    prompt: tuple[int, ...]
    """Token ids, beginning with BOS."""
    max_tokens: int = 256
    """At most so many new tokens, those of tools included."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = DEFAULT_SEED
    stop: frozenset[int] | None = None
    """Tokens that end the answer; by default the assistant's end mark and BOS."""
    tools: bool = True
    """Whether the model's calls are executed and their results put into the answer."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise FathomError(f"max-tokens is {self.max_tokens}", "ask for at least 1 token")
        if not 0 <= self.seed < 2**63:
            raise FathomError(f"the seed is {self.seed}", "give a whole number from 0 on")
        _ = self.sampling

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True, slots=True)
class Event:
    """One more token of a request."""

    request_id: int
    token: int
    """-1 where the model's output was not a number."""
    forced: bool
    """The token was put there by a tool and not chosen by the model."""
    text: str
    """Characters that became complete with this token; special tokens have none."""
    part: PartType
    """What the text belongs to."""
    finished: Finish | None
    """Why this was the last event: a stop token, no more room, or a model that computes no numbers."""


@dataclass(frozen=True)
class Completion:
    """All that a request said."""

    ids: tuple[int, ...]
    """New tokens, without the one that ended them."""
    forced: tuple[bool, ...]
    """For each, whether a tool put it there."""
    finish_reason: Finish
    stop_token: int | None
    """The token that ended the answer, where one did."""


class Running:
    """A request in the engine, from its first token to its last."""

    def __init__(self, id: int, request: Request, tokenizer: Tokenizer, seq_len: int, tool: Tool) -> None:
        self.id, self.request = id, request
        self.fed = 0  # tokens that the cache holds
        self.pending: tuple[int, ...] = request.prompt  # tokens that it does not hold yet
        self.n_new = 0
        self._room = min(request.max_tokens, seq_len - len(request.prompt))
        self._tokenizer, self._tool = tokenizer, tool
        default = {tokenizer.special(conversations.ASSISTANT_END), tokenizer.bos_id}
        self._stop = default if request.stop is None else request.stop
        self._forced: deque[int] = deque()
        self._call: list[int] | None = None
        self._part: PartType = "text"
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._generator = torch.Generator().manual_seed(request.seed)

    @property
    def wants_choice(self) -> bool:
        """Whether the next token is the model's to choose."""
        return not self._forced

    def number(self) -> float:
        """The next random number in [0, 1) of this request's own."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def fed_more(self, count: int) -> None:
        """`count` of the pending tokens went into the cache."""
        self.fed, self.pending = self.fed + count, self.pending[count:]

    def take(self, chosen: int) -> Event:
        """The next token: what a tool has to say, or else what the model chose."""
        forced = bool(self._forced)
        token = self._forced.popleft() if forced else chosen
        self.n_new += 1
        self.pending = (token,)
        finished: Finish | None = None
        if not forced and token in self._stop:
            finished = "stop"
        elif self.n_new >= self._room:
            finished = "length"
        part, text = self._part, self._advance(token, forced) if finished != "stop" else ""
        if finished:
            text += self._decoder.decode(b"", final=True)
        return Event(self.id, token, forced, text, part, finished)

    def fail(self) -> Event:
        """The model's output was no number: nothing more can come."""
        return Event(self.id, -1, False, self._decoder.decode(b"", final=True), self._part, "error")

    def _advance(self, token: int, forced: bool) -> str:
        """Follow a token through calls and results; returns the text that it completes."""
        special = self._tokenizer.special
        if token not in self._tokenizer.specials.values():
            if self._call is not None:
                self._call.append(token)
            return self._decoder.decode(self._tokenizer.decode_bytes([token]))
        if token == special(conversations.PYTHON_START):
            self._part, self._call = "python", []
        elif token == special(conversations.OUTPUT_START):
            self._part = "python_output"
        elif token in (special(conversations.PYTHON_END), special(conversations.OUTPUT_END)):
            self._part = "text"
        if token == special(conversations.PYTHON_END) and not forced:
            self._run_tool()
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _run_tool(self) -> None:
        call, self._call = self._call, None
        if call is None or not self.request.tools:
            return
        result = self._tool(self._tokenizer.decode(call))
        if result is not None:
            self._forced.extend(conversations.render_output(result, self._tokenizer))
