"""What a request may ask for: penalty, bias, stop strings, log-probabilities, a grammar; and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.chain_model import END, TOKENIZER, saying
from oracles.generation import all_logits, random_model

from fathom.errors import FathomError
from fathom.generate.engine import Engine
from fathom.generate.grammar import Grammars
from fathom.generate.running import NO_TOKEN, Completion, Event, Request
from fathom.generate.sampling import adjust
from fathom.generate.text import Speech
from fathom.model.gpt import GPT

NOTHING_STOPS = frozenset[int]()
BOS = TOKENIZER.bos_id


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(seq_len=256)


@pytest.fixture(scope="module")
def engine(model: GPT) -> Engine:
    return Engine(model, TOKENIZER, max_batch=4)


def events_of(engine: Engine, request: Request) -> list[Event]:
    engine.add(request)
    events = []
    while engine.n_unfinished:
        events += engine.step()
    return events


def says(text: bytes) -> Engine:
    """An engine whose model says these bytes, each of them once."""
    return Engine(saying(BOS, list(text)), TOKENIZER)  # type: ignore[arg-type]


# Stop strings


@pytest.mark.parametrize(
    ("stops", "text", "stop"),
    [
        (("cd",), "ab", "cd"),
        (("d", "cde"), "abc", "d"),
        (("cde", "bcd"), "a", "bcd"),
        (("ax", "fg"), "abcdef", None),
        (("abcdef",), "", "abcdef"),
        (("defg",), "abcdef", None),
    ],
)
def test_a_stop_string_ends_the_answer_and_is_never_said(stops: tuple[str, ...], text: str, stop: str | None) -> None:
    completion = says(b"abcdef").generate([Request((BOS,), stop_strings=stops)])[0]
    assert (completion.text, completion.stop_string, completion.finish_reason) == (text, stop, "stop")
    assert completion.stop_token == (None if stop else END)


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    events = events_of(says(b"abcxcd"[:4] + b"de"), Request((BOS,), stop_strings=("bcz",)))
    assert [event.text for event in events] == ["a", "", "", "bcx", "d", "e", ""]
    cut = events_of(says(b"abc"), Request((BOS,), stop_strings=("bcz",), max_tokens=2))
    assert [event.text for event in cut] == ["a", "b"]
    assert cut[-1].finished == "length"


def test_stop_strings_of_several_bytes_a_character() -> None:
    completion = says("aé😀".encode()).generate([Request((BOS,), stop_strings=("é",))])[0]
    assert (completion.text, completion.stop_string) == ("a", "é")


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_what_is_said_is_what_stands_before_the_first_stop_string(text: str, stops: list[str], data: Any) -> None:
    speech, said, rest = Speech(stops), "", text.encode()
    while rest and speech.stopped_by is None:
        size = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:size], rest[size:]
        said += speech.add(piece)
    if speech.stopped_by is None:
        said += speech.end()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert (speech.stopped_by is not None) == bool(ends)
    assert said == (text if not ends else said)
    if ends:
        assert text.startswith(said + str(speech.stopped_by))
        assert not any(stop in said for stop in stops)


# Log-probabilities


def test_log_probabilities_are_of_the_model_itself(model: GPT, engine: Engine) -> None:
    prompt = tuple(range(10, 90))
    request = Request(
        prompt, max_tokens=8, temperature=0.7, top_k=3, repetition_penalty=1.3, logprobs=4, stop=NOTHING_STOPS
    )
    completion = engine.generate([request])[0]
    expected = all_logits(model, [*prompt, *completion.ids]).log_softmax(-1)
    for i, (token, logprob, top) in enumerate(
        zip(completion.ids, completion.logprobs, completion.top_logprobs, strict=True)
    ):
        row = expected[len(prompt) - 1 + i]
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)
        values, tokens = row.topk(4)
        assert [token for token, _ in top] == tokens.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-4)
    silent = engine.generate([Request(prompt, max_tokens=2)])[0]
    assert silent.logprobs == (None, None)


@pytest.mark.parametrize("n", [1, 2, 70, 256])
def test_log_probabilities_of_the_prompt(model: GPT, engine: Engine, n: int) -> None:
    prompt = tuple((7 * i) % 256 for i in range(n))
    events = events_of(engine, Request(prompt, max_tokens=0, logprobs=2, prompt_logprobs=True))
    assert [(event.token, event.finished) for event in events] == [(NO_TOKEN, "length")]
    found = events[0].prompt_logprobs
    assert found is not None and found[0] is None and len(found) == n
    expected = all_logits(model, list(prompt)).log_softmax(-1)
    for i, entry in enumerate(found[1:], start=1):
        assert entry is not None
        assert entry[0] == pytest.approx(float(expected[i - 1, prompt[i]]), abs=1e-4)
        assert [token for token, _ in entry[1]] == expected[i - 1].topk(2).indices.tolist()
    completion = Completion.of(events)
    assert (completion.ids, completion.finish_reason, completion.prompt_logprobs) == ((), "length", found)


def test_prompt_and_answer_together(engine: Engine) -> None:
    prompt = tuple(range(100))
    with_prompt = Request(prompt, max_tokens=3, logprobs=0, prompt_logprobs=True, stop=NOTHING_STOPS)
    events = events_of(engine, with_prompt)
    assert [event.prompt_logprobs is None for event in events] == [False, True, True]
    assert all(event.logprob is not None and event.top_logprobs == () for event in events)


# Penalty and bias


def test_penalty_and_bias_change_a_row_as_they_say() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    assert adjust(logits, 2.0, {0, 1}, (), None).tolist() == [1.0, -4.0, 1.0, 0.5]
    assert adjust(logits, 1.0, {0, 1}, ((3, 5.0), (3, -1.0)), None).tolist() == [2.0, -2.0, 1.0, 4.5]
    assert adjust(logits, 1.0, set(), (), torch.tensor([False, True, True, False])).tolist() == [
        -math.inf,
        -2.0,
        1.0,
        -math.inf,
    ]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5]


def test_penalty_and_bias_reach_only_their_own_request(engine: Engine) -> None:
    prompt = (1, 2, 3)
    plain = Request(prompt, max_tokens=10, stop=NOTHING_STOPS)
    banned = engine.generate([plain])[0].ids[0]
    without = Request(prompt, max_tokens=10, logit_bias=((banned, -100.0),), stop=NOTHING_STOPS)
    never_twice = Request(prompt, max_tokens=10, repetition_penalty=100.0, logit_bias=((5, 100.0),), stop=NOTHING_STOPS)
    alone = [engine.generate([one])[0] for one in (plain, without, never_twice)]
    assert engine.generate([plain, without, never_twice]) == alone
    assert banned not in alone[1].ids and alone[2].ids[0] == 5


# Grammars

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_an_answer_obeys_its_schema(engine: Engine, temperature: float) -> None:
    requests = [
        Request((BOS, *b"x"), max_tokens=200, temperature=temperature, seed=seed, grammar=SCHEMA) for seed in range(4)
    ]
    for completion in engine.generate([*requests, Request((BOS,), max_tokens=5)])[:-1]:
        assert completion.finish_reason == "stop"
        value = json.loads(completion.text)
        assert set(value) == {"name", "age"} and len(value["name"]) <= 8 and value["age"] <= 99
        assert not set(completion.ids) & set(TOKENIZER.specials.values())


def test_any_json_and_an_end_by_the_grammar_alone(engine: Engine) -> None:
    choice = Request((BOS,), grammar='{"enum": ["red", "blue"]}', stop=NOTHING_STOPS, temperature=3.0, seed=1)
    completion = engine.generate([choice])[0]
    assert json.loads(completion.text) in ("red", "blue")
    assert (completion.finish_reason, completion.stop_token) == ("stop", None)
    matcher = Grammars(TOKENIZER).matcher("{}")
    allowed = matcher.allowed(frozenset({END}))
    assert allowed[ord("{")] and allowed[ord("[")] and allowed[ord('"')] and not allowed[ord("x")]
    assert not allowed[list(TOKENIZER.specials.values())].any()
    matcher.take(ord("7"))
    assert matcher.allowed(frozenset({3, END})).nonzero().flatten().tolist().count(3) == 1
    assert matcher.allowed(frozenset({END}))[END]


def test_tools_are_off_under_a_grammar() -> None:
    special = TOKENIZER.special
    model = saying(BOS, [special("<|python_start|>"), *b"1+2", special("<|python_end|>")])
    completion = Engine(model, TOKENIZER).generate([Request((BOS,), grammar='{"type": "integer"}', max_tokens=9)])[0]  # type: ignore[arg-type]
    assert json.loads(completion.text) == int(completion.text)
    assert not any(completion.forced)


# Bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Request((1,), repetition_penalty=0), "repetition-penalty"),
        (lambda: Request((1,), repetition_penalty=float("nan")), "repetition-penalty"),
        (lambda: Request((1,), logit_bias=((3, float("inf")),)), "logit-bias of token 3"),
        (lambda: Request((1,), logit_bias=((-3, 1.0),)), "names token -3"),
        (lambda: Request((1,), logit_bias=((10**6, 1.0),)), "names token 1000000"),
        (lambda: Request((1,), stop_strings=("a", "")), "stop string is empty"),
        (lambda: Request((1,), logprobs=21), "logprobs is 21"),
        (lambda: Request((1,), logprobs=-1), "logprobs is -1"),
        (lambda: Request((1,) * 257, max_tokens=0, prompt_logprobs=True), "at most 256"),
        (lambda: Request((1,), grammar="{"), "is no JSON"),
        (lambda: Request((1,), grammar="[" * 100_000), "is no JSON"),
        (lambda: Request((1,), grammar="7"), "no JSON object"),
        (lambda: Request((1,), grammar='{"type": "strange"}'), "strange.* cannot be followed"),
        (lambda: Request((1,), grammar='{"$ref": "http://x/y"}'), "cannot be followed"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(engine: Engine, make: Callable[[], Request], words: str) -> None:
    with pytest.raises(FathomError, match=words):
        engine.add(make())
    assert engine.n_unfinished == 0
