"""One update: the gradient of a whole step over its micro-batches, judged before it may move a weight."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.errors import FathomError
from fathom.model.attention import DenseContext
from fathom.model.documents import row_context
from fathom.model.gpt import GPT
from fathom.model.loss import IGNORE
from fathom.optim.optimizer import Optimizer
from fathom.optim.schedule import Schedule
from fathom.optim.sharded import ShardedOptimizer
from fathom.ranks import ALONE, Ranks
from fathom.screen import say
from fathom.train.health import Health
from fathom.train.scaler import LossScaler


@dataclass(frozen=True)
class Step:
    """What came of an update."""

    loss: float
    """Nats per supervised token of the whole step."""
    gradient_norm: float
    skipped: str
    """Why no weight moved; "" where they did."""


class Stepper:
    """Takes the updates of a run. Its gradient is per supervised token of the step, however the rows are split."""

    def __init__(
        self,
        model: GPT,
        optimizer: Optimizer | ShardedOptimizer,
        schedule: Schedule,
        scaler: LossScaler,
        health: Health,
        device_rows: int,
        document_start: int | None = None,
        here: Ranks = ALONE,
    ) -> None:
        """`document_start` is the token that begins a document, where documents of a row do not see each other."""
        self.here = here
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.scaler, self.health, self.device_rows = scaler, health, device_rows
        self.is_whole = True
        """False where an update broke off: weights and moments belong to no step then."""
        self._dense = DenseContext(model.shape.seq_len, model.device, model.has_cpu_kernels)
        self._document_start = document_start

    @property
    def fits(self) -> tuple[int, bool]:
        """Rows of a micro-batch, and whether activations are computed anew in the backward pass."""
        return self.device_rows, self.model.recompute

    def lower(self, found: Sequence[Any] | None) -> None:
        """To what a run that is resumed found to fit, so that its steps are split as they were."""
        if found is not None:
            self.device_rows, self.model.recompute = min(self.device_rows, int(found[0])), bool(found[1])

    def take(self, step: int, inputs: np.ndarray, targets: np.ndarray) -> Step:
        """Update number `step` (it says the rates) with this rank's rows (rows, T) int64. FathomError for a batch that
        is none.
        """
        check_batch(inputs, targets, self.model, step)
        n_targets = self.here.total(int((targets != IGNORE).sum()))
        if not n_targets:
            self.health.skipped += 1
            return Step(math.nan, 0.0, "no target to learn from")
        while (found := self._summed(inputs, targets, n_targets)) is None:
            self._ask_for_less()
        loss, norm = found
        if why := self.scaler.judge(loss, norm):
            self.health.skipped += 1
        else:
            why = self.health.judge(loss, norm)
        if not why:
            self._update(step)
        self.optimizer.zero_grad()
        return Step(loss, norm, why)

    def _summed(self, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> tuple[float, float] | None:
        """The step's loss and the norm of its gradient, which is there now as the optimizer wants it. None, and no
        gradient, where the memory of this rank or of another did not hold a micro-batch.
        """
        total = self._accumulate(inputs, targets, n_targets)
        if isinstance(self.optimizer, ShardedOptimizer):
            return self.optimizer.summed(total, self.scaler.inverse)
        if total is None:
            return None
        self.scaler.unscale(self.model.parameters())
        loss, norm = torch.stack([total, gradient_norm(self.model)]).tolist()  # the step's one wait for the device
        return loss, norm

    def _update(self, step: int) -> None:
        self.is_whole, at = False, self.schedule
        try:
            self.optimizer.step(at.lr(step), at.momentum(step), at.decay(step))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise FathomError(
                "the optimizer's update does not fit the device's memory",
                "go on with --resume and less beside it there",
            ) from None
        self.is_whole = True

    def _accumulate(self, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> Tensor | None:
        """Gradients of all rows; the step's loss. None where a micro-batch did not fit the memory."""
        try:
            total = torch.zeros((), device=self.model.device)
            for first in range(0, len(inputs), self.device_rows):
                part = slice(first, first + self.device_rows)
                if isinstance(self.optimizer, ShardedOptimizer) and part.stop >= len(inputs):
                    self.optimizer.sum_as_they_come()
                total += self._add_gradient(inputs[part], targets[part], n_targets)
            return total
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if isinstance(self.optimizer, ShardedOptimizer) and self.optimizer.splits_weights:
                raise FathomError(
                    f"micro-batches of {self.device_rows} rows do not fit the memory of rank {self.here.rank}, and "
                    "ranks that split the weights cannot try again",
                    f"go on with --resume --device-batch {max(1, self.device_rows // 2)}",
                ) from None
        # Outside of the handler, where what the failed pass held can be let go. Sums that have set out go on.
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.zero_grad()
        {"cuda": torch.cuda.empty_cache, "mps": torch.mps.empty_cache}.get(self.model.device.type, gc.collect)()
        return None

    def _ask_for_less(self) -> None:
        """Of the memory from now on, on all ranks alike."""
        if self.device_rows > 1:
            self.device_rows = -(-self.device_rows // 2)
            how = f"micro-batches of {self.device_rows} rows from now on, the batch stays"
        elif not self.model.recompute:
            self.model.recompute = True
            how = "as a last resort each layer is computed again in the backward pass, a third more work a step"
        else:
            raise FathomError(
                "one row of this network does not fit the device's memory",
                "train it with a shorter --seq-len or a smaller --depth",
            )
        say(f"out of memory: {how}", style="yellow")

    def _add_gradient(self, inputs: np.ndarray, targets: np.ndarray, n_targets: int) -> Tensor:
        """A micro-batch's share of the loss. Its graph ends here: kept until the next, it would split a CPU's heap."""
        ids = torch.from_numpy(inputs).to(self.model.device, non_blocking=True)
        wanted = torch.from_numpy(targets).to(self.model.device, non_blocking=True)
        context = row_context(ids, self._dense, self._document_start)
        loss = self.model.loss(self.model(ids, context), wanted) / n_targets
        self.scaler.scale(loss).backward()
        return loss.detach()


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, a CPU's and Apple's allocator have words."""
    words = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def gradient_norm(model: GPT) -> Tensor:
    """The norm of all gradients together, no number where one of theirs is none."""
    norms = torch._foreach_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    return torch.stack([norm.float() for norm in norms]).norm()


def check_batch(inputs: np.ndarray, targets: np.ndarray, model: GPT, step: int) -> None:
    """What must be true of every batch; a broken one is named."""
    vocab = model.shape.vocab_size
    if not inputs.size or inputs.shape != targets.shape:
        raise FathomError(
            f"the batch of step {step} has inputs of {inputs.shape} and targets of {targets.shape}",
            "the data are damaged; make the corpus's tokens again",
        )
    broken = (
        (inputs.shape[1] != model.shape.seq_len, f"rows of {inputs.shape[1]} tokens"),
        (inputs.min() < 0 or inputs.max() >= vocab, f"a token id outside 0 to {vocab - 1}"),
        (targets.min() < IGNORE or targets.max() >= vocab, f"a target id outside 0 to {vocab - 1}"),
    )
    for is_broken, what in broken:
        if is_broken:
            raise FathomError(f"the batch of step {step} has {what}", "the data does not fit the tokenizer or context")
