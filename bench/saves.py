"""What checkpoints cost a run: none, beside training, and with training waiting for the disk, in turn.

    python bench/saves.py [--steps 60] [--every 5] [--repeats 3]

Depth 4 of width 256 on the embedded primer, 2,048 tokens a step. A step's time is all that passes from the end of the
one before it to its own end: the copy that a checkpoint begins with is in it. Steps while a checkpoint was on its way,
from the first byte copied to the last one synced, stand beside those of the same run while none was, and a save's cost
is what all the former took longer, by the median of the latter, for each save. The first three steps and the last
checkpoint, which every run has, do not count. Prints JSON: of each way the median over its repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETTLED = 3  # steps after which a run has its pace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "bench")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FATHOM_HOME"] = folder
        from extend import furnish

        furnish()
        found: dict[str, list[dict[str, float]]] = {"none": [], "beside training": [], "training waits": []}
        for repeat in range(options.repeats):
            for way, lines in found.items():
                lines.append(measured(f"{way.replace(' ', '-')}-{repeat}", way, options.steps, options.every))
                print(f"{way}: {lines[-1]}", file=sys.stderr, flush=True)
    middle = {
        way: {key: round(statistics.median(line[key] for line in lines), 4) for key in lines[0]}
        for way, lines in found.items()
    }
    print(json.dumps({"every": options.every, **middle}, indent=1))


def measured(name: str, way: str, steps: int, every: int) -> dict[str, float]:
    from fathom.home import run_dir
    from fathom.record import Record, events
    from fathom.train.pretrain import Pretrain, pretrain
    from fathom.train.saver import Saver

    ended: dict[int, float] = {}
    begun_at: dict[int, float] = {}
    on_disk_at: dict[int, float] = {}
    metric, begin, write = Record.metric, Saver.begin, Saver._write

    def noted(self: Record, **values: Any) -> None:
        metric(self, **values)
        ended[values["step"]] = time.monotonic()

    def begun(self: Saver, step: int, *arguments: Any) -> None:
        begun_at[step] = time.monotonic()
        begin(self, step, *arguments)
        if way == "training waits":
            self.wait()

    def written(self: Saver, done: Any, step: int, *arguments: Any) -> None:
        write(self, done, step, *arguments)
        on_disk_at[step] = time.monotonic()

    Record.metric, Saver.begin, Saver._write = noted, begun, written  # type: ignore[method-assign]
    try:
        pretrain(
            Pretrain(
                corpus="primer",
                tokenizer="primer",
                name=name,
                depth=4,
                head_dim=64,
                seq_len=256,
                window="L",
                batch_tokens=2048,
                steps=steps,
                eval_every=0,
                eval_tokens=2048,
                save_every=str(10**9 if way == "none" else every),
                warmdown_share=0.0,
                compile="off",
                sample=False,
            )
        )
    finally:
        Record.metric, Saver.begin, Saver._write = metric, begin, write  # type: ignore[method-assign]
    saved = [line for line in events(run_dir(name)) if line["event"] == "saved"]
    newest = sorted(run_dir(name).glob("checkpoints/[0-9]*"))[-1]
    return times(ended, [(begun_at[step], on_disk_at[step]) for step in sorted(begun_at) if step < steps]) | {
        "saves": len(saved) - 1,
        "copy_s": statistics.median(line["copy_s"] for line in saved),
        "write_s": statistics.median(line["write_s"] for line in saved),
        "checkpoint_mb": sum(path.stat().st_size for path in newest.iterdir()) / 1e6,
    }


def times(ended: dict[int, float], saves: list[tuple[float, float]]) -> dict[str, float]:
    """Of steps, by when they ended, and of saves, by their beginnings and ends."""
    amid, between = [], []
    for step in range(SETTLED, max(ended) + 1):
        first, last = ended[step - 1], ended[step]
        is_amid = any(begin < last and end > first for begin, end in saves)
        (amid if is_amid else between).append(last - first)
    usual = statistics.median(between or amid)
    found = {
        "step_s": statistics.mean([*amid, *between]),
        "median_step_s": statistics.median([*amid, *between]),
        "median_step_between_saves_s": usual,
    }
    if not amid:
        return found
    return found | {
        "median_step_amid_a_save_s": statistics.median(amid),
        "steps_amid_a_save": len(amid),
        "cost_of_a_save_s": sum(seconds - usual for seconds in amid) / len(saves),
    }


if __name__ == "__main__":
    main()
