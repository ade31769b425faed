"""The optimizer of a run: Muon for the matrices inside the blocks, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.optim import fused
from fathom.optim.adam import adamw, move, prime
from fathom.optim.muon import muon_step, second_moment_shape
from fathom.optim.rates import MUON_BETA2, AdamGroup


class Optimizer:
    """Peak rates are set once; each step multiplies them by the schedule's share."""

    def __init__(
        self,
        kinds: Mapping[str, Sequence[nn.Parameter]],
        adam: Mapping[str, AdamGroup],
        matrix_lr: float,
        dtype: torch.dtype,
    ) -> None:
        """`kinds` holds every parameter by kind, "matrices" being Muon's; `dtype` is what flows in the network."""
        self.matrix_lr = matrix_lr
        self.has_cpu_kernels = False  # Muon on kernels of our own
        self._dtype = product_dtype(dtype)
        self._adam = adamw(kinds, adam)
        self._stacks = by_shape(kinds["matrices"])
        self._buffers = [_buffers(stack) for stack in self._stacks]
        self.zero_grad()

    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update with the gradients that are there; `lr` is a share of the peak rates."""
        move(self._adam, lr)
        for stack, buffers in zip(self._stacks, self._buffers, strict=True):
            move_stack(
                stack, *buffers,
                lr=self.matrix_lr * lr, momentum=momentum, weight_decay=weight_decay, dtype=self._dtype,
                on_kernels=self.has_cpu_kernels,
            )  # fmt: skip

    def zero_grad(self) -> None:
        """Gradients of zero on a CPU, where new ones would land amid what a step keeps; elsewhere none."""
        weights = [weight for group in self._adam.param_groups for weight in group["params"]]
        clear_gradients([*weights, *(weight for stack in self._stacks for weight in stack)])

    def state(self) -> dict[str, Any]:
        """Tensors only, for a checkpoint; rates are not in it, they come from the run's configuration."""
        adam = self._adam.state_dict()["state"]
        return {
            "adam": {str(index): dict(values) for index, values in adam.items()},
            "muon": {str(i): {"momentum": m, "second": s} for i, (m, s) in enumerate(self._buffers)},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the moments of `state()`; the rates stay those of this run."""
        here = self._adam.state_dict()
        here["state"] = {int(index): dict(values) for index, values in state["adam"].items()}
        self._adam.load_state_dict(here)
        for i, (momentum_buffer, second) in enumerate(self._buffers):
            momentum_buffer.copy_(state["muon"][str(i)]["momentum"])
            second.copy_(state["muon"][str(i)]["second"])

    def prime(self) -> None:
        """Create AdamW's zero moments without moving a weight, so that a checkpoint has somewhere to load to."""
        prime(self._adam)


def move_stack(
    stack: Sequence[nn.Parameter],
    momentum_buffer: Tensor,
    second: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    dtype: torch.dtype,
    on_kernels: bool,
) -> None:
    """Muon's update of matrices of one shape with the gradients that are there; `on_kernels` are those of our own."""
    settings: dict[str, Any] = {
        "lr": lr, "momentum": momentum, "beta2": MUON_BETA2, "weight_decay": weight_decay, "dtype": dtype,
    }  # fmt: skip
    if not stack:
        return
    if on_kernels:
        fused.muon_step(stack, momentum_buffer, second, **settings)
        return
    weights = torch.stack([weight.detach() for weight in stack])
    gradients = torch.stack([_gradient(weight) for weight in stack])
    muon_step(weights, gradients, momentum_buffer, second, **settings)
    torch._foreach_copy_([weight.detach() for weight in stack], list(weights.unbind()))


def product_dtype(flow: torch.dtype) -> torch.dtype:
    """What Muon multiplies matrices in: what flows in the network, but float32 where that is float16."""
    return torch.float32 if flow == torch.float16 else flow


def clear_gradients(weights: Iterable[Tensor]) -> None:
    """Gradients of zero on a CPU, where new ones would land amid what a step keeps; elsewhere none."""
    for weight in weights:
        if weight.device.type != "cpu" or hasattr(weight, "to_local"):
            weight.grad = None
        elif weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        else:
            weight.grad.zero_()


def by_shape(matrices: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Matrices of one shape together, shapes ascending."""
    shapes = sorted({tuple(weight.shape) for weight in matrices})
    return [[weight for weight in matrices if tuple(weight.shape) == shape] for shape in shapes]


def _buffers(stack: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    first = stack[0]
    momentum = torch.zeros(len(stack), *first.shape, dtype=first.dtype, device=first.device)
    shape = second_moment_shape(*first.shape)
    return momentum, torch.zeros(len(stack), *shape, dtype=first.dtype, device=first.device)


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
