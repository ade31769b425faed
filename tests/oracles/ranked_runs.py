"""Runs on several ranks, many in one launch: processes forked from one that has imported everything once.

    python -m tests.oracles.ranked_runs N TRIALS   ->   the main rank prints one JSON object

TRIALS is a JSON list of [name, changes of `tiny_runs.PRETRAIN`, words]; with a "base" among the changes that run is
fine-tuned instead; what follows a # in a name tells trials of one run apart. Words,
separated by commas, say what befalls the run:

    stop R S     SIGTERM to rank R after step S
    die R S      SIGKILL to rank R after step S
    nan R S      a gradient of rank R is no number in step S
    oom R S      rank R runs out of memory in step S, before its second micro-batch
    burst R S    rank R runs out of memory in step S, amid its second backward pass, with sums of gradients on their way
    mask ROW S   no target from row ROW on in step S
    copy R N     the N-th copy of rank R for a checkpoint fails
    blind R N    the N-th reading of rows to validate on fails on rank R
    double       computed in float64, where rounding does not show
    count        the run's result has "held": of each rank, numbers of weights and of AdamW's moments, as it saves them
    early        the run's result has "early", of each step: how many sums set out before the backward pass was done
                 with the first layer, and how many there are
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from itertools import count as count_from
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fathom import hardware
from fathom.data.batches import Batch, PretrainBatches, ValidationRows
from fathom.errors import FathomError
from fathom.home import home
from fathom.model.gpt import GPT
from fathom.model.loss import IGNORE
from fathom.optim import whole
from fathom.optim.sharded import ShardedOptimizer
from fathom.optim.shards import local
from fathom.ranks import ALONE, Ranks, joined, leave
from fathom.train import fine_tuning, loop, pretraining, saver
from fathom.train import pretrain as stage
from fathom.train import sft as sft_stage
from fathom.train.step import Step, Stepper
from tests.oracles import tiny_runs

SIGNALS = {"stop": signal.SIGTERM, "die": signal.SIGKILL}
UNDONE: dict[str, tuple[Any, str]] = {"copy": (saver, "copied"), "blind": (ValidationRows, "rows")}

Trial = tuple[str, dict[str, Any], str]


def double(patch: pytest.MonkeyPatch) -> None:
    for module in (pretraining, fine_tuning):
        patch.setattr(module, "GPT", lambda shape, _: GPT(shape, torch.float64).double())


def count(patch: pytest.MonkeyPatch, held: dict[str, int]) -> None:
    look = loop.state_of

    def looked(model: torch.nn.Module, optimizer: Any) -> dict[str, Any]:
        state = look(model, optimizer)
        moments = [value for parts in state["optimizer"]["adam"].values() for value in parts.values()]
        for name, tensors in (("weights", state["model"].values()), ("moments", moments)):
            held[name] = sum(local(tensor).numel() for tensor in tensors)
        return state

    patch.setattr(loop, "state_of", looked)


def watch(patch: pytest.MonkeyPatch, early: list[tuple[int, int]]) -> None:
    add = Stepper._add_gradient

    def added(self: Stepper, *rows: Any) -> Any:
        departures = cast(ShardedOptimizer, self.optimizer).departures
        hook = self.model.blocks[0].k.register_hook(lambda _: early.append((departures.gone, len(departures._order))))
        try:
            return add(self, *rows)
        finally:
            hook.remove()

    patch.setattr(whole, "BUCKET", 1)  # numbers: every matrix goes alone
    patch.setattr(Stepper, "_add_gradient", added)


def befall(patch: pytest.MonkeyPatch, word: str, here: Ranks) -> None:
    """Put what a word says in place."""
    if word == "double":
        double(patch)
        return
    what, number, at = word.split()[0], int(word.split()[1]), int(word.split()[2])
    take, add, read = Stepper.take, Stepper._add_gradient, PretrainBatches.batch
    now = {"step": -1, "micro": 0}
    if what in UNDONE and here.rank == number:
        fail_once(patch, *UNDONE[what], at)
    if what in UNDONE:
        return

    def taken(self: Stepper, step: int, inputs: np.ndarray, targets: np.ndarray) -> Step:
        now.update(step=step, micro=0)
        found = take(self, step, inputs, targets)
        if what in SIGNALS and (here.rank, step) == (number, at):
            os.kill(os.getpid(), SIGNALS[what])
        return found

    def added(self: Stepper, *rows: Any) -> Any:
        now["micro"] += 1
        struck = (here.rank, now["step"]) == (number, at)
        if what == "oom" and struck and now["micro"] == 2:
            raise torch.OutOfMemoryError("injected")
        weight = self.model.blocks[0].q
        hooks = []
        if what == "burst" and struck and now["micro"] == 2:
            hooks.append(weight.register_hook(partial(burst, self)))
        if what == "nan" and struck and not hasattr(weight, "to_local"):
            hooks.append(weight.register_hook(spoilt))
        try:
            loss = add(self, *rows)
        finally:
            for hook in hooks:
                hook.remove()
        if what == "nan" and struck and hasattr(weight.grad, "to_local"):
            spoilt(weight.grad.to_local())
        return loss

    def masked(self: PretrainBatches, step: int, first: int, last: int) -> Batch:
        inputs, targets = read(self, step, first, last)
        if what == "mask" and step == at:
            targets[max(0, number - first) :] = IGNORE
        return Batch(inputs, targets)

    patch.setattr(Stepper, "take", taken)
    patch.setattr(Stepper, "_add_gradient", added)
    patch.setattr(PretrainBatches, "batch", masked)


def fail_once(patch: pytest.MonkeyPatch, owner: Any, name: str, at: int) -> None:
    real, calls = getattr(owner, name), count_from(1)

    def failing(*arguments: Any) -> Any:
        if next(calls) == at:
            raise OSError(errno.EIO, "injected")
        return real(*arguments)

    patch.setattr(owner, name, failing)


def burst(stepper: Stepper, _: torch.Tensor) -> None:
    departures = cast(ShardedOptimizer, stepper.optimizer).departures
    if departures.gone:
        assert departures.gone < len(departures._order)
        raise torch.OutOfMemoryError("injected")


def spoilt(gradient: torch.Tensor) -> torch.Tensor:
    gradient[0, 0] = torch.nan
    return gradient


def ran(trials: list[Trial], here: Ranks = ALONE) -> dict[str, Any]:
    """What each trial came to; `alike` says whether all ranks ended it alike."""
    found = {}
    for name, changes, words in trials:
        with pytest.MonkeyPatch.context() as patch:
            tiny_runs.hurry(patch)
            early: list[tuple[int, int]] = []
            held: dict[str, int] = {}
            for word in filter(None, words.split(",")):
                if word == "early":
                    watch(patch, early)
                elif word == "count":
                    count(patch, held)
                else:
                    befall(patch, word, here)
            result, finished = trained(name.partition("#")[0], changes, here)
            if early:
                result |= {"early": early}
            if held:
                result |= {"held": here.gather(held)}
        ends = here.gather((finished, None if finished else result["step"]))
        found[name] = result | {"finished": finished, "alike": len(set(ends)) == 1}
    return found


def trained(name: str, changes: dict[str, Any], here: Ranks) -> tuple[dict[str, Any], bool]:
    if "base" not in changes:
        return stage.pretrain(tiny_runs.pretraining(name=name, **changes), here)
    settings = {key: value for key, value in changes.items() if key != "base"}
    config = tiny_runs.fine_tuning(str(home() / "chat.jsonl"), name=name, **settings)
    return sft_stage.sft(replace(config, base=changes["base"]), here)


def main(n_ranks: int, trials: list[Trial]) -> None:
    hardware.keep_freed_memory()
    # As torchrun does, keep the store by which they find each other: it outlives them.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    children = []
    for rank in range(n_ranks):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                with joined() as here:
                    found = ran(trials, here)
                if here.is_main:
                    print(json.dumps(found))
                leave()
            except FathomError as error:
                print(error, file=sys.stderr)
                leave(2)
            except SystemExit as ended:
                leave(int(ended.code or 0))
        children.append(child)
    gc.freeze()
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
