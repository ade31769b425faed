"""Malformed requests against `fathom serve`: what it answers, and that it goes on.

    python bench/fuzz_api.py RUN [--requests 10000] [--seed 1]

Starts the server of a run on a loopback port and sends it requests whose fields, bytes or heads are wrong
(tests/oracles/malformed.py), one after another. Prints one JSON object: how many answers had which status (0: the
connection just ended, or the server waits for more of a torn head), whether it still answers as before, its resident
memory before and after, and what it printed on the screen.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.oracles.malformed import malformed, status_of  # noqa: E402
from tests.oracles.served_run import ServedRun  # noqa: E402

PROBE = {"prompt": "the sun", "max_tokens": 8, "temperature": 0}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run")
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    dice = random.Random(given.seed)
    with ServedRun(given.run, "--max-tokens", "8", "--patience", "3") as server:
        before, rss = server.post("/v1/completions", PROBE), server.rss_mb()
        began = time.monotonic()
        found = Counter(status_of(server.port, malformed(dice)) for _ in range(given.requests))
        seconds = time.monotonic() - began
        after = server.post("/v1/completions", PROBE)
        result = {
            "requests": given.requests,
            "seconds": round(seconds, 1),
            "by_status": {str(status): count for status, count in sorted(found.items())},
            "answers_as_before": before["choices"][0]["text"] == after["choices"][0]["text"],
            "engine_failures": server.metric("fathom_engine_failures_total"),
            "open_at_the_end": server.metric("fathom_engine_open"),
            "rss_mb": [rss, server.rss_mb()],
        }
        said = server.end()
        result |= {"exit_status": said.status, "lines_on_the_screen": said.lines}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
