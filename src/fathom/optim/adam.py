"""AdamW of parameters by kind: what one process and several ranks do with it alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fathom.optim.rates import ADAM_EPSILON, AdamGroup


def adamw(kinds: Mapping[str, Sequence[nn.Parameter]], adam: Mapping[str, AdamGroup]) -> torch.optim.AdamW:
    """Of those of these kinds that have parameters, each kind with its peak rate, betas and decay."""
    groups = [
        {
            "params": list(kinds[kind]),
            "lr": group.lr,
            "peak": group.lr,
            "betas": group.betas,
            "weight_decay": group.weight_decay,
        }
        for kind, group in adam.items()
        if kinds.get(kind)
    ]
    return torch.optim.AdamW(groups, eps=ADAM_EPSILON, fused=True)


def move(moved: torch.optim.AdamW, lr: float) -> None:
    """One update; `lr` is a share of the peak rates."""
    for group in moved.param_groups:
        group["lr"] = group["peak"] * lr
    moved.step()


def prime(moved: torch.optim.AdamW) -> None:
    """Create the zero moments that are not there yet, without moving a weight.

    A fused AdamW counts its steps on the weight's device, and on a GPU refuses a count elsewhere.
    """
    for group in moved.param_groups:
        for weight in group["params"]:
            if weight not in moved.state:
                moved.state[weight] = {
                    "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
