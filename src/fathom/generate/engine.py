"""The only place that generates: requests in, tokens out.

Requests join and leave a running batch at every step. A step is a pass through the network with one token of every
request whose prompt is in, and a few passes with what there is room for of the prompts that are not. Keys and values
are in pages (`cache.py`), which requests that begin alike share; where all are held, the youngest request goes back in
line and is computed again later. Said tokens may go in passes of static shapes (`decode.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fathom.errors import FathomError
from fathom.generate.cache import PagedCache, n_pages
from fathom.generate.decode import Decode, Decoder, Piece, Run, usual
from fathom.generate.grammar import Grammars
from fathom.generate.pages import PAGE
from fathom.generate.running import Chances, Completion, Event, Request, Running, Tool
from fathom.generate.sampling import Sampling, adjust, log_probabilities, sample
from fathom.generate.steady import Steady, fitting, steady
from fathom.generate.tools import calculate
from fathom.hardware import memory_gb
from fathom.model.gpt import GPT

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

PROMPT_TOKENS = 384  # of prompts in a step: what others wait for between two of their tokens
SAID_TOKENS = 32  # of one request in a step, where it was put back and is computed again
CACHE_SHARE = 0.25  # of the machine's memory, on a GPU of what is free

Weights = Literal["as-trained", "int8"]

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
        cache_tokens: int | None = None,
        weights: Weights = "as-trained",
        decode: Decode | None = None,
        tool: Tool = calculate,
    ) -> None:
        """`seq_len` bounds prompt and answer together, by default the model's context; `tool` executes calls.

        `cache_tokens` is how many tokens the cache holds, those of past requests included: by default as many as
        `max_batch` requests can have (two at least), within a quarter of the memory. `weights` "int8" reads half the
        bytes of bf16 and rounds: faster for few requests on a CPU, and a little worse. `decode` is how said tokens go
        through the network, by default as is `usual`. Raises ValueError for sizes out of bounds.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch {max_batch} must be at least 1")
        if weights not in get_args(Weights):
            raise ValueError(f"weights {weights!r} must be one of {get_args(Weights)}")
        if decode not in (None, *get_args(Decode)):
            raise ValueError(f"decode {decode!r} must be one of {get_args(Decode)}")
        self.model, self.tokenizer = model, tokenizer
        if seq_len is not None and not 1 <= seq_len <= model.shape.seq_len:
            raise ValueError(f"seq_len {seq_len} must be from 1 to the model's {model.shape.seq_len}")
        self.max_batch, self.seq_len = max_batch, seq_len or model.shape.seq_len
        self.cache_tokens = self._room() if cache_tokens is None else cache_tokens
        if n_pages(self.cache_tokens) < n_pages(self.seq_len):
            raise ValueError(f"cache_tokens {cache_tokens} must be at least the {self.seq_len} of one request")
        self.weights = weights
        self.decode: Decode = decode or (usual(model) if isinstance(model, GPT) else "pages")
        self._tool, self._ids, self._grammars = tool, count(), Grammars(tokenizer)
        self.reset()

    def reset(self) -> None:
        """Forget every request and all that is cached; needed after the model's weights changed."""
        self._network, self._steady = self.model, Steady()
        if isinstance(self.model, GPT):  # and none of the tests' networks
            self._network = self.model.for_inference(int8=self.weights == "int8")
            if not self.model.is_split:  # with what company a word has is of no account there
                self._steady = steady(self._network)
        self._cache = PagedCache(
            self.model.shape,
            self.model.dtype,
            self.model.device,
            self.cache_tokens,
            self.max_batch,
            max(PROMPT_TOKENS, SAID_TOKENS),
        )
        self._said: tuple[Run, Sequence[int]] = self._paged, self._steady.said
        if self.decode != "pages":
            compiled = self.decode == "compiled"
            decoder = Decoder(self._network, self._cache, self._steady.said, self.max_batch, compiled, self._paged)
            self._said = decoder, decoder.widths
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []  # the oldest first
        self._n_hit = self._n_preempted = self._n_generated = self._n_prompt = 0

    @property
    def n_unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    def stats(self) -> dict[str, int]:
        """Counts since the engine began (or was reset), and what it holds now."""
        pages = self._cache.pages.values()
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "pages_total": sum(one.n_page for one in pages),
            "pages_used": sum(one.n_held for one in pages),
            "pages_cached": sum(one.n_idle for one in pages),
            "prompt_tokens": self._n_prompt,
            "prefix_hit_tokens": self._n_hit,
            "generated_tokens": self._n_generated,
            "preemptions": self._n_preempted,
        }

    def add(self, request: Request) -> int:
        """Put a request in line; its id is what its events carry. Raises FathomError where it cannot be answered.

        For several answers add the request several times with other seeds: the prompt is computed once.
        """
        length, n_token = len(request.prompt), self.model.shape.vocab_size
        if not length:
            raise FathomError("the prompt is empty", "begin it with the BOS token")
        most = self.seq_len - (request.max_tokens > 0)
        if length > most:
            raise FathomError(
                f"the prompt has {length:,} tokens, the context holds {self.seq_len:,} with the answer",
                f"shorten it to at most {most:,}",
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < n_token:
            raise FathomError(
                f"the prompt holds ids outside 0 to {n_token - 1:,}", "encode it with the run's tokenizer"
            )
        for token, _ in request.logit_bias:
            if not 0 <= token < n_token:
                raise FathomError(f"the logit-bias names token {token}", f"give ids from 0 to {n_token - 1:,}")
        matcher = None if request.grammar is None else self._grammars.matcher(request.grammar)
        running = Running(next(self._ids), request, self.tokenizer, self.seq_len, self._tool, matcher)
        self._waiting.append(running)
        return running.id

    def cancel(self, request_id: int) -> None:
        """Drop a request; its place is free at once. Nothing happens where it finished already."""
        self._waiting = deque(one for one in self._waiting if one.id != request_id)
        for one in [one for one in self._running if one.id == request_id]:
            self._leave(one)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Let the line move up, feed prompts, and give every request that is ready its next token."""
        self._join()
        feeds = self._feeds()
        ready: list[Running] = []
        hidden: list[Tensor] = []
        for reads, (run, widths) in ((False, self._said), (True, (self._paged, self._steady.prompts))):
            for part in _passes([feed for feed in feeds if feed[0].reads == reads], widths[-1]):
                last = self._feed(part, run, widths)  # (requests, C)
                whole = [i for i, (one, _) in enumerate(part) if one.ready]
                ready += [part[i][0] for i in whole]
                hidden.append(last[whole])
        if not ready:
            return []
        events = self._choose(ready, torch.cat(hidden))
        for one, event in zip(ready, events, strict=True):
            if event.finished:
                self._leave(one)
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
        place = {self.add(request): i for i, request in enumerate(requests)}
        said: dict[int, list[Event]] = {id: [] for id in place}
        try:
            while self.n_unfinished:
                for event in self.step():
                    said[event.request_id].append(event)
                    if event.finished:
                        yield place[event.request_id], Completion.of(said.pop(event.request_id))
                if on_step:
                    on_step()
        finally:
            if self.n_unfinished:
                self.reset()

    def _room(self) -> int:
        """Tokens that the cache holds by default."""
        shape, device = self.model.shape, self.model.device
        memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1e9 * memory_gb(device.type)
        possible = int(CACHE_SHARE * memory / shape.cache_bytes_per_token(self.model.dtype.itemsize))
        return max(self.seq_len, min(possible, max(2, self.max_batch) * n_pages(self.seq_len) * PAGE))

    def _join(self) -> None:
        """The line moves up as far as there is room. Who begins like a prompt that is going in waits until it is in."""
        waiting: deque[Running] = deque()
        on_the_way = {digest for one in self._running for digest in one.coming}
        while self._waiting and len(self._running) < self.max_batch:
            one = self._waiting.popleft()
            prompt, share = one.request.prompt, not one.request.prompt_logprobs
            found = self._cache.find(len(prompt), one.digests) if share else 0
            if share and on_the_way.intersection(one.digests[found : found + 1]):
                waiting.append(one)
                continue
            if not self._has_room(len(one.tokens) - found * PAGE):
                self._waiting.appendleft(one)
                break
            one.table = self._cache.open(prompt, one.digests, found)
            if one.n_new == 0:
                one.prompt_chances = [None]
            if one.n_cached is None:
                one.n_cached = len(one.table)
            self._n_hit += len(one.table)
            self._n_prompt += len(one.tokens)
            self._running.append(one)
            on_the_way.update(one.coming)
        self._waiting.extendleft(reversed(waiting))

    def _has_room(self, n_token: int) -> bool:
        """Whether so many tokens more can be held, with a page of growth for every request that runs."""
        if not self._running:
            return True
        wanted = n_pages(n_token) + 1 + len(self._running)
        return all(
            min(wanted, n_pages(window) + 2 + len(self._running)) <= pages.n_available
            for window, pages in self._cache.pages.items()
        )

    def _feeds(self) -> list[tuple[Running, int]]:
        """Who is fed how many tokens in this step: all who speak, then prompts in the order in which they came."""
        budget, counts = PROMPT_TOKENS, dict[int, int]()
        for one in sorted(self._running, key=lambda one: one.reads):
            if one.table is None:  # it was put back to make room
                continue
            piece = min(len(one.pending), budget if one.reads else SAID_TOKENS)
            if piece and self._make_room(one, piece, counts):
                counts[one.id] = piece
                budget -= piece if one.reads else 0
        return [(one, counts[one.id]) for one in self._running if one.id in counts]

    def _make_room(self, one: Running, piece: int, counts: dict[int, int]) -> bool:
        """Reserve room for a piece, at the cost of the youngest; False where that is the request itself."""
        assert one.table is not None
        while not self._cache.reserve(one.table, piece):
            youngest = self._running[-1]
            counts.pop(youngest.id, None)
            self._preempt(youngest)
            if youngest is one:
                return False
        return True

    def _preempt(self, one: Running) -> None:
        """Back to the head of the line; its tokens are computed again, but for those that the cache still has."""
        assert one.table is not None
        self._cache.close(one.table)
        one.table = None
        self._running.remove(one)
        self._waiting.appendleft(one)
        self._n_preempted += 1

    def _feed(self, feeds: Sequence[tuple[Running, int]], run: Run, widths: Sequence[int]) -> Tensor:
        """Run the network over the next tokens of some requests; (requests, C) hidden at the last of each."""
        pieces = []
        for one, n in feeds:
            assert one.table is not None
            pieces.append((one.table, one.pending[:n]))
        ends = list(accumulate(n for _, n in feeds))
        hidden = run(pieces, fitting(widths, ends[-1]))  # (T, C)
        for (one, n), end in zip(feeds, ends, strict=True):
            if one.request.prompt_logprobs and one.n_new == 0:
                self._hear_prompt(one, hidden[end - n : end])
        self._cache.commit(pieces)
        return hidden[[end - 1 for end in ends]]

    def _paged(self, pieces: Sequence[Piece], width: int) -> Tensor:
        """A pass over prompts, or over whatever, with shapes that fit it."""
        context = self._cache.begin(pieces, width, self._embed)
        hidden: Tensor = self._network(context.ids, context)[0]
        return hidden

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._network.embed(tokens)

    def _hear_prompt(self, one: Running, hidden: Tensor) -> None:
        """Keep the log-probabilities of the prompt's tokens that follow these (n, C)."""
        assert one.table is not None
        first = len(one.table) + 1
        targets = one.tokens[first : first + len(hidden)]
        if targets:
            logits = self._logits(hidden[: len(targets)])
            one.prompt_chances += log_probabilities(logits, targets, one.request.logprobs or 0)

    def _logits(self, hidden: Tensor) -> Tensor:
        """(n, C) -> (n, V) float32, in widths that agree."""
        widths, parts = self._steady.heads, []
        for part in hidden.split(widths[-1]):
            padded = part.new_zeros(fitting(widths, len(part)), part.shape[1])
            padded[: len(part)] = part
            parts.append(self._network.logits(padded)[: len(part)])
        return torch.cat(parts)

    def _choose(self, rows: list[Running], hidden: Tensor) -> list[Event]:
        """The next token of each of these requests. hidden (N, C)"""
        logits = self._logits(hidden)  # (N, V)
        sound = logits.amax(dim=-1).isfinite().tolist()  # the maximum is NaN where anything is
        if not all(sound):
            logits = logits.nan_to_num()
        choosing = [one.wants_choice and not one.wants_nothing for one in rows]
        adjusted = logits
        for row, one in enumerate(rows):
            if choosing[row] and one.adjusts:
                adjusted = adjusted.clone() if adjusted is logits else adjusted
                allowed = one.matcher.allowed(one.stop) if one.matcher else None
                request = one.request
                adjusted[row] = adjust(adjusted[row], request.repetition_penalty, one.said, request.logit_bias, allowed)
                sound[row] = sound[row] and bool(adjusted[row].amax() > -torch.inf)
        how = [one.request.sampling if choice else _GREEDY for one, choice in zip(rows, choosing, strict=True)]
        numbers = [0.0 if h.greedy else one.number() for h, one in zip(how, rows, strict=True)]
        tokens = sample(adjusted, how, numbers).tolist()
        chances = self._chances(rows, logits, tokens)
        self._n_generated += sum(not one.wants_nothing for one in rows)
        return [
            one.take(token, chances.get(row)) if sound[row] else one.fail()
            for row, (one, token) in enumerate(zip(rows, tokens, strict=True))
        ]

    @staticmethod
    def _chances(rows: list[Running], logits: Tensor, tokens: list[int]) -> dict[int, Chances]:
        """By row, the log-probabilities of those who asked for them."""
        asked = {row: one.request.logprobs for row, one in enumerate(rows) if one.request.logprobs is not None}
        if not asked:
            return {}
        places = list(asked)
        found = log_probabilities(logits[places], [tokens[row] for row in places], max(asked.values()))
        return {row: Chances(value, top[: asked[row]]) for row, (value, top) in zip(places, found, strict=True)}

    def _leave(self, one: Running) -> None:
        assert one.table is not None
        self._cache.close(one.table)
        one.table = None
        self._running.remove(one)


def _passes(feeds: list[tuple[Running, int]], most: int) -> Iterator[list[tuple[Running, int]]]:
    """Cut a step into passes of at most so many tokens; a piece that is longer is cut too."""
    part: list[tuple[Running, int]] = []
    room = most
    for one, n in feeds:
        while n:
            piece = min(n, room)
            part.append((one, piece))
            n, room = n - piece, room - piece
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part
