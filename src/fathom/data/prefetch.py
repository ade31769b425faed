"""Batches made ahead of time by a background thread, so that training does not wait for data; and the wait measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

from fathom.errors import FathomError
from fathom.screen import say

T = TypeVar("T")

PATIENCE_S = 1800.0
SAY_AFTER_S = 60.0
LOOK_EVERY_S = 0.2
CLOSE_S = 10.0


class Prefetcher(Generic[T]):
    """Keeps the results of `make(step)` ready for the next `depth` steps.

    `wait_s` is the time, in seconds, that `get` has waited altogether. What `make` raises is raised by `get` for that
    step. A step out of turn is answered too: the thread starts over there. `stop` is the step after the last. What is
    not made within `patience_s` is given up: FathomError.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        start: int = 0,
        *,
        stop: int | None = None,
        depth: int = 3,
        patience_s: float = PATIENCE_S,
    ) -> None:
        if depth < 1:
            raise ValueError(f"a depth of {depth} prefetches nothing")
        self._make, self._stop, self._depth = make, stop, depth
        self._wanted, self._waited_for = start, False
        self._ready: dict[int, T | BaseException] = {}
        self._changed = Condition()
        self._closed = False
        self._patience_s = patience_s
        self.wait_s = 0.0
        self._thread = Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def get(self, step: int, until: Callable[[], bool] = lambda: False) -> T | None:
        """The batch of `step`, waiting for it if need be; None where `until()` came true first."""
        began = time.monotonic()
        with self._changed:
            if self._closed:
                raise ValueError("the prefetcher is closed")
            self._wanted, self._waited_for = step, True
            self._ready = {ready: made for ready, made in self._ready.items() if step <= ready < step + self._depth}
            self._changed.notify_all()
            self._await(step, until, began)
            if step not in self._ready and not self._closed:
                return None
            if step not in self._ready:
                raise ValueError("the prefetcher was closed while a batch was waited for")
            made = self._ready.pop(step)
            self._wanted, self._waited_for = step + 1, False
            self._changed.notify_all()
            self.wait_s += time.monotonic() - began
        if isinstance(made, BaseException):
            raise made
        return made

    def _await(self, step: int, until: Callable[[], bool], began: float) -> None:
        """Until the batch is there, or need not be waited for."""
        said = began
        while not self._changed.wait_for(lambda: step in self._ready or self._closed, LOOK_EVERY_S):
            now = time.monotonic()
            if until():
                return
            if now - began > self._patience_s:
                raise FathomError(
                    f"the batch of step {step} was not there after {now - began:.0f} s of waiting",
                    "look whether the disk with the corpus still answers, then go on with --resume",
                )
            if now - said > SAY_AFTER_S:
                said = now
                say(f"still waiting for the batch of step {step}, for {now - began:.0f} s now", style="yellow")

    def close(self) -> None:
        """End the thread; what it is making is still finished, unless that hangs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        self._ready.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                step = self._next()
                if self._closed or step is None:
                    return
            made: T | BaseException
            try:
                made = self._make(step)
            except BaseException as error:  # handed to whoever asks for this step
                made = error
            with self._changed:
                self._ready[step] = made
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The first of the steps that should be ready and is not."""
        for step in range(self._wanted, self._wanted + self._depth):
            asked = step == self._wanted and self._waited_for
            if step not in self._ready and (asked or self._stop is None or step < self._stop):
                return step
        return None
