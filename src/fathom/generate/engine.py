"""The only place that generates: requests in, tokens out.

Requests join and leave a running batch at every step. A step feeds what new prompts there are, in pieces of bounded
size, and one token to every request whose prompt is in; what finished leaves its slot at once to the next in line.
The slots 0 … n_ready − 1 hold requests that decode, those behind them prompts that are still going in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fathom.errors import FathomError
from fathom.generate.cache import SlotCache
from fathom.generate.running import Completion, Event, Request, Running, Tool
from fathom.generate.sampling import Sampling, sample
from fathom.generate.tools import calculate

if TYPE_CHECKING:
    from fathom.model.gpt import GPT
    from fathom.tokenizer import Tokenizer

PREFILL_TOKENS = 2048  # padded prompt tokens a step: what others wait for between two of their tokens
CHUNK = 512  # of one prompt at once
# Prompts are cheaper together: of a crowd in line none joins before max_batch / JOIN_SHARE can, or so many steps later.
JOIN_SHARE = 8
JOIN_PATIENCE = 8

_GREEDY = Sampling()


class Engine:
    """Generates with one model. Not for several threads at once."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 64,
        seq_len: int | None = None,
        tool: Tool = calculate,
    ) -> None:
        """`seq_len` bounds prompt and answer together, by default the model's context; `tool` executes calls."""
        if max_batch < 1:
            raise ValueError(f"max_batch {max_batch} must be at least 1")
        self.model, self.tokenizer = model, tokenizer
        if seq_len is not None and not 1 <= seq_len <= model.shape.seq_len:
            raise ValueError(f"seq_len {seq_len} must be from 1 to the model's {model.shape.seq_len}")
        self.max_batch, self.seq_len = max_batch, seq_len or model.shape.seq_len
        self._tool, self._ids = tool, count()
        self.reset()

    def reset(self) -> None:
        """Forget every request."""
        self._cache = SlotCache(self.model.shape, self.seq_len, self.model.dtype, self.model.device)
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []  # by slot
        self._n_ready = self._held_back = 0

    @property
    def n_unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    def add(self, request: Request) -> int:
        """Put a request in line; its id is what its events carry. Raises FathomError where it cannot be answered."""
        length, n_token = len(request.prompt), self.model.shape.vocab_size
        if not length:
            raise FathomError("the prompt is empty", "begin it with the BOS token")
        if length >= self.seq_len:
            raise FathomError(
                f"the prompt has {length:,} tokens, the context holds {self.seq_len:,} with the answer",
                f"shorten it to at most {self.seq_len - 1:,}",
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < n_token:
            raise FathomError(
                f"the prompt holds ids outside 0 to {n_token - 1:,}", "encode it with the run's tokenizer"
            )
        running = Running(next(self._ids), request, self.tokenizer, self.seq_len, self._tool)
        self._waiting.append(running)
        return running.id

    def cancel(self, request_id: int) -> None:
        """Drop a request; its slot is free at once. Nothing happens where it finished already."""
        self._waiting = deque(one for one in self._waiting if one.id != request_id)
        for slot, one in enumerate(self._running):
            if one.id == request_id:
                self._leave(slot)
                return

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Let the line move up, feed prompts, and give every request that is ready its next token."""
        self._join()
        decoding = list(range(self._n_ready))
        hidden = [self._feed(0, [1] * len(decoding))] if decoding else []
        counts = self._prompt_pieces()
        if counts:
            last = self._feed(len(decoding), counts)  # (N, C)
            whole = [slot for slot in range(len(counts)) if not self._running[len(decoding) + slot].pending]
            if whole:
                hidden.append(last[whole])
                decoding += [len(decoding) + slot for slot in whole]
        if not hidden:
            return []
        events = self._choose(decoding, torch.cat(hidden))
        self._sort_out(decoding, events)
        return events

    def generate(self, requests: Sequence[Request], on_finished: Callable[[], None] | None = None) -> list[Completion]:
        """Answer all requests, in their order. `on_finished` is called each time that one is done.

        Takes the whole engine: raises RuntimeError beside requests that were added one by one.
        """
        done: dict[int, Completion] = {}
        for place, completion in self.completions(requests):
            done[place] = completion
            if on_finished:
                on_finished()
        return [done[i] for i in range(len(requests))]

    def completions(
        self, requests: Sequence[Request], on_step: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """The same, one by one as they are done: (place among `requests`, completion). `on_step` is called each time
        that every running request has its next token.
        """
        if self.n_unfinished:
            raise RuntimeError("generate() needs an engine without other requests; use add() and step() beside them")
        by_length = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))  # little padding
        place = {self.add(requests[i]): i for i in by_length}
        said: dict[int, list[Event]] = {id: [] for id in place}
        try:
            while self.n_unfinished:
                for event in self.step():
                    said[event.request_id].append(event)
                    if event.finished:
                        yield place[event.request_id], _completion(said.pop(event.request_id))
                if on_step:
                    on_step()
        finally:
            if self.n_unfinished:
                self.reset()

    def _join(self) -> None:
        free = self.max_batch - len(self._running)
        crowd = min(len(self._waiting), max(1, self.max_batch // JOIN_SHARE))
        if free < crowd and self._held_back < JOIN_PATIENCE:
            self._held_back += 1
            return
        self._held_back = 0
        while self._waiting and len(self._running) < self.max_batch:
            self._running.append(self._waiting.popleft())
            self._cache.open()

    def _prompt_pieces(self) -> list[int]:
        """How many tokens to feed to each of the first slots with an unfinished prompt."""
        counts: list[int] = []
        for one in self._running[self._n_ready :]:
            piece = min(len(one.pending), CHUNK)
            if counts and (len(counts) + 1) * max(*counts, piece) > PREFILL_TOKENS:
                break
            counts.append(piece)
        return counts

    def _feed(self, first: int, counts: list[int]) -> Tensor:
        """Run the network over the next counts[i] tokens of slot first + i; (N, C) hidden at the last of each."""
        rows = self._running[first : first + len(counts)]
        ids = torch.zeros(len(rows), max(counts), dtype=torch.int64)
        for i, (one, n) in enumerate(zip(rows, counts, strict=True)):
            ids[i, :n] = torch.tensor(one.pending[:n])
        context = self._cache.begin(first, counts)
        hidden = context.last(self.model(ids.to(self.model.device), context))
        context.commit()
        for one, n in zip(rows, counts, strict=True):
            one.fed_more(n)
        return hidden

    def _choose(self, slots: list[int], hidden: Tensor) -> list[Event]:
        """The next token of each of these slots. hidden (N, C)"""
        logits = self.model.logits(hidden)  # (N, V)
        rows = [self._running[slot] for slot in slots]
        how = [one.request.sampling if one.wants_choice else _GREEDY for one in rows]
        numbers = [0.0 if h.greedy else one.number() for h, one in zip(how, rows, strict=True)]
        sound = logits.amax(dim=-1).isfinite().tolist()  # the maximum is NaN where anything is
        tokens = sample(logits.nan_to_num() if not all(sound) else logits, how, numbers).tolist()
        return [one.take(token) if ok else one.fail() for one, token, ok in zip(rows, tokens, sound, strict=True)]

    def _sort_out(self, slots: list[int], events: list[Event]) -> None:
        """Prompts that are in move to the slots that decode; what finished leaves."""
        for slot in slots[self._n_ready :]:
            self._swap(slot, self._n_ready)
            self._n_ready += 1
        finished = {event.request_id for event in events if event.finished}
        for slot in reversed(range(self._n_ready)):
            if self._running[slot].id in finished:
                self._leave(slot)

    def _leave(self, slot: int) -> None:
        if slot < self._n_ready:
            self._n_ready -= 1
            self._swap(slot, self._n_ready)
            slot = self._n_ready
        self._swap(slot, len(self._running) - 1)
        self._running.pop()
        self._cache.close_last()

    def _swap(self, a: int, b: int) -> None:
        self._running[a], self._running[b] = self._running[b], self._running[a]
        self._cache.swap(a, b)


def _completion(events: list[Event]) -> Completion:
    end = events[-1]
    assert end.finished
    stopped = end.finished == "stop"
    said = events[:-1] if stopped or end.finished == "error" else events
    ids, forced = tuple(event.token for event in said), tuple(event.forced for event in said)
    return Completion(ids, forced, end.finished, end.token if stopped else None)
