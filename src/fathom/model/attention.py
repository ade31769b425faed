"""Causal attention within a window: one function, several kernels, and which one is used where.

    own       training on kernels of our own on a CPU, whatever the window; bf16 wants AMX or AVX512-BF16
    full      the window holds the whole row: torch's causal kernel (FlashAttention on GPUs that have it)
    flex      a shorter window on CUDA: FlexAttention skips the blocks that the window masks away
    blocks    a shorter window elsewhere: queries in blocks, each against the slice of keys it can see

No kernel builds a T×T mask, and none computes more than a block's edge of what the window hides.
"""

from __future__ import annotations

import os
import shutil
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model import fused

BLOCK = 128


def kernel_for(device_type: str, window: int, seq_len: int) -> str:
    """Which kernel attends over rows of `seq_len` on this kind of device."""
    if window >= seq_len - 1:
        return "full"
    return "flex" if device_type == "cuda" and flex_is_there() else "blocks"


@cache
def flex_is_there() -> bool:
    """Whether FlexAttention's kernels can be made for this machine's GPU: from Ampere on, with Triton, which compiles
    its launcher with a C compiler. Else blocks.
    """
    if not torch.cuda.is_available():
        return True  # it is asked about another machine
    has_compiler = bool(os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc"))
    return torch.cuda.get_device_capability() >= (8, 0) and find_spec("triton") is not None and has_compiler


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, kernel: str | None = None) -> Tensor:
    """Causal softmax attention, scale 1/sqrt(D); a query sees itself and `window` tokens before it.

    q (B, T, H, D); k and v (B, T, K, D) with K dividing H; returns (B, T, H, D). `kernel` is the one to use, by
    default `kernel_for` these.
    """
    kernel = kernel or kernel_for(q.device.type, window, q.shape[1])
    if kernel == "own":
        return fused.attend(q, k, v, window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    shared = k.shape[1] != q.shape[1]
    if kernel == "full":
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
    elif kernel == "flex":
        y = _flex(q, k, v, window)
    else:
        y = _blocks(q, k, v, window)
    return y.transpose(1, 2)


def _blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """(B, H, T, D): each block of queries against only the keys from `window` before its first to its last."""
    seq_len, parts = q.shape[2], []
    shared = k.shape[1] != q.shape[1]
    for first in range(0, seq_len, BLOCK):
        last = min(first + BLOCK, seq_len)
        from_key = max(0, first - window)
        band = _band(last - first, first - from_key, last - from_key, window, q.device)
        keys, values = k[:, :, from_key:last], v[:, :, from_key:last]
        parts.append(
            F.scaled_dot_product_attention(q[:, :, first:last], keys, values, attn_mask=band, enable_gqa=shared)
        )
    return torch.cat(parts, dim=2)


@lru_cache(maxsize=64)
def _band(n_query: int, offset: int, n_key: int, window: int, device: torch.device) -> Tensor:
    """(n_query, n_key) bool, true where a query (the first is at key `offset`) may look."""
    distance = torch.arange(offset, offset + n_query, device=device)[:, None] - torch.arange(n_key, device=device)
    return (distance >= 0) & (distance <= window)


@cache
def flex_kernel() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=64)
def _flex_mask(seq_len: int, window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= window)

    with torch.inference_mode(False):  # made in an evaluation it would serve no training after it
        return create_block_mask(visible, None, None, seq_len, seq_len, device=str(device))


def _flex(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    mask = _flex_mask(q.shape[2], window, q.device)
    return flex_kernel()(q, k, v, block_mask=mask, enable_gqa=k.shape[1] != q.shape[1])


class DenseContext:
    """What the network asks when every row is a whole sequence from position 0: training and plain scoring."""

    wanted: Tensor | None = None

    def __init__(self, seq_len: int, device: torch.device | str, own: bool = False) -> None:
        """`own`: on kernels of our own, where they can."""
        self.positions = torch.arange(seq_len, device=device)
        self._own = own

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        return attend(q, k, v, window, "own" if self._own and fused.can_attend(q, k) else None)

    def previous(self, x: Tensor) -> Tensor:
        """The embedding before each position, zeros before the first. (B, T, C) -> (B, T, C)"""
        return F.pad(x[:, :-1], (0, 0, 1, 0))
