"""The engine behind the server: one thread owns it, handlers of requests talk to it through queues.

Orders (open, close, end) go in between two steps, so a client that went away has freed its place within one step.
What a step says goes to the event loop in one call, which hands every request its events.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fathom.errors import FathomError
from fathom.generate.running import Event, Request
from fathom.screen import say
from fathom.serve.metrics import Metrics
from fathom.serve.refusals import BUSY, Refusal, unavailable

if TYPE_CHECKING:
    from fathom.generate.engine import Engine
    from fathom.tokenizer import Tokenizer

State = Literal["loading", "ok", "draining", "failed"]
MAX_UNREAD = 4096  # events that a client may leave unread before its request is ended
LONGEST_RETRY_S = 60


@dataclass(frozen=True)
class Limits:
    """What the server lets a client have."""

    queue: int = 64
    """Requests that may wait while others run."""
    max_tokens: int | None = None
    """The longest answer; by default what the context holds."""
    body_mb: float = 8.0
    timeout_s: float = 600.0
    """Of a whole request."""
    patience_s: float = 30.0
    """How long a client may take to send its request, or to take what was sent."""


@dataclass(frozen=True)
class Loaded:
    """A run, ready to answer."""

    engine: Engine
    info: Mapping[str, Any]
    """run, step, stage, dtype"""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.tokenizer


class Stream:
    """What the engine says to one client's request: events of one or several of the engine's requests."""

    def __init__(self, serving: Serving, requests: Sequence[Request]) -> None:
        self.requests = tuple(requests)
        self.n_left = len(self.requests)
        self.began = time.monotonic()
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serving = serving
        self._unread: deque[tuple[int, Event]] = deque()
        self._news = asyncio.Event()
        self._failure: Refusal | None = None
        self._last: list[float | None] = [None] * len(self.requests)

    async def next(self) -> list[tuple[int, Event]]:
        """The events that came, each with the place of its request; empty once all are finished.

        Raises Refusal where the engine failed or the server ends.
        """
        while not self._unread and self._failure is None and self.n_left:
            self._news.clear()
            await self._news.wait()
        found = list(self._unread)
        self._unread.clear()
        if not found and self._failure:
            raise self._failure
        return found

    def close(self) -> None:
        """Free the places of what is not finished. Has to be called, always."""
        self._serving.close(self)

    def take(self, place: int, event: Event) -> None:
        """From the engine, on the event loop."""
        if self._failure:
            return
        now = time.monotonic()
        metrics, last = self._serving.metrics, self._last[place]
        metrics.first_token.observe(now - self.began) if last is None else metrics.token.observe(now - last)
        self._last[place] = now
        self._unread.append((place, event))
        if event.finished:
            self.n_left -= 1
        if len(self._unread) > MAX_UNREAD:
            self.fail(Refusal(408, "the client did not read its answer", code="slow_reader"))
            self._serving.close(self)
        self._news.set()

    def fail(self, refusal: Refusal) -> None:
        self._failure, self.n_left = refusal, 0
        if not self.accepted.done():
            self.accepted.set_exception(refusal)
        self._news.set()


@dataclass
class _Held:
    """What the engine's thread knows of a stream: the ids of its requests that are not finished."""

    stream: Stream
    place: dict[int, int] = field(default_factory=dict)


