"""Muon: momentum, orthogonalised by Polar Express, with a variance reduction. REFERENCE section 2.3.

One update for a stack of matrices of one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (n, rows, columns) -> the nearest matrices with equal singular values, computed in `dtype`, norms in float32.

    Rows are equilibrated first, and the result keeps the Frobenius norm of an orthogonal matrix.
    """
    rows, columns = x.shape[-2:]
    given = x.dtype
    x = x.to(dtype)
    row_norm = x.float().norm(dim=-1, keepdim=True)
    whole = x.float().norm(dim=(-2, -1), keepdim=True)
    x = x * ((whole / rows**0.5) / row_norm.clamp(min=1e-6)).to(dtype)
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    x = polar_express(x).to(given)
    return x * (min(rows, columns) ** 0.5 / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-6))


def polar_express(x: Tensor) -> Tensor:
    """Five times x ← a·x + (b·G + c·G²)·x with the smaller Gram matrix G; the sums ride along in the products."""
    for a, b, c in POLAR_EXPRESS:
        if x.shape[-2] > x.shape[-1]:
            gram = x.mT @ x
            x = torch.baddbmm(x, x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
        else:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def reduce_variance(x: Tensor, second: Tensor, beta2: float) -> Tensor:
    """Even out the scale of rows (or columns, where there are more of them) at an unchanged norm.

    second (n, rows, 1) or (n, 1, columns) is the running mean of squares, updated in place.
    """
    axis = -1 if second.shape[-1] == 1 else -2
    size = x.shape[axis]
    mean_square = x.float().square().mean(dim=axis, keepdim=True)
    before = (size * mean_square.sum(dim=(-2, -1), keepdim=True)).sqrt()
    second.lerp_(mean_square.to(second.dtype), 1 - beta2)
    scale = second.clamp(min=1e-10).rsqrt()
    after = (size * (mean_square * scale.float().square()).sum(dim=(-2, -1), keepdim=True)).sqrt()
    return x * (scale * (before / after.clamp(min=1e-10))).to(x.dtype)


def second_moment_shape(rows: int, columns: int) -> tuple[int, int]:
    return (rows, 1) if rows >= columns else (1, columns)


@torch.no_grad()
def muon_step(
    weights: Tensor,
    gradients: Tensor,
    momentum_buffer: Tensor,
    second: Tensor,
    *,
    lr: float,
    momentum: float,
    beta2: float,
    weight_decay: float,
    dtype: torch.dtype,
) -> None:
    """Update a stack of matrices (n, rows, columns) in place, with its buffers; decay only where it agrees in sign."""
    update = muon_update(gradients, momentum_buffer, second, momentum=momentum, beta2=beta2, dtype=dtype)
    apply_update(weights, update, tuple(weights.shape[-2:]), lr=lr, weight_decay=weight_decay)


@torch.no_grad()
def muon_update(
    gradients: Tensor, momentum_buffer: Tensor, second: Tensor, *, momentum: float, beta2: float, dtype: torch.dtype
) -> Tensor:
    """Which way a stack of matrices (n, rows, columns) has to go; its buffers move in place."""
    momentum_buffer.lerp_(gradients, 1 - momentum)
    update = orthogonalise(gradients.lerp(momentum_buffer, momentum), dtype)
    return reduce_variance(update, second, beta2)


@torch.no_grad()
def apply_update(weights: Tensor, update: Tensor, shape: tuple[int, ...], *, lr: float, weight_decay: float) -> None:
    """Go there, in place. `shape` is a whole matrix's (rows, columns), of which these may be a few rows."""
    rate = lr * max(1.0, shape[0] / shape[1]) ** 0.5
    agrees = (update * weights) >= 0
    weights.sub_(rate * update + rate * weight_decay * weights * agrees)
