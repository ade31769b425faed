"""Rate, betas and weight decay of each kind of parameter. REFERENCE section 2.1."""

from __future__ import annotations

from dataclasses import dataclass

MUON_BETA2 = 0.9
ADAM_EPSILON = 1e-10


@dataclass(frozen=True)
class Rates:
    """Peak learning rates before any scaling, as the flags give them."""

    matrix_lr: float = 0.02
    embedding_lr: float = 0.3
    head_lr: float = 0.008
    scalar_lr: float = 0.5


@dataclass(frozen=True)
class AdamGroup:
    lr: float
    betas: tuple[float, float]
    weight_decay: float


def adam_groups(rates: Rates, lr_scale: float, width_scale: float) -> dict[str, AdamGroup]:
    """Settings by kind; `lr_scale` is the batch's, `width_scale` the width's."""
    scaled = lr_scale * width_scale
    return {
        "head": AdamGroup(rates.head_lr * scaled, (0.8, 0.96), 0.01),
        "token_embedding": AdamGroup(rates.embedding_lr * scaled, (0.8, 0.995), 0.001),
        "value_embeddings": AdamGroup(0.5 * rates.embedding_lr * scaled, (0.8, 0.995), 0.01),
        "keep": AdamGroup(0.01 * rates.scalar_lr * lr_scale, (0.8, 0.95), 0.05),
        "add_first": AdamGroup(rates.scalar_lr * lr_scale, (0.96, 0.95), 0.0),
        "smear": AdamGroup(0.2, (0.8, 0.95), 0.0),
    }