class Serving:
    """A run that is served: loads in a thread of its own, then answers until it is ended."""

    def __init__(self, name: str, load: Callable[[], Loaded], limits: Limits, max_batch: int) -> None:
        self.name, self.limits, self.max_batch = name, limits, max_batch
        self.metrics = Metrics(self.statistics)
        self.state: State = "loading"
        self.problem: FathomError | None = None
        self.created = int(time.time())
        self.changed = asyncio.Event()
        self._load = load
        self._loaded: Loaded | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._orders: queue.SimpleQueue[tuple[str, Stream | None]] = queue.SimpleQueue()
        self._held: dict[int, _Held] = {}
        self._streams: set[Stream] = set()
        self._statistics: dict[str, float] = {}
        self._seconds = 1.0  # that a request takes, a running mean
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    # Asked by handlers, on the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def capacity(self) -> int:
        return self.max_batch + self.limits.queue

    @property
    def n_open(self) -> int:
        """Requests of the engine that wait or run."""
        return sum(stream.n_left for stream in self._streams)

    @property
    def n_stream(self) -> int:
        """Requests of clients that are not answered to the end."""
        return len(self._streams)

    @property
    def loaded(self) -> Loaded:
        """Raises Refusal (503) unless the run can answer."""
        self._refuse_unless_ready()
        assert self._loaded is not None
        return self._loaded

    def _refuse_unless_ready(self) -> None:
        if self.state == "ok":
            return
        words = {"draining": "the server is about to end", "failed": "the run could not be loaded"}
        raise unavailable(words.get(self.state, "the run is being loaded"), self.state, retry_after=1)

    def statistics(self) -> dict[str, float]:
        """Of the engine, as of its last step."""
        return {"open": float(self.n_open), **self._statistics}

    async def open(self, requests: Sequence[Request]) -> Stream:
        """Put requests in line, all or none. Raises Refusal: 429 where there is no room, 400 where one cannot be, 503
        where the run cannot answer.
        """
        self._refuse_unless_ready()
        if len(requests) > self.capacity:
            raise Refusal(400, f"{len(requests):,} answers were asked for at once, this server holds {self.capacity:,}")
        if self.n_open + len(requests) > self.capacity:
            seconds = min(LONGEST_RETRY_S, max(1, round(self._seconds)))
            raise Refusal(
                429,
                f"{self.n_open:,} answers are being made or wait, and {self.capacity:,} is the limit; try again in "
                f"{seconds} s",
                code=BUSY,
                headers={"Retry-After": str(seconds)},
            )
        stream = Stream(self, requests)
        self._streams.add(stream)
        self._orders.put(("open", stream))
        try:
            await stream.accepted
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self, stream: Stream) -> None:
        if stream not in self._streams:
            return
        self._streams.discard(stream)
        if stream.n_left or not stream.accepted.done():
            stream.n_left = 0
            self._orders.put(("close", stream))
        else:
            self._seconds += 0.1 * (time.monotonic() - stream.began - self._seconds)
        if not stream.accepted.done():
            stream.accepted.cancel()
        self.changed.set()

    def drain(self) -> None:
        """From now on no new requests."""
        self.state = "draining"
        self.changed.set()

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Until every client has its answer, then end those that do not."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._streams:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            for stream in list(self._streams):
                stream.fail(unavailable("the server ended before the answer was whole", "draining"))
                self._orders.put(("close", stream))

    def end(self) -> None:
        """Stop the engine's thread, after its step."""
        self._orders.put(("end", None))
        self._thread.join(timeout=10)

    # In the engine's thread

    def _work(self) -> None:
        try:
            self._loaded = self._load()
        except FathomError as error:
            self.problem = error
            self._tell(self._has_state, "failed")
            return
        except BaseException as error:  # a run's files may hold anything; the person at the screen gets one sentence
            self.problem = FathomError(f"{self.name} could not be loaded ({_short(error)})", "see `fathom doctor`")
            self._tell(self._has_state, "failed")
            return
        self._tell(self._has_state, "ok")
        try:
            while self._obey():
                if self._held:
                    self._step()
        except BaseException as error:  # starting over failed too, as on a GPU that is lost
            self.problem = FathomError(f"the engine cannot go on ({_short(error)})", "start the server again")
            self._tell(self._has_state, "failed")

    def _obey(self) -> bool:
        """Carry out what was ordered; waits for an order while nothing runs. False at the end."""
        while True:
            try:
                what, stream = self._orders.get(block=not self._held)
            except queue.Empty:
                return True
            if what == "end":
                return False
            assert stream is not None
            if what == "open":
                self._open(stream)
            else:
                self._close(stream)

    def _open(self, stream: Stream) -> None:
        held = _Held(stream)
        try:
            for place, request in enumerate(stream.requests):
                id = self._engine.add(request)
                held.place[id] = place
                self._held[id] = held
        except FathomError as error:
            self._close(stream)
            self._tell(stream.fail, Refusal(400, str(error)))
        except BaseException as error:  # a library's panic is no Exception
            self._close(stream)
            self._report(error)
            self._tell(stream.fail, _broken(error))
        else:
            self._tell(_accept, stream)

    def _close(self, stream: Stream) -> None:
        for id in [id for id, held in self._held.items() if held.stream is stream]:
            del self._held[id]
            try:
                self._engine.cancel(id)
            except BaseException as error:
                self._start_over(error)
        self._look()

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except BaseException as error:  # out of memory, a fault of ours: these requests fail, the server goes on
            self._start_over(error)
            return
        said: list[tuple[Stream, int, Event]] = []
        for event in events:
            held = self._held.get(event.request_id)
            if held is None:
                continue
            said.append((held.stream, held.place[event.request_id], event))
            if event.finished:
                del self._held[event.request_id]
        self._look()
        if said:
            self._tell(_hand_over, said)

    def _start_over(self, error: BaseException) -> None:
        self._report(error)
        streams = {id(held.stream): held.stream for held in self._held.values()}
        self._held.clear()
        self._engine.reset()
        self._look()
        for stream in streams.values():
            self._tell(stream.fail, _broken(error))

    def _report(self, error: BaseException) -> None:
        self.metrics.failures.inc()
        say(f"the engine failed and goes on without the requests that ran ({_short(error)})", style="yellow")

    @property
    def _engine(self) -> Engine:
        assert self._loaded is not None
        return self._loaded.engine

    def _look(self) -> None:
        self._statistics = {name: float(value) for name, value in self._engine.stats().items()}

    def _tell(self, what: Callable[..., Any], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens any more
            self._loop.call_soon_threadsafe(what, *arguments)

    def _has_state(self, state: State) -> None:
        if self.state == "loading" or state == "failed":
            self.state = state
        if state == "failed":
            for stream in list(self._streams):
                stream.fail(unavailable("the engine cannot go on", "failed"))
        self.changed.set()


def _accept(stream: Stream) -> None:
    if not stream.accepted.done():
        stream.accepted.set_result(None)


def _hand_over(said: list[tuple[Stream, int, Event]]) -> None:
    for stream, place, event in said:
        stream.take(place, event)


def _broken(error: BaseException) -> Refusal:
    return unavailable(f"the engine failed while it answered ({_short(error)})", "engine_error")


def _short(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
