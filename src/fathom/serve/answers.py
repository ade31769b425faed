"""What the engine says, as OpenAI's objects: whole answers, and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fathom.generate.running import NO_TOKEN, Event, TopLogprobs
from fathom.serve.asking import Ask
from fathom.serve.prompts import TOOL, call_end
from fathom.serve.refusals import Refusal, unavailable

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass
class Head:
    """What every object of one answer carries."""

    kind: str
    """chat.completion or text_completion"""
    model: str
    fingerprint: str
    id: str = ""
    created: int = 0

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.kind == "chat.completion" else "cmpl"
        self.id, self.created = f"{prefix}-{uuid.uuid4().hex}", int(time.time())

    def object(self, choices: list[Json], chunk: bool = False, **more: Any) -> Json:
        kind = f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }


class Counts:
    """Tokens that were read and said."""

    def __init__(self, ask: Ask) -> None:
        self.prompt = sum(len(request.prompt) for request in ask.requests[:: ask.n])
        self.said = self.cached = 0
        self._n = ask.n

    def count(self, place: int, event: Event) -> None:
        if place % self._n == 0:  # the other answers to a prompt find what the first one computed
            self.cached += event.cached_tokens
        if event.token != NO_TOKEN and not event.ended_by_token:
            self.said += 1

    def usage(self) -> Json:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.said,
            "total_tokens": self.prompt + self.said,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Words:
    """Tokens as text for log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names = {id: name for name, id in tokenizer.specials.items()}

    def is_special(self, token: int) -> bool:
        return token in self._names

    def bytes_of(self, token: int) -> bytes:
        return b"" if token in self._names else self._tokenizer.decode_bytes([token])

    def name(self, token: int) -> str:
        """Distinct for every token: bytes that are no text by themselves are written out, as OpenAI does."""
        if token in self._names:
            return self._names[token]
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def text(self, ids: Sequence[int]) -> str:
        """What ids stand for; special tokens have no text."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def entry(self, token: int, logprob: float) -> Json:
        """One token in the form of chat."""
        return {"token": self.name(token), "logprob": _number(logprob), "bytes": list(self.bytes_of(token))}


def _number(logprob: float) -> float:
    """JSON has no infinity: what cannot be has the lowest number that OpenAI gives."""
    return max(float(logprob), -9999.0)


@dataclass
class ChatChoice:
    """One answer of /v1/chat/completions, as it grows."""

    index: int
    ask: Ask
    words: Words
    call_end: int
    parts: list[Json] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    finish: str | None = None
    _code: str = ""

    def take(self, event: Event) -> Json | None:
        """The chunk that tells of an event, if there is anything to tell."""
        raise_if_broken(event, self.ask)
        delta: Json = {}
        if event.finished:
            self.finish = event.finished
        if event.ended_by_token and event.token == self.call_end and self.ask.own_tools:
            self.finish = "tool_calls"
            self._call()
            delta["tool_calls"] = [{"index": 0, **self.calls[0]}]
        elif self.ask.own_tools and event.part == TOOL:
            self._code += event.text
        elif event.text:
            self._add(event)
            delta["content"] = event.text if event.part == "text" else ""
            if event.part != "text":
                delta["part"] = {"type": event.part, "text": event.text}
        entry = self._logprob(event)
        if not (delta or entry or self.finish):
            return None
        if entry and "content" not in delta:
            delta["content"] = ""
        chunk: Json = {"index": self.index, "delta": delta, "finish_reason": self.finish}
        return chunk | {"logprobs": {"content": [entry]} if entry else None}

    def _add(self, event: Event) -> None:
        if self.parts and self.parts[-1]["type"] == event.part:
            self.parts[-1]["text"] += event.text
        else:
            self.parts.append({"type": event.part, "text": event.text})

    def _call(self) -> None:
        arguments = json.dumps({"code": self._code}, ensure_ascii=False)
        function = {"name": TOOL, "arguments": arguments}
        self.calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})

    def _logprob(self, event: Event) -> Json | None:
        if not self.ask.logprobs or event.logprob is None or self.words.is_special(event.token) or event.part != "text":
            return None
        top = [self.words.entry(token, logprob) for token, logprob in event.top_logprobs]
        entry = self.words.entry(event.token, event.logprob) | {"top_logprobs": top}
        self.logprobs.append(entry)
        return entry

    def whole(self) -> Json:
        text = "".join(part["text"] for part in self.parts if part["type"] == "text")
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self.calls:
            message |= {"content": text or None, "tool_calls": self.calls}
        elif not self.ask.own_tools:
            message["parts"] = self.parts
        logprobs = {"content": self.logprobs} if self.ask.logprobs else None
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self.finish}

    def opening(self) -> Json:
        """The first chunk of a stream."""
        return {
            "index": self.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }


@dataclass
class TextChoice:
    """One answer of /v1/completions, as it grows."""

    index: int
    ask: Ask
    words: Words
    call_end: int
    finish: str | None = None
    text: str = ""
    _tokens: list[Json] = field(default_factory=list)
    _length: int = 0  # of the text that the tokens so far stand for
    _begun: bool = False

    def take(self, event: Event) -> Json | None:
        raise_if_broken(event, self.ask)
        said, rows = "", list[Json]()
        if not self._begun and self.ask.echo:
            rows, said = self._echoed(event), self.words.text(self._prompt)
        self._begun = True
        if event.finished:
            self.finish = event.finished
        said += event.text
        if event.logprob is not None and self.ask.logprobs and not event.ended_by_token:
            rows.append(self._row(event.token, event.logprob, event.top_logprobs))
        self.text += said
        self._tokens += rows
        if not (said or rows or self.finish):
            return None
        return {"index": self.index, "text": said, "logprobs": self._logprobs(rows), "finish_reason": self.finish}

    @property
    def _prompt(self) -> tuple[int, ...]:
        return self.ask.prompts[self.index // self.ask.n]

    def _echoed(self, event: Event) -> list[Json]:
        """The tokens of the prompt as the client gave it: the BOS that was put before it is not among them."""
        if event.prompt_logprobs is None:
            return []
        hidden = len(event.prompt_logprobs) - len(self._prompt)
        found = event.prompt_logprobs[hidden:]
        return [
            self._row(token, *(known if known else (None, ())))
            for token, known in zip(self._prompt, found, strict=True)
        ]

    def _row(self, token: int, logprob: float | None, top: TopLogprobs) -> Json:
        row = {"token": self.words.name(token), "offset": self._length}
        self._length += len(self.words.bytes_of(token).decode("utf-8", "ignore"))
        if logprob is None:
            return row | {"logprob": None, "top": None}
        likeliest = {self.words.name(id): _number(value) for id, value in top}
        return row | {"logprob": _number(logprob), "top": likeliest}

    def _logprobs(self, rows: Sequence[Json]) -> Json | None:
        if not self.ask.logprobs:
            return None
        return {
            "tokens": [row["token"] for row in rows],
            "token_logprobs": [row["logprob"] for row in rows],
            "top_logprobs": [row["top"] for row in rows],
            "text_offset": [row["offset"] for row in rows],
        }

    def whole(self) -> Json:
        return {
            "index": self.index,
            "text": self.text,
            "logprobs": self._logprobs(self._tokens),
            "finish_reason": self.finish,
        }

    def opening(self) -> Json | None:
        return None


Choice = ChatChoice | TextChoice


class Answer:
    """All choices of one request."""

    def __init__(self, ask: Ask, head: Head, tokenizer: Tokenizer) -> None:
        self.ask, self.head, self.counts = ask, head, Counts(ask)
        kind: Any = ChatChoice if head.kind == "chat.completion" else TextChoice
        words, end = Words(tokenizer), call_end(tokenizer)
        self.choices: list[Choice] = [kind(i, ask, words, end) for i in range(len(ask.requests))]

    def take(self, events: Sequence[tuple[int, Event]]) -> list[Json]:
        """The choices of the chunks that tell of these events."""
        chunks = []
        for place, event in events:
            self.counts.count(place, event)
            chunk = self.choices[place].take(event)
            if chunk:
                chunks.append(chunk)
        return chunks

    def whole(self) -> Json:
        return self.head.object([choice.whole() for choice in self.choices], usage=self.counts.usage())

    def openings(self) -> Iterator[Json]:
        for choice in self.choices:
            opening = choice.opening()
            if opening:
                yield self.chunk(opening)

    def chunk(self, choice: Json) -> Json:
        return self.head.object([choice], chunk=True, **({"usage": None} if self.ask.include_usage else {}))

    def last_chunk(self) -> Json | None:
        if not self.ask.include_usage:
            return None
        return self.head.object([], chunk=True, usage=self.counts.usage())


def raise_if_broken(event: Event, ask: Ask) -> None:
    """Raises Refusal where an answer cannot go on: 400 where its schema lets it say nothing, else 503."""
    if event.finished != "error":
        return
    if ask.requests[0].grammar is not None:
        raise Refusal(
            400,
            "no answer obeys the schema: it contradicts itself, or refers to itself without an end",
            param="response_format",
            code="unsatisfiable_schema",
        )
    raise unavailable("the run computes no numbers any more (NaN); serve an earlier checkpoint", "model_error")
