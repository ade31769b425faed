"""The halves of a layer, attention and the loss on our own CPU kernels: the same network, fewer passes over memory.

What `gpt.Block`, `attention` and `loss` say in torch's words stands here as few kernels between the matrix products,
with its backward written out. Rounding differs: between two products everything is computed in float32.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fathom import kernels
from fathom.model.loss import SOFT_CAP
from fathom.model.products import linear

if TYPE_CHECKING:
    from fathom.model.gpt import Block

ATTENTION_MULTIPLE = 32  # of positions and of head_dim: what a block's product takes


class _Heads(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "seq_len", "n_head", "n_kv_head", "head_dim", "gate_channels")),
        ("gain", ctypes.c_float),
        ("threads", ctypes.c_int64),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "n_row",
            "seq_len",
            "n_head",
            "n_kv_head",
            "head_dim",
            "window",
            "q_stride",
            "k_stride",
            "v_stride",
        )
    ] + [("threads", ctypes.c_int64)]


def has_kernels_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such a network, once they are loaded."""
    return device.type == "cpu" and str(dtype) in kernels.SUFFIX


def can_attend(q: Tensor, k: Tensor) -> bool:
    """Whether attention between these has a kernel here."""
    divides = not q.shape[1] % ATTENTION_MULTIPLE and not q.shape[3] % ATTENTION_MULTIPLE
    return q.shape[1] == k.shape[1] and divides and kernels.attends_in(q.dtype)


def before_attention(
    block: Block, x: Tensor, first: Tensor, keep: Tensor, add: Tensor, extra: Tensor | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `Block.before_attention`, for rows of all positions."""
    mixed, h = _MixNorm.apply(x, first, keep, add)
    qkv = linear(h, torch.cat([block.q, block.k, block.v]))
    gate = block.value_gate if extra is not None else None
    q, k, v = _HeadsOf.apply(qkv, cos, sin, h, extra, gate, block.head_dim, len(block.q), len(block.k), block.qk_scale)
    return mixed, q, k, v


def after_attention(block: Block, x: Tensor, y: Tensor) -> Tensor:
    """As `Block.after_attention`."""
    x, h = _AddNorm.apply(x, linear(y.flatten(-2), block.out))
    a = _SquaredRelu.apply(linear(h, block.up))
    return x + linear(a, block.down)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """As `attention.attend`, where `can_attend`."""
    y: Tensor = _Attend.apply(q, k, v, window)
    return y


def chunk_gradient(raw: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `loss.chunk_gradient`; the gradient takes the place of `raw`."""
    losses = torch.empty_like(scale)
    kernels.call("loss_rows", raw.dtype, raw, targets, scale, losses, *raw.shape, SOFT_CAP, torch.get_num_threads())
    return losses.sum(), raw


class _MixNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, keep: Tensor, add: Tensor) -> tuple[Tensor, Tensor]:
        x, first = x.contiguous(), first.contiguous()
        mixed, y = torch.empty_like(x), torch.empty_like(x)
        inverse = torch.empty(x.shape[:-1], dtype=torch.float32)
        ctx.factors = float(keep.detach().to(x.dtype)), float(add.detach().to(x.dtype))
        kernels.call("mix_norm", x.dtype, x, first, *ctx.factors, mixed, y, inverse, *_rows(x))
        ctx.save_for_backward(x, first, y, inverse)
        return mixed, y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        x, first, y, inverse = ctx.saved_tensors
        d_mixed, dy = d_mixed.contiguous(), dy.contiguous()
        dx, d_first = torch.empty_like(x), torch.empty_like(x)
        parts = torch.empty(inverse.numel(), 2)
        kernels.call(
            "mix_norm_backward", x.dtype,
            x, first, *ctx.factors, y, inverse, d_mixed, dy, dx, d_first, parts, *_rows(x),
        )  # fmt: skip
        d_keep, d_add = parts.sum(dim=0)
        return dx, d_first, d_keep, d_add


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """`branch` becomes the sum: nobody else wants it."""
        x = x.contiguous()
        y, inverse = torch.empty_like(x), torch.empty(x.shape[:-1], dtype=torch.float32)
        kernels.call("add_norm", x.dtype, x, branch, y, inverse, *_rows(x))
        ctx.mark_dirty(branch)
        ctx.save_for_backward(y, inverse)
        return branch, y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_sum: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        y, inverse = ctx.saved_tensors
        g = dy.clone() if not dy.is_contiguous() else dy
        kernels.call("add_norm_backward", y.dtype, y, inverse, d_sum.contiguous(), g, *_rows(y))
        return g, g


