"""The engine: what a request says alone, by the slow oracle, it says in any company; tools, text, ends, bad input."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from oracles.chain_model import TOKENIZER, Chain, saying
from oracles.generation import answer, random_model

from fathom.data.conversations import parse_reply
from fathom.errors import FathomError
from fathom.generate import engine as engine_module
from fathom.generate.engine import Engine
from fathom.generate.running import Completion, Event, Request
from fathom.model.gpt import GPT

NOTHING_STOPS = frozenset[int]()


def special(name: str) -> int:
    return int(TOKENIZER.special(f"<|{name}|>"))


# Against the plain forward pass


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(seq_len=200)


def some_requests(n: int, seed: int = 0) -> list[Request]:
    random = Random(seed)
    return [
        Request(
            prompt=tuple(random.randrange(256) for _ in range(random.choice([1, 3, 20, 70, 150]))),
            max_tokens=random.choice([1, 4, 9, 20]),
            temperature=random.choice([0.0, 0.0, 0.8]),
            top_k=random.choice([0, 20]),
            seed=random.randrange(1000),
            stop=NOTHING_STOPS,
            tools=False,
        )
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def answers(model: GPT) -> list[tuple[int, ...]]:
    return [tuple(answer(model, request, 200)) for request in some_requests(14)]


@pytest.mark.parametrize(("max_batch", "prompt_tokens"), [(1, 512), (3, 16), (14, 100)])
def test_generate_says_what_the_plain_forward_pass_says(
    model: GPT, answers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, max_batch: int, prompt_tokens: int
) -> None:
    monkeypatch.setattr(engine_module, "PROMPT_TOKENS", prompt_tokens)
    engine = Engine(model, TOKENIZER, max_batch=max_batch)
    completions = engine.generate(some_requests(14))
    assert [completion.ids for completion in completions] == answers
    assert engine.n_unfinished == 0
    assert engine.stats()["pages_used"] == 0


def test_requests_that_join_a_running_batch(model: GPT, answers: list[tuple[int, ...]]) -> None:
    engine, requests = Engine(model, TOKENIZER, max_batch=6), some_requests(14)
    waiting, said = list(enumerate(requests)), dict[int, list[int]]()
    place: dict[int, int] = {}
    while waiting or engine.n_unfinished:
        if waiting:
            index, request = waiting.pop()
            place[engine.add(request)] = index
        for event in engine.step():
            said.setdefault(place[event.request_id], []).append(event.token)
    assert [tuple(said[i]) for i in range(14)] == answers


def test_cancelled_requests_leave_the_others_alone(model: GPT, answers: list[tuple[int, ...]]) -> None:
    engine, requests = Engine(model, TOKENIZER, max_batch=5), some_requests(14)
    ids = [engine.add(request) for request in requests]
    said: dict[int, list[int]] = {id: [] for id in ids}
    for n_step in range(100):
        for event in engine.step():
            said[event.request_id].append(event.token)
        if n_step < 7:
            engine.cancel(ids[2 * n_step])  # some wait, some run, some finished
    assert engine.n_unfinished == 0
    assert [tuple(said[id]) for id in ids[1::2]] == answers[1::2]
    for id, whole in zip(ids[0::2], answers[0::2], strict=True):
        assert tuple(said[id]) == whole[: len(said[id])]


def test_no_work_beyond_what_was_asked(model: GPT) -> None:
    fed = []

    class Counting(GPT):
        def forward(self, ids: torch.Tensor, context: Any) -> torch.Tensor:
            fed.append(sum(context.counts))
            return super().forward(ids, context)

    counting = Counting(model.shape)
    counting.load_state_dict(model.state_dict())
    requests = [Request((1, 2, 3), max_tokens=n, stop=NOTHING_STOPS) for n in (1, 2, 5)]
    Engine(counting.eval(), TOKENIZER, max_batch=8, decode="pages").generate(requests)
    assert fed == [9, 2, 1, 1, 1]


# With a network whose words are known


def chain(*tokens: int | None, seq_len: int = 64, **options: Any) -> Engine:
    """An engine whose model says these tokens after a prompt of BOS; each may be named once."""
    return Engine(saying(TOKENIZER.bos_id, list(tokens), seq_len), TOKENIZER, **options)  # type: ignore[arg-type]


def events_of(engine: Engine, **options: Any) -> list[Event]:
    engine.add(Request(**({"prompt": (TOKENIZER.bos_id,)} | options)))
    events = []
    while engine.n_unfinished:
        events += engine.step()
    return events


def said(completion: Completion) -> tuple[tuple[int, ...], str, int | None]:
    return completion.ids, completion.finish_reason, completion.stop_token


def test_stops_at_the_end_of_the_answer() -> None:
    engine = chain(*b"abc")
    assert said(engine.generate([Request((TOKENIZER.bos_id,))])[0]) == (tuple(b"abc"), "stop", special("assistant_end"))
    events = events_of(engine)
    assert [(event.text, event.finished) for event in events] == [("a", None), ("b", None), ("c", None), ("", "stop")]


def test_other_stop_tokens_and_max_tokens() -> None:
    ask = Request((TOKENIZER.bos_id,), stop=frozenset(b"c"))
    assert said(chain(*b"abcd").generate([ask])[0]) == (tuple(b"ab"), "stop", ord("c"))
    short = chain(*b"abcd").generate([Request((TOKENIZER.bos_id,), max_tokens=2)])[0]
    assert (short.ids, short.finish_reason, short.stop_token) == (tuple(b"ab"), "length", None)


def test_the_end_of_the_context() -> None:
    full = chain(*b"abcdefgh", seq_len=4).generate([Request((TOKENIZER.bos_id,), max_tokens=100)])[0]
    assert (full.ids, full.finish_reason) == (tuple(b"abc"), "length")
    shorter = chain(*b"abcdefgh").model
    bounded = Engine(shorter, TOKENIZER, seq_len=3).generate([Request((TOKENIZER.bos_id,))])[0]
    assert bounded.ids == tuple(b"ab")


def test_text_comes_only_in_whole_characters() -> None:
    events = events_of(chain(*"é😀".encode()))
    assert [event.text for event in events] == ["", "é", "", "", "", "😀", ""]
    cut = events_of(chain(*"a😀".encode()[:3]))
    assert [event.text for event in cut] == ["a", "", "", "\ufffd"]
    stray = events_of(chain(0xFF, ord("b")))
    assert [event.text for event in stray] == ["\ufffd", "b", ""]
    out_of_room = events_of(chain(*"é".encode()), max_tokens=1)
    assert [event.text for event in out_of_room] == ["\ufffd"]


def call(code: str) -> list[int]:
    return [special("python_start"), *code.encode(), special("python_end")]


def test_a_call_is_executed_and_its_result_forced() -> None:
    engine = chain(ord("x"), *call("12*3"))
    engine.model.follow[special("output_end")] = ord("y")  # type: ignore[attr-defined]
    events = events_of(engine)
    assert [(event.text, event.part, event.forced) for event in events] == [
        ("x", "text", False),
        ("", "text", False),
        *[(character, "python", False) for character in "12*3"],
        ("", "python", False),
        ("", "text", True),
        *[(character, "python_output", True) for character in "36"],
        ("", "python_output", True),
        ("y", "text", False),
        ("", "text", False),
    ]
    completion = engine.generate([Request((TOKENIZER.bos_id,))])[0]
    assert parse_reply(completion.ids, TOKENIZER) == [
        {"type": "text", "text": "x"},
        {"type": "python", "text": "12*3"},
        {"type": "python_output", "text": "36"},
        {"type": "text", "text": "y"},
    ]
    assert [token for token, forced in zip(completion.ids, completion.forced, strict=True) if forced] == [
        special("output_start"),
        *b"36",
        special("output_end"),
    ]


def test_a_call_without_result_forces_nothing() -> None:
    completion = chain(*call("12/0")).generate([Request((TOKENIZER.bos_id,))])[0]
    assert completion.ids == tuple(call("12/0"))


def test_tools_can_be_off() -> None:
    completion = chain(*call("12*3")).generate([Request((TOKENIZER.bos_id,), tools=False)])[0]
    assert completion.ids == tuple(call("12*3"))


def test_an_end_without_a_beginning_is_no_call() -> None:
    calls = list[str]()
    engine = chain(ord("1"), special("python_end"), tool=lambda code: calls.append(code))
    assert engine.generate([Request((TOKENIZER.bos_id,))])[0].ids == (ord("1"), special("python_end"))
    assert calls == []


def test_forced_tokens_count_and_are_cut_by_the_room_left() -> None:
    engine = chain(*call("1"), tool=lambda code: "x" * 500)
    completion = engine.generate([Request((TOKENIZER.bos_id,), max_tokens=7)])[0]
    assert completion.ids == (*call("1"), special("output_start"), *b"xxx")
    assert completion.finish_reason == "length"


def test_special_tokens_in_a_result_stay_text() -> None:
    engine = chain(*call("1"), tool=lambda code: "<|assistant_end|>")
    completion = engine.generate([Request((TOKENIZER.bos_id,))])[0]
    assert completion.stop_token == special("assistant_end")
    assert parse_reply(completion.ids, TOKENIZER)[1] == {"type": "python_output", "text": "<|assistant_end|>"}


def test_a_network_without_numbers_ends_only_its_own_request() -> None:
    engine = chain(*b"abcd")
    engine.model.follow |= {ord("b"): None, ord("B"): ord("C")}  # type: ignore[attr-defined]
    broken, sound = engine.generate([Request((TOKENIZER.bos_id,)), Request((ord("B"),), max_tokens=5)])
    assert (broken.ids, broken.finish_reason) == (tuple(b"ab"), "error")
    assert (sound.ids, sound.finish_reason) == ((ord("C"),), "stop")


# Company and order


def test_whoever_has_a_place_is_answered_in_the_next_step() -> None:
    forever = {token: ord("a") for token in range(TOKENIZER.vocab_size)}
    engine = Engine(Chain(forever, seq_len=1000), TOKENIZER, max_batch=4)  # type: ignore[arg-type]
    running = [engine.add(Request((1,), max_tokens=500)) for _ in range(4)]
    assert {event.request_id for event in engine.step()} == set(running)
    later = [engine.add(Request((1,), max_tokens=500)) for _ in range(2)]
    assert {event.request_id for event in engine.step()} == set(running)
    engine.cancel(running[1])
    assert {event.request_id for event in engine.step()} == {running[0], *running[2:], later[0]}
    assert engine.stats()["waiting"] == 1


def test_generate_keeps_the_order_of_requests_and_tells_when_each_is_done() -> None:
    done = []
    requests = [Request((TOKENIZER.bos_id, *[7] * n), max_tokens=1) for n in (9, 1, 5)]
    engine = Engine(Chain({7: 8}), TOKENIZER, max_batch=2)  # type: ignore[arg-type]
    assert [completion.ids for completion in engine.generate(requests, lambda: done.append(1))] == [(8,)] * 3
    assert len(done) == 3
    assert engine.generate([]) == []
    steps: list[int] = []
    found = list(engine.completions(requests, lambda: steps.append(1)))
    assert [completion.ids for _, completion in sorted(found, key=lambda one: one[0])] == [(8,)] * 3
    assert len(steps) >= 2


def test_generate_needs_the_engine_for_itself_and_leaves_it_empty_after_a_failure() -> None:
    engine = chain(*b"ab")
    engine.add(Request((TOKENIZER.bos_id,)))
    with pytest.raises(RuntimeError, match="without other requests"):
        engine.generate([])
    engine.reset()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([Request((TOKENIZER.bos_id,), max_tokens=n) for n in (1, 2)], stop)
    assert engine.n_unfinished == 0
    assert engine.step() == []


# Bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Request(()), "empty"),
        (lambda: Request((1,) * 64), "has 64 tokens, the context holds 64 .* at most 63"),
        (lambda: Request((1, TOKENIZER.vocab_size)), "ids outside"),
        (lambda: Request((-1,)), "ids outside"),
        (lambda: Request((1,), max_tokens=0), "max-tokens"),
        (lambda: Request((1,), temperature=float("nan")), "temperature"),
        (lambda: Request((1,), seed=-1), "seed"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(make: Callable[[], Request], words: str) -> None:
    engine = chain(*b"ab")
    with pytest.raises(FathomError, match=words):
        engine.add(make())
    assert engine.n_unfinished == 0


def test_wrong_sizes_are_an_error() -> None:
    for options in ({"max_batch": 0}, {"seq_len": 0}, {"seq_len": 65}):
        with pytest.raises(ValueError, match="must be"):
            Engine(chain(*b"ab").model, TOKENIZER, **options)  # type: ignore[arg-type]
