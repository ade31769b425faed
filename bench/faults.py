"""Faults put into short runs, and what became of each: the table of docs/results/health.md.

    python bench/faults.py

A tiny network (depth 1, 32 tokens of context), 40 steps, a checkpoint every fourth; each fault in a process of its own.
Where a run stopped, it is resumed without the fault. "Lost" are steps that were trained and had to be trained again.
"""

from __future__ import annotations

import gc
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

STEPS, AT = 40, 22
Fault = Callable[[], None]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FATHOM_HOME": folder, "OMP_NUM_THREADS": "1"}
        furnish()
        print("| fault | what happened | steps lost | the run |\n|---|---|---|---|")
        for i, (words, fault, changes) in enumerate(FAULTS):
            print(f"| {words} | {' | '.join(story(f'run-{i}', fault, changes))} |", flush=True)


def furnish() -> None:
    import torch

    from fathom import hardware
    from tests.oracles import interrupted_runs, tiny_runs

    torch.set_num_threads(1)
    hardware.peak_flops = lambda device, dtype: (1e12, "not measured")  # type: ignore[assignment]
    tiny_runs.furnish()
    in_a_process(lambda: train("whole", {}))
    interrupted_runs.import_now()
    gc.freeze()


def train(name: str, changes: dict[str, Any]) -> bool:
    from fathom.home import home
    from fathom.train.pretrain import pretrain
    from tests.oracles import tiny_runs

    given = {"steps": STEPS, "save_every": "4", "eval_every": 0, "name": name, "resume": True} | changes
    finished = pretrain(tiny_runs.pretraining(**given))[1]
    (home() / "modules").write_text("\n".join(sys.modules))
    return finished


