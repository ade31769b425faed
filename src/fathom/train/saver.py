"""Checkpoints beside training: between two steps a copy is taken, and a thread brings it to the disk.

Training waits for the copy alone, or for the thread where the checkpoint before is still on its way. Whatever stands
in the way of a checkpoint is said and does not stand in the run's.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from fathom.optim.shards import Shard
from fathom.ranks import ALONE, Ranks
from fathom.record import Record
from fathom.screen import say
from fathom.train import checkpoint

ALIGNED = 64  # bytes


class Saver:
    """Saves a run's checkpoints one after another. `on_disk` is the step of the newest that is known to be whole."""

    def __init__(self, record: Record, on_disk: int, tidy: Callable[[int], None], here: Ranks = ALONE) -> None:
        """`tidy(step)` is called, in the thread, when the checkpoint of `step` is whole: it removes old ones."""
        self.on_disk, self.waited_s = on_disk, 0.0
        self._record, self._tidy, self._here = record, tidy, here
        self._coming: tuple[int, float, Future[float]] | None = None

    def begin(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Take a copy of `state` (nested dicts of tensors), and start writing it and `meta`."""
        began = time.monotonic()
        self.wait()
        done: Future[float] = Future()
        copy: dict[str, Any] | Exception
        try:
            copy = copied(state)
        except Exception as error:  # told to the other ranks, whose threads wait for this one's
            copy = error
        # Of its own, and a daemon: a second Ctrl-C ends the run at once.
        Thread(target=self._write, args=(done, step, copy, dict(meta)), name="checkpoint", daemon=True).start()
        copy_s = time.monotonic() - began
        self.waited_s += copy_s
        self._coming = step, copy_s, done

    def poll(self) -> None:
        """Note what became of a checkpoint that has come to its end; waits for none."""
        if self._coming is not None and self._coming[2].done():
            self.wait()

    def wait(self) -> int:
        """`on_disk`, when nothing is on its way any more."""
        if self._coming is None:
            return self.on_disk
        (step, copy_s, done), self._coming = self._coming, None
        try:
            write_s = done.result()
        except Exception as error:  # torch has more words for a full disk than OSError
            self._record.event("save_failed", step=step, why=reason(error))
            say(f"the checkpoint of step {step} was not saved ({reason(error)}); the run goes on", style="yellow")
        else:
            self.on_disk = step
            self._record.event("saved", step=step, copy_s=round(copy_s, 4), write_s=round(write_s, 4))
        return self.on_disk

    def _write(
        self, done: Future[float], step: int, state: dict[str, Any] | Exception, meta: Mapping[str, Any]
    ) -> None:
        """Whatever happens here comes to `done`: whoever waits for it would wait for ever."""
        began = time.monotonic()
        try:
            if self._here.world > 1 and torch.cuda.is_available():  # a new thread's device is the first one's
                torch.cuda.set_device(self._here.local)
            checkpoint.fail_together(state if isinstance(state, Exception) else None, self._here)
            checkpoint.save(self._record.folder, step, cast(dict[str, Any], state), meta, self._here)
            if self._here.is_main:
                with suppress(Exception):  # what cannot be removed is in nobody's way
                    self._tidy(step)
        except BaseException as error:  # handed to whoever waits
            done.set_exception(error)
        else:
            done.set_result(time.monotonic() - began)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):
            self.wait()


def reason(error: Exception) -> str:
    """In few words; torch says of a disk that is full where in its own files that came up."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "the disk took only a part of it" if "inline_container" in said else said[:300]


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested dicts with tensors in memory of their own, on the CPU.

    From a GPU they come into pinned memory, which torch keeps for the next time. A CPU's lie together outside of the
    heap, which blocks that live for a moment would split: the memory goes back to the system when they are written.
    """
    tensors = list(_tensors(state))
    if any(tensor.device.type == "cuda" for tensor in tensors):
        copy = _mapped(state, _pinned)
        torch.cuda.synchronize()
        return copy
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors]
    block = mmap.mmap(-1, max(sum(sizes), 1))
    begins = iter([sum(sizes[:i]) for i in range(len(sizes))])
    return _mapped(state, lambda tensor: _copied_into(block, next(begins), tensor))


def _tensors(state: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in state.values():
        if isinstance(value, Mapping):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value.local if isinstance(value, Shard) else value


def _mapped(state: Mapping[str, Any], copy: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    def mapped(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _mapped(value, copy)
        if isinstance(value, Shard):
            return value.like(copy(value.local))
        return copy(value) if isinstance(value, Tensor) else value

    return {key: mapped(value) for key, value in state.items()}


def _copied_into(block: mmap.mmap, begin: int, tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return tensor.detach().cpu().clone()
    flat = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=begin)
    return flat.view(tensor.shape).copy_(tensor.detach())


def _pinned(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.detach().clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach(), non_blocking=True)
