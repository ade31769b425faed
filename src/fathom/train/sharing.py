"""How ranks share a run: each computes its rows of a step; the weights lie whole on every rank, or split over some.

How they are split (`--shard-model`) is `split`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fathom.data.conversations.batches import IGNORE
from fathom.errors import FathomError
from fathom.optim.rates import AdamGroup
from fathom.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from fathom.model.gpt import GPT
    from fathom.optim.optimizer import Optimizer

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Sharing:
    """Who shares a run, and whether its weights are split."""

    here: Ranks = ALONE
    shard_model: bool = False
    within: int | None = None
    """Ranks that split one copy of the weights; None for all."""

    def wants_kernels(self, compile: str) -> bool:
        """Whether this process is to make kernels of our own."""
        return compile != "off" and not self.shard_model and self.here.local == 0

    def check(self) -> None:
        """FathomError where the flags ask for what these ranks cannot do."""
        world = self.here.world
        if self.within is not None and not self.shard_model:
            raise FathomError("--shard-within goes with --shard-model", "give both, or neither")
        if self.shard_model and world == 1:
            raise FathomError(
                "--shard-model splits the weights over ranks, and there is one process",
                "start it with .venv/bin/torchrun --nproc-per-node N",
            )
        if self.within is not None and (self.within < 1 or world % self.within):
            raise FathomError(
                f"--shard-within {self.within} does not divide the {world} ranks",
                "choose the ranks of one node, say",
            )


UNSHARED = Sharing()


def rows_a_rank(rows: int, world: int) -> int:
    """Of a step's rows, the most that one rank has."""
    return -(-rows // world)


class Rows(Protocol):
    def batch(self, step: int, first_row: int, last_row: int) -> Arrays: ...


def share_of(source: Rows, rows: int, here: Ranks) -> Callable[[int], Arrays]:
    """step -> this rank's rows of it: consecutive ones, as many on every rank. Where they do not divide, those that the
    last ranks lack are rows that they have, or the first ones', without a target.
    """
    each = rows_a_rank(rows, here.world)
    first, last = (min(rank * each, rows) for rank in (here.rank, here.rank + 1))

    def batch(step: int) -> Arrays:
        if last - first == each:
            return source.batch(step, first, last)
        lacking = each - (last - first)
        inputs, targets = source.batch(step, first, last) if last > first else source.batch(step, 0, 1)
        if last == first:
            return np.repeat(inputs, each, axis=0), np.full((each, targets.shape[1]), IGNORE)
        masked = np.full((lacking, targets.shape[1]), IGNORE)
        return np.concatenate([inputs, np.repeat(inputs[:1], lacking, axis=0)]), np.concatenate([targets, masked])

    return batch


def in_turns(batches: Iterable[Arrays], here: Ranks) -> Iterator[Arrays]:
    """Every world-th batch, as many on every rank: where they do not divide, the last ones are without a target."""
    turn: list[Arrays] = []
    for batch in batches:
        turn.append(batch)
        if len(turn) == here.world:
            yield turn[here.rank]
            turn = []
    if turn:
        inputs, targets = turn[min(here.rank, len(turn) - 1)]
        yield inputs, targets if here.rank < len(turn) else np.full_like(targets, IGNORE)


def placed(model: GPT, device: str, adam: Mapping[str, AdamGroup], matrix_lr: float, sharing: Sharing) -> Optimizer:
    """Bring a model to its device, split as asked for; returns the optimizer of its weights there."""
    from fathom.optim.optimizer import Optimizer

    here, dtype = sharing.here, model.dtype
    if here.world == 1:
        model.to(device)
        return Optimizer(model.parameter_kinds(), adam, matrix_lr, dtype)
    from fathom.optim.sharded import ShardedOptimizer
    from fathom.optim.shards import Mesh

    who: Mesh | None = None
    if sharing.shard_model:
        from fathom.train.split import split

        who = split(model, device, here, sharing.within or here.world)
    model.to(device)
    everyone = Mesh(here.rank, here.world)
    return ShardedOptimizer(model.parameter_kinds(), adam, matrix_lr, dtype, everyone, who)  # type: ignore[return-value]


def state_of(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What a checkpoint holds; of what is split this rank's part, as `Shard`."""
    weights: dict[str, torch.Tensor] = model.state_dict()
    if any(hasattr(weight, "to_local") for weight in weights.values()):
        from fathom.optim.shards import shards_of

        weights = shards_of(weights)
    return {"model": weights, "optimizer": optimizer.state()}
