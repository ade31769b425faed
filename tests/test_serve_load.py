"""bench/serve_load.py in miniature: crowds whose clients leave, on a cache that holds one request and no more."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

import pytest
from oracles.generation import random_model
from oracles.tiny_runs import texts
from serving_world import World, served

from bench import serve_load
from fathom import tokenizer as tokenizers

TOKENIZER = tokenizers.train(texts(60), 300)
MODEL = random_model(vocab_size=TOKENIZER.vocab_size, seq_len=256, n_layer=2, window_pattern="SL")
ASKED = serve_load.conversations(random.Random(1), 9)


class Asked:
    """A server as the bench asks it."""

    def __init__(self, world: World) -> None:
        self.port, self.metric = world.port, world.metric
        self._world = world

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        status, _, content = self._world.ask(method, path, body, timeout_s=300)
        return status, content

    def post(self, path: str, body: Any) -> Any:
        status, answer = self._world.post(path, body)
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def how() -> dict[str, Any]:
    with served(MODEL, TOKENIZER) as world:
        return serve_load.long_greedy(world.get("/v1/fathom/run")[1])


@pytest.fixture(scope="module")
def right(how: dict[str, Any]) -> list[str]:
    with served(MODEL, TOKENIZER, max_batch=1) as world:
        return serve_load.answers_alone(Asked(world), ASKED, how)


def under_load(right: list[str], how: dict[str, Any], n_client: int, turns: int, **options: Any) -> tuple[Any, ...]:
    """(the load, what the engine still holds, how often it failed)"""
    with served(MODEL, TOKENIZER, max_batch=8, **options) as world:
        server = Asked(world)
        load = serve_load.Load(server, right, ASKED, how)
        threads = [threading.Thread(target=load.client, args=(seed, range(turns))) for seed in range(n_client)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return load, serve_load.settled(server), world.metric("fathom_engine_failures_total")


def test_answers_of_preempted_requests_are_those_of_a_request_alone(right: list[str], how: dict[str, Any]) -> None:
    load, held, failures = under_load(right, how, n_client=6, turns=3, cache_tokens=MODEL.shape.seq_len)
    assert len(set(right)) > 1 and all(len(TOKENIZER.encode(answer)) > 64 for answer in right)
    assert load.n_compared > 4 and load.wrong == []
    assert held["preemptions"] > 3 and held["pages_used"] == 0 and held["prefix_hit_tokens"] > 0
    assert serve_load.shortcomings(load, held, failures, preempt=True) == []


def test_the_bench_does_not_pass_what_it_did_not_test(right: list[str], how: dict[str, Any]) -> None:
    load, held, failures = under_load(right, how, n_client=1, turns=6)
    assert held["preemptions"] == 0 and serve_load.shortcomings(load, held, failures, preempt=False) == []
    assert serve_load.shortcomings(load, held, failures, preempt=True) == [
        "no request was put back in line: preemption was not tested"
    ]
    load.wrong.append({"right": "this", "found": "that"})
    load.counts = Counter({"greedy 200": 1, "sampled 503": 2, "leaving left": 3})
    assert serve_load.shortcomings(load, held | {"pages_used": 2.0}, 1, preempt=False) == [
        "1 of 1 greedy answers are not those of a single request",
        "requests failed: sampled 503",
        "the engine failed 1 times",
        "something is still held when nobody asks any more",
    ]
