"""Rows in which documents do not see each other: attention stays within a document, and so does the smear.

A document begins at its BOS token; what stands before a row's first BOS is the end of one that began in an earlier row.
Rotary embedding knows distances only, so positions need not start anew.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model.attention import BLOCK, DenseContext, flex_is_there, flex_kernel


class DocumentContext:
    """What the network asks when a row holds several documents. ids (B, T); `start` is the token that begins one."""

    wanted: Tensor | None = None

    def __init__(self, ids: Tensor, start: int) -> None:
        self.positions = torch.arange(ids.shape[1], device=ids.device)
        self._starts = ids == start
        self._document = self._starts.cumsum(dim=1)
        self._masks: dict[int, Any] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """As `attention.attend`, within documents."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        shared = k.shape[1] != q.shape[1]
        if q.device.type == "cuda" and flex_is_there():
            mask = self._masks.get(window)
            if mask is None:
                mask = self._masks[window] = block_mask(self._document, window)
            return flex_kernel()(q, k, v, block_mask=mask, enable_gqa=shared).transpose(1, 2)
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, first:last], k[:, :, begin:last], v[:, :, begin:last], attn_mask=mask, enable_gqa=shared
            )
            for first, last, begin, mask in self._bands(window, q.dtype)
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _bands(self, window: int, dtype: torch.dtype) -> list[tuple[int, int, int, Tensor]]:
        """Blocks of queries [first, last), the first key any of them sees, and what each may see, for all layers."""
        if window not in self._masks:
            bands, seq_len = [], len(self.positions)
            began = torch.where(self._starts, self.positions, 0).cummax(dim=1).values
            earliest: list[int] = began[:, ::BLOCK].amin(dim=0).tolist()  # of the keys that a block may see
            for i, first in enumerate(range(0, seq_len, BLOCK)):
                last = min(first + BLOCK, seq_len)
                begin = max(0, first - window, earliest[i])
                distance = self.positions[first:last, None] - self.positions[begin:last]
                same = self._document[:, first:last, None] == self._document[:, None, begin:last]
                visible = (distance >= 0) & (distance <= window) & same
                hidden = torch.zeros(visible.shape, dtype=dtype, device=same.device)
                bands.append((first, last, begin, hidden.masked_fill_(~visible, -torch.inf)[:, None]))
            self._masks[window] = bands
        return self._masks[window]  # type: ignore[no-any-return]

    def previous(self, x: Tensor) -> Tensor:
        """The embedding before each position of the same document, zeros before its first. (B, T, C) -> (B, T, C)"""
        return F.pad(x[:, :-1], (0, 0, 1, 0)).masked_fill(self._starts[..., None], 0)


def block_mask(document: Tensor, window: int) -> Any:
    """FlexAttention's mask of rows whose positions belong to `document` (B, T)."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        within = (key <= query) & (query - key <= window)
        return within & (document[batch, query] == document[batch, key])

    n_row, seq_len = document.shape
    return create_block_mask(visible, n_row, None, seq_len, seq_len, device=str(document.device))


def row_context(ids: Tensor, dense: DenseContext, start: int | None) -> DenseContext | DocumentContext:
    """`dense`, which all rows have in common, or where documents are kept apart one for these rows."""
    return dense if start is None else DocumentContext(ids, start)
