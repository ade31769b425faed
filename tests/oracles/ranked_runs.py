"""Runs under torchrun, several in one launch, since processes that import torch are slow to start.

    torchrun --nproc-per-node N -m tests.oracles.ranked_runs TRIALS   ->   rank 0 prints one JSON object

TRIALS is a JSON list of [name, changes of `tiny_runs.PRETRAIN`, word]; a word says what befalls that run:
"stop R S" sends SIGTERM to rank R after step S, "nan R S" spoils a gradient of rank R in step S, "mask R S" masks the
targets of rank R in step S, "oom R S" lets rank R run out of memory in step S, "double" computes in float64.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from fathom import hardware
from fathom.model.gpt import GPT
from fathom.model.loss import IGNORE
from fathom.ranks import Ranks, joined, leave
from fathom.train import pretrain as pretraining
from fathom.train.pretrain import pretrain
from fathom.train.step import Step, Stepper
from tests.oracles import tiny_runs


@contextmanager
def befallen(word: str, here: Ranks) -> Iterator[None]:
    if word == "double":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pretraining, "GPT", lambda shape, _: GPT(shape, torch.float64).double())
            yield
        return
    what, rank, at = word.split() if word else ("", "", "")
    take, add = Stepper.take, Stepper._add_gradient
    now = [-1, 0]

    def taken(self: Stepper, step: int, inputs: np.ndarray, targets: np.ndarray) -> Step:
        struck = str(here.rank) == rank and str(step) == at
        now[:] = [step, 0]
        if what == "mask" and struck:
            targets = np.full_like(targets, IGNORE)
        found = take(self, step, inputs, targets)
        if what == "stop" and struck:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    def added(self: Stepper, *rows: Any) -> Any:
        struck = str(here.rank) == rank and str(now[0]) == at
        now[1] += 1
        if what == "oom" and struck and now[1] == 2:
            raise torch.OutOfMemoryError("injected")
        loss = add(self, *rows)
        if what == "nan" and struck:
            weight = self.model.blocks[0].q
            assert weight.grad is not None
            gradient = weight.grad.to_local() if hasattr(weight.grad, "to_local") else weight.grad
            gradient[0, 0] = torch.nan
        return loss

    Stepper.take, Stepper._add_gradient = taken, added  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stepper.take, Stepper._add_gradient = take, add  # type: ignore[method-assign]


def main(trials: list[tuple[str, dict[str, Any], str]]) -> None:
    hardware.peak_flops = lambda device, dtype: (1e12, "not measured")
    gc.collect = lambda *_: 0  # type: ignore[assignment]
    with joined() as here:
        found = {}
        for name, changes, word in trials:
            with befallen(word, here):
                result, finished = pretrain(tiny_runs.pretraining(name=name, **changes), here)
            told = here.gather((finished, result["step"] if not finished else None))
            found[name] = result | {"finished": finished, "alike": len(set(told)) == 1}
        if here.is_main:
            print(json.dumps(found))
    if here.world > 1:
        leave()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
