"""Mixed load on `fathom serve` for a while, with clients that leave in the middle: memory, cache pages, wrong answers.

    python bench/serve_load.py RUN [--minutes 60] [--clients 12] [--seed 1] [--preempt]

Every client asks again and again, drawn by the seed: greedy answers, whole and streamed, which are compared with what
a server with a single place says to the same prompt; sampled ones with and without log-probabilities, several answers
at once, second turns, JSON; and one in four leaves before its answer is whole. Loopback only, bounded in time.

With --preempt the server's cache holds no more than one request may have, and greedy answers go on for half the
context, so requests are put back in line all the time.

Prints one JSON object: requests by kind and status, aborted ones, wrong answers, resident memory (MB) over time, what
the engine still holds when all is done, and in what the server fell short; exit status 1 where it did. With --preempt
it falls short too where nobody was put back.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from fathom.tokenizer import SPECIALS  # noqa: E402
from tests.oracles.served_run import ServedRun  # noqa: E402

CHAT = "/v1/chat/completions"
WORDS = ["the", "sun", "is", "warm", "and", "a", "cat", "sat", "on", "red", "mat", "rain", "what", "who", "why"]
N_PROMPTS = 40
SAMPLES = 60
HELD = ("open", "running", "waiting", "pages_used")
"""What has to be nothing when nobody asks any more."""


def conversations(dice: random.Random, n: int = N_PROMPTS) -> list[list[dict[str, str]]]:
    """Prompts of one turn and of two; one in four begins like the others of its kind, for more than a page."""
    found: list[list[dict[str, str]]] = []
    for number in range(n):
        words = " ".join(dice.choices(WORDS, k=dice.randint(2, 25)))
        begin = " ".join(WORDS * 3) + " " if number % 4 == 1 else ""
        messages = [{"role": "user", "content": begin + words}]
        if number % 3 == 0:
            messages += [{"role": "assistant", "content": "the cat sat"}, {"role": "user", "content": "and then"}]
        found.append(messages)
    return found


def greedy(max_tokens: int) -> dict[str, Any]:
    """How greedy answers are asked for."""
    return {"temperature": 0, "max_tokens": max_tokens}


def long_greedy(run: dict[str, Any]) -> dict[str, Any]:
    """The same, for half the context of a run (as /v1/fathom/run tells): what would end an answer is kept away."""
    first = run["vocab_size"] - len(SPECIALS)
    ends = [first + SPECIALS.index(name) for name in ("<|bos|>", "<|assistant_end|>")]
    return greedy(run["seq_len"] // 2) | {"logit_bias": {str(id): -100 for id in ends}}


def answers_alone(server: Any, asked: list[list[dict[str, str]]], how: dict[str, Any]) -> list[str]:
    """What a server says that has a single place."""
    return [server.post(CHAT, how | {"messages": one})["choices"][0]["message"]["content"] for one in asked]


class Load:
    """Clients of a server, and what they found."""

    def __init__(self, server: Any, right: list[str], asked: list[list[dict[str, str]]], how: dict[str, Any]) -> None:
        """`server` has `ask` and `port`; `right` is what it has to say to `asked`, asked for as `how` says."""
        self.server, self.right, self.asked, self.how = server, right, asked, how
        self.counts: Counter[str] = Counter()
        self.wrong: list[dict[str, str]] = []
        self._lock = threading.Lock()

    @property
    def n_compared(self) -> int:
        return sum(n for kind, n in self.counts.items() if kind.startswith("greedy") and kind.endswith(" 200"))

    def client(self, seed: int, turns: Iterable[Any]) -> None:
        dice = random.Random(seed)
        kinds = [self.greedy, self.greedy_streamed, self.sampled, self.leaving]
        for _ in turns:
            kind = dice.choice(kinds)
            try:
                told = kind(dice)
            except OSError as error:
                told = type(error).__name__
            with self._lock:
                self.counts[f"{kind.__name__} {told}"] += 1

    def greedy(self, dice: random.Random) -> str:
        place = dice.randrange(len(self.asked))
        status, content = self.server.ask("POST", CHAT, self._greedy(place))
        if status == 200:
            self._compare(place, json.loads(content)["choices"][0]["message"]["content"])
        return str(status)

    def greedy_streamed(self, dice: random.Random) -> str:
        place = dice.randrange(len(self.asked))
        status, content = self.server.ask("POST", CHAT, self._greedy(place) | {"stream": True})
        lines = [line[6:] for line in content.decode().splitlines() if line.startswith("data: {")]
        if status == 200:
            deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
            self._compare(place, "".join(delta.get("content") or "" for delta in deltas))
        return str(status)

    def sampled(self, dice: random.Random) -> str:
        max_tokens = dice.randint(1, self.how["max_tokens"])
        body: dict[str, Any] = {"messages": dice.choice(self.asked), "max_tokens": max_tokens}
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
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=120) as connection:
            connection.sendall(head + content)
            if stream:
                for _ in range(dice.randrange(4)):
                    connection.recv(2000)
            else:
                time.sleep(dice.random() * 0.2)
        return "left"

    def _greedy(self, place: int) -> dict[str, Any]:
        return self.how | {"messages": self.asked[place]}

    def _compare(self, place: int, found: str) -> None:
        if found != self.right[place]:
            with self._lock:
                self.wrong.append({"right": self.right[place], "found": found})


def settled(server: Any) -> dict[str, float]:
    """What the engine holds once nothing is asked any more, and what it counted."""
    names = (*HELD, "pages_cached", "preemptions", "prefix_hit_tokens", "generated_tokens")
    for _ in range(200):
        found = {name: server.metric(f"fathom_engine_{name}") for name in names}
        if not (found["open"] or found["running"] or found["waiting"]):
            break
        time.sleep(0.1)
    return found


def shortcomings(load: Load, held: dict[str, float], failures: float, preempt: bool) -> list[str]:
    """In what a server fell short under a load, in words; none where it passed."""
    refused = sorted(kind for kind in load.counts if kind.split()[-1] not in ("200", "429", "left"))
    found = [
        (load.wrong, f"{len(load.wrong):,} of {load.n_compared:,} greedy answers are not those of a single request"),
        (not load.n_compared, "no greedy answer was compared"),
        (refused, f"requests failed: {', '.join(refused)}"),
        (failures, f"the engine failed {failures:g} times"),
        (any(held[name] for name in HELD), "something is still held when nobody asks any more"),
        (preempt and not held["preemptions"], "no request was put back in line: preemption was not tested"),
    ]
    return [words for wrong, words in found if wrong]


def until(end: float) -> Iterator[None]:
    while time.monotonic() < end:
        yield


def bear(server: ServedRun, load: Load, given: argparse.Namespace) -> list[float]:
    """Let the clients ask for the given time. The server's memory meanwhile, MB."""
    end = time.monotonic() + 60 * given.minutes
    threads = [
        threading.Thread(target=load.client, args=(given.seed * 1000 + i, until(end))) for i in range(given.clients)
    ]
    for thread in threads:
        thread.start()
    memory = [server.rss_mb()]
    for _ in until(end):
        time.sleep(60 * given.minutes / SAMPLES)
        memory.append(server.rss_mb())
    for thread in threads:
        thread.join(120)
    return memory


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run")
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--clients", type=int, default=12)
    options.add_argument("--max-tokens", type=int, default=48)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--cache-tokens", type=int, default=0, help="of the server; by default the engine's choice")
    options.add_argument("--preempt", action="store_true", help="the smallest cache, and long answers")
    given = options.parse_args()
    asked = conversations(random.Random(given.seed))
    with ServedRun(given.run, "--max-batch", "1") as alone:
        run = json.loads(alone.ask("GET", "/v1/fathom/run")[1])
        how = long_greedy(run) if given.preempt else greedy(given.max_tokens)
        right = answers_alone(alone, asked, how)
    cache_tokens = run["seq_len"] if given.preempt else given.cache_tokens
    with ServedRun(given.run, "--max-batch", "8", "--cache-tokens", str(cache_tokens)) as server:
        load = Load(server, right, asked, how)
        memory = bear(server, load, given)
        held = settled(server)
        failures = server.metric("fathom_engine_failures_total")
        said = server.end()
    short = shortcomings(load, held, failures, given.preempt)
    if said.status:
        short.append(f"the server ended with status {said.status}")
    result = {
        "minutes": given.minutes,
        "clients": given.clients,
        "preempt": given.preempt,
        "cache_tokens": cache_tokens,
        "requests": sum(load.counts.values()),
        "by_kind_and_status": dict(sorted(load.counts.items())),
        "greedy_answers_compared": load.n_compared,
        "wrong_answers": len(load.wrong),
        "wrong": load.wrong[:3],
        "rss_mb": memory,
        "at_the_end": held,
        "engine_failures": failures,
        "exit_status": said.status,
        "screen": said.lines,
        "passed": not short,
        "fell_short": short,
    }
    print(json.dumps(result, indent=1))
    sys.exit(bool(short))


if __name__ == "__main__":
    main()
