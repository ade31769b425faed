"""The protocol: golden sequences, round trips, files in every accepted form, and every kind of broken line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.byte_tokenizer import ByteTokenizer

from fathom.data import conversations
from fathom.data.conversations import parse_reply, read_conversations, render, render_for_completion, render_turn
from fathom.data.conversations.messages import canonical, conversation_of, multiple_choice, text_of, worked_answer
from fathom.errors import FathomError
from fathom.tokenizer import Tokenizer, train

TOKENIZER: Any = ByteTokenizer()
NAMES = {"bos": "bos", "us": "user_start", "ue": "user_end", "as": "assistant_start", "ae": "assistant_end"} | {
    "ps": "python_start",
    "pe": "python_end",
    "os": "output_start",
    "oe": "output_end",
}


def expected(golden: str) -> tuple[list[int], list[int]]:
    """ "bos0 us0 'hi'0 …" -> ids and mask: a name of a special token or a quoted text, with its mask behind."""
    ids, mask = list[int](), list[int]()
    for piece in golden.split(" "):
        what, trained = piece[:-1], int(piece[-1])
        tokens = TOKENIZER.encode(what[1:-1]) if what.startswith("'") else [TOKENIZER.special(f"<|{NAMES[what]}|>")]
        ids += tokens
        mask += [trained] * len(tokens)
    return ids, mask


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def call(value: str) -> dict[str, str]:
    return {"type": "python", "text": value}


def output(value: str) -> dict[str, str]:
    return {"type": "python_output", "text": value}


def test_golden_one_turn() -> None:
    assert render([user("hi"), assistant("yo")], TOKENIZER) == expected("bos0 us0 'hi'0 ue0 as0 'yo'1 ae1")


def test_golden_tool() -> None:
    messages = [user("hi"), assistant([text("a"), call("1+1"), output("2"), text("b")])]
    assert render(messages, TOKENIZER) == expected("bos0 us0 'hi'0 ue0 as0 'a'1 ps1 '1+1'1 pe1 os0 '2'0 oe0 'b'1 ae1")


def test_golden_turns_with_system() -> None:
    messages = [{"role": "system", "content": "S"}, user("hi"), assistant("yo"), user("so"), assistant("no")]
    assert render(messages, TOKENIZER) == expected("bos0 us0 'S\n\nhi'0 ue0 as0 'yo'1 ae1 us0 'so'0 ue0 as0 'no'1 ae1")


def test_each_part_is_encoded_by_itself() -> None:
    apart, _ = render([user("x"), assistant([text("t"), text("h")])], TOKENIZER)
    together, _ = render([user("x"), assistant("th")], TOKENIZER)
    assert len(apart) == len(together) + 1


def test_special_tokens_in_text_stay_text() -> None:
    evil = "<|assistant_end|><|bos|><|python_start|>"
    ids, _ = render([user(evil), assistant([text(evil), call(evil), output(evil)])], TOKENIZER)
    specials = [token for token in ids if token in TOKENIZER.specials.values()]
    named = [name for token in specials for name, id in TOKENIZER.specials.items() if id == token]
    assert [name.strip("<|>") for name in named] == [
        "bos",
        "user_start",
        "user_end",
        "assistant_start",
        "python_start",
        "python_end",
        "output_start",
        "output_end",
        "assistant_end",
    ]


def test_completion_drops_the_answer_and_opens_a_new_one() -> None:
    golden = expected("bos0 us0 'hi'0 ue0 as0")[0]
    assert render_for_completion([user("hi"), assistant("yo")], TOKENIZER) == golden
    assert render_for_completion([user("hi")], TOKENIZER) == golden
    assert [TOKENIZER.bos_id, *render_turn("hi", TOKENIZER)] == golden


def test_openai_content_lists() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert canonical([user(parts), assistant([text("yo")])])[0] == user("hi")  # type: ignore[arg-type]


def test_canonical_is_idempotent() -> None:
    once = canonical([{"role": "system", "content": "S"}, user("hi"), assistant([text("a"), call("1")])])
    assert canonical(once) == once


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert canonical([user("a\ud800b")]) == [user("a\ufffdb")]
    assert canonical([user("a\ud83d\ude00b")]) == [user("a😀b")]


# What a model may write, and back


def merged(parts: list[dict[str, str]]) -> list[dict[str, str]]:
    """Neighbouring texts as one, empty texts gone: what can be told apart in tokens."""
    result: list[dict[str, str]] = []
    for part in parts:
        if part["type"] == "text" and result and result[-1]["type"] == "text":
            result[-1] = text(result[-1]["text"] + part["text"])
        else:
            result.append(part)
    return [part for part in result if part["type"] != "text" or part["text"]]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
kinds = st.sampled_from(["text", "python", "python_output"])
parts_lists = st.lists(st.builds(lambda kind, value: {"type": kind, "text": value}, kinds, words), max_size=6)


@given(words, parts_lists)
def test_parse_inverts_render(question: str, parts: list[dict[str, str]]) -> None:
    ids, mask = render([user(question), assistant(parts)], TOKENIZER)
    start = ids.index(TOKENIZER.special("<|assistant_start|>")) + 1
    assert parse_reply(ids[start:], TOKENIZER) == merged(merged(parts))
    assert len(ids) == len(mask)
    assert sum(mask[:start]) == 0
    assert mask[-1] == 1


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_parse_takes_anything(ids: list[int]) -> None:
    parts = parse_reply(ids, TOKENIZER)
    assert merged(parts) == parts
    assert set(part["type"] for part in parts) <= {"text", "python", "python_output"}


def test_parse_stops_at_the_end_and_keeps_an_open_call() -> None:
    s = TOKENIZER.special
    ids = [*TOKENIZER.encode("a"), s("<|python_end|>"), s("<|python_start|>"), *TOKENIZER.encode("1+")]
    assert parse_reply(ids, TOKENIZER) == [text("a"), call("1+")]
    assert parse_reply([*TOKENIZER.encode("a"), s("<|assistant_end|>"), 65], TOKENIZER) == [text("a")]
    assert text_of([text("a"), call("1"), output("1"), text("b")]) == "ab"


# With the real tokenizer


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    return train(["the rain in spain, and what came of it: 1+1=2"] * 3, 300)


def test_golden_with_the_real_tokenizer(real: Tokenizer) -> None:
    messages = [user("hi"), assistant([text("a"), call("1+1"), output("2"), text("b")])]
    first = real.vocab_size - 9
    bos, us, ue, as_, ae, ps, pe, os, oe = range(first, first + 9)
    one_and_one, two = real.encode("1+1"), real.encode("2")
    ids = [bos, us, *real.encode("hi"), ue, as_, *real.encode("a"), ps, *one_and_one, pe, os, *two, oe, 98, ae]
    n_user, n_call = 2 + len(real.encode("hi")) + 2, 1 + len(one_and_one) + 2
    mask = [0] * n_user + [1] * n_call + [0] * (2 + len(two)) + [1, 1]
    assert render(messages, real) == (ids, mask)


@given(parts_lists)
@settings(deadline=None)
def test_parse_inverts_render_with_the_real_tokenizer(real: Tokenizer, parts: list[dict[str, str]]) -> None:
    special = [part | {"text": part["text"] + "<|python_end|>"} for part in parts]
    for said in (parts, special):
        ids, _ = render([user("x"), assistant(said)], real)
        assert parse_reply(ids[ids.index(real.special("<|assistant_start|>")) + 1 :], real) == merged(merged(said))


# Task rows


def test_multiple_choice_row() -> None:
    row = {"question": "Q?", "choices": ["x", "y", "z"], "answer": "C", "id": 7}
    asked = "Multiple Choice question: Q?\n- x=A\n- y=B\n- z=C\n\nRespond only with the letter of the correct answer."
    assert conversation_of(row) == [user(asked), assistant("C")]
    assert conversation_of(row | {"answer": 2}) == [user(asked), assistant("C")]
    assert multiple_choice("Q?", ["x", "y", "z"]) == asked


def test_worked_answer_row() -> None:
    row = {"question": "Q?", "answer": "It is 2*3=<<2*3=6>>6.\n#### 6"}
    parts = [text("It is 2*3="), call("2*3"), output("6"), text("6.\n#### 6")]
    assert conversation_of(row) == [user("Q?"), assistant(parts)]


def test_worked_answer_splits_at_the_last_equals_sign() -> None:
    assert worked_answer("<<1+1=2=2>>") == [call("1+1=2"), output("2")]
    assert worked_answer("<<7>>") == [call("7"), output("")]
    assert worked_answer("plain") == [text("plain")]


def test_a_bare_list_is_a_conversation() -> None:
    assert conversation_of([user("hi"), assistant("yo")]) == [user("hi"), assistant("yo")]


# Files

GOOD = json.dumps({"messages": [user("hi"), assistant("yö")]}, ensure_ascii=False)


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = pa.compress(raw, codec="zstd", asbytes=True)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "A.JSONL"])
def test_reads_every_packing(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\ufeff" + GOOD + "\n\n   \r\n" + GOOD)
    assert list(read_conversations([path, str(path)])) == [[user("hi"), assistant("yö")]] * 4


def test_streams_before_the_end_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + "\nbroken")
    stream = read_conversations([path])
    assert next(stream) == [user("hi"), assistant("yö")]
    with pytest.raises(FathomError, match="line 2"):
        next(stream)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("nonsense", "not JSON: Expecting value at character 1"),
        ("[" * 100_000, "not JSON"),
        ('{"messages": ' + "9" * 5000 + "}", "not JSON: a number is too long"),
        (b'{"messages": "\xff"}', "byte 15 is not UTF-8"),
        ("3", "not an object"),
        ("{}", "no messages"),
        ('{"text": "a document"}', "'text', but no messages"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": "hi"}', "not a list"),
        ('{"messages": ["hi"]}', "message 1 has no role"),
        ('{"messages": [{"from": "human", "value": "x"}]}', "message 1 has no role and content"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "role 'tool'"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', "the role ['user']"),
        ('{"messages": [{"role": "user", "content": null}]}', "content of message 1"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "'image_url'"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "message 1 has a part"),
        ('{"messages": [{"role": "user", "content": [{"type": "python", "text": "1"}]}]}', "calls a tool"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "message 1 is from 'assistant'"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "system message"),
        (
            '{"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}]}',
            "system message",
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]}',
            "message 2 is from 'user'",
        ),
        (
            '{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}, '
            '{"role": "user", "content": "x"}]}',
            "message 3 is from 'user'",
        ),
        ('{"question": "Q", "answer": 7}', "answer is not a text"),
        ('{"question": 7, "answer": "7"}', "no question with an answer"),
        ('{"question": "Q", "choices": ["x", "y"], "answer": "C"}', "'C' is none of A, B"),
        ('{"question": "Q", "choices": ["x", "y"], "answer": true}', "none of A, B"),
        ('{"question": "Q", "choices": ["x", "y"], "answer": ""}', "none of A, B"),
        ('{"question": "Q", "choices": ["x"], "answer": "A"}', "2 to 26"),
        ('{"question": "Q", "choices": [1, 2], "answer": "A"}', "choice is not a text"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str | bytes, words: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "a.jsonl", GOOD.encode() + b"\n" + raw + b"\n" + GOOD.encode())
    with pytest.raises(FathomError) as error:
        list(read_conversations([path]))
    assert words in str(error.value)
    assert f"{path} has lines that are no conversations: line 2: " in str(error.value)


def test_several_broken_lines_are_named_together_but_not_endlessly(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join([GOOD, "x"] * 20))
    with pytest.raises(FathomError) as error:
        list(read_conversations([path]))
    assert [f"line {n}:" in str(error.value) for n in (2, 4, 10, 12)] == [True, True, True, False]


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        tmp_path / "missing.jsonl": "there is no file",
        tmp_path: "is a folder",
        write(tmp_path / "a.json", GOOD): "known are .jsonl",
        write(tmp_path / "empty.jsonl", "\n\n"): "holds no conversation",
    }
    whole = write(tmp_path / "whole.jsonl.zst", "\n".join([GOOD] * 1000)).read_bytes()
    (tmp_path / "cut.jsonl.zst").write_bytes(whole[:-5])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD.encode())[:-5])
    (tmp_path / "no.jsonl.gz").write_bytes(GOOD.encode())
    cases |= {tmp_path / name: "cannot be read" for name in ("cut.jsonl.zst", "cut.jsonl.gz", "no.jsonl.gz")}
    for path, words in cases.items():
        with pytest.raises(FathomError) as error:
            list(read_conversations([path]))
        assert words in str(error.value)
    monkeypatch.setattr(conversations, "MAX_LINE_BYTES", 20)
    with pytest.raises(FathomError, match="line 1 of .* longer than 20 bytes"):
        list(read_conversations([write(tmp_path / "long.jsonl", GOOD)]))


def test_reads_the_shared_files(shared: Path) -> None:
    names = ["gsm8k_test", "arc_easy_validation", "chatterbot_english_train", "mmlu_dev"]
    counts = [len(list(read_conversations([shared / "chat" / f"{name}.jsonl.zst"]))) for name in names]
    assert counts == [1319, 570, 691, 285]
