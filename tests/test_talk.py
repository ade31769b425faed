"""A conversation: what the model sees of it, what is forgotten when, and stopping in the middle."""

from __future__ import annotations

from typing import Any

import pytest
from oracles.chain_model import ANSWER, TOKENIZER, saying

from fathom.data.conversations import render, render_for_completion
from fathom.errors import FathomError
from fathom.generate.engine import Engine
from fathom.generate.sampling import Sampling
from fathom.serve.talk import Talk


class Listening(Engine):
    """Keeps the prompts that it was asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prompts: list[list[int]] = []

    def add(self, request: Any) -> int:
        self.prompts.append(list(request.prompt))
        return super().add(request)


def new_talk(words: str = "yo", system: str = "", seq_len: int = 64) -> tuple[Talk, Listening]:
    engine = Listening(saying(ANSWER, list(words.encode()), seq_len), TOKENIZER, max_batch=1)
    return Talk(engine, system), engine


def ask(talk: Talk, text: str, max_tokens: int = 8) -> str:
    return "".join(event.text for event in talk.ask(text, Sampling(), max_tokens, seed=0))


def test_turns_go_on_from_each_other() -> None:
    talk, engine = new_talk(system="S")
    assert [ask(talk, "hi"), ask(talk, "so")] == ["yo", "yo"]
    assert talk.messages() == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "so"},
        {"role": "assistant", "content": "yo"},
    ]
    assert engine.prompts == [
        render_for_completion(talk.messages()[:2], TOKENIZER),
        render_for_completion(talk.messages()[:4], TOKENIZER),
    ]


def test_oldest_turns_are_forgotten_and_the_system_message_is_not() -> None:
    talk, engine = new_talk(system="S", seq_len=64)
    for number in range(6):
        ask(talk, f"question {number}")
    assert talk.n_forgotten > 0
    assert len(talk.turns) == 6
    kept = [{"role": "system", "content": "S"}, *talk.messages()[1 + 2 * talk.n_forgotten : -1]]
    assert engine.prompts[-1] == render_for_completion(kept, TOKENIZER)
    assert len(engine.prompts[-1]) + 8 <= 64
    longer = render_for_completion([kept[0], *talk.messages()[2 * talk.n_forgotten - 1 : -1]], TOKENIZER)
    assert len(longer) + 8 > 64


def test_a_message_that_never_fits_is_refused_with_the_limit_and_changes_nothing() -> None:
    talk, _ = new_talk()
    ask(talk, "hi")
    with pytest.raises(FathomError) as error:
        talk.ask("x" * 53, Sampling(), 8, seed=0)
    assert "53 tokens" in str(error.value)
    assert "room for 52" in str(error.value)
    assert talk.n_forgotten == 0
    assert len(talk.turns) == 1
    assert ask(talk, "x" * 52) == "yo"
    assert talk.n_forgotten == 1


def test_a_long_answer_leaves_a_quarter_of_the_context_at_least() -> None:
    talk, engine = new_talk("abcdefghijklmnopqrstuvwxyz")
    ask(talk, "x" * 44, max_tokens=1000)
    assert len(engine.prompts[-1]) == 48
    assert len(talk.turns[-1].reply) == 16


def test_stopping_keeps_what_was_said_and_frees_the_engine() -> None:
    talk, engine = new_talk("abcdef")
    events = talk.ask("hi", Sampling(), 8, seed=0)
    said = [next(events).text, next(events).text]
    events.close()
    assert said == ["a", "b"]
    assert engine.n_unfinished == 0
    assert talk.messages()[-1]["content"] == "ab"
    ask(talk, "more")
    assert engine.prompts[-1] == render_for_completion(talk.messages(), TOKENIZER)


def test_calls_are_kept_as_parts() -> None:
    special = TOKENIZER.special
    model = saying(ANSWER, [special("<|python_start|>"), *b"1+2", special("<|python_end|>")])
    model.follow[special("<|output_end|>")] = ord("!")
    talk = Talk(Engine(model, TOKENIZER, max_batch=1))  # type: ignore[arg-type]
    ask(talk, "hi", max_tokens=20)
    assert talk.messages()[-1]["content"] == [
        {"type": "python", "text": "1+2"},
        {"type": "python_output", "text": "3"},
        {"type": "text", "text": "!"},
    ]
    rendered, _ = render(talk.messages(), TOKENIZER)
    assert rendered == talk._render(talk.turns, "")[: len(rendered)]


def test_special_tokens_in_what_is_typed_stay_text() -> None:
    talk, engine = new_talk()
    ask(talk, "<|assistant_end|>")
    assert TOKENIZER.special("<|assistant_end|>") not in engine.prompts[0]


def test_reset_keeps_the_system_message() -> None:
    talk, _ = new_talk(system="S")
    ask(talk, "hi")
    talk.reset()
    assert talk.messages() == [{"role": "system", "content": "S"}]
