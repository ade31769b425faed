"""Weights as whole numbers: half the bytes of bf16, which is what one request at a time waits for.

Every row of a matrix has a scale of its own, the largest of its values over 127. Only what hidden states are multiplied
with is stored so; what flows stays as it is. For inference.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 127


class Int8Weight:
    """A matrix (N, K) in int8 with a scale for each row. Source of the scheme: symmetric per-channel rounding."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        """`dtype` is what flows."""
        values = weight.detach().float()
        scales = values.abs().amax(dim=1).clamp(min=1e-12) / LARGEST
        self.values = (values / scales[:, None]).round().to(torch.int8)
        self.scales = scales.to(dtype)
        self.shape = weight.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def with_values(self, values: Tensor) -> Int8Weight:
        """Other whole numbers under the same scales."""
        other = copy.copy(self)
        other.values = values
        return other

    def multiply(self, x: Tensor) -> Tensor:
        """x (…, K) -> (…, N)"""
        if x.device.type == "cpu":
            flat = x.reshape(-1, x.shape[-1])
            return torch._weight_int8pack_mm(flat, self.values, self.scales).unflatten(0, x.shape[:-1])
        return F.linear(x, self.values.to(x.dtype)) * self.scales
