"""When sums of gradients set out: as soon as the backward pass is done with them, in one order on all ranks.

Ranks would wait for ever for each other's sums in different orders. So a sum sets out when it and all before it are
ready, and what never gets a gradient sets out with the rest after the pass. The order is that in which the main rank's
first whole step was done with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from fathom.optim.exchange import as_main_has_it


class Bucket(Protocol):
    """Gradients that are summed together."""

    @property
    def weights(self) -> Sequence[nn.Parameter]: ...

    def launch_sum(self) -> None: ...


class Departures:
    def __init__(self, buckets: Sequence[Bucket]) -> None:
        """They set out in this order until a better one is known."""
        self._buckets = buckets
        self._order, self._is_learnt = list(range(len(buckets))), False
        self._watches = False
        self.gone = 0
        """Sums that have set out."""
        self._expect()
        for number, bucket in enumerate(buckets):
            for weight in bucket.weights:
                weight.register_post_accumulate_grad_hook(partial(self._ready, number))

    def watch(self) -> None:
        """The backward pass that comes is the step's last: what it is done with may go."""
        self._watches = True

    def rest(self) -> None:
        """Let go what has not gone yet: the pass is over, or broken off."""
        self._watches = False
        while self.gone < len(self._order):
            self._launch_next()

    def again(self) -> None:
        """For another step: all that had gone has come."""
        self._watches = False
        self._expect()

    def learn(self) -> None:
        """After a whole step, before `again`: in its order from now on."""
        if self._buckets and not self._is_learnt:
            seen = list(dict.fromkeys([*self._done, *self._order]))
            self._order = as_main_has_it(seen, self._buckets[0].weights[0].device)
            self._is_learnt = True

    def _expect(self) -> None:
        self._missing = [len(bucket.weights) for bucket in self._buckets]
        self._done: list[int] = []
        self.gone = 0

    def _ready(self, number: int, _: Tensor) -> None:
        if not self._watches:
            return
        self._missing[number] -= 1
        if not self._missing[number]:
            self._done.append(number)
        while self.gone < len(self._order) and not self._missing[self._order[self.gone]]:
            self._launch_next()

    def _launch_next(self) -> None:
        self._buckets[self._order[self.gone]].launch_sum()
        self.gone += 1
