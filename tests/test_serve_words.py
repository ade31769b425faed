"""The server's parts by themselves: fields checked as JSON Schema has it, messages turned into one protocol."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.byte_tokenizer import ByteTokenizer
from oracles.malformed import CHAT, COMPLETION, FORMAT, odd

from fathom.data.conversations import render, render_for_completion
from fathom.errors import FathomError
from fathom.serve import fields
from fathom.serve.checking import find_problem
from fathom.serve.openapi import description
from fathom.serve.prompts import chat_prompt, plain_messages
from fathom.serve.refusals import Refusal

TOKENIZER: Any = ByteTokenizer()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats(-200, 200) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "text", "name", "5"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.skipif(find_spec("jsonschema_rs") is None, reason="jsonschema_rs is not installed")
@pytest.mark.parametrize(
    ("schema", "example"),
    [(fields.CHAT, CHAT), (fields.CHAT, {**CHAT, "response_format": FORMAT}), (fields.COMPLETION, COMPLETION)],
)
def test_checking_agrees_with_a_library_for_json_schema(schema: dict[str, Any], example: dict[str, Any]) -> None:
    import jsonschema_rs

    validator = jsonschema_rs.validator_for(schema)
    names = list(schema["properties"])

    @settings(max_examples=150)
    @given(st.sampled_from(names), VALUES, st.integers(0, 2**32))
    def one(name: str, value: Any, seed: int) -> None:
        whole = {**example, name: value}
        assert (find_problem(whole, schema) is None) == validator.is_valid(whole), whole
        torn = odd(random.Random(seed), json.loads(json.dumps(example)))
        if not any(word in json.dumps(torn) for word in ("NaN", "Infinity", "ud800")):  # which no JSON holds
            assert (find_problem(torn, schema) is None) == validator.is_valid(torn), torn

    one()
    assert find_problem(example, schema) is None


def test_the_description_holds_no_reference_to_nothing() -> None:
    text = json.dumps(found := description("1"))
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(found["components"]["schemas"])


def assistant(content: Any = None, *calls: tuple[str, str]) -> dict[str, Any]:
    made = [
        {"id": id, "type": "function", "function": {"name": "python", "arguments": json.dumps({"code": code})}}
        for id, code in calls
    ]
    return {"role": "assistant", "content": content, **({"tool_calls": made} if made else {})}


def tool(id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


USER = {"role": "user", "content": "hi"}


def test_a_tools_message_is_the_output_of_its_call() -> None:
    messages = [USER, assistant("so ", ("a", "1+1"), ("b", "2+2")), tool("b", "4"), tool("a", "2"), assistant("yes")]
    parts = [
        {"type": "text", "text": "so "},
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
        {"type": "python", "text": "2+2"},
        {"type": "python_output", "text": "4"},
        {"type": "text", "text": "yes"},
    ]
    asked = {"role": "user", "content": "and"}
    assert plain_messages([*messages, asked]) == [USER, {"role": "assistant", "content": parts}, asked]
    open_turn = chat_prompt(messages[:4], TOKENIZER, 1000, 10, False)
    whole = render([USER, {"role": "assistant", "content": parts[:5]}], TOKENIZER)[0]
    assert open_turn == whole[:-1]


def test_parts_that_the_server_gave_win_over_the_text_alone() -> None:
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2"}]
    again = [USER, {"role": "assistant", "content": "2", "parts": parts}, USER]
    assert chat_prompt(again, TOKENIZER, 1000, 10, False) == render_for_completion(
        [USER, {"role": "assistant", "content": parts}, USER], TOKENIZER
    )


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, assistant("x", ("a", "1")), tool("b", "1")], "answers no call"),
        ([USER, tool("a", "1")], "answers no call"),
        ([USER, assistant(None)], "neither content nor tool_calls"),
        ([{"role": "user", "content": None}], "content is missing"),
        ([USER, assistant("x", ("a", "1"))], "nothing to answer"),
        ([{"role": "system", "content": "s"}], "nothing to answer"),
        ([USER, {"role": "system", "content": "s"}, USER], "turn of 'assistant'"),
        ([{"role": "system", "content": "s"}, {"role": "system", "content": "s"}, USER], "no user message follows"),
    ],
)
def test_messages_that_are_no_conversation(messages: list[dict[str, Any]], words: str) -> None:
    with pytest.raises((Refusal, FathomError), match=words):
        chat_prompt(messages, TOKENIZER, 1000, 10, False)


@pytest.mark.parametrize("arguments", ["", "{}", "[1]", '{"code": 3}', "3", "[" * 100_000])
def test_arguments_that_hold_no_code(arguments: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "python", "arguments": arguments}}
    with pytest.raises(Refusal, match="arguments"):
        plain_messages([USER, {"role": "assistant", "content": None, "tool_calls": [call]}, tool("a", "1")])


@given(st.integers(1, 12), st.integers(20, 400), st.integers(1, 300))
def test_dropping_the_oldest_turns_keeps_as_many_as_fit(n_turn: int, seq_len: int, room: int) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "S"}]
    for i in range(n_turn):
        messages += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "a" * i}]
    messages.append(USER)
    limit = seq_len - min(room, seq_len // 4)
    fits = [
        ids
        for first in range(1, len(messages), 2)
        if len(ids := render_for_completion([messages[0], *messages[first:]], TOKENIZER)) <= limit
    ]
    if fits:
        assert chat_prompt(messages, TOKENIZER, seq_len, room, True) == fits[0]
    else:
        with pytest.raises(Refusal, match="the last turn alone"):
            chat_prompt(messages, TOKENIZER, seq_len, room, True)
