"""Weights that every rank holds whole: gradients are summed at their owners, who update them and send them to all.

Of the matrices of one shape a rank owns consecutive ones, of a large table consecutive rows; what is small everybody
updates alike. Gradients of a bucket lie in a row in memory, where the backward pass adds to them and whence they are
sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.optim import exchange
from fathom.optim.muon import second_moment_shape
from fathom.optim.optimizer import move_stack
from fathom.optim.shards import Mesh, Shard, local

SMALL = 1024  # elements: fewer are not worth sharing out
BUCKET = 2**22  # elements of matrices that travel together, if they have one owner


class Row:
    """Gradients of some weights, in a row in memory."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        first = weights[0]
        self.flat = torch.zeros(sum(w.numel() for w in weights), dtype=first.dtype, device=first.device)
        parts = self.flat.split([weight.numel() for weight in weights])
        self.gradients = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]

    def clear(self) -> None:
        self.flat.zero_()
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient


class Matrices(Row):
    """Some of Muon's matrices that one rank owns."""

    def __init__(self, weights: Sequence[nn.Parameter], owner: int, everyone: Mesh) -> None:
        super().__init__(weights)
        self._owner, self._everyone, self._is_mine = owner, everyone, owner == everyone.rank

    def launch_sum(self) -> None:
        self._sum = exchange.sum_at(self._owner, self.flat, self._everyone)

    def finish_sum(self, factor: float) -> Tensor:
        total = self._sum.wait()
        if not self._is_mine:
            return total.new_zeros(())
        if factor != 1:
            total.mul_(factor)
        return squares(total)

    def launch_gather(self) -> None:
        """Send the updated weights from where their gradients were."""
        if self._is_mine:
            torch._foreach_copy_(self.gradients, [weight.detach() for weight in self.weights])
        self._work = exchange.send_from(self._owner, self.flat)

    def finish(self) -> None:
        self._work.wait()
        if not self._is_mine:
            torch._foreach_copy_([weight.detach() for weight in self.weights], self.gradients)


class Small(Row):
    """Parameters that every rank updates."""

    def __init__(self, weights: Sequence[nn.Parameter], everyone: Mesh) -> None:
        super().__init__(weights)
        self._everyone = everyone
        self._own = [nn.Parameter(weight.detach()) for weight in weights]

    def owned(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Each parameter, and what AdamW moves of it on this rank, which lies in it."""
        return zip(self.weights, self._own, strict=True)

    def launch_sum(self) -> None:
        self._sum = exchange.sum_everywhere(self.flat, self._everyone)

    def finish_sum(self, factor: float) -> Tensor:
        total = self._sum.wait()
        if factor != 1:
            total.mul_(factor)
        for own, gradient in zip(self._own, self.gradients, strict=True):
            own.grad = gradient
        return squares(total) * float(self._everyone.rank == 0)  # what all have is counted once

    def launch_gather(self) -> None:
        pass

    def finish(self) -> None:
        pass


class Rows:
    """A large parameter of AdamW, of which this rank updates some rows."""

    def __init__(self, weight: nn.Parameter, everyone: Mesh) -> None:
        self.weights = [weight]
        self._weight, self._everyone = weight, everyone
        self._rows, self._each = everyone.part(len(weight)), everyone.each(len(weight))
        self._own = nn.Parameter(weight.detach()[self._rows])
        self._whole = weight.detach().new_zeros(self._each * everyone.world, *weight.shape[1:])

    def owned(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        return iter([(self._weight, self._own)])

    def clear(self) -> None:
        self._whole.zero_()
        self._weight.grad, self._own.grad = self._whole[: len(self._weight)], None

    def launch_sum(self) -> None:
        self._sum = exchange.sum_by_parts(self._whole, self._everyone)

    def finish_sum(self, factor: float) -> Tensor:
        self._own.grad = self._sum.wait()[: len(self._own)]
        if factor != 1:
            self._own.grad.mul_(factor)
        return squares(self._own.grad)

    def launch_gather(self) -> None:
        mine = self._own.detach()
        if len(mine) < self._each:
            mine = torch.cat([mine, mine.new_zeros(self._each - len(mine), *mine.shape[1:])])
        self._sent, self._work = mine, exchange.gather(self._whole, mine)

    def finish(self) -> None:
        self._work.wait()
        self._weight.detach().copy_(self._whole[: len(self._weight)])
        del self._sent

    def as_part(self, value: Tensor) -> Tensor:
        """A moment of `own` as a checkpoint sees it."""
        return Shard.of(value, self._rows.start, len(self._weight))


class Stack:
    """Muon's matrices of one shape, of which this rank owns consecutive ones, with their buffers."""

    def __init__(self, weights: Sequence[nn.Parameter], mesh: Mesh, dtype: torch.dtype) -> None:
        self.weights, self.mesh, self.dtype = weights, mesh, dtype
        self.mine = mesh.part(len(weights))
        self._shape = tuple(weights[0].shape)
        count, first = self.mine.stop - self.mine.start, weights[0]
        place: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
        self.momentum = torch.zeros(count, *self._shape, **place)
        self.second = torch.zeros(count, *second_moment_shape(*self._shape), **place)

    def state(self) -> dict[str, Tensor]:
        parts = {"momentum": self.momentum, "second": self.second}
        return {name: Shard.of(value, self.mine.start, len(self.weights)) for name, value in parts.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.momentum.copy_(local(state["momentum"]))
        self.second.copy_(local(state["second"]))


class WholeStack(Stack):
    def __init__(self, weights: Sequence[nn.Parameter], everyone: Mesh, dtype: torch.dtype) -> None:
        super().__init__(weights, everyone, dtype)
        owned = [(owner, weights[everyone.part(len(weights), owner)]) for owner in range(everyone.world)]
        self.buckets = [Matrices(some, owner, everyone) for owner, part in owned for some in in_buckets(part)]

    def finish_sum(self, factor: float) -> Tensor:
        return torch.stack([bucket.finish_sum(factor) for bucket in self.buckets]).sum()

    def update(self, lr: float, momentum: float, weight_decay: float, on_kernels: bool) -> None:
        move_stack(
            self.weights[self.mine], self.momentum, self.second,
            lr=lr, momentum=momentum, weight_decay=weight_decay, dtype=self.dtype, on_kernels=on_kernels,
        )  # fmt: skip
        for bucket in self.buckets:
            bucket.launch_gather()

    def finish(self) -> None:
        for bucket in self.buckets:
            bucket.finish()

    def clear(self) -> None:
        for bucket in self.buckets:
            bucket.clear()


def in_buckets(weights: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    """Weights of one shape by so many as fill a bucket."""
    if weights:
        many = max(1, BUCKET // weights[0].numel())
        yield from (weights[first : first + many] for first in range(0, len(weights), many))


def squares(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()
