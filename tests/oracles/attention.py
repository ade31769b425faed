"""Attention the slow, obvious way: every score, a mask, a softmax."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, document: Tensor | None = None) -> Tensor:
    """q (B, T, H, D), k and v (B, T, K, D) -> (B, T, H, D); `document` (B, T) says which one a position belongs to."""
    share = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(share, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])[None, :]
    scores = scores.masked_fill((j > i) | (i - j > window), float("-inf"))
    if document is not None:
        scores = scores.masked_fill((document[:, :, None] != document[:, None, :])[:, None], float("-inf"))
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
