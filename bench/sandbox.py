"""The attacks of tests/sandbox_attacks.py against each mechanism of this machine, and what a call costs, as a table.

    python bench/sandbox.py [--calls 50]

A cell says how the attack ended: passed is a program that ran to its end with nothing achieved; the others are limits
that it met, or how it failed. HARM, and exit status 1, where something got through.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sandbox_attacks import ATTACKS
from sandbox_world import World

from fathom.generate.sandbox import Limits
from fathom.generate.sandbox.mechanism import MECHANISMS, Mechanism, missing
from fathom.generate.sandbox.running import execute
from fathom.generate.sandbox.trial import held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=50, help="how many calls the cost is taken from")
    calls = parser.parse_args().calls
    held_here = [mechanism for mechanism in MECHANISMS if _holds(mechanism)]
    harmed = False
    print("| attack |", " | ".join(mechanism.name for mechanism in held_here), "|\n|---|" + "---|" * len(held_here))
    with tempfile.TemporaryDirectory() as folder, World(Path(folder)) as world:
        for attack in ATTACKS:
            cells = []
            for mechanism in held_here:
                outcome, harm = world.attacked(attack, mechanism)
                harmed |= bool(harm)
                cells.append(f"HARM ({', '.join(harm)})" if harm else outcome.why)
            print(f"| {attack.name} |", " | ".join(cells), "|", flush=True)
    print("\n| cost of a call | one after another | at once, one thread a core |\n|---|---|---|")
    for mechanism in held_here:
        print(f"| {mechanism.name} |", " | ".join(f"{s * 1000:.0f} ms" for s in _costs(mechanism, calls)), "|")
    user = "root" if os.getuid() == 0 else "an ordinary user"
    print(f"\nLinux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}, {user}")
    sys.exit(int(harmed))


def _holds(mechanism: Mechanism) -> bool:
    why = missing(mechanism) or held(mechanism)
    if why:
        print(f"{mechanism.name}: {why}", file=sys.stderr)
    return not why


def _costs(mechanism: Mechanism, calls: int) -> list[float]:
    """Seconds of the clock a call takes, in turn and from a pool."""
    costs = []
    for workers in (1, os.cpu_count() or 1):
        started = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda _: execute(mechanism, "print('done')", Limits(), ""), range(calls)))
        costs.append((time.perf_counter() - started) / calls)
    return costs


if __name__ == "__main__":
    main()
