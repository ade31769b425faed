"""What running requests have behind them: keys, values and the last embedding, in one slot for each request.

Slots are numbered without gaps, so a batch of neighbours is a view and nothing is gathered. A pass feeds some
tokens to neighbouring slots (a whole prompt, a piece of one, or one token each) through a `CachedContext`, which
is what the network asks; `commit` then makes the slots longer. Shape letters as in `model/gpt.py`; N slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model.shape import Shape

SMALLEST_SLOT = 64  # tokens


class SlotCache:
    """Storage for slots of up to `seq_len` tokens; it grows with the slots and lengths in use.

    Behind the end of a slot there are only zeros: a hidden key weighs 0, but 0 times a NaN that another request
    left there would still be NaN.
    """

    def __init__(self, shape: Shape, seq_len: int, dtype: torch.dtype, device: torch.device) -> None:
        self.seq_len = seq_len
        self.lengths: list[int] = []
        sizes = (shape.n_layer, 2, 0, shape.n_kv_head, 0, shape.head_dim)
        self._keys_values = torch.zeros(sizes, dtype=dtype, device=device)  # (layer, key or value, N, K, T, D)
        self._last = torch.zeros(0, shape.d_model, dtype=dtype, device=device)  # (N, C)

    @property
    def device(self) -> torch.device:
        return self._last.device

    def open(self) -> None:
        """A new, empty slot behind the others."""
        self.lengths.append(0)

    @torch.inference_mode()
    def close_last(self) -> None:
        """Forget the last slot."""
        slot, length = len(self.lengths) - 1, self.lengths.pop()
        if length:
            self._keys_values[:, :, slot, :, :length] = 0
            self._last[slot] = 0

    @torch.inference_mode()
    def swap(self, a: int, b: int) -> None:
        """Exchange two slots."""
        length = max(self.lengths[a], self.lengths[b])
        if a != b and length:
            self._reserve(max(a, b) + 1, length)
            used = self._keys_values[..., :length, :]
            used[:, :, [a, b]] = used[:, :, [b, a]]
            self._last[[a, b]] = self._last[[b, a]]
            self.lengths[a], self.lengths[b] = self.lengths[b], self.lengths[a]

    @torch.inference_mode()
    def begin(self, first: int, counts: Sequence[int]) -> CachedContext:
        """A pass that feeds counts[i] tokens (at least one) to slot first + i, padded at the end to the most of them.

        Raises ValueError where a slot has no room for its tokens.
        """
        ends = [length + count for length, count in zip(self.lengths[first:], counts, strict=False)]
        if len(ends) < len(counts) or min(counts) < 1 or max(ends) > self.seq_len:
            raise ValueError(f"slots from {first} of {self.lengths} cannot take {counts} (a slot holds {self.seq_len})")
        self._reserve(first + len(counts), max(ends))
        return CachedContext(self, first, counts)

    def _reserve(self, n_slot: int, n_token: int) -> None:
        """Room for this many; what is there doubles, so that copying costs little over a slot's life."""
        slots, tokens = self._keys_values.shape[2], self._keys_values.shape[4]
        if n_slot <= slots and n_token <= tokens:
            return
        wanted_slots = max(n_slot, 2 * slots) if n_slot > slots else slots
        wanted_tokens = max(n_token, 2 * tokens, SMALLEST_SLOT) if n_token > tokens else tokens
        grown = self._keys_values.new_zeros(
            *self._keys_values.shape[:2],
            wanted_slots,
            self._keys_values.shape[3],
            min(wanted_tokens, self.seq_len),
            self._keys_values.shape[5],
        )
        grown[:, :, :slots, :, :tokens] = self._keys_values
        self._keys_values = grown
        self._last = F.pad(self._last, (0, 0, 0, wanted_slots - slots))


class CachedContext:
    """One pass over some slots, as the network's context. Padded places compute something that nobody reads."""

    wanted: Tensor | None = None

    def __init__(self, cache: SlotCache, first: int, counts: Sequence[int]) -> None:
        self._cache, self._counts = cache, list(counts)
        self._slots = slice(first, first + len(counts))
        self._starts = cache.lengths[self._slots]
        self._ends = [start + count for start, count in zip(self._starts, counts, strict=True)]
        self._width = max(counts)
        self._masks: dict[int, tuple[slice, Tensor | None]] = {}
        starts, fed = (torch.tensor(x, device=cache.device)[:, None] for x in (self._starts, self._counts))
        places = torch.arange(self._width, device=cache.device).expand(len(counts), -1)
        self.positions = starts + torch.minimum(places, fed - 1)  # (N, T); a padded place repeats the last one
        self._row, self._column = (places < fed).nonzero(as_tuple=True)  # every token that is fed
        self._position = self.positions[self._row, self._column]
        self._final = fed[:, 0] - 1  # (N,) column of each slot's last token
        self._last_embedding: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """q (N, T, H, D), k and v (N, T, K, D) of the new tokens -> (N, T, H, D), over all that the slots hold."""
        keys, values = self._cache._keys_values[layer, :, self._slots]  # (N, K, capacity, D) each, views
        keys[self._row, :, self._position] = k[self._row, self._column]
        values[self._row, :, self._position] = v[self._row, self._column]
        shared = q.shape[2] != k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if not any(self._starts) and window >= self._width - 1:
            # Nothing lies before these tokens, and what pads a row stands behind all of it.
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared).transpose(1, 2)
        seen, mask = self._mask(window, q.dtype)
        y = F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen], attn_mask=mask, enable_gqa=shared)
        return y.transpose(1, 2)

    def _mask(self, window: int, dtype: torch.dtype) -> tuple[slice, Tensor | None]:
        """Which of the stored tokens any query sees, and what to add to the scores: (N or 1, 1, T, seen), or None."""
        if window not in self._masks:
            seen = slice(max(0, min(self._starts) - window), max(self._ends))
            alike = len(set(self._starts)) == 1 and len(set(self._ends)) == 1
            mask = None
            if not (alike and self._width == 1):
                positions = self.positions[:1] if alike else self.positions
                distance = positions[:, :, None] - torch.arange(seen.start, seen.stop, device=positions.device)
                mask = torch.zeros(distance.shape, dtype=dtype, device=positions.device)
                mask = mask.masked_fill_((distance < 0) | (distance > window), -torch.inf)[:, None]
            self._masks[window] = seen, mask
        return self._masks[window]

    def previous(self, x: Tensor) -> Tensor:
        """The embedding of the token before each, zeros before a slot's first. (N, T, C) -> (N, T, C)"""
        self._last_embedding = self.last(x)
        return torch.cat([self._cache._last[self._slots, None], x[:, :-1]], dim=1)

    def last(self, x: Tensor) -> Tensor:
        """What stands at each slot's last token. (N, T, C) -> (N, C)"""
        return x[torch.arange(len(self._counts), device=x.device), self._final]

    @torch.inference_mode()
    def commit(self) -> None:
        """After the network's last layer: the tokens now belong to the slots."""
        self._cache.lengths[self._slots] = self._ends
        if self._last_embedding is not None:
            self._cache._last[self._slots] = self._last_embedding
