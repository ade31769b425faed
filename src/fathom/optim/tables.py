"""AdamW of what is outside the blocks, over ranks: of large parameters each has its rows, of small ones the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.optim.rates import ADAM_EPSILON, AdamGroup
from fathom.optim.shards import Mesh, local
from fathom.optim.split import SplitRows
from fathom.optim.whole import SMALL, Rows, Small


class Tables:
    def __init__(
        self,
        kinds: Mapping[str, Sequence[nn.Parameter]],
        adam: Mapping[str, AdamGroup],
        everyone: Mesh,
        model: Mesh | None = None,
    ) -> None:
        """`everyone` is all ranks, `model` those that split what is split."""
        weights = [weight for group in kinds.values() for weight in group]
        small = [weight for weight in weights if weight.numel() < SMALL and not hasattr(weight, "to_local")]
        large = [weight for weight in weights if not any(weight is other for other in small)]
        whole = {weight: Rows(weight, everyone) for weight in large if not hasattr(weight, "to_local")}
        split = {weight: SplitRows(weight, model or everyone) for weight in large if weight not in whole}
        self._rows: dict[nn.Parameter, Rows | SplitRows] = {**whole, **split}
        dtypes = dict.fromkeys(weight.dtype for weight in small)
        few = [Small([weight for weight in small if weight.dtype == dtype], everyone) for dtype in dtypes]
        self.buckets: list[Rows | Small] = [*whole.values(), *few]
        self._parts = [*split.values(), *self.buckets]
        owned = {weight: own for part in self._parts for weight, own in part.owned()}
        self._weights, self._owned = weights, owned
        self._peaks = [adam[kind].lr for kind in kinds]
        groups = [
            {
                "params": [owned[weight] for weight in group],
                "lr": adam[kind].lr,
                "betas": adam[kind].betas,
                "weight_decay": adam[kind].weight_decay,
            }
            for kind, group in kinds.items()
        ]
        self._adam = torch.optim.AdamW(groups, eps=ADAM_EPSILON, fused=True)

    def finish_sum(self, factor: float) -> Tensor:
        return torch.stack([part.finish_sum(factor) for part in self._parts]).sum()

    def update(self, lr: float) -> None:
        for peak, group in zip(self._peaks, self._adam.param_groups, strict=True):
            group["lr"] = peak * lr
        self._adam.step()
        for part in self._parts:
            part.launch_gather()

    def finish(self) -> None:
        for part in self._parts:
            part.finish()

    def clear(self) -> None:
        for part in self._parts:
            part.clear()

    def prime(self) -> None:
        for own in self._owned.values():
            if own not in self._adam.state:
                self._adam.state[own] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(own),
                    "exp_avg_sq": torch.zeros_like(own),
                }

    def state(self) -> dict[str, Any]:
        held = self._adam.state
        return {
            str(i): {name: self._as_part(weight, value) for name, value in held[self._owned[weight]].items()}
            for i, weight in enumerate(self._weights)
            if self._owned[weight] in held
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.prime()
        for i, weight in enumerate(self._weights):
            for name, value in self._adam.state[self._owned[weight]].items():
                value.copy_(local(state[str(i)][name]))

    def _as_part(self, weight: nn.Parameter, moment: Tensor) -> Tensor:
        """A moment as a checkpoint sees it."""
        return self._rows[weight].as_part(moment) if weight in self._rows and moment.dim() else moment
