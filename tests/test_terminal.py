"""`fathom chat`: one message from a pipe, a typed conversation with its commands, Ctrl-C, and a real terminal."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from oracles.chain_model import ANSWER, TOKENIZER, Chain, saying

from fathom.errors import FathomError
from fathom.serve import dialogue
from fathom.serve.dialogue import shown
from fathom.serve.terminal import Chat

CALL = [TOKENIZER.special("<|python_start|>"), *b"1+2", TOKENIZER.special("<|python_end|>")]


class Stdin(io.TextIOWrapper):
    """Standard input with these bytes in it, from a pipe or, as far as anyone can tell, a terminal."""

    def __init__(self, content: bytes, terminal: bool) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Chain:
    """The run "pal", which answers "yo"; change its `follow` for other words."""
    model = saying(ANSWER, list(b"yo"))

    def load_model(run: str, step: int | None, dtype: str) -> tuple[Any, Any, dict[str, Any]]:
        return model, TOKENIZER, {"run": run, "step": step or 30, "stage": "sft", "dtype": "fp32"}

    monkeypatch.setattr("fathom.train.checkpoint.load_model", load_model)
    monkeypatch.setattr("fathom.train.checkpoint.look_up", lambda run, step: None)
    monkeypatch.setattr("fathom.record.newest_run", lambda stages: "pal" if tuple(stages) == ("sft",) else None)
    return model


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(content, terminal=False))


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin("".join(f"{line}\n" for line in lines).encode(), terminal=True))


# One message


def test_a_pipe_gets_only_the_reply(
    model: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"hi\nthere\n")
    result = Chat().run()
    out, err = capsys.readouterr()
    assert out == "yo\n"
    assert "pal at step 30 (fp32)" in err
    assert result == {
        "run": "pal",
        "step": 30,
        "reply": "yo",
        "content": "yo",
        "tokens": 2,
        "finish_reason": "stop",
    }


def test_prompt_leaves_standard_input_alone(
    model: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    Chat("other", prompt="hi", step=7).run()
    assert capsys.readouterr().out == "yo\n"


def test_json_prints_nothing_itself_and_shows_calls_as_parts(model: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    model.follow = saying(ANSWER, CALL).follow | {TOKENIZER.special("<|output_end|>"): ord("!")}
    result = Chat(prompt="hi", json=True).run()
    assert capsys.readouterr().out == ""
    assert result["reply"] == "!"
    assert [part["type"] for part in result["content"]] == ["python", "python_output", "text"]


def test_cut_answers_say_so(model: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    model.follow = {ANSWER: ord("a"), ord("a"): ord("a")}
    assert Chat(prompt="hi", max_tokens=3).run()["finish_reason"] == "length"
    out, err = capsys.readouterr()
    assert out == "aaa\n"
    assert "cut at 3 tokens" in err
    Chat(prompt="hi").run()
    assert "where the context of 64 tokens ends" in capsys.readouterr().err


def test_binary_garbage_is_a_message_like_any_other(
    model: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"\xff\x00\x1b[31m\n")
    Chat().run()
    assert capsys.readouterr().out == "yo\n"


@pytest.mark.parametrize(
    ("options", "piped", "words"),
    [
        ({}, b"", "no message"),
        ({}, b" \n\n", "no message"),
        ({}, b"x" * 10_000_001, "more than 10,000,000 bytes"),
        ({"prompt": "x" * 100}, b"", "100 tokens, .* room for 44"),
        ({"prompt": "hi", "temperature": -1.0}, b"", "temperature"),
        ({"prompt": "hi", "max_tokens": 0}, b"", "max-tokens"),
        ({"prompt": "hi", "seed": -1}, b"", "seed"),
    ],
)
def test_bad_input_is_one_sentence(
    model: Chain, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], piped: bytes, words: str
) -> None:
    pipe(monkeypatch, piped)
    with pytest.raises(FathomError, match=words):
        Chat(**options).run()


def test_a_broken_run_says_so(model: Chain) -> None:
    model.follow = {ANSWER: None}
    with pytest.raises(FathomError, match="NaN"):
        Chat(prompt="hi").run()


def test_no_run_to_talk_to(fathom_home: Path) -> None:
    with pytest.raises(FathomError, match="no run that can chat"):
        Chat(prompt="hi").run()


def test_seeds(model: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    class Flat(Chain):
        def logits(self, hidden: Any) -> Any:
            return super().logits(hidden) * 0

    model.__class__ = Flat
    replies = [Chat(prompt="hi", temperature=1.0, max_tokens=20, seed=seed).run()["reply"] for seed in (1, 1, 2)]
    assert replies[0] == replies[1] != replies[2]
    assert Chat(prompt="hi", temperature=1.0, max_tokens=20).run()["reply"] not in replies


# Typed


def test_a_typed_conversation_and_its_commands(
    model: Chain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text('{"messages": []}')
    type_in(
        monkeypatch,
        "hi",
        "",
        "/temp 0",
        "/temp warm",
        "/temp nan",
        "/system",
        "/system Be brief.",
        "/system",
        "/help",
        "/hepl",
        "/save notes.txt",
        "/save",
        "so",
        f"/save {path}",
        "/reset",
        f"/save {path}",
        "x" * 100,
        "/quit",
        "never read",
    )
    assert Chat().run() == {"run": "pal", "step": 30, "answers": 2}
    out, err = capsys.readouterr()
    assert out == "yo\nyo\n"
    for words in (
        "(temperature 0)",
        "'warm' is no temperature",
        "temperature is nan",
        "(the model is told nothing; /system TEXT sets it, /system - takes it away)",
        "(from the next answer on the model is told at the beginning of this conversation: Be brief.)",
        "(the model is told: Be brief.; /system TEXT sets it, /system - takes it away)",
        "/save FILE",
        "did you mean /help?",
        "'notes.txt' does not end in .jsonl; write /save talk.jsonl",
        "/save needs the name of a file; write /save talk.jsonl",
        f"(saved: 2 messages and their answers, as line 2 of {path})",
        "(a new conversation)",
        "there is nothing to save yet; say something first",
        "has 100 tokens",
    ):
        assert words in err
    before, line = path.read_text().splitlines()
    assert before == '{"messages": []}'
    assert [message["content"] for message in json.loads(line)["messages"]] == ["Be brief.", "hi", "yo", "so", "yo"]


def test_calls_stand_in_the_text(
    model: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model.follow = saying(ANSWER, [ord("x"), *CALL]).follow | {TOKENIZER.special("<|output_end|>"): ord("!")}
    type_in(monkeypatch, "hi", "ho")
    Chat().run()
    said = capsys.readouterr()
    assert said.out == "x«1+2=3»!\nx«1+2=3»!\n"
    assert said.err.count("(in « » stands what the model asked") == 1, "told once, at the first"
    model.follow = saying(ANSWER, [TOKENIZER.special("<|python_start|>"), *b"1/0", CALL[-1], ord("?")]).follow
    type_in(monkeypatch, "hi")
    Chat().run()
    assert capsys.readouterr().out == "«1/0»?\n"


def test_forgetting_is_said_once(
    model: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, *["a long question"] * 6)
    assert Chat().run()["answers"] == 6
    assert capsys.readouterr().err.count("oldest turns are forgotten") == 1


def test_ctrl_c_stops_the_answer_and_not_the_program(
    model: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model.follow = {ANSWER: ord("a"), ord("a"): ord("b"), ord("b"): ord("a")}
    passes = iter(range(1000))

    def interrupt_the_third() -> None:
        if next(passes) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    model.before_each_pass = interrupt_the_third
    before = signal.getsignal(signal.SIGINT)
    type_in(monkeypatch, "hi", "and")
    assert Chat(max_tokens=5).run()["answers"] == 2
    out, err = capsys.readouterr()
    assert out == "aba\nababa\n"
    assert err.count("(stopped)") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_program(model: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            time.sleep(0.001)

    model.before_each_pass = interrupt
    type_in(monkeypatch, "hi")
    with pytest.raises(KeyboardInterrupt):
        Chat().run()


def test_json_does_not_go_with_typing(model: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "hi")
    with pytest.raises(FathomError, match="--json answers one message"):
        Chat(json=True).run()


def test_a_model_cannot_steer_the_terminal() -> None:
    assert shown("a\x1b]0;evil\x07b\tc\nd\x7f\x9be\u200d é") == "a]0;evilb\tc\nde\u200d é"


REAL = """
import time
from oracles.chain_model import ANSWER, TOKENIZER, Chain
import fathom.train.checkpoint as checkpoint
from fathom.serve.terminal import Chat
model = Chain({ANSWER: 97, 97: 98, 98: 97}, seq_len=10_000)
model.before_each_pass = lambda: time.sleep(0.01)
checkpoint.look_up = lambda *a: None
checkpoint.load_model = lambda *a: (model, TOKENIZER, {"run": "pal", "step": 1, "stage": "sft", "dtype": "fp32"})
print("END", Chat("pal", max_tokens=5000).run())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_real_terminal() -> None:
    import pty

    near, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", REAL],
        stdin=far,
        stdout=far,
        stderr=far,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    os.close(far)
    screen = ""

    def wait_for(words: str) -> None:
        nonlocal screen
        end = time.monotonic() + 60
        while words not in screen:
            assert time.monotonic() < end, screen
            if select.select([near], [], [], 0.1)[0]:
                try:
                    screen += os.read(near, 4096).decode(errors="replace")
                except OSError:  # the program ended
                    pytest.fail(f"no {words!r} but {screen!r}")
        screen = screen[screen.index(words) + len(words) :]

    try:
        wait_for("> ")
        os.write(near, b"hi\n")
        wait_for("abababab")
        os.kill(process.pid, signal.SIGINT)
        wait_for("(stopped)")
        wait_for("> ")
        os.write(near, b"\x04")
        wait_for("END {'run': 'pal', 'step': 1, 'answers': 1}")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(near)


def test_one_ctrl_c_between_answers_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter([KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never read"])

    def read(*_: str) -> str:
        found = next(typed)
        if isinstance(found, str):
            return found
        raise found

    monkeypatch.setattr("builtins.input", read)
    assert dialogue._typed_line() == "hello"
    assert dialogue._typed_line() is None
    assert capsys.readouterr().err.count("Ctrl-C again or Ctrl-D ends") == 2
