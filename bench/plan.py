"""What `fathom plan` says of short runs on this machine, beside what they then take.

    python bench/plan.py [--steps 30] [--all] [--repeats 3]

Trains small networks on the primer, each in a process of its own, and prints planned and measured time and peak memory
as one JSON object. Nothing else should run meanwhile. Where others share the machine its pace changes from minute to
minute: several repeats, plan and run in turn, tell how far that goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = (
    {"depth": 4, "head-dim": 64, "seq-len": 256, "window": "L", "batch-tokens": 8192},
    {"depth": 6, "head-dim": 64, "seq-len": 512, "window": "L", "batch-tokens": 4096},
    {"depth": 4, "head-dim": 64, "seq-len": 1024, "window": "SSSL", "batch-tokens": 16384, "device-batch": 8},
    {"depth": 8, "head-dim": 64, "seq-len": 256, "window": "L", "batch-tokens": 4096},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--all", action="store_true", help="all four shapes instead of the first two")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        python(folder, PREPARE)
        for number, sizes in enumerate(RUNS if options.all else RUNS[:2]):
            words = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
            words += ["--steps", str(options.steps)]
            pairs = [planned_and_trained(folder, f"r{number}-{repeat}", words) for repeat in range(options.repeats)]
            seconds = [compared(3600 * plan["hours"], run["seconds"]) for plan, run in pairs]
            memory = compared(pairs[0][0]["memory_gb"], max(run["peak_memory_gb"] for _, run in pairs))
            middle = round(statistics.median(one["ratio"] for one in seconds), 3)
            found.append({"sizes": sizes, "seconds": seconds, "median_ratio": middle, "memory_gb": memory})
            print(found[-1], file=sys.stderr, flush=True)
    print(json.dumps({"runs": found}, indent=1))


def planned_and_trained(folder: str, name: str, words: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    plan = fathom(folder, "plan", *words, "--vocab", "1024", "--probe")
    run = ["pretrain", "--corpus", "primer", "--tokenizer", "t", "--run", name, "--eval-every", "0"]
    return plan, fathom(folder, *run, "--eval-tokens", "8192", "--no-sample", *words)


def compared(planned: float, measured: float) -> dict[str, float]:
    return {"planned": round(planned, 2), "measured": measured, "ratio": round(planned / measured, 3)}


PREPARE = """
from fathom import tokenizer
from fathom.data import primer
from fathom.data.corpus import write_corpus
from fathom.home import tokenizer_dir

corpus = write_corpus("primer", primer.documents(1, 2_000_000), primer.documents(2, 50_000), source="embedded")
tokenizer.train(corpus.documents("train"), 1024).save(tokenizer_dir("t"), origin={"corpus": "primer"})
"""


def fathom(folder: str, *words: str) -> dict[str, float]:
    return json.loads(python(folder, "from fathom.cli import main; main()", *words, "--json"))


def python(folder: str, code: str, *words: str) -> str:
    env = os.environ | {"FATHOM_HOME": folder, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
