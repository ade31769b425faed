"""Runs that are killed, and go on: each in a process of its own, forked from one that has imported everything once.

    python -m tests.oracles.interrupted_runs FOLDER   ->   one JSON object on standard output

For every trial: how its processes ended, and the digest of the weights the run ended with. `whole` and `sft-whole` are
the runs that nothing interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fathom import hardware
from fathom.home import home, run_dir
from fathom.record import Record, metrics
from fathom.train import beginning, checkpoint, loop, session
from fathom.train.pretrain import pretrain
from fathom.train.sft import sft
from tests.oracles import tiny_runs

Hook = Callable[[], None]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Where a process may be killed: each hook changes the process that it is called in.


def after_logging(step: int) -> Hook:
    def hook() -> None:
        real = Record.metric

        def metric(self: Record, **values: Any) -> None:
            real(self, **values)
            if values["step"] == step:
                die()

        Record.metric = metric  # type: ignore[method-assign]

    return hook


def in_the_middle_of_a_log_line(step: int) -> Hook:
    def hook() -> None:
        real = Record.metric

        def metric(self: Record, **values: Any) -> None:
            if values["step"] == step:
                with open(self.folder / "metrics.jsonl", "a") as file:
                    file.write('{"step": 7, "lo')
                with open(self.folder / "events.jsonl", "a") as file:
                    file.write('{"event": "sav')
                die()
            real(self, **values)

        Record.metric = metric  # type: ignore[method-assign]

    return hook


def at_sync(n: int) -> Hook:
    """While a checkpoint's files are written: at the n-th of the process's syncs once training has begun."""

    def hook() -> None:
        real, count = os.fsync, 0

        def fsync(handle: int) -> None:
            nonlocal count
            count += 1
            if count == n:
                die()
            real(handle)

        def armed(*arguments: Any, **named: Any) -> Any:
            os.fsync = fsync
            return train(*arguments, **named)

        train, session.train = session.train, armed

    return hook


def before_call(owner: Any, name: str, n: int) -> Hook:
    """Before the n-th call of a function."""

    def hook() -> None:
        real, count = getattr(owner, name), 0

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                die()
            return real(*arguments, **named)

        setattr(owner, name, counted)

    return hook


def while_removing_an_old_checkpoint() -> None:
    real = shutil.rmtree
    loop._is_for_good = lambda *_: False  # or this short run would have none to remove

    def rmtree(folder: Path, **named: Any) -> None:
        files = sorted(folder.glob("*"))
        if files:
            files[0].unlink()
            die()
        real(folder, **named)

    shutil.rmtree = rmtree  # type: ignore[assignment]


def before_it_is_noted_as_finished() -> None:
    real = Record.event

    def event(self: Record, kind: str, **values: Any) -> None:
        if kind == "finished":
            die()
        real(self, kind, **values)

    Record.event = event  # type: ignore[method-assign]


def on_a_disk_that_takes_small_files_only() -> None:
    """Checkpoints no longer fit after the first; the record's lines still do."""
    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        if values["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        real(self, **values)

    Record.metric = metric  # type: ignore[method-assign]


def nothing() -> None:
    pass


# Processes


def train(stage: str, name: str) -> bool:
    """Begin the run or go on with it; whether it came to its end."""
    if stage == "pretrain":
        return pretrain(tiny_runs.pretraining(name=name, resume=True))[1]
    return sft(tiny_runs.fine_tuning(os.environ["CHAT"], name=name, resume=True))[1]


def start(stage: str, name: str, hook: Hook = nothing) -> int:
    """A process that trains; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        hook()
        code = 0 if train(stage, name) else 130
        (home() / "modules").write_text("\n".join(sys.modules))
    except BaseException as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """How it ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_step(name: str, step: int, pid: int) -> None:
    while len(metrics(run_dir(name))) <= step and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.002)


def digest(name: str) -> str:
    result = beginning.finished_result(run_dir(name))
    return "" if result is None else str(result["weights_sha256"])


