"""Attention of single queries over the pages that each of them sees, in shapes that no length changes.

Where a query's pages are fewer than the table has room for, any page may stand in the rest: what comes after the query
weighs nothing. Sums over keys are formed page by page, then over pages in a tree in which an empty page adds 0: a
query's numbers do not depend on the room. On a CPU a kernel of our own reads the pages where they lie. Shape letters as
in `model/gpt.py`; W queries, P pages of a table, G heads that share keys.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fathom import kernels
from fathom.generate.pages import PAGE


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n_row", "page", "n_head", "n_kv_head", "head_dim", "window", "threads")
    ]  # fmt: skip


def attend(q: Tensor, stored: Tensor, table: Tensor, position: Tensor, window: int) -> Tensor:
    """q (W, H, D), stored (2, pages, PAGE, K, D), table (P, W) from the first page that a query sees, position (W,)
    -> (W, H, D)
    """
    if q.device.type == "cpu" and str(q.dtype) in kernels.SUFFIX and kernels.library():
        return _by_kernel(q, stored, table, position, window)
    return plain(q, stored, table, position, window)


def plain(q: Tensor, stored: Tensor, table: Tensor, position: Tensor, window: int) -> Tensor:
    """As `attend`, in torch's words alone, which can be compiled."""
    keys, values = stored[0][table], stored[1][table]  # (P, W, PAGE, K, D)
    query = q.unflatten(1, (keys.shape[3], -1)).float() * q.shape[-1] ** -0.5  # (W, K, G, D)
    scores = (query[None, :, None] * keys[..., None, :].float()).sum(-1)  # (P, W, PAGE, K, G)
    first = (position // PAGE * PAGE - window).clamp(min=0) // PAGE * PAGE
    key = first[:, None] + torch.arange(len(table) * PAGE, device=q.device).view(-1, 1, PAGE)
    distance = position[:, None] - key  # (P, W, PAGE)
    scores = scores.masked_fill(((distance < 0) | (distance > window))[..., None, None], -torch.inf)
    weights = _exponential(scores - scores.amax((0, 2), keepdim=True))
    said = over_pages((weights[..., None] * values[..., None, :].float()).sum(2))  # (W, K, G, D)
    return (said / over_pages(weights.sum(2))[..., None]).flatten(1, 2).to(q.dtype)


def over_pages(parts: Tensor) -> Tensor:
    """The sum over the first axis, neighbours first: zeros at the end change no bit."""
    while len(parts) > 1:
        pairs = parts[: len(parts) // 2 * 2].unflatten(0, (-1, 2))
        parts = torch.cat([pairs[:, 0] + pairs[:, 1], parts[len(pairs) * 2 :]])
    return parts[0]


def _exponential(x: Tensor) -> Tensor:
    """On a CPU rounded from float64: in float32 the last bit depends on where in a tensor a number stands."""
    return x.double().exp().float() if x.device.type == "cpu" else x.exp()


def _by_kernel(q: Tensor, stored: Tensor, table: Tensor, position: Tensor, window: int) -> Tensor:
    q, y = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    sizes = _Sizes(len(q), PAGE, q.shape[1], stored.shape[3], q.shape[2], window, torch.get_num_threads())
    kernels.call("attend_pages", q.dtype, sizes, q, stored[0], stored[1], table, position, y)
    return y
