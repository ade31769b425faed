"""Kill runs at random moments, resume them, and compare their final weights with those of a run that nothing disturbed.

    python bench/kills.py [--kills 200] [--seed 1]

Short runs of a tiny network, pretraining and fine-tuning in turn, a checkpoint every third step. Each is started and
cut off again and again, at moments spread evenly over its time, until one start comes to the end. How it is cut off:
SIGKILL (most), SIGTERM, a disk that takes no large file from a random step on; after some kills files are torn besides:
the last bytes of the record, files of a save that was under way, or one of the newest checkpoint's. Prints one JSON
object; a run counts as lost when it does not come to its end, as differing when its weights do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

MOST_STARTS = 60
WAYS = {"SIGKILL": 0.75, "SIGTERM": 0.15, "full disk": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FATHOM_HOME"] = folder
        os.environ["OMP_NUM_THREADS"] = "1"
        print(json.dumps(trials(options.kills, random.Random(options.seed)), indent=1))


def trials(kills: int, dice: random.Random) -> dict[str, object]:
    import torch

    from fathom import hardware
    from tests.oracles import interrupted_runs as forked
    from tests.oracles import tiny_runs

    torch.set_num_threads(1)
    hardware.peak_flops = lambda device, dtype: (1e12, "not measured")  # type: ignore[assignment]
    tiny_runs.furnish()
    os.environ["CHAT"] = tiny_runs.write_conversations()
    expected, lasts = {}, {}
    for stage, name in (("pretrain", "base"), ("sft", "base-sft")):
        forked.trial(stage, name)
        forked.import_now()
        gc.freeze()
        expected[stage] = forked.digest(name)
        began = time.monotonic()
        forked.trial(stage, f"timed-{stage}")
        lasts[stage] = time.monotonic() - began
    ways: Counter[str] = Counter()
    runs, lost, differing = Counter[str](), [], []
    began = time.monotonic()
    while (done := sum(ways[way] for way in WAYS)) < kills:
        stage = ("pretrain", "sft")[sum(runs.values()) % 2]
        name = f"{stage}-{sum(runs.values())}"
        runs[stage] += 1
        for _ in range(MOST_STARTS):
            if cut_off(forked, stage, name, lasts[stage], dice, ways):
                break
        digest = forked.digest(name)
        if not digest:
            lost.append(name)
        elif digest != expected[stage]:
            differing.append(name)
        print(f"{done} kills, {sum(runs.values())} runs", file=sys.stderr, flush=True)
    return {
        "kills": done,
        "by": dict(ways),
        "runs": dict(runs),
        "lost_runs": lost,
        "differing_weights": differing,
        "seconds": round(time.monotonic() - began),
        "whole_run_s": {stage: round(seconds, 2) for stage, seconds in lasts.items()},
    }


def cut_off(forked, stage: str, name: str, lasts: float, dice: random.Random, ways: Counter[str]) -> bool:  # type: ignore[no-untyped-def]
    """Start the run or go on with it, and end it early; whether it came to its end before that."""
    way = dice.choices(list(WAYS), list(WAYS.values()))[0]
    small, from_step = dice.randrange(4_000, 60_000), dice.randrange(9)
    pid = forked.start(stage, name, full_disk(small, from_step) if way == "full disk" else forked.nothing)
    deadline = time.monotonic() + dice.uniform(0, 1.2 * lasts)
    while way != "full disk" and time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return bool(forked.digest(name))
        time.sleep(0.001)
    if way != "full disk":
        os.kill(pid, signal.SIGKILL if way == "SIGKILL" else signal.SIGTERM)
    code = forked.end(pid)
    if code == 0:  # it was done a moment before
        return True
    ways[way] += 1
    if way == "SIGKILL" and dice.random() < 0.3:
        tear(name, dice, ways)
    return False


def full_disk(most_bytes: int, from_step: int):  # type: ignore[no-untyped-def]
    """From a step on no file may grow beyond a few kilobytes: checkpoints fail, at the end the last one too."""

    def hook() -> None:
        from fathom.record import Record

        real = Record.metric

        def metric(self: Record, **values: object) -> None:
            if values["step"] == from_step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            real(self, **values)

        Record.metric = metric  # type: ignore[method-assign, assignment]

    return hook


def tear(name: str, dice: random.Random, ways: Counter[str]) -> None:
    """What a power loss may leave: files that end too early."""
    from fathom.home import run_dir

    folder = run_dir(name)
    kinds = {
        "torn record": [folder / "metrics.jsonl", folder / "events.jsonl"],
        "torn save": [path for path in folder.glob("checkpoints/.*.partial/*") if path.is_file()],
        "torn checkpoint": [path for path in sorted(folder.glob("checkpoints/[0-9]*"))[-1:] for path in path.iterdir()],
    }
    kind = dice.choice(list(kinds))
    files = [path for path in kinds[kind] if path.exists() and path.stat().st_size]
    saved = len(list(folder.glob("checkpoints/[0-9]*/COMPLETE")))
    if not files or (kind == "torn checkpoint" and saved < 2):
        return
    path = dice.choice(files)
    size = path.stat().st_size
    os.truncate(path, size - min(size, dice.randrange(1, 40)) if kind == "torn record" else dice.randrange(size))
    ways[kind] += 1


if __name__ == "__main__":
    main()
