"""A request gets the same numbers to the last bit, whatever runs beside it, ran before it or took its place."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.chain_model import TOKENIZER
from oracles.generation import random_model

from fathom.generate import steady as steady_module
from fathom.generate.engine import Engine
from fathom.generate.pages import PAGE, Pages, chain
from fathom.generate.running import Completion, Event, Request
from fathom.model.gpt import GPT, linear

SIZES = {"n_layer": 2, "n_head": 6, "n_kv_head": 6, "head_dim": 64, "window_pattern": "SL", "seq_len": 640}
WAYS = [(torch.float32, "pages"), (torch.bfloat16, "pages"), (torch.bfloat16, "static")]


@pytest.fixture(scope="module", params=WAYS, ids=["float32", "bfloat16", "bfloat16-static"])
def model(request: pytest.FixtureRequest) -> GPT:
    dtype, way = request.param
    made = random_model(dtype, **SIZES).eval()
    made.way = way
    return made


def new_engine(model: GPT, cache_tokens: int | None = None, max_batch: int = 8) -> Engine:
    return Engine(model, TOKENIZER, max_batch=max_batch, cache_tokens=cache_tokens, decode=model.way)


COMMON = tuple((7 * i + 3) % 256 for i in range(300))


def some_requests(n: int, seed: int = 0) -> list[Request]:
    random = Random(seed)
    requests = []
    for _ in range(n):
        begin = COMMON[: random.choice([0, 0, 100, 300])]
        requests.append(
            Request(
                prompt=(*begin, *(random.randrange(256) for _ in range(random.choice([1, 5, 70, 200])))),
                max_tokens=random.choice([1, 5, 40]),
                temperature=random.choice([0.0, 0.7, 1.5]),
                top_k=random.choice([0, 20]),
                seed=random.randrange(1000),
                stop=frozenset(),
                logprobs=3,
                tools=False,
            )
        )
    return requests


class Quiet(list[Any]):
    """A list that is not printed with every example."""

    def __repr__(self) -> str:
        return f"{len(self)} of them"


@pytest.fixture(scope="module")
def requests() -> Quiet:
    return Quiet(some_requests(16))


@pytest.fixture(scope="module")
def alone(model: GPT, requests: list[Request]) -> Quiet:
    """Each by an engine that saw nothing else."""
    return Quiet(new_engine(model, max_batch=1).generate([request])[0] for request in requests)


def test_in_company(model: GPT, requests: list[Request], alone: list[Completion]) -> None:
    engine = new_engine(model, max_batch=16)
    assert engine.generate(requests) == alone
    assert engine.stats()["prefix_hit_tokens"] > 0


def test_after_each_other_on_shared_pages(model: GPT, requests: list[Request], alone: list[Completion]) -> None:
    engine = new_engine(model, max_batch=1)
    assert [engine.generate([request])[0] for request in reversed(requests)] == alone[::-1]
    before = engine.stats()["prefix_hit_tokens"]
    assert [engine.generate([request])[0] for request in requests] == alone
    hits = engine.stats()["prefix_hit_tokens"] - before
    assert hits >= sum(len(request.prompt) // PAGE * PAGE for request in requests) / 2


def test_preempted_and_resumed(model: GPT, requests: list[Request], alone: list[Completion]) -> None:
    engine = new_engine(model, cache_tokens=640)
    assert engine.generate(requests) == alone
    assert engine.stats()["preemptions"] > 0
    assert engine.stats()["pages_used"] == 0


def test_several_answers_compute_the_prompt_once(model: GPT) -> None:
    engine = new_engine(model)
    samples = [Request(COMMON, max_tokens=5, temperature=1.0, seed=seed, logprobs=0) for seed in range(6)]
    together = engine.generate(samples)
    assert engine.stats()["prefix_hit_tokens"] == 5 * (len(COMMON) // PAGE) * PAGE
    assert [new_engine(model).generate([one])[0] for one in samples] == together
    assert len({completion.ids for completion in together}) > 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_coming_and_going_in_a_small_cache(model: GPT, requests: Quiet, alone: Quiet, seed: int) -> None:
    random = Random(seed)
    engine = new_engine(model, cache_tokens=random.choice([640, 768, 1280]), max_batch=random.choice([2, 4, 16]))
    line = random.sample(range(len(requests)), 10)
    place: dict[int, int] = {}
    said: dict[int, list[Event]] = {}
    cancelled: set[int] = set()
    while line or engine.n_unfinished:
        if line and random.random() < 0.4:
            index = line.pop()
            id = engine.add(requests[index])
            place[id], said[id] = index, []
        if place and random.random() < 0.05:
            gone = random.choice(list(place))
            cancelled.add(gone)
            engine.cancel(gone)
        for event in engine.step():
            assert event.request_id not in cancelled or said[event.request_id][-1].finished
            said[event.request_id].append(event)
    for id, events in said.items():
        whole = alone[place[id]]
        if events and events[-1].finished:
            assert Completion.of(events) == whole
        assert tuple(event.token for event in events) == whole.ids[: len(events)]
    stats = engine.stats()
    assert stats["running"] == stats["waiting"] == stats["pages_used"] == 0
    assert all(pages.n_available == pages.n_page for pages in engine._cache.pages.values())


# What this rests on


def test_the_widths_in_use_agree(model: GPT) -> None:
    steady = steady_module.steady(model)
    assert 32 in steady.said and 32 in steady.heads
    torch.manual_seed(0)
    for weight in model.products():
        for widths in (steady.said, steady.prompts):
            x = torch.randn(widths[-1], weight.shape[1]).to(model.dtype)
            whole = linear(x, weight)
            for width in widths:
                assert torch.equal(linear(x[:width], weight), whole[:width])
    assert steady_module.fitting((1, 4, 16), 3) == 4
    assert steady_module.fitting((1, 4, 16), 40) == 16


def test_widths_that_disagree_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        halves = [part @ other.T for part, other in zip(x.chunk(2, 1), weight.chunk(2, 1), strict=True)]
        by_hand = halves[0] + halves[1]
        return by_hand if len(x) in (1, 64) else by_hand + 1e-7 * (1 + (len(x) == 2) * torch.arange(len(x))[:, None])

    monkeypatch.setattr(steady_module, "linear", product)
    classes = steady_module.alike([torch.ones(8, 6)], torch.float32)
    assert classes == [(1, 64), (2,), tuple(w for w in steady_module.WIDTHS if w not in (1, 2, 64))]


def test_prompts_take_long_passes_with_much_choice() -> None:
    choose = steady_module.for_prompts
    assert choose([(1, 2, 4, 8, 16, 24, 32), (48, 64, 96, 128, 192), (256,), (384, 512)]) == (48, 64, 96, 128, 192)
    assert choose([(1, 2, 4, 8), (16, 24, 32)]) == (16, 24, 32)


def test_pages_are_held_shared_forgotten_and_taken_in_rows() -> None:
    pages = Pages(4)
    digests = chain(range(3 * PAGE))
    assert digests[:2] == chain(range(2 * PAGE + 5)) and len(set(digests)) == 3
    assert chain([1, *range(1, 3 * PAGE)])[2] != digests[2]  # the same page after another one
    first = pages.take()
    assert pages.take(first) == first + 1
    pages.name(first, digests[0])
    pages.hold(first)
    pages.release(first)
    assert pages.find(digests[0]) == first and pages.n_held == 2
    pages.release(first)
    assert pages.find(digests[0]) == first and (pages.n_held, pages.n_idle, pages.n_available) == (1, 1, 3)
    assert {pages.take() for _ in range(3)} >= {first}
    assert pages.find(digests[0]) is None
    with pytest.raises(IndexError, match="every page is held"):
        pages.take()


def test_the_longest_idle_page_goes_first() -> None:
    pages, digests = Pages(3), chain(range(3 * PAGE))
    taken = [pages.take() for _ in range(3)]
    for page, digest in zip(taken, digests, strict=True):
        pages.name(page, digest)
        pages.release(page)
    pages.hold(taken[0])
    pages.release(taken[0])
    assert pages.take() == taken[1]
