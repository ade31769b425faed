"""The same updates over ranks: each owns a part of the optimizer's state, and does that part's update. REFERENCE 2.4.

Weights that every rank holds whole: gradients are summed to their owners (reduce-scatter), all reductions launched
before the first is waited for; owners update, and what they updated goes back to all (all-gather) while the next part
is updated. Of the matrices of one shape a rank owns consecutive ones; of a large table consecutive rows; what is small
everybody updates alike.

Weights that `fully_shard` has split by rows come with their gradients summed. A matrix is gathered at its owner, who
finds its update and scatters that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fathom.optim.muon import apply_update, muon_step, muon_update, second_moment_shape
from fathom.optim.optimizer import by_shape, clear_gradients, product_dtype
from fathom.optim.rates import ADAM_EPSILON, MUON_BETA2, AdamGroup

SMALL = 1024  # elements: fewer are not worth sharing out

# Under the names of torch 2.13, or those that it gave up then.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Shard(Tensor):
    """Consecutive slices of a larger tensor along its first axis, as a checkpoint sees them; a view of `local`."""

    local: Tensor
    first: int
    whole: torch.Size

    @staticmethod
    def of(local: Tensor, first: int, length: int) -> Shard:
        """`local` is slices [first, first + len(local)) of `length`."""
        made = local.detach().as_subclass(Shard)
        made.local, made.first, made.whole = local.detach(), first, torch.Size([length, *local.shape[1:]])
        return made

    def like(self, local: Tensor) -> Shard:
        """The same part of the same whole, with other numbers."""
        return Shard.of(local, self.first, self.whole[0])

    def size(self, *_: Any) -> torch.Size:  # type: ignore[override]
        return self.whole

    # What torch.distributed.checkpoint asks of a tensor that is a part (torch/distributed/_checkpointable.py).

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [ChunkStorageMetadata(self._offsets, self.local.shape)] if self.local.numel() else []

    def __create_write_items__(self, name: str, _: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        index, properties = MetadataIndex(name, self._offsets), TensorProperties.create_from_tensor(self.local)
        parts = [TensorWriteData(chunk, properties, self.whole) for chunk in self.__create_chunk_list__()]
        return [WriteItem(index, WriteItemType.SHARD, tensor_data=part) for part in parts]

    def __get_tensor_shard__(self, _: Any) -> Tensor:
        return self.local

    @property
    def _offsets(self) -> torch.Size:
        return torch.Size([self.first] + [0] * (self.local.dim() - 1))


@dataclass(frozen=True)
class Mesh:
    """Who holds which part: ranks of one `group` split a model among them; `replicas` such groups hold the same."""

    rank: int
    world: int
    """Of the group."""
    group: dist.ProcessGroup | None = None
    """None for that of all ranks."""
    replicas: int = 1

    def part(self, length: int, rank: int | None = None) -> slice:
        """Which of so many things in a row are a rank's (default this one's): equal parts, the last ones short."""
        each, rank = -(-length // self.world), self.rank if rank is None else rank
        return slice(min(rank * each, length), min((rank + 1) * each, length))

    def padded(self, length: int) -> int:
        return self.world * -(-length // self.world)


class _Share(Protocol):
    """Some parameters' update, in turns: what is launched for all of them comes before what waits for one."""

    def launch_sum(self) -> None: ...
    def finish_sum(self, factor: float) -> Tensor: ...  # the sum of squares of the gradients that this rank owns
    def update(self, lr: float, momentum: float, weight_decay: float) -> None: ...
    def finish(self) -> None: ...


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
        flow = product_dtype(dtype)
        stacks = by_shape(kinds["matrices"])
        self.splits_weights = model is not None
        self._weights = [weight for group in kinds.values() for weight in group]
        self._tables = _Tables({kind: kinds[kind] for kind in adam if kinds[kind]}, adam, everyone)
        self._stacks: list[_Stack] = [
            _Gathered(stack, everyone, flow) if model is None else _Scattered(stack, model, flow) for stack in stacks
        ]
        # In the order in which the backward pass is done with them: matrices, then what the first layers look up.
        self._shares: list[_Share] = [*self._stacks, self._tables]
        self.zero_grad()

    def reduced(self, total: Tensor, factor: float) -> Tensor:
        """Sum the gradients to their owners, times `factor`. (2,) float32, the same on every rank: the loss summed
        from this rank's `total`, and the norm of all gradients together, no number where one of theirs is none.
        """
        for share in self._shares:
            share.launch_sum()
        squares = [share.finish_sum(factor) for share in self._shares]
        word = torch.stack([total, torch.stack(squares).sum().to(total.dtype)])
        dist.all_reduce(word)
        return torch.stack([word[0], word[1].sqrt()])

    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that `reduced` has summed; `lr` is a share of the peak rates."""
        self._tables.update(lr, momentum, weight_decay)
        for stack in self._stacks:
            stack.gather_gradients()
        for stack in self._stacks:
            stack.update(self.matrix_lr * lr, momentum, weight_decay)
        self._tables.finish()
        for stack in self._stacks:
            stack.finish()

    def zero_grad(self) -> None:
        clear_gradients(self._weights)

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


class _Tables:
    """AdamW of everything outside the blocks: of large parameters each rank has its rows, of small ones the whole."""

    def __init__(self, kinds: Mapping[str, Sequence[nn.Parameter]], adam: Mapping[str, AdamGroup], mesh: Mesh) -> None:
        self._mesh = mesh
        self._parts = [_Rows(weight, mesh) for weights in kinds.values() for weight in weights]
        parts = iter(self._parts)
        self._peaks = [adam[kind].lr for kind in kinds]
        groups = [
            {
                "params": [next(parts).own for _ in weights],
                "lr": adam[kind].lr,
                "betas": adam[kind].betas,
                "weight_decay": adam[kind].weight_decay,
            }
            for kind, weights in kinds.items()
        ]
        self._adam = torch.optim.AdamW(groups, eps=ADAM_EPSILON, fused=True)

    def launch_sum(self) -> None:
        for part in self._parts:
            part.launch_sum()

    def finish_sum(self, factor: float) -> Tensor:
        return torch.stack([part.finish_sum(factor) for part in self._parts]).sum()

    def update(self, lr: float, momentum: float, weight_decay: float) -> None:
        for peak, group in zip(self._peaks, self._adam.param_groups, strict=True):
            group["lr"] = peak * lr
        self._adam.step()
        for part in self._parts:
            part.launch_gather()

    def finish(self) -> None:
        for part in self._parts:
            part.finish()

    def prime(self) -> None:
        for part in self._parts:
            if part.own not in self._adam.state:
                self._adam.state[part.own] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(part.own),
                    "exp_avg_sq": torch.zeros_like(part.own),
                }

    def state(self) -> dict[str, Any]:
        held = self._adam.state
        return {
            str(i): {name: part.as_part(value) for name, value in held[part.own].items()}
            for i, part in enumerate(self._parts)
            if part.own in held
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.prime()
        for i, part in enumerate(self._parts):
            for name, value in self._adam.state[part.own].items():
                value.copy_(_local(state[str(i)][name]))


class _Rows:
    """One parameter of AdamW: `own` is what this rank updates, rows of it or all, and lies in the parameter itself."""

    def __init__(self, weight: nn.Parameter, mesh: Mesh) -> None:
        self._weight, self._mesh = weight, mesh
        self._is_split = weight.numel() >= SMALL
        self._rows = mesh.part(len(weight)) if self._is_split else slice(0, len(weight))
        self.own = nn.Parameter(weight.detach()[self._rows])
        self._work: Any = None
        self._whole: Tensor | None = None

    def launch_sum(self) -> None:
        gradient = _gradient(self._weight)
        if not self._is_split:
            self.own.grad = gradient
            self._work = dist.all_reduce(gradient, async_op=True)
            return
        each = self._mesh.padded(len(self._weight)) // self._mesh.world
        self._whole = _padded(gradient, self._mesh)
        self._sum = self._whole.new_empty(each, *gradient.shape[1:])
        self._work = _reduce_scatter(self._sum, self._whole, async_op=True)

    def finish_sum(self, factor: float) -> Tensor:
        self._work.wait()
        if self._is_split:
            self.own.grad, self._whole = self._sum[: len(self.own)], None
        assert self.own.grad is not None
        if factor != 1:
            self.own.grad.mul_(factor)
        counts = self._is_split or self._mesh.rank == 0  # what all have is counted once
        return _squares(self.own.grad) * float(counts)

    def launch_gather(self) -> None:
        if self._is_split:
            each = self._mesh.padded(len(self._weight)) // self._mesh.world
            mine = self.own.detach().new_zeros(each, *self.own.shape[1:])
            mine[: len(self.own)] = self.own.detach()
            self._whole = mine.new_empty(each * self._mesh.world, *mine.shape[1:])
            self._work = _all_gather(self._whole, mine, async_op=True)

    def finish(self) -> None:
        if self._is_split and self._whole is not None:
            self._work.wait()
            self._weight.detach().copy_(self._whole[: len(self._weight)])
            self._whole = None
        self.own.grad = None

    def as_part(self, value: Tensor) -> Tensor:
        """A moment of `own` as a checkpoint sees it."""
        is_part = self._is_split and value.dim() > 0
        return Shard.of(value, self._rows.start, len(self._weight)) if is_part else value


class _Stack:
    """Muon's matrices of one shape, of which this rank owns consecutive ones, with their buffers."""

    def __init__(self, weights: Sequence[nn.Parameter], mesh: Mesh, flow: torch.dtype) -> None:
        self._weights, self._mesh, self._flow = weights, mesh, flow
        self._shape = tuple(weights[0].shape)
        self._mine = mesh.part(len(weights))
        count, first = self._mine.stop - self._mine.start, weights[0]
        place: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
        self._momentum = torch.zeros(count, *self._shape, **place)
        self._second = torch.zeros(count, *second_moment_shape(*self._shape), **place)
        self._work: Any = None

    def gather_gradients(self) -> None:
        """Launch what has to be fetched before `update`."""

    def state(self) -> dict[str, Tensor]:
        parts = {"momentum": self._momentum, "second": self._second}
        return {name: Shard.of(value, self._mine.start, len(self._weights)) for name, value in parts.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._momentum.copy_(_local(state["momentum"]))
        self._second.copy_(_local(state["second"]))

    def launch_sum(self) -> None:
        raise NotImplementedError

    def finish_sum(self, factor: float) -> Tensor:
        raise NotImplementedError

    def update(self, lr: float, momentum: float, weight_decay: float) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError


class _Gathered(_Stack):
    """Every rank holds all of them whole."""

    def launch_sum(self) -> None:
        self._whole = _padded(torch.stack([_gradient(weight) for weight in self._weights]), self._mesh)
        each = len(self._whole) // self._mesh.world
        self._sum = self._whole.new_empty(each, *self._shape)
        self._work = _reduce_scatter(self._sum, self._whole, async_op=True)

    def finish_sum(self, factor: float) -> Tensor:
        self._work.wait()
        if factor != 1:
            self._sum.mul_(factor)
        return _squares(self._sum)

    def update(self, lr: float, momentum: float, weight_decay: float) -> None:
        owned = self._weights[self._mine]
        updated = torch.zeros_like(self._sum)
        if owned:
            weights = torch.stack([weight.detach() for weight in owned])
            muon_step(
                weights,
                self._sum[: len(owned)],
                self._momentum,
                self._second,
                lr=lr,
                momentum=momentum,
                beta2=MUON_BETA2,
                weight_decay=weight_decay,
                dtype=self._flow,
            )
            updated[: len(owned)] = weights
        self._work = _all_gather(self._whole, updated, async_op=True)

    def finish(self) -> None:
        self._work.wait()
        whole = self._whole[: len(self._weights)]
        torch._foreach_copy_([weight.detach() for weight in self._weights], list(whole.unbind()))
        del self._whole, self._sum


class _Scattered(_Stack):
    """Every rank holds some rows of each, and so it does of their gradients, which are sums already."""

    def launch_sum(self) -> None:
        pass

    def finish_sum(self, factor: float) -> Tensor:
        self._gradients = torch.stack([_rows_of_gradient(weight) for weight in self._weights])  # (K, my rows, columns)
        if factor != 1:
            self._gradients.mul_(factor)
        return _squares(self._gradients) / self._mesh.replicas

    def gather_gradients(self) -> None:
        sent = [self._gradients[self._mesh.part(len(self._weights), owner)] for owner in range(self._mesh.world)]
        self._arrived, self._work = self._exchanged(sent, [self._at_me(rank) for rank in range(self._mesh.world)])

    def update(self, lr: float, momentum: float, weight_decay: float) -> None:
        self._lr, self._weight_decay = lr, weight_decay
        self._work.wait()
        whole = torch.cat(self._arrived, dim=1)  # (mine, rows, columns)
        if len(whole):
            whole = muon_update(
                whole, self._momentum, self._second, momentum=momentum, beta2=MUON_BETA2, dtype=self._flow
            )
        sent = [whole[:, self._mesh.part(self._shape[0], rank)] for rank in range(self._mesh.world)]
        self._arrived, self._work = self._exchanged(sent, [self._of(owner) for owner in range(self._mesh.world)])

    def finish(self) -> None:
        self._work.wait()
        mine = [_local(weight.detach()) for weight in self._weights]
        weights = torch.stack(mine)
        apply_update(weights, torch.cat(self._arrived), self._shape, lr=self._lr, weight_decay=self._weight_decay)
        torch._foreach_copy_(mine, list(weights.unbind()))
        del self._arrived, self._gradients

    def _exchanged(self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]]) -> tuple[list[Tensor], Any]:
        """To each rank its tensor of `sent`; what comes from each, of `shapes`, once the work that is returned is."""
        into = [rows * columns * count for count, rows, columns in shapes]
        out = torch.cat([part.flatten() for part in sent])
        got = out.new_empty(sum(into))
        work = dist.all_to_all_single(
            got, out, into, [part.numel() for part in sent], group=self._mesh.group, async_op=True
        )
        self._kept = out  # until it has gone
        return [part.view(shape) for part, shape in zip(got.split(into), shapes, strict=True)], work

    def _at_me(self, rank: int) -> tuple[int, int, int]:
        """Of my matrices, the rows that a rank has."""
        return self._mine.stop - self._mine.start, _length(self._mesh.part(self._shape[0], rank)), self._shape[1]

    def _of(self, owner: int) -> tuple[int, int, int]:
        """Of an owner's matrices, my rows."""
        count, rows = self._mesh.part(len(self._weights), owner), self._mesh.part(self._shape[0])
        return _length(count), _length(rows), self._shape[1]


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _local(tensor: Tensor) -> Tensor:
    """What of it is here."""
    if isinstance(tensor, Shard):
        return tensor.local
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _squares(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _rows_of_gradient(weight: nn.Parameter) -> Tensor:
    local = _local(weight.detach())
    return torch.zeros_like(local) if weight.grad is None else _local(weight.grad)


def _padded(whole: Tensor, mesh: Mesh) -> Tensor:
    """With slices of zeros at the end, so that every rank's part is as long."""
    length = mesh.padded(len(whole))
    if length == len(whole):
        return whole.contiguous()
    padded = whole.new_zeros(length, *whole.shape[1:])
    padded[: len(whole)] = whole
    return padded


def shards_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state, the parts that `fully_shard` made of its weights as `Shard`."""
    return {name: _as_shard(weight) for name, weight in state.items()}


def _as_shard(weight: Tensor) -> Tensor:
    if not hasattr(weight, "to_local"):
        return weight
    chunks = weight.__create_chunk_list__()  # type: ignore[attr-defined]
    return Shard.of(_local(weight.detach()), chunks[0].offsets[0] if chunks else 0, weight.shape[0])
