"""Ranks: the processes of one torchrun that share a piece of work, or one process alone. Only the main rank speaks.

Two ways to talk: numbers of a step go over the default process group (NCCL between GPUs, gloo between CPUs), which
gives a silent rank up after `STEP_PATIENCE`; words between the processes go over gloo groups of their own, which wait
long for the rank whose share takes longest. torchrun sees to ranks that died: it ends the others.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from fathom.errors import FathomError
from fathom.screen import console

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
STEP_PATIENCE = timedelta(minutes=10)
REFUSED = 2  # the exit status of a rank that ends because another one has said why


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Whatever they send each other are plain objects of our own making."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Among those of this machine."""
    words: Any = field(default=None, compare=False, repr=False)
    """The process group of `gather`, `total` and `most`; None for the default one."""
    savers: Any = field(default=None, compare=False, repr=False)
    """The process group of the threads that write checkpoints."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in the order of ranks, on every rank."""
        return _gathered(value, self.world, self.words)

    def gather_beside(self, value: T) -> list[T]:
        """The same for a thread that saves while training goes on."""
        return _gathered(value, self.world, self.savers)

    def total(self, count: int) -> int:
        """The sum over the ranks. On the hosts alone: no device is waited for."""
        if self.world == 1:
            return count
        import torch.distributed as dist

        return _reduced([count], dist.ReduceOp.SUM, self.words)[0]

    def most(self, *values: int) -> list[int]:
        """Of each number the largest over the ranks, likewise."""
        if self.world == 1:
            return list(values)
        import torch.distributed as dist

        return _reduced(values, dist.ReduceOp.MAX, self.words)

    def from_main(self, work: Callable[[], T]) -> T:
        """What the main rank's `work` gives, on every rank. Where it fails there, the others end without a word."""
        return self.gather(self._first(work))[0] if self.is_main else self._told()

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` on every rank, the others when the main one is done: what it fetched they find."""
        if not self.is_main:
            self._told()
            return work()
        value = self._first(work)
        self.gather(None)
        return value

    def _first(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except FathomError:
            self.gather(_FAILED)
            raise

    def _told(self) -> Any:
        told = self.gather(None)[0]
        if told == _FAILED:
            sys.exit(REFUSED)
        return told


ALONE = Ranks()
_FAILED = "the main rank has failed and says why"


def _reduced(values: Sequence[int], how: Any, group: Any) -> list[int]:
    import torch
    import torch.distributed as dist

    found = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(found, how, group=group)
    return [int(value) for value in found]


def _gathered(value: T, world: int, group: Any) -> list[T]:
    if world == 1:
        return [value]
    import torch.distributed as dist

    values: list[T] = [value] * world
    dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), connected while the block lasts; else one alone.

    On CUDA each takes the GPU of its local rank. Raises FathomError where the variables make no sense, the ranks
    cannot find each other, or one is lost on the way. Of ranks that fail alike the first says why; the others exit.
    """
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        yield ALONE
        return
    rank, local = _number("RANK", -1), _number("LOCAL_RANK", 0)
    if not 0 <= rank < world:
        raise FathomError(
            f"WORLD_SIZE is {world}, and RANK is {os.environ.get('RANK', 'not set')}",
            "start with torchrun, which sets both, or unset them",
        )
    store = _connect(rank, world, local)
    import torch.distributed as dist

    here = Ranks(rank, world, local, *(dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2)))
    was_quiet, console().quiet = console().quiet, rank > 0
    try:
        yield here
        here.gather(None)  # leave together: connections that end under a busy rank may abort it
        dist.destroy_process_group()
    except FathomError as error:
        if not _is_first_to_say(store, str(error)):
            sys.exit(REFUSED)
        raise
    except RuntimeError as error:
        if not _is_loss(error):
            _is_first_to_say(store, "a traceback")
            raise
        if not _is_first_to_say(store, "lost"):
            sys.exit(REFUSED)
        raise FathomError(
            f"rank {rank} has lost another of the {world} ranks ({_first_line(error)})",
            "that one's own words, if it had any, stand above; go on with --resume",
        ) from None
    finally:
        console().quiet = was_quiet


def shared(work: Callable[[Ranks], T]) -> T:
    """What `work` gives the main rank, whose word it is; the others, done, end."""
    with joined() as here:
        result = work(here)
    if not here.is_main:
        leave()
    return result


def leave(status: int = 0) -> NoReturn:
    """End this process, its work done, at once: gloo's threads, taken down with the interpreter, abort now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def are_many() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _is_first_to_say(store: Any, sentence: str) -> bool:
    """Whether no rank has said this yet, and, of a lost rank, nothing else either. torchrun keeps the store."""
    try:
        if sentence == "lost" and store.add("fathom/said", 0):
            return False
        store.add("fathom/said", 1)
        key = hashlib.sha256(sentence.encode()).hexdigest()
        return bool(store.add(f"fathom/said/{key}", 1) == 1)
    except Exception:  # the store went with the rank that kept it
        return True


def _is_loss(error: RuntimeError) -> bool:
    """Whether it is what a process group says of a rank that is gone or silent."""
    import torch.distributed as dist

    words = ("connection", "timed out", "timeout", "peer", "gloo", "socket", "nccl")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).split(". ")[0][:200]  # without the place in gloo's source, and advice


def _connect(rank: int, world: int, local: int) -> Any:
    """The store by which they found each other."""
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise FathomError(
                f"rank {rank} would use GPU {local} of this machine's {torch.cuda.device_count()}",
                f"start torchrun with --nproc-per-node {torch.cuda.device_count()}",
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        kept, *_ = next(dist.rendezvous("env://", rank, world, timeout=STEP_PATIENCE))
        # torchrun may keep it over its restarts, with the addresses of those that died.
        store = dist.PrefixStore(f"fathom/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", kept)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=STEP_PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise FathomError(
            f"the {world} ranks cannot find each other at {where} ({_first_line(error)})", "start them with torchrun"
        ) from None
    return store


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        raise FathomError(f"{name} is {text!r}", "start with torchrun, which sets it, or unset it")
    return int(text)
