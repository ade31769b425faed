"""Products of the large matrices in fp8: both factors scaled to fill eight bits, sums in float32.

Tensorwise, dynamically: one scale a tensor, from its largest number at that moment. Inputs and weights in e4m3 (three
bits after the point), gradients of outputs in e5m2 (a wider range). What is kept for the backward pass is in fp8 too.
REFERENCE section 12. Weights, moments and everything between the products stay what they are without it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 16  # of both sides, or the hardware does not take them
SMALLEST = 128  # below, scaling costs more than the product saves
INPUTS, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def takes(weight: Tensor) -> bool:
    """Whether a matrix is large enough for it."""
    return all(side % MULTIPLE == 0 and side >= SMALLEST for side in weight.shape)


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, in), weight (out, in) float32 -> (…, out) in the dtype of x: as `gpt.linear`, which small ones are left to.

    A number of rows that the hardware does not take is left to it as well.
    """
    flat = x.reshape(-1, x.shape[-1])
    if not takes(weight) or flat.shape[0] % MULTIPLE:
        return F.linear(x, weight.to(x.dtype))
    y: Tensor = _Fp8Linear.apply(flat, weight)
    return y.view(*x.shape[:-1], weight.shape[0])


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8, and the float32 scale that brings it back; what a rounding would carry over the edge is held at it."""
    most = torch.finfo(dtype).max
    scale = (most / x.abs().amax().double().clamp(min=1e-12)).float()
    return (x.float() * scale).clamp(-most, most).to(dtype), scale.reciprocal()


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = quantised(x, INPUTS)
        w8, w_scale = quantised(weight, INPUTS)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        return _product(x8, w8, x_scale, w_scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = quantised(upstream.contiguous(), GRADIENTS)
        dx = _product(g8, w8.t().contiguous(), g_scale, w_scale, upstream.dtype)
        dw = _product(g8.t().contiguous(), x8.t().contiguous(), g_scale, x_scale, upstream.dtype)
        return dx, dw.float()


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """a (n, k) @ b (m, k)ᵀ, both contiguous, times their scales. `fast` sums with fewer bits, good enough forwards."""
    return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast)
