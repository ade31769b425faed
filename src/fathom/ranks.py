"""Ranks: the processes of one torchrun that share a piece of work, or one process alone. Only the main rank speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

from fathom.errors import FathomError
from fathom.screen import console

T = TypeVar("T")

PATIENCE = timedelta(hours=12)  # ranks wait for the one whose share takes longest; torchrun sees to those that died


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Whatever they send each other are plain objects of our own making."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` on every rank, the others when the main one is done: what it fetched they find."""
        if not self.is_main:
            self.gather(None)
            return work()
        value = work()
        self.gather(None)
        return value


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), connected while the block lasts; else one alone.

    On CUDA each takes the GPU of its local rank. Raises FathomError where the variables make no sense, or the ranks
    cannot find each other.
    """
    world = _number("WORLD_SIZE", 1)
    if world == 1:
        yield Ranks()
        return
    rank, local = _number("RANK", -1), _number("LOCAL_RANK", 0)
    if not 0 <= rank < world:
        raise FathomError(
            f"WORLD_SIZE is {world}, and RANK is {os.environ.get('RANK', 'not set')}",
            "start with torchrun, which sets both, or unset them",
        )
    _connect(rank, world, local)
    import torch.distributed as dist

    here = Ranks(rank, world)
    was_quiet, console().quiet = console().quiet, rank > 0
    try:
        yield here
        here.gather(None)  # leave together: connections that end under a busy rank may abort it
    finally:
        console().quiet = was_quiet
        dist.destroy_process_group()


def leave() -> NoReturn:
    """End this process, its work done, at once: gloo's threads, taken down with the interpreter, abort now and then."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _connect(rank: int, world: int, local: int) -> None:
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
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FathomError(
            f"the {world} ranks cannot find each other at {where} ({reason})", "start them with torchrun"
        ) from None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        raise FathomError(f"{name} is {text!r}", "start with torchrun, which sets it, or unset it")
    return int(text)
