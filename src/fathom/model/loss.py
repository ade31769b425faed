"""Head, soft cap and cross-entropy in chunks, so that the logits of a batch never exist at once.

Gradients are formed in the forward pass, while a chunk's logits are at hand: three products a chunk, none repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fathom.model.products import add_weight_gradient

IGNORE = -1
SOFT_CAP = 15.0
CHUNK_NUMBERS = 2**22  # logits held at once: 16 MB of float32, few enough for a CPU's last cache level

Chunk = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def soft_cap(raw: Tensor) -> Tensor:
    """Raw logits of any dtype -> 15·tanh(logits/15) in float32 (float64 stays)."""
    return SOFT_CAP * torch.tanh(raw.to(_wide(raw.dtype)) / SOFT_CAP)


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Tokens a chunk: what fits a cache on a CPU, what keeps the cores of a GPU busy."""
    numbers = CHUNK_NUMBERS if device_type == "cpu" else 32 * CHUNK_NUMBERS
    return max(64, numbers // vocab_size)


def chunk_gradient(raw: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """raw (n, V), targets (n,) and scale (n,) -> the scaled sum of the loss, and its gradient by `raw`, (n, V).

    Capped logits lie within ±15, so their exponentials need no maximum taken off first. tanh(x) is 2·sigmoid(2x) - 1,
    which a CPU computes in a quarter of the time.
    """
    squashed = raw.to(scale.dtype).mul(2 / SOFT_CAP).sigmoid_().mul_(2).sub_(1)
    weight = squashed.mul(SOFT_CAP).exp_()
    total = weight.sum(dim=1)
    at = squashed.gather(1, targets[:, None])[:, 0]
    loss = ((total.log() - SOFT_CAP * at) * scale).sum()
    weight.mul_((scale / total)[:, None])
    weight.scatter_add_(1, targets[:, None], -scale[:, None])
    slope_lost = squashed.square_()  # the cap's slope is 1 - tanh²
    gradient = weight.addcmul_(weight, slope_lost, value=-1)
    return loss, gradient.to(raw.dtype)


def head_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    vocab_size: int,
    chunk: Chunk = chunk_gradient,
) -> Tensor:
    """Sum over the tokens of weight × cross-entropy (nats), a float32 scalar.

    hidden (N, C); head (V', C) float32; targets (N,), IGNORE where nothing is learnt; weights (N,) or None for ones;
    `chunk` is `chunk_gradient` or a compiled form of it.
    """
    loss: Tensor = _HeadLoss.apply(hidden, head, targets, weights, vocab_size, chunk)
    return loss


@torch.no_grad()
def token_nll(hidden: Tensor, head: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Cross-entropy of each token in nats, (N,) float32, 0 where the target is IGNORE. No gradient."""
    weight = head[:vocab_size].to(hidden.dtype)
    out = torch.zeros(len(targets), dtype=_wide(hidden.dtype), device=hidden.device)
    rows = chunk_rows(vocab_size, hidden.device.type)
    for first in range(0, len(targets), rows):
        part = slice(first, first + rows)
        logits = soft_cap(hidden[part] @ weight.T)
        at = targets[part].clamp(min=0)
        nll = logits.logsumexp(dim=1) - logits.gather(1, at[:, None])[:, 0]
        out[part] = torch.where(targets[part] == IGNORE, 0, nll)
    return out


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        vocab_size: int,
        chunk: Chunk,
    ) -> Tensor:
        wide = _wide(hidden.dtype)
        weight = head[:vocab_size].to(hidden.dtype)
        d_hidden = torch.empty_like(hidden)
        d_head = torch.zeros_like(head)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        rows = chunk_rows(vocab_size, hidden.device.type)
        scale = (targets != IGNORE).to(wide)
        if weights is not None:
            scale = scale * weights
        for first in range(0, len(targets), rows):
            part = slice(first, first + rows)
            loss, gradient = chunk(hidden[part] @ weight.T, targets[part].clamp(min=0), scale[part])
            total += loss
            torch.mm(gradient, weight, out=d_hidden[part])
            add_weight_gradient(d_head[:vocab_size], gradient, hidden[part])
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * upstream, d_head * upstream, None, None, None, None
