"""What ranks send each other: gradients to whoever owns them, summed on the way, and weights back.

Nothing here waits: each call returns what is to be waited for. Sums are added on a CPU at their owner, rank after rank,
as one process adds up its micro-batches, so that the two agree to the last bit; gloo, which has no reduce-scatter of
its own, would send twice as much. On a GPU NCCL adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fathom.optim.shards import Mesh

# Under the names of torch 2.13, or those that it gave up then.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Work(Protocol):
    def wait(self) -> Any: ...


class Sum:
    """A sum over all ranks that is on its way."""

    def __init__(self, work: Any, out: Tensor, parts: Tensor | None = None) -> None:
        """`out` has it when `work` is done, or is to have it from the ranks' `parts`."""
        self._work, self._out, self._parts = work, out, parts

    def wait(self) -> Tensor:
        self._work.wait()
        if self._parts is not None:
            torch.add(self._parts[0], self._parts[1], out=self._out)
            for part in self._parts[2:]:
                self._out.add_(part)
            self._parts = None
        return self._out


def sum_at(owner: int, flat: Tensor, everyone: Mesh) -> Sum:
    """The sum of the ranks' `flat`, which becomes it at its owner and nothing of use elsewhere."""
    if flat.device.type != "cpu":
        return Sum(dist.reduce(flat, owner, async_op=True), flat)
    sent = [len(flat) if rank == owner else 0 for rank in range(everyone.world)]
    if everyone.rank != owner:
        nothing = [0] * everyone.world
        return Sum(dist.all_to_all_single(flat.new_empty(0), flat, nothing, sent, async_op=True), flat)
    parts = flat.new_empty(everyone.world, len(flat))
    work = dist.all_to_all_single(parts.view(-1), flat, [len(flat)] * everyone.world, sent, async_op=True)
    return Sum(work, flat, parts)


def sum_by_parts(whole: Tensor, everyone: Mesh) -> Sum:
    """Each rank's equal part, by its first axis, of the sum of the ranks' `whole`."""
    own = whole.new_empty(len(whole) // everyone.world, *whole.shape[1:])
    if whole.device.type != "cpu":
        return Sum(_reduce_scatter(own, whole, async_op=True), own)
    parts = torch.empty_like(whole)
    work = dist.all_to_all_single(parts, whole, async_op=True)
    return Sum(work, own, parts.view(everyone.world, *own.shape))


def sum_everywhere(flat: Tensor, everyone: Mesh) -> Sum:
    """The sum of the ranks' `flat`, which becomes it."""
    if flat.device.type != "cpu":
        return Sum(dist.all_reduce(flat, async_op=True), flat)
    parts = flat.new_empty(everyone.world, *flat.shape)
    return Sum(_all_gather(parts.view(-1), flat, async_op=True), flat, parts)


def send_from(owner: int, flat: Tensor) -> Work:
    """`flat` becomes what its owner has."""
    work: Work = dist.broadcast(flat, owner, async_op=True)
    return work


def gather(whole: Tensor, own: Tensor) -> Work:
    """`whole` becomes the ranks' equal parts in a row."""
    work: Work = _all_gather(whole, own, async_op=True)
    return work


def swap(sent: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], mesh: Mesh) -> tuple[list[Tensor], Work, Tensor]:
    """To each rank of the mesh its tensor of `sent`. What comes from each, of `shapes`, once the work that is returned
    is done; until then the last tensor has to be kept.
    """
    into = [torch.Size(shape).numel() for shape in shapes]
    out = torch.cat([part.flatten() for part in sent])
    got = out.new_empty(sum(into))
    work: Work = dist.all_to_all_single(
        got, out, into, [part.numel() for part in sent], group=mesh.group, async_op=True
    )
    return [part.view(shape) for part, shape in zip(got.split(into), shapes, strict=True)], work, out


def as_main_has_it(numbers: Sequence[int], device: torch.device) -> list[int]:
    """These of the main rank. Waits."""
    told = torch.tensor(numbers, device=device)
    dist.broadcast(told, 0)
    found: list[int] = told.tolist()
    return found
