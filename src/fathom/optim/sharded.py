"""The same updates over ranks: each owns a part of the optimizer's state, and does that part's update. REFERENCE 2.4.

Sums of gradients set out while the backward pass goes on (`departures`), to their owners (`exchange`). When all have
come, each owner updates what is its own, and what was updated goes back to all while the next is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.optim import exchange
from fathom.optim.departures import Bucket, Departures
from fathom.optim.optimizer import by_shape, product_dtype
from fathom.optim.rates import AdamGroup
from fathom.optim.shards import Mesh
from fathom.optim.split import SplitStack
from fathom.optim.tables import Tables
from fathom.optim.whole import WholeStack


class ShardedOptimizer:
    """What `optimizer.Optimizer` is for one process, for one rank of several: the same updates, a part of the state.

    Its state has the same names and whole shapes, so that a checkpoint of either is one of the other.
    """

    def __init__(
        self,
        kinds: Mapping[str, Sequence[nn.Parameter]],
        adam: Mapping[str, AdamGroup],
        matrix_lr: float,
        dtype: torch.dtype,
        everyone: Mesh,
        model: Mesh | None = None,
    ) -> None:
        """As `Optimizer`; `everyone` is all ranks, `model` those that split the matrices of a sharded model."""
        self.matrix_lr = matrix_lr
        self.has_cpu_kernels = False
        self._everyone = everyone
        self._tables = Tables({kind: kinds[kind] for kind in adam if kinds[kind]}, adam, everyone, model)
        flow, stacks = product_dtype(dtype), by_shape(kinds["matrices"])
        whole = [WholeStack(stack, everyone, flow) for stack in stacks] if model is None else []
        self._split = [SplitStack(stack, model, flow) for stack in stacks] if model is not None else []
        self._stacks: list[WholeStack | SplitStack] = [*whole, *self._split]
        buckets: list[Bucket] = [bucket for stack in whole for bucket in reversed(stack.buckets)]
        self.departures = Departures([*buckets, *self._tables.buckets])
        self.zero_grad()

    @property
    def splits_weights(self) -> bool:
        """Whether `fully_shard` has split the model."""
        return bool(self._split)

    def sum_as_they_come(self) -> None:
        """The step's last backward pass begins: the sums of its gradients may set out one by one.

        Where weights are split `fully_shard` sees to that, and what is left would come between its own.
        """
        if not self.splits_weights:
            self.departures.watch()

    def summed(self, loss: Tensor | None, factor: float) -> tuple[float, float] | None:
        """The gradients come to their owners, summed over the ranks, times `factor`. The loss summed likewise, and the
        norm of all gradients together, no number where one of theirs is none.

        A rank whose gradients are not whole has no `loss`; then it is None for all of them, and no gradient is there.
        The one wait of a step for the device.
        """
        self.departures.rest()
        squares = [share.finish_sum(factor) for share in (*self._stacks, self._tables)]
        square = torch.stack(squares).sum()
        own = torch.zeros_like(square) if loss is None else loss.to(square.dtype)
        word = torch.stack([own, square, torch.full_like(square, loss is None)])
        total = exchange.sum_everywhere(word, self._everyone).wait()
        found, norm, lacking = torch.stack([total[0], total[1].sqrt(), total[2]]).tolist()
        if lacking:
            self.zero_grad()
            return None
        self.departures.learn()
        return found, norm

    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that were `summed`; `lr` is a share of the peak rates."""
        self._tables.update(lr)
        for split in self._split:
            split.gather_gradients()
        for stack in self._stacks:
            stack.update(self.matrix_lr * lr, momentum, weight_decay, self.has_cpu_kernels)
        for share in (self._tables, *self._stacks):
            share.finish()

    def zero_grad(self) -> None:
        for share in (self._tables, *self._stacks):
            share.clear()
        self.departures.again()

    def prime(self) -> None:
        """Create AdamW's zero moments without moving a weight, so that a checkpoint has somewhere to load to."""
        self._tables.prime()

    def state(self) -> dict[str, Any]:
        """Tensors only, this rank's parts as `Shard`."""
        return {
            "adam": self._tables.state(),
            "muon": {str(i): stack.state() for i, stack in enumerate(self._stacks)},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the moments of `state()`; the rates stay those of this run."""
        self._tables.load(state["adam"])
        for i, stack in enumerate(self._stacks):
            stack.load(state["muon"][str(i)])
