"""`--shard-model`: a model's weights split by rows over ranks, by torch's `fully_shard`.

Each block is a group, gathered when it is needed and let go again. So is every table, and the head: they are weights of
the model itself, so that a module that holds just the one stands in for it when it is used. Scalars stay whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fathom.model.gpt import GPT
from fathom.optim.shards import Mesh
from fathom.ranks import Ranks

SPLIT = ("token_embedding", "value_embeddings", "head")


def split(model: GPT, device: str, here: Ranks, within: int) -> Mesh:
    """Split it over all ranks, or over groups of `within` that hold copies. Returns who splits."""
    copies = here.world // within
    if copies == 1:
        mesh = init_device_mesh(device, (here.world,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device, (copies, within), mesh_dim_names=("copy", "shard"))

    def sharded(module: nn.Module, **settings: Any) -> Any:
        made: Any = fully_shard(module, mesh=mesh, **settings)
        made.set_gradient_divide_factor(1.0)  # the loss is divided by the tokens of the whole step already
        made.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        return made

    kinds = model.parameter_kinds()
    holders = {weight: _Holder(weight) for kind in SPLIT for weight in kinds[kind]}
    for holder in holders.values():
        # The backward pass wants no table, and of the head its gradient, which is there already.
        sharded(holder, reshard_after_forward=True).set_unshard_in_backward(False)
    for block in model.blocks:
        sharded(block)
    model.token_embedding = holders[model.token_embedding].weight
    model.head = holders[model.head].weight
    for layer, table in model.value_embeddings.items():
        model.value_embeddings[layer] = holders[table].weight
    model.use = _Using({holder.weight: holder for holder in holders.values()})
    outside = {weight for kind, weights in model.parameter_kinds().items() if kind != "matrices" for weight in weights}
    fully_shard(model, mesh=mesh, ignored_params=outside)
    shard = mesh if copies == 1 else mesh["shard"]
    return Mesh(shard.get_local_rank(), within, shard.get_group(), copies)


class _Using:
    """As `gpt.use`: a weight that is split is whole for as long as the work takes."""

    def __init__(self, holders: dict[nn.Parameter, _Holder]) -> None:
        self._holders = holders

    def __call__(self, weight: nn.Parameter, work: Callable[[Tensor], Tensor]) -> Tensor:
        made: Tensor = self._holders[weight](work, torch.zeros((), requires_grad=True))
        return made


class _Holder(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, work: Callable[[Tensor], Tensor], mark: Tensor) -> Tensor:
        return work(_Marked.apply(self.weight, mark))


class _Marked(torch.autograd.Function):
    """The weight. `mark` gets a gradient when the weight has its own: `fully_shard` sends gradients when those of a
    group's inputs are there, and would keep the tables' whole until the end of the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mark: Tensor) -> Tensor:
        ctx.device = mark.device
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, torch.zeros((), device=ctx.device)