def in_a_process(work: Callable[[], object]) -> tuple[int, str]:
    """How it ended, 0 for well, and what it said about it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code, said = 1, ""
        try:
            work()
            code = 0
        except BaseException as error:
            code, said = 2, str(error) or type(error).__name__
        os.write(writing, said.encode()[:4000])
        os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, os.read(reading, 4000).decode()


def story(name: str, fault: Fault, changes: dict[str, Any]) -> tuple[str, str, str]:
    """What happened, the steps lost, and how the run ended."""
    from fathom.home import run_dir
    from fathom.record import events, read_lines

    def work() -> None:
        fault()
        train(name, changes)

    code, said = in_a_process(work)
    happened = "; ".join(in_words(events(run_dir(name))))
    ended = "came to its end"
    if code:
        end = f"stopped: “{said}”" if code == 2 else f"ended by signal {-code}"
        happened = f"{happened}; {end}" if happened else end
        again, why = in_a_process(lambda: train(name, {k: v for k, v in changes.items() if k in ("lr_scale", "rules")}))
        ended = "resumed, came to its end" if again == 0 else f"resumed: “{why}”"
    steps = [line["step"] for line in read_lines(run_dir(name) / "metrics.jsonl")]
    return happened or "nothing", str(len(steps) - len(set(steps))), ended


def in_words(lines: list[dict[str, Any]]) -> list[str]:
    skipped = [line for line in lines if line["event"] == "skipped"]
    found = []
    for why in dict.fromkeys(line["why"] for line in skipped):
        steps = [str(line["step"]) for line in skipped if line["why"] == why]
        shown = steps if len(steps) < 6 else [*steps[:2], "…", steps[-1]]
        found.append(f"{len(steps)} step{'s' * (len(steps) > 1)} left out ({why}): {', '.join(shown)}")
    words = {
        "rolled_back": "back from step {from} to the checkpoint of step {to}, past the data between",
        "out_of_memory": "from step {step} on micro-batches of {device_batch} rows, layers computed again: {recompute}",
        "save_failed": "the checkpoint of step {step} was not saved ({why})",
        "evaluation_failed": "the evaluation after step {step} failed ({why})",
    }
    return found + [words[line["event"]].format(**line) for line in lines if line["event"] in words]


# The faults


def spoilt(what: Callable[[Any, int], None]) -> Fault:
    """Something done to the gradient of every step before it is judged."""

    def fault() -> None:
        from fathom.train.step import Stepper

        real = Stepper._accumulate

        def accumulate(self: Stepper, inputs: Any, targets: Any, n_targets: int) -> Any:
            total = real(self, inputs, targets, n_targets)
            taken = Stepper.taken = getattr(Stepper, "taken", -1) + 1  # type: ignore[attr-defined]
            found = what(self, taken)
            return total if found is None else total * found

        Stepper._accumulate = accumulate  # type: ignore[method-assign]

    return fault


def nan_in_the_loss(first: int, last: int) -> Fault:
    return spoilt(lambda stepper, step: math.nan if first <= step <= last else None)  # type: ignore[arg-type, return-value]


def nan_in_a_gradient(stepper: Any, step: int) -> None:
    if step == AT:
        stepper.model.head.grad[0, 0] = math.nan


def weights_gone(stepper: Any, step: int) -> None:
    if step == AT:
        stepper.model.head.data[0, 0] = math.nan


def spike(stepper: Any, step: int) -> Any:
    return 9.0 if step == 80 else None


def masked_batch() -> None:
    from fathom.data.batches import PretrainBatches

    real = PretrainBatches.batch

    def batch(self: PretrainBatches, step: int, *rows: Any) -> Any:
        found = real(self, step, *rows)
        if step == AT:
            found.targets.fill(-1)
        return found

    PretrainBatches.batch = batch  # type: ignore[method-assign]


def at_reading(what: Callable[[Path], None]) -> Fault:
    """Something done before the tokens of a step are read from the shard."""

    def fault() -> None:
        from fathom.data.batches import PretrainBatches
        from fathom.data.token_store import TokenStore

        real, read = PretrainBatches.batch, TokenStore._read
        reached: list[int] = []

        def batch(self: PretrainBatches, step: int, *rows: Any) -> Any:
            reached.extend([step] * (step >= AT))
            return real(self, step, *rows)

        def reading(self: TokenStore, shard: Path, *rest: Any) -> Any:
            if reached:
                what(shard)
            return read(self, shard, *rest)

        PretrainBatches.batch = batch  # type: ignore[method-assign]
        TokenStore._read = reading  # type: ignore[method-assign]

    return fault


def unreadable(shard: Path) -> None:
    def pread(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    os.pread = pread  # type: ignore[assignment]


def hangs(shard: Path) -> None:
    time.sleep(3600)


def hung_worker() -> None:
    from functools import partial

    from fathom.data import prefetch
    from fathom.train import loop

    prefetch.CLOSE_S = 0.2
    loop.Prefetcher = partial(prefetch.Prefetcher, patience_s=2.0)  # type: ignore[assignment, misc]
    at_reading(hangs)()


def out_of_memory(fits: int) -> Fault:
    def fault() -> None:
        import torch

        from fathom.train.step import Stepper

        real = Stepper._add_gradient

        def add(self: Stepper, inputs: Any, targets: Any, n_targets: int) -> Any:
            if len(inputs) > fits and not self.model.recompute:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self, inputs, targets, n_targets)

        Stepper._add_gradient = add  # type: ignore[method-assign]

    return fault


def full_disk() -> None:
    from fathom.record import Record

    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        if AT <= values["step"] < AT + 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        real(self, **values)

    Record.metric = metric  # type: ignore[method-assign]


def failing_evaluation() -> None:
    from fathom.train import session

    def bits(*_: Any) -> float:
        raise MemoryError("out of memory")

    session.bits_per_byte = bits  # type: ignore[assignment]


FAULTS: list[tuple[str, Fault, dict[str, Any]]] = [
    ("loss of one batch is NaN", nan_in_the_loss(AT, AT), {}),
    ("losses of five batches in a row are NaN", nan_in_the_loss(AT, AT + 4), {}),
    ("one gradient is NaN", spoilt(nan_in_a_gradient), {}),
    ("a weight becomes NaN", spoilt(weights_gone), {}),
    ("every loss is NaN from a step on", nan_in_the_loss(AT, 10**9), {}),
    ("rates 10,000 times too high (no fault put in)", lambda: None, {"lr_scale": 10_000.0, "rules": "reference"}),
    ("a loss nine times the usual after 80 steps", spoilt(spike), {"steps": 100}),
    ("a batch without a target", masked_batch, {}),
    ("a shard that cannot be read", at_reading(unreadable), {}),
    ("a loader that hangs (patience 2 s for 30 min)", hung_worker, {}),
    ("out of memory with 4 rows, 2 fit", out_of_memory(2), {"device_batch": 4}),
    ("out of memory with a single row", out_of_memory(0), {"device_batch": 4}),
    ("a full disk for 8 steps", full_disk, {}),
    ("an evaluation out of memory", failing_evaluation, {}),
]

if __name__ == "__main__":
    main()
