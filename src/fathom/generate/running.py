"""One request on its way: what it asked for, what it said so far, and when a tool speaks instead of the model.

Knows no network and no batch: a sampled token goes in, an event comes out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from fathom.data import conversations
from fathom.errors import FathomError
from fathom.generate.pages import PAGE, chain
from fathom.generate.sampling import Sampling, TopLogprobs
from fathom.generate.text import Speech

if TYPE_CHECKING:
    from fathom.generate.cache import Table
    from fathom.generate.grammar import Matcher
    from fathom.tokenizer import Tokenizer

Finish = Literal["stop", "length", "error"]
PartType = Literal["text", "python", "python_output"]
Tool = Callable[[str], str | None]  # a call's text -> its result, or None for none

DEFAULT_SEED = 42
MOST_PENALTY = 100
MOST_BIAS = 100
MOST_LOGPROBS = 20
NO_TOKEN = -1


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
    repetition_penalty: float = 1.0
    """Divides the positive logits of every token that the prompt or the answer holds, and multiplies the negative."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""
    logprobs: int | None = None
    """With every token its log-probability and those of so many likeliest tokens; None for neither.

    Log-probabilities are in nats and of the model's own distribution: before temperature, penalty, bias, filters and
    grammar.
    """
    prompt_logprobs: bool = False
    """The same for every token of the prompt, with the first event; max_tokens may then be 0."""
    grammar: str | None = None
    """A JSON schema that the answer obeys, "{}" for any JSON. Tools are off then."""

    def __post_init__(self) -> None:
        least = 0 if self.prompt_logprobs else 1
        if self.max_tokens < least:
            raise FathomError(f"max-tokens is {self.max_tokens}", f"ask for at least {least}")
        if not 0 <= self.seed < 2**63:
            raise FathomError(f"the seed is {self.seed}", "give a whole number from 0 on")
        if not (math.isfinite(self.repetition_penalty) and 0 < self.repetition_penalty <= MOST_PENALTY):
            raise FathomError(
                f"repetition-penalty is {self.repetition_penalty}",
                f"give a number above 0, at most {MOST_PENALTY}; 1 changes nothing",
            )
        for token, bias in self.logit_bias:
            if not (math.isfinite(bias) and abs(bias) <= MOST_BIAS):
                raise FathomError(
                    f"the logit-bias of token {token} is {bias}", f"give a number from -{MOST_BIAS} to {MOST_BIAS}"
                )
        if any(not text for text in self.stop_strings):
            raise FathomError("a stop string is empty", "give at least one character, or none at all")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise FathomError(f"logprobs is {self.logprobs}", f"give a number from 0 to {MOST_LOGPROBS}")
        _ = self.sampling

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True, slots=True)
class Event:
    """One more token of a request."""

    request_id: int
    token: int
    """-1 where there is none: the model's output was not a number, or no token was asked for."""
    forced: bool
    """The token was put there by a tool and not chosen by the model."""
    text: str
    """Characters that became complete with this token; special tokens have none."""
    part: PartType
    """What the text belongs to."""
    finished: Finish | None
    """Why this was the last event: a stop token or string, no more room, or a model that computes no numbers."""
    stop_string: str | None = None
    """The text that ended the answer, where one did; it is in no event's text."""
    logprob: float | None = None
    """Of the token, where asked for and the model chose it; see `Request.logprobs`."""
    top_logprobs: TopLogprobs = ()
    """The likeliest tokens in its place."""
    prompt_logprobs: tuple[tuple[float, TopLogprobs] | None, ...] | None = None
    """On the first event, where asked for: one entry a prompt token, None for the first, which nothing foretells."""
    ended_by_token: bool = False
    """The token is one of `Request.stop` and no part of the answer."""
    cached_tokens: int = 0
    """On the first event: how many tokens of the prompt were in the cache already and not computed again."""


@dataclass(frozen=True)
class Completion:
    """All that a request said."""

    ids: tuple[int, ...]
    """New tokens, without the one that ended them; those of a stop string are among them."""
    forced: tuple[bool, ...]
    """For each, whether a tool put it there."""
    finish_reason: Finish
    stop_token: int | None
    """The token that ended the answer, where one did."""
    text: str = ""
    """What was said, without calls and their results, and without the stop string."""
    stop_string: str | None = None
    """The text that ended the answer, where one did."""
    logprobs: tuple[float | None, ...] = ()
    """For each of `ids`, as in `Event.logprob`."""
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: tuple[tuple[float, TopLogprobs] | None, ...] | None = None

    @classmethod
    def of(cls, events: Sequence[Event]) -> Completion:
        """From all events of a request."""
        end = events[-1]
        assert end.finished
        by_token = end.ended_by_token
        said = events[:-1] if by_token or end.token == NO_TOKEN else events
        return cls(
            ids=tuple(event.token for event in said),
            forced=tuple(event.forced for event in said),
            finish_reason=end.finished,
            stop_token=end.token if by_token else None,
            text="".join(event.text for event in events if event.part == "text"),
            stop_string=end.stop_string,
            logprobs=tuple(event.logprob for event in said),
            top_logprobs=tuple(event.top_logprobs for event in said),
            prompt_logprobs=events[0].prompt_logprobs,
        )


@dataclass(frozen=True, slots=True)
class Chances:
    """Log-probabilities where a token was chosen."""

    logprob: float
    top: TopLogprobs


