"""AdamW of what is outside the blocks, over ranks: of large parameters each has its rows, of small ones the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fathom.optim.adam import adamw, move, prime
from fathom.optim.rates import AdamGroup
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
        self._adam = adamw({kind: [owned[weight] for weight in group] for kind, group in kinds.items()}, adam)

    def finish_sum(self, factor: float) -> Tensor:
        return torch.stack([part.finish_sum(factor) for part in self._parts]).sum()

    def update(self, lr: float) -> None:
        move(self._adam, lr)
        for part in self._parts:
            part.launch_gather()

    def finish(self) -> None:
        for part in self._parts:
            part.finish()

    def clear(self) -> None:
        for part in self._parts:
            part.clear()

    def prime(self) -> None:
        prime(self._adam)

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
