"""What checkpoints cost a run: none, beside training, and with training waiting for the disk, in turn.

    python bench/saves.py [--steps 40] [--every 5] [--repeats 3]

Depth 4 of width 256 on the embedded primer, 2,048 tokens a step. The time of a step is that from the third to the last
by their number, saves included; the last checkpoint, which every run has, is not. Prints JSON.
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

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "bench")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
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

    at: dict[int, float] = {}
    metric, begin = Record.metric, Saver.begin

    def noted(self: Record, **values: Any) -> None:
        metric(self, **values)
        at[values["step"]] = time.monotonic()

    def waiting(self: Saver, *arguments: Any) -> None:
        begin(self, *arguments)
        self.wait()

    Record.metric = noted  # type: ignore[method-assign]
    Saver.begin = waiting if way == "training waits" else begin  # type: ignore[method-assign]
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
        Record.metric, Saver.begin = metric, begin  # type: ignore[method-assign]
    saved = [line for line in events(run_dir(name)) if line["event"] == "saved"]
    newest = sorted(run_dir(name).glob("checkpoints/[0-9]*"))[-1]
    return {
        "step_s": (at[steps - 1] - at[2]) / (steps - 3),
        "saves": len(saved) - 1,
        "copy_s": statistics.median(line["copy_s"] for line in saved),
        "write_s": statistics.median(line["write_s"] for line in saved),
        "checkpoint_mb": sum(path.stat().st_size for path in newest.iterdir()) / 1e6,
    }


if __name__ == "__main__":
    main()