class _SquaredRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        kernels.call("squared_relu", x.dtype, x, y, x.numel(), torch.get_num_threads())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        kernels.call("squared_relu_backward", x.dtype, x, dy.contiguous(), dx, x.numel(), torch.get_num_threads())
        return dx


class _HeadsOf(torch.autograd.Function):
    """Rows of (q, k, v) -> the heads: rotary embedding, norm, gain, gated value embedding. In place."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        h: Tensor,
        extra: Tensor | None,
        gate_weight: Tensor | None,
        head_dim: int,
        q_width: int,
        kv_width: int,
        gain: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_head, n_kv_head = q_width // head_dim, kv_width // head_dim
        n, seq_len = qkv.shape[:-1].numel(), qkv.shape[-2]
        channels = 0 if gate_weight is None else gate_weight.shape[1]
        sizes = _Heads(n, seq_len, n_head, n_kv_head, head_dim, channels, gain, torch.get_num_threads())
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        gates, inverse = torch.empty(n, n_kv_head), torch.empty(n, n_head + n_kv_head)
        extra = None if extra is None else extra.contiguous()
        gate = None if gate_weight is None else gate_weight.to(h.dtype).contiguous()
        kernels.call(
            "heads", qkv.dtype, sizes, qkv, cos, sin, h, h.shape[-1], extra, gate, gates, inverse
        )  # fmt: skip
        ctx.sizes = sizes
        ctx.save_for_backward(qkv, cos, sin, h, extra, gate, gates, inverse)
        return tuple(_split(qkv, head_dim, q_width, kv_width))  # type: ignore[return-value]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, h, extra, gate, gates, inverse = ctx.saved_tensors
        dq, dk, dv = (_with_whole_heads(x) for x in (dq, dk, dv))
        d_qkv = torch.empty_like(qkv)
        d_extra = None if extra is None else torch.empty_like(extra)
        d_before = torch.empty_like(gates)
        kernels.call(
            "heads_backward", qkv.dtype, ctx.sizes, qkv, cos, sin, inverse,
            dq, dq.stride(1), dk, dk.stride(1), dv, dv.stride(1), extra, gates, d_qkv, d_extra, d_before,
        )  # fmt: skip
        if gate is None:
            return d_qkv, *[None] * 9
        channels = gate.shape[1]
        flat = h.flatten(0, -2)
        d_gate = d_before.T @ flat[:, :channels].float()
        dh = torch.zeros_like(flat)
        dh[:, :channels] = d_before @ gate.float()
        return d_qkv, None, None, dh.view(h.shape), d_extra, d_gate, *[None] * 4


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = (_with_whole_heads(x) for x in (q, k, v))
        n_row, seq_len, n_head, head_dim = q.shape
        strides = (x.stride(1) for x in (q, k, v))
        sizes = _Attention(
            n_row, seq_len, n_head, k.shape[2], head_dim, min(window, seq_len), *strides, torch.get_num_threads()
        )
        y = torch.empty(q.shape, dtype=q.dtype)
        log_sum = torch.empty(n_row, n_head, seq_len)
        kernels.call("attend", q.dtype, sizes, q, k, v, y, log_sum)
        ctx.sizes = sizes
        ctx.save_for_backward(q, k, v, y, log_sum)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, log_sum = ctx.saved_tensors
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        kernels.call("attend_backward", q.dtype, ctx.sizes, q, k, v, y, dy.contiguous(), log_sum, dq, dk, dv)
        return dq, dk, dv, None


def _rows(x: Tensor) -> tuple[int, int, int]:
    return x.shape[:-1].numel(), x.shape[-1], torch.get_num_threads()


def _split(qkv: Tensor, head_dim: int, q_width: int, kv_width: int) -> list[Tensor]:
    """(B, T, (H + 2K)·D) -> views (B, T, H, D) and twice (B, T, K, D)."""
    return [part.unflatten(-1, (-1, head_dim)) for part in qkv.split([q_width, kv_width, kv_width], dim=-1)]


def _with_whole_heads(x: Tensor) -> Tensor:
    """(B, T, H, D) with heads side by side and rows T tokens apart, copied only where it is otherwise."""
    heads, dim = x.shape[2:]
    fits = x.stride(3) == 1 and (heads == 1 or x.stride(2) == dim) and x.stride(0) == x.shape[1] * x.stride(1)
    return x if fits or (len(x) == 1 and x.stride(3) == 1 and x.stride(2) == dim) else x.contiguous()
