"""Rows that begin alike, computed together once: a trunk that all share, then a branch for what each has of its own.

rows   a b c d e        tree   a b c │ d e │ f │ g h        trunk a b c, branches d e, f and g h
       a b c f                         └─────┴─ each goes on from the trunk, at the next position,
       a b c g h                                and sees the trunk and itself only
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model.attention import attend, kernel_for

if TYPE_CHECKING:
    from fathom.evaluate.scorer import Group

MOST_BRANCHED = 1024  # tokens of one tree in branches, whose attention needs a mask
MASK_NUMBERS = 2**24  # of a batch's mask


@dataclass(frozen=True, eq=False)
class Tree:
    """Columns of tokens, each (n,) int64: `ids`, `positions`, `branch` (0 the trunk) and `previous`, the column of the
    token before (-1 for none). The first `trunk` columns are the trunk's.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    previous: np.ndarray
    trunk: int
    rows: tuple[int, ...]
    """Which rows of their group stand here."""
    wants: tuple[np.ndarray, ...]
    """Of each of them, the columns whose outputs foretell its targets."""

    @property
    def width(self) -> int:
        return len(self.ids)


def grow(group: Group, reach: int) -> list[Tree]:
    """The trees that hold all that foretells the targets of a group: one, unless its branches would be long.

    What lies more than `reach` tokens before the first loss is left out: no layer's window passes it on.
    """
    rows = [number for number, row in enumerate(group.rows) if len(row.targets)]
    if not rows:
        return []
    fed = {number: group.rows[number].ids[: group.rows[number].end - 1] for number in rows}
    trunk = shared_start(list(fed.values()))
    branches = {ids[trunk:].tobytes(): ids[trunk:] for ids in fed.values()}
    if sum(map(len, branches.values())) > MOST_BRANCHED:
        return [_tree(group, {number: ids}, len(ids), {b"": ids[:0]}, reach) for number, ids in fed.items()]
    return [_tree(group, fed, trunk, branches, reach)]


def _tree(
    group: Group, fed: Mapping[int, np.ndarray], trunk: int, branches: Mapping[bytes, np.ndarray], reach: int
) -> Tree:
    first = max(0, min(trunk, min(group.rows[number].start for number in fed) - reach) - 1)
    ids, positions = [next(iter(fed.values()))[first:trunk]], [np.arange(first, trunk)]
    branch, previous = [np.zeros(trunk - first, dtype=np.int64)], [np.arange(-1, trunk - first - 1)]
    begins, width = {}, trunk - first
    for name, tokens in branches.items():
        begins[name] = width
        ids.append(tokens)
        positions.append(np.arange(trunk, trunk + len(tokens)))
        branch.append(np.full(len(tokens), len(begins)))
        previous.append(np.arange(width - 1, width + len(tokens) - 1))
        previous[-1][:1] = trunk - first - 1
        width += len(tokens)
    wants = []
    for number, tokens in fed.items():
        at = np.arange(group.rows[number].start - 1, len(tokens))
        wants.append(np.where(at < trunk, at - first, at - trunk + begins[tokens[trunk:].tobytes()]))
    return Tree(
        ids=np.concatenate(ids),
        positions=np.concatenate(positions),
        branch=np.concatenate(branch),
        previous=np.concatenate(previous),
        trunk=trunk - first,
        rows=tuple(fed),
        wants=tuple(wants),
    )


def shared_start(rows: Sequence[np.ndarray]) -> int:
    """With how many equal tokens all rows begin."""
    length = min(map(len, rows))
    same = np.all([row[:length] == rows[0][:length] for row in rows], axis=0)
    return length if same.all() else int(same.argmin())


class TreeContext:
    """Trees side by side, as the network's context. What pads a row is seen by nobody but itself.

    Up to where the shortest trunk ends, attention is that of plain rows; only behind it is there a mask. `columns` (B,
    W) are those that each tree wants, one row's after the other's, padded with the last of them.
    """

    def __init__(self, trees: Sequence[Tree], n_layer: int, device: torch.device) -> None:
        width = max(tree.width for tree in trees)
        wants = [np.concatenate(tree.wants) for tree in trees]
        most = max(map(len, wants))
        self._head, self._last_layer = min(tree.trunk for tree in trees), n_layer - 1
        self._masks: dict[tuple[int, bool], Tensor] = {}
        self.ids = _stacked([tree.ids for tree in trees], width, 0, device)  # (B, T)
        self.positions = _stacked([tree.positions for tree in trees], width, 0, device)
        self.columns = torch.from_numpy(np.stack([np.pad(x, (0, most - len(x)), "edge") for x in wants])).to(device)
        few = 2 * most <= width and len(trees) * most * width <= MASK_NUMBERS
        self.wanted = self.columns if few else None
        # In a trunk, columns go as positions do: before this one, less a window, nothing wanted looks.
        self._first = min(
            int(tree.positions[x].min() - tree.positions[0]) for tree, x in zip(trees, wants, strict=True)
        )
        self._branch = _stacked([tree.branch for tree in trees], width, -1, device)
        previous = _stacked([tree.previous for tree in trees], width, -1, device)
        self._previous = torch.where(previous < 0, width, previous)[..., None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """q (B, T, H, D), k and v (B, T, K, D) -> (B, T, H, D); of the last layer the `wanted` only."""
        if self.wanted is not None and layer == self._last_layer:
            return self._attend_masked(q, k, v, window, self.wanted)
        head, parts = self._head, []
        if head:
            # A kernel compiled for one length would be compiled for every batch.
            kernel = kernel_for("cpu", window, head)
            parts.append(attend(q[:, :head], k[:, :head], v[:, :head], window, kernel))
        if head < q.shape[1]:
            parts.append(self._attend_masked(q[:, head:], k, v, window, None))
        return torch.cat(parts, dim=1)

    def _attend_masked(self, q: Tensor, k: Tensor, v: Tensor, window: int, wanted: Tensor | None) -> Tensor:
        """Attention of the queries behind the head, or of those that are `wanted`."""
        first = max(0, (self._head if wanted is None else self._first) - window)
        mask = self._mask(window, first, q.dtype, wanted)
        shared = q.shape[2] != k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k[:, first:], v[:, first:]))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared).transpose(1, 2)

    def _mask(self, window: int, first: int, dtype: torch.dtype, wanted: Tensor | None) -> Tensor:
        """What to add to the scores of keys from column `first` on: (B, 1, Q, T - first)."""
        name = (window, wanted is None)
        if name not in self._masks:
            at, mine = (
                x[:, self._head :] if wanted is None else x.gather(1, wanted) for x in (self.positions, self._branch)
            )
            distance = at[:, :, None] - self.positions[:, None, first:]
            theirs = self._branch[:, None, first:]
            hidden = (distance < 0) | (distance > window) | ((theirs != 0) & (theirs != mine[:, :, None]))
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._masks[name] = mask[:, None]
        return self._masks[name]

    def previous(self, x: Tensor) -> Tensor:
        """The embedding before each token, zeros before a row's first. (B, T, C) -> (B, T, C)"""
        return F.pad(x, (0, 0, 0, 1)).gather(1, self._previous.expand(-1, -1, x.shape[2]))


def _stacked(rows: Sequence[np.ndarray], width: int, fill: int, device: torch.device) -> Tensor:
    """(B, width) int64, padded at the end."""
    table = np.full((len(rows), width), fill, dtype=np.int64)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return torch.from_numpy(table).to(device)
