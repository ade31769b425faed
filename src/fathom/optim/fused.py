"""Muon's update on our own CPU kernels: what lies around its products, in one pass over memory each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fathom import kernels
from fathom.optim.muon import polar_express


@torch.no_grad()
def muon_step(
    stack: Sequence[nn.Parameter],
    momentum_buffer: Tensor,
    second: Tensor,
    *,
    lr: float,
    momentum: float,
    beta2: float,
    weight_decay: float,
    dtype: torch.dtype,
) -> None:
    """As `muon.muon_step`, with weights and gradients where they are: float32 matrices of one shape."""
    sizes, threads = tuple(momentum_buffer.shape), torch.get_num_threads()
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad.contiguous() for weight in stack]
    x = torch.empty(sizes, dtype=dtype)
    kernels.call("muon_begin", dtype, _addresses(gradients), momentum_buffer, x, float(momentum), *sizes, threads)
    rate = float(lr * max(1.0, sizes[1] / sizes[2]) ** 0.5)
    x, weights = polar_express(x).contiguous(), _addresses([weight.detach() for weight in stack])
    kernels.call("muon_end", dtype, x, weights, second, float(beta2), rate, float(weight_decay), *sizes, threads)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
