"""How far the weights of a run on several ranks are from those of one process.

    python bench/ranks.py [--ranks 1 2 4] [--steps 20]

A small network trains for `--steps` steps in one process, is stopped, and goes on from that checkpoint for as many
steps again: in one process, and on gloo ranks with the weights whole on each, split over all, and over half of them.
Everything is float32. Also from a fresh start, where one process is split into micro-batches as ranks are: a fresh
network's scalars have gradients of zero, which AdamW divides by their own size, so that rounding alone moves them.
Prints one JSON object: the largest difference of any weight by its norm, and of any number by its weight's largest.
"""

from __future__ import annotations

import argparse
import json
import os
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
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FATHOM_HOME": folder, "OMP_NUM_THREADS": "1"}
        print(json.dumps(measured(options.ranks, options.steps), indent=1))


def measured(ranks: list[int], steps: int) -> dict[str, dict[str, float]]:
    import shutil

    from fathom.home import run_dir
    from tests.oracles import tiny_runs

    tiny_runs.furnish()
    goes_on, fresh = SIZE | {"steps": 2 * steps}, SIZE | {"steps": steps}
    alone = [[f"alone-{n}", fresh | {"device_batch": ROWS // n}, ""] for n in ranks]
    launched(1, [["base", goes_on, f"stop 0 {steps - 1}"], *alone])
    found = {}
    for n in ranks:
        ways: dict[str, dict[str, Any]] = {"whole": {}}
        if n > 1:
            ways |= {"split": {"shard_model": True}}
        if n > 2:
            ways |= {"split over half": {"shard_model": True, "shard_within": n // 2}}
        trials = [[f"{way} {n}".replace(" ", "-"), goes_on | changes, ""] for way, changes in ways.items()]
        for name, *_ in trials:
            shutil.copytree(run_dir("base"), run_dir(name))
        launched(n, [*trials, [f"fresh-{n}", fresh | {"device_batch": ROWS // n}, ""]])
        found |= {name: difference("whole-1", name) for name, *_ in trials}
        found |= {f"fresh-{n}": difference(f"alone-{n}", f"fresh-{n}")}
    return found


def launched(n: int, trials: list[Any]) -> None:
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
