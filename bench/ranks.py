"""How far the weights of a run on several ranks are from those of one process.

    python bench/ranks.py [--ranks 2 4] [--steps 20]

A small network trains for `--steps` steps in one process, is stopped, and goes on from that checkpoint for as many
steps again: in one process, and on gloo ranks with the weights whole on each, split over all, and over half of them.
Everything is float32. Each is compared with one process whose step is one micro-batch; those whose ranks hold whole
weights also with one that has as many micro-batches as all ranks together, where a rank has one of them, and two. That
also from a fresh start, whose scalars have gradients of zero but for rounding, which AdamW divides by their own size.
Prints one JSON object: the largest difference of any weight by its norm, and of any number by its weight's largest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

ROWS = 8
SIZE: dict[str, Any] = {"depth": 3, "batch_tokens": 256, "eval_every": 0, "save_every": "1000", "resume": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FATHOM_HOME": folder, "OMP_NUM_THREADS": "1"}
        print(json.dumps(measured(options.ranks, options.steps), indent=1))


def measured(ranks: list[int], steps: int) -> dict[str, dict[str, float]]:
    from tests.oracles import tiny_runs

    tiny_runs.furnish()
    goes_on, fresh = SIZE | {"steps": 2 * steps}, SIZE | {"steps": steps}
    launched(1, {"base": goes_on}, f"stop 0 {steps - 1}")
    pieces = sorted({1, *ranks, *(2 * n for n in ranks)})  # micro-batches of a step, in all
    launched(1, {f"one-{n}": goes_on | rows(n) for n in pieces} | {f"fresh-one-{n}": fresh | rows(n) for n in pieces})
    found = {}
    for n in ranks:
        split = {"shard_model": True}
        ways = {f"whole-{n}": rows(n), f"two-each-{n}": rows(2 * n), f"split-{n}": split}
        if n > 2:
            ways |= {f"half-{n}": split | {"shard_within": n // 2}}
        launched(n, {name: goes_on | way for name, way in ways.items()} | {f"fresh-{n}": fresh | rows(n)})
        found |= {name: difference("one-1", name) for name in ways if name != f"two-each-{n}"}
        pairs = (("one", n, "whole"), ("one", 2 * n, "two-each"), ("fresh-one", n, "fresh"))
        found |= {f"{way}-{n} beside {one}-{m}": difference(f"{one}-{m}", f"{way}-{n}") for one, m, way in pairs}
    return found


def rows(pieces: int) -> dict[str, int]:
    """A micro-batch of so many that make up a step."""
    return {"device_batch": ROWS // pieces}


def launched(n: int, runs: dict[str, dict[str, Any]], words: str = "") -> None:
    """All but the fresh ones go on from "base", once that is there."""
    from fathom.home import run_dir

    for name in runs:
        if run_dir("base").exists() and not name.startswith("fresh"):
            shutil.copytree(run_dir("base"), run_dir(name))
    trials = [[name, run, words] for name, run in runs.items()]
    command = [sys.executable, "-m", "tests.oracles.ranked_runs", str(n), json.dumps(trials)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}, check=True, stdout=2)


def difference(run: str, other: str) -> dict[str, float]:
    from fathom.model.gpt import GPT
    from fathom.model.shape import Shape
    from fathom.record import read_config
    from fathom.train import checkpoint

    def weights(name: str) -> dict[str, Any]:
        model = GPT(Shape(**read_config(name)["model"]))
        checkpoint.load(checkpoint.find(name), {"model": model.state_dict()})
        return model.double().state_dict()

    here, there = weights(run), weights(other)
    by_norm = max(float((here[k] - there[k]).norm() / here[k].norm()) for k in here)
    by_number = max(float((here[k] - there[k]).abs().max() / here[k].abs().max()) for k in here)
    return {"by_norm": float(f"{by_norm:.2e}"), "by_number": float(f"{by_number:.2e}")}


if __name__ == "__main__":
    main()