def trial(stage: str, name: str, *hooks: Hook) -> dict[str, Any]:
    """Processes that each meet their end, then one that nothing disturbs."""
    codes = [end(start(stage, name, hook)) for hook in (*hooks, nothing)]
    return {"codes": codes, "sha256": digest(name), "steps": [line["step"] for line in metrics(run_dir(name))]}


def signalled(stage: str, name: str, number: signal.Signals, step: int) -> dict[str, Any]:
    """A signal from outside, at no exact moment."""
    pid = start(stage, name)
    wait_for_step(name, step, pid)
    os.kill(pid, number)
    code = end(pid)
    return {"code": code, "saved": checkpoint.steps(run_dir(name)), **trial(stage, name)}


def killed_again_and_again(name: str, dice: random.Random) -> dict[str, Any]:
    codes = []
    for _ in range(3):
        pid = start("pretrain", name)
        wait_for_step(name, 0, pid)
        time.sleep(dice.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        codes.append(end(pid))
    return {"kills": codes, **trial("pretrain", name)}


def two_at_once(name: str) -> dict[str, Any]:
    """A second process on a run, while the first is stopped in its tracks; then the first is killed."""
    first = start("pretrain", name)
    wait_for_step(name, 1, first)
    os.kill(first, signal.SIGSTOP)
    second = end(start("pretrain", name))
    os.kill(first, signal.SIGKILL)
    return {"second": second, "first": end(first), **trial("pretrain", name)}


def import_now() -> None:
    """What the first process imported while it trained, so that the others need not."""
    for name in (home() / "modules").read_text().splitlines():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main() -> None:
    torch.set_num_threads(1)
    hardware.peak_flops = lambda device, dtype: (1e12, "not measured")  # type: ignore[assignment]
    tiny_runs.furnish()
    os.environ["CHAT"] = tiny_runs.write_conversations()
    whole = trial("pretrain", "base")
    import_now()
    gc.freeze()  # what the processes have in common none of them needs to look through
    last = tiny_runs.STEPS - 1
    found = {
        "whole": whole,
        "killed before the first checkpoint": trial("pretrain", "a", after_logging(1)),
        "killed between two checkpoints": trial("pretrain", "b", after_logging(4)),
        "killed in the middle of a log line": trial("pretrain", "c", in_the_middle_of_a_log_line(5)),
        "killed while writing weights": trial("pretrain", "d", at_sync(1), at_sync(7)),
        "killed while syncing what was written": trial("pretrain", "e", at_sync(8), at_sync(3), at_sync(4)),
        "killed before the mark": trial("pretrain", "f", before_call(checkpoint, "write_atomic", 4)),
        "killed before the rename": trial("pretrain", "g", before_call(checkpoint, "fsync_folder", 2)),
        "killed before clearing up": trial("pretrain", "h", before_call(checkpoint, "keep", 3)),
        "killed while clearing up": trial("pretrain", "i", while_removing_an_old_checkpoint),
        "killed in the last evaluation": trial("pretrain", "j", before_call(session, "bits_per_byte", 2)),
        "killed before it was finished": trial("pretrain", "k", before_it_is_noted_as_finished),
        "killed at the last step": trial("pretrain", "l", after_logging(last)),
        "killed again and again": killed_again_and_again("m", random.Random(1)),
        "a full disk": trial("pretrain", "n", on_a_disk_that_takes_small_files_only),
        "SIGTERM": signalled("pretrain", "o", signal.SIGTERM, 4),
        "Ctrl-C": signalled("pretrain", "p", signal.SIGINT, 2),
        "two at once": two_at_once("q"),
        "sft whole": trial("sft", "base-sft"),
        "sft killed before the first checkpoint": trial("sft", "sft-a", after_logging(1)),
        "sft killed between two checkpoints": trial("sft", "sft-b", after_logging(4), after_logging(7)),
        "sft killed while writing weights": trial("sft", "sft-c", at_sync(1), at_sync(7)),
        "sft SIGTERM": signalled("sft", "sft-d", signal.SIGTERM, 4),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
