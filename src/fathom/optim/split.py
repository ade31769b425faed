"""Weights that `fully_shard` has split by rows: their gradients come summed, and split alike.

A matrix's gradient is gathered at its owner, who finds its update and scatters that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fathom.optim import exchange
from fathom.optim.muon import apply_update, muon_update
from fathom.optim.rates import MUON_BETA2
from fathom.optim.shards import Mesh, as_shard, local
from fathom.optim.whole import Stack, squares


class SplitStack(Stack):
    """Every rank holds some rows of each matrix."""

    def finish_sum(self, factor: float) -> Tensor:
        self._gradients = torch.stack([_rows_of_gradient(weight) for weight in self.weights])  # (K, my rows, columns)
        if factor != 1:
            self._gradients.mul_(factor)
        return squares(self._gradients) / self.mesh.replicas

    def gather_gradients(self) -> None:
        sent = [self._gradients[self.mesh.part(len(self.weights), owner)] for owner in range(self.mesh.world)]
        self._swap(sent, [self._at_me(rank) for rank in range(self.mesh.world)])

    def update(self, lr: float, momentum: float, weight_decay: float, on_kernels: bool) -> None:
        """`on_kernels` says nothing here: a split model has none."""
        self._lr, self._weight_decay = lr, weight_decay
        self._work.wait()
        whole = torch.cat(self._arrived, dim=1)  # (mine, rows, columns)
        if len(whole):
            whole = muon_update(
                whole, self.momentum, self.second, momentum=momentum, beta2=MUON_BETA2, dtype=self.dtype
            )
        sent = [whole[:, self.mesh.part(self._shape[0], rank)] for rank in range(self.mesh.world)]
        self._swap(sent, [self._of(owner) for owner in range(self.mesh.world)])

    def finish(self) -> None:
        self._work.wait()
        mine = [local(weight.detach()) for weight in self.weights]
        weights = torch.stack(mine)
        apply_update(weights, torch.cat(self._arrived), self._shape, lr=self._lr, weight_decay=self._weight_decay)
        torch._foreach_copy_(mine, list(weights.unbind()))
        del self._arrived, self._gradients, self._kept

    def clear(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def _swap(self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]]) -> None:
        self._arrived, self._work, self._kept = exchange.swap(sent, shapes, self.mesh)

    def _at_me(self, rank: int) -> tuple[int, int, int]:
        """Of my matrices, the rows that a rank has."""
        return _length(self.mine), _length(self.mesh.part(self._shape[0], rank)), self._shape[1]

    def _of(self, owner: int) -> tuple[int, int, int]:
        """Of an owner's matrices, my rows."""
        count, rows = self.mesh.part(len(self.weights), owner), self.mesh.part(self._shape[0])
        return _length(count), _length(rows), self._shape[1]


class SplitRows:
    """A large parameter of AdamW, of which this rank has some rows, and updates those."""

    def __init__(self, weight: nn.Parameter, mesh: Mesh) -> None:
        self._weight, self._mesh = weight, mesh
        self._own = nn.Parameter(local(weight.detach()))

    def owned(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return iter([(self._weight, self._own)])

    def finish_sum(self, factor: float) -> Tensor:
        self._own.data = local(self._weight.detach())  # `fully_shard` may have moved it
        self._own.grad = _rows_of_gradient(self._weight)
        if factor != 1:
            self._own.grad.mul_(factor)
        return squares(self._own.grad) / self._mesh.replicas

    def launch_gather(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def clear(self) -> None:
        self._weight.grad = self._own.grad = None

    def as_part(self, value: Tensor) -> Tensor:
        """A moment as a checkpoint sees it."""
        return as_shard(self._weight).like(value)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _rows_of_gradient(weight: nn.Parameter) -> Tensor:
    here = local(weight.detach())
    return torch.zeros_like(here) if weight.grad is None else local(weight.grad)