class Running:
    """A request in the engine, from its first token to its last."""

    def __init__(
        self,
        id: int,
        request: Request,
        tokenizer: Tokenizer,
        seq_len: int,
        tool: Tool,
        matcher: Matcher | None = None,
    ) -> None:
        self.id, self.request, self.matcher = id, request, matcher
        self.tokens = list(request.prompt)  # the prompt and all that was said
        self.digests = chain(request.prompt)  # by which others know the prompt's pages
        self.table: Table | None = None  # what the cache holds of them, while the request runs
        self.prompt_chances: list[tuple[float, TopLogprobs] | None] = [None]
        self.n_cached: int | None = None  # tokens of the prompt that the cache had when its turn came
        self.n_new = 0
        self._room = min(request.max_tokens, seq_len - len(request.prompt))
        self._tokenizer, self._tool = tokenizer, tool
        default = {tokenizer.special(conversations.ASSISTANT_END), tokenizer.bos_id}
        self.stop = frozenset(default) if request.stop is None else request.stop
        self._forced: deque[int] = deque()
        self._call: list[int] | None = None
        self._part: PartType = "text"
        self._told = False
        self._speech, self._tool_speech = Speech(request.stop_strings), Speech()
        self._generator = torch.Generator().manual_seed(request.seed)

    @property
    def n_held(self) -> int:
        """Tokens that the cache holds."""
        return len(self.table) if self.table else 0

    @property
    def coming(self) -> Sequence[bytes]:
        """Digests of the pages that its prompt is going to fill."""
        return self.digests[self.n_held // PAGE :]

    @property
    def pending(self) -> list[int]:
        """What the cache does not hold yet: the rest of the prompt first, and when that is in, what was said."""
        n_prompt = len(self.request.prompt)
        return self.tokens[self.n_held : n_prompt if self.n_held < n_prompt else None]

    @property
    def reads(self) -> bool:
        """Its prompt is not in yet."""
        return self.n_held < len(self.request.prompt)

    @property
    def ready(self) -> bool:
        """Everything is in: the next token can be chosen."""
        return self.n_held == len(self.tokens)

    @property
    def wants_choice(self) -> bool:
        """Whether the next token is the model's to choose."""
        return not self._forced

    @property
    def adjusts(self) -> bool:
        """Whether the model's logits are changed before a token is chosen."""
        return self.request.repetition_penalty != 1 or bool(self.request.logit_bias) or self.matcher is not None

    @property
    def said(self) -> set[int]:
        """Every token of the prompt and the answer, once."""
        return set(self.tokens)

    @property
    def wants_nothing(self) -> bool:
        """Only the prompt's log-probabilities were asked for."""
        return self._room == 0

    def number(self) -> float:
        """The next random number in [0, 1) of this request's own."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def take(self, chosen: int, chances: Chances | None = None) -> Event:
        """The next token: what a tool has to say, or else what the model chose."""
        if self.wants_nothing:
            return self._event(NO_TOKEN, finished="length")
        forced = bool(self._forced)
        token = self._forced.popleft() if forced else chosen
        self.tokens.append(token)
        self.n_new += 1
        part, text, finished = self._part, "", self._end_by(token, forced)
        ended_by_token = finished == "stop"
        if not ended_by_token:
            text = self._advance(token, forced)
            if self._speech.stopped_by is not None or (self.matcher and self.matcher.finished):
                finished = "stop"
        if finished:
            text += self._spoken(part).end()
        known = {} if forced or chances is None else {"logprob": chances.logprob, "top_logprobs": chances.top}
        return self._event(token, forced, text, part, finished, ended_by_token=ended_by_token, **known)

    def fail(self) -> Event:
        """The model's output was no number: nothing more can come."""
        return self._event(NO_TOKEN, text=self._spoken(self._part).end(), part=self._part, finished="error")

    def _event(
        self,
        token: int,
        forced: bool = False,
        text: str = "",
        part: PartType = "text",
        finished: Finish | None = None,
        **more: Any,
    ) -> Event:
        if not self._told:
            self._told = True
            more["cached_tokens"] = self.n_cached or 0
            if self.request.prompt_logprobs:
                more["prompt_logprobs"] = tuple(self.prompt_chances)
        stop_string = self._speech.stopped_by if finished == "stop" else None
        return Event(self.id, token, forced, text, part, finished, stop_string, **more)

    def _end_by(self, token: int, forced: bool) -> Finish | None:
        if not forced and token in self.stop:
            return "stop"
        return "length" if self.n_new >= self._room else None

    def _advance(self, token: int, forced: bool) -> str:
        """Follow a token through calls and results; returns the text that it completes."""
        if self.matcher and not forced:
            self.matcher.take(token)
        special = self._tokenizer.special
        if token not in self._tokenizer.specials.values():
            if self._call is not None:
                self._call.append(token)
            return self._spoken(self._part).add(self._tokenizer.decode_bytes([token]))
        text = self._spoken(self._part).end()
        if token == special(conversations.PYTHON_START):
            self._part, self._call = "python", []
        elif token == special(conversations.OUTPUT_START):
            self._part = "python_output"
        elif token in (special(conversations.PYTHON_END), special(conversations.OUTPUT_END)):
            self._part = "text"
        if token == special(conversations.PYTHON_END) and not forced:
            self._run_tool()
        return text

    def _spoken(self, part: PartType) -> Speech:
        """Stop strings end what is said, not what is calculated."""
        return self._speech if part == "text" else self._tool_speech

    def _run_tool(self) -> None:
        call, self._call = self._call, None
        if call is None or not self.request.tools or self.matcher:
            return
        result = self._tool(self._tokenizer.decode(call))
        if result is not None:
            self._forced.extend(conversations.render_output(result, self._tokenizer))
