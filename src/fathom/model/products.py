"""Products with a float32 matrix, whose gradient is summed in float32, also where bf16 flows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom import kernels


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, I), weight (O, I) -> (…, O): as `gpt.linear`."""
    y: Tensor = _Linear.apply(x, weight)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        return F.linear(x, cast)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, cast = ctx.saved_tensors
        gradient = torch.zeros(cast.shape)
        add_weight_gradient(gradient, dy.flatten(0, -2), x.flatten(0, -2))
        return dy @ cast, gradient


def add_weight_gradient(gradient: Tensor, dy: Tensor, x: Tensor) -> None:
    """gradient (O, I) float32 += dyᵀ·x; dy (N, O), x (N, I)."""
    divides = not any(size % 32 for size in (*dy.shape, x.shape[1]))
    if x.dtype == torch.bfloat16 and divides and kernels.multiplied_by():
        dy, x = (part if part.stride(1) == 1 else part.contiguous() for part in (dy, x))
        kernels.call(
            "weight_gradient", x.dtype, dy, dy.stride(0), x, x.stride(0), gradient, *dy.shape, x.shape[1],
            torch.get_num_threads(),
        )  # fmt: skip
    elif x.dtype == gradient.dtype:
        gradient.addmm_(dy.T, x)
    else:
        gradient += dy.T @ x
