"""Head, soft cap and cross-entropy in chunks, so that the logits of a batch never exist at once.

Gradients are formed in the forward pass, while a chunk's logits are at hand: three products a chunk, none repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fathom.model.gpt import SOFT_CAP

IGNORE = -1
CHUNK_NUMBERS = 2**21  # logits held at once: 8 MB of float32, which the last cache level of a CPU holds


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Tokens a chunk: what fits a cache on a CPU, what keeps the cores of a GPU busy."""
    numbers = CHUNK_NUMBERS if device_type == "cpu" else 64 * CHUNK_NUMBERS
    return max(64, numbers // vocab_size)


def head_loss(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None, vocab_size: int) -> Tensor:
    """Sum over the tokens of weight × cross-entropy (nats), a float32 scalar.

    hidden (N, C); head (V', C) float32; targets (N,), IGNORE where nothing is learnt; weights (N,) or None for ones.
    """
    return _HeadLoss.apply(hidden, head, targets, weights, vocab_size)


def token_nll(hidden: Tensor, head: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Cross-entropy of each token in nats, (N,) float32, 0 where the target is IGNORE. No gradient."""
    with torch.no_grad():
        weight = head[:vocab_size].to(hidden.dtype)
        out = torch.zeros(len(targets), dtype=_wide(hidden.dtype), device=hidden.device)
        rows = chunk_rows(vocab_size, hidden.device.type)
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            _, logits, log_sum = _capped(hidden[part] @ weight.T)
            at = targets[part].clamp(min=0)
            nll = log_sum - logits.gather(1, at[:, None])[:, 0]
            out[part] = torch.where(targets[part] == IGNORE, 0, nll)
        return out


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _capped(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """raw (n, V) -> tanh(raw/cap), the capped logits, and their log-sum-exp (n,). Overwrites a float32 input."""
    squashed = raw.to(_wide(raw.dtype)).mul_(1 / SOFT_CAP).tanh_()
    logits = squashed * SOFT_CAP
    return squashed, logits, logits.logsumexp(dim=1)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor | None, vocab_size: int
    ) -> Tensor:
        wide = _wide(hidden.dtype)
        weight = head[:vocab_size].to(hidden.dtype)
        d_hidden = torch.zeros_like(hidden)
        d_head = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, torch.float32))
        total = torch.zeros((), dtype=wide, device=hidden.device)
        rows = chunk_rows(vocab_size, hidden.device.type)
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            scale = (targets[part] != IGNORE).to(wide)
            if weights is not None:
                scale = scale * weights[part]
            at = targets[part].clamp(min=0)[:, None]
            squashed, logits, log_sum = _capped(hidden[part] @ weight.T)
            total += ((log_sum - logits.gather(1, at)[:, 0]) * scale).sum()
            gradient = logits.sub_(log_sum[:, None]).exp_()
            gradient.scatter_add_(1, at, torch.full_like(at, -1, dtype=wide))
            gradient.mul_(squashed.square_().neg_().add_(1)).mul_(scale[:, None])
            gradient = gradient.to(hidden.dtype)
            d_hidden[part] = gradient @ weight
            d_head[:vocab_size] += gradient.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * upstream.to(d_hidden.dtype), d_head * upstream.to(d_head.dtype), None, None, None
