"""Mixed load on `fathom serve` for a while, with clients that leave in the middle: memory, cache pages, wrong answers.

    python bench/serve_load.py RUN [--minutes 60] [--clients 12] [--seed 1]

Every client asks again and again, drawn by the seed: greedy answers, whole and streamed, which are compared with what
a server with a single place says to the same prompt; sampled ones with and without log-probabilities, several answers
at once, second turns, JSON; and one in four leaves before its answer is whole. Loopback only, bounded in time.
Prints one JSON object: requests by kind and status, aborted ones, wrong answers, resident memory (MB) over time, and
what the engine still holds when all is done.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.oracles.served_run import ServedRun  # noqa: E402

CHAT = "/v1/chat/completions"
WORDS = ["the", "sun", "is", "warm", "and", "a", "cat", "sat", "on", "red", "mat", "rain", "what", "who", "why"]
N_PROMPTS = 40
SAMPLES = 60


def conversations(dice: random.Random) -> list[list[dict[str, str]]]:
    """Prompts of one turn and of two."""
    found: list[list[dict[str, str]]] = []
    for number in range(N_PROMPTS):
        words = " ".join(dice.choices(WORDS, k=dice.randint(2, 25)))
        messages = [{"role": "user", "content": words}]
        if number % 3 == 0:
            messages += [{"role": "assistant", "content": "the cat sat"}, {"role": "user", "content": "and then"}]
        found.append(messages)
    return found


class Load:
    """Clients that ask until the time is up."""

    def __init__(self, server: ServedRun, right: list[str], asked: list[list[dict[str, str]]], max_tokens: int) -> None:
        self.server, self.right, self.asked, self.max_tokens = server, right, asked, max_tokens
        self.counts: Counter[str] = Counter()
        self.wrong: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def client(self, seed: int, until: float) -> None:
        dice = random.Random(seed)
        kinds = [self.greedy, self.greedy_streamed, self.sampled, self.leaving]
        while time.monotonic() < until:
            kind = dice.choice(kinds)
            try:
                told = kind(dice)
            except OSError as error:
                told = type(error).__name__
            with self._lock:
                self.counts[f"{kind.__name__} {told}"] += 1

    def greedy(self, dice: random.Random) -> str:
        place = dice.randrange(N_PROMPTS)
        status, content = self.server.ask("POST", CHAT, self._greedy(place))
        if status == 200:
            self._compare(place, json.loads(content)["choices"][0]["message"]["content"])
        return str(status)

    def greedy_streamed(self, dice: random.Random) -> str:
        place = dice.randrange(N_PROMPTS)
        status, content = self.server.ask("POST", CHAT, self._greedy(place) | {"stream": True})
        lines = [line[6:] for line in content.decode().splitlines() if line.startswith("data: {")]
        if status == 200:
            deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
            self._compare(place, "".join(delta.get("content") or "" for delta in deltas))
        return str(status)

    def sampled(self, dice: random.Random) -> str:
        body: dict[str, Any] = {"messages": dice.choice(self.asked), "max_tokens": dice.randint(1, self.max_tokens)}
        body |= dice.choice(
            [
                {"n": 3, "temperature": 1.2},
                {"logprobs": True, "top_logprobs": 3},
                {"response_format": {"type": "json_object"}},
                {"repetition_penalty": 1.3, "stop": ["cat"], "min_p": 0.05},
            ]
        )
        return str(self.server.ask("POST", CHAT, body)[0])

    def leaving(self, dice: random.Random) -> str:
        """Ask for a long answer and go, before or in the middle of it."""
        stream = dice.random() < 0.7
        body = {"messages": dice.choice(self.asked), "stream": stream, "n": dice.choice([1, 1, 4])}
        content = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as connection:
            connection.sendall(head + content)
            if stream:
                for _ in range(dice.randrange(4)):
                    connection.recv(2000)
            else:
                time.sleep(dice.random() * 0.2)
        return "left"

    def _greedy(self, place: int) -> dict[str, Any]:
        return {"messages": self.asked[place], "temperature": 0, "max_tokens": self.max_tokens}

    def _compare(self, place: int, found: str) -> None:
        if found != self.right[place]:
            with self._lock:
                self.wrong.append({"right": self.right[place], "found": found})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run")
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--clients", type=int, default=12)
    options.add_argument("--max-tokens", type=int, default=48)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--cache-tokens", type=int, default=0, help="of the server; few make it preempt")
    given = options.parse_args()
    asked = conversations(random.Random(given.seed))
    with ServedRun(given.run, "--max-batch", "1") as alone:
        right = [
            alone.post(CHAT, {"messages": one, "temperature": 0, "max_tokens": given.max_tokens})["choices"][0][
                "message"
            ]["content"]
            for one in asked
        ]
    with ServedRun(given.run, "--max-batch", "8", "--cache-tokens", str(given.cache_tokens)) as server:
        load = Load(server, right, asked, given.max_tokens)
        until = time.monotonic() + 60 * given.minutes
        threads = [
            threading.Thread(target=load.client, args=(given.seed * 1000 + i, until)) for i in range(given.clients)
        ]
        for thread in threads:
            thread.start()
        memory = [server.rss_mb()]
        while time.monotonic() < until:
            time.sleep(60 * given.minutes / SAMPLES)
            memory.append(server.rss_mb())
        for thread in threads:
            thread.join(120)
        held = settled(server)
        failures = server.metric("fathom_engine_failures_total")
        said = server.end()
    total = sum(load.counts.values())
    print(
        json.dumps(
            {
                "minutes": given.minutes,
                "clients": given.clients,
                "requests": total,
                "by_kind_and_status": dict(sorted(load.counts.items())),
                "greedy_answers_compared": sum(
                    n for kind, n in load.counts.items() if kind.startswith("greedy") and kind.endswith(" 200")
                ),
                "wrong_answers": len(load.wrong),
                "wrong": load.wrong[:3],
                "rss_mb": memory,
                "at_the_end": held,
                "engine_failures": failures,
                "exit_status": said.status,
                "screen": said.lines,
            },
            indent=1,
        )
    )


def settled(server: ServedRun) -> dict[str, float]:
    """What the engine holds once nothing is asked any more."""
    names = ("open", "running", "waiting", "pages_used", "pages_cached", "preemptions", "prefix_hit_tokens")
    for _ in range(200):
        found = {name: server.metric(f"fathom_engine_{name}") for name in names}
        if not (found["open"] or found["running"] or found["waiting"]):
            break
        time.sleep(0.1)
    return found


if __name__ == "__main__":
    main()
