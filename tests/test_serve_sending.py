"""An answer to a client that reads as fast as the engine speaks: the time of a request ends it all the same."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from oracles.chain_model import TOKENIZER

from fathom.generate.running import Event, Request
from fathom.serve.answers import Answer, Head
from fathom.serve.asking import Ask
from fathom.serve.metrics import Metrics
from fathom.serve.sending import Reply
from fathom.serve.serving import Limits


class Endless:
    """A stream that always has something to say, sooner or later."""

    def __init__(self, pause_s: float | None) -> None:
        self._pause_s = pause_s

    async def next(self) -> list[tuple[int, Event]]:
        if self._pause_s is not None:
            await asyncio.sleep(self._pause_s)
        return [(0, Event(1, ord("a"), False, "a", "text", None))]

    def close(self) -> None:
        pass


async def sent(pause_s: float | None, stream: bool) -> list[dict[str, Any]]:
    """What a client gets, which needs a turn of the loop for each message."""
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        messages.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    serving: Any = SimpleNamespace(limits=Limits(timeout_s=0.05), metrics=Metrics(dict))
    answer = Answer(Ask((Request((1,)),), n=1, stream=stream), Head("chat.completion", "tiny", "1"), TOKENIZER)
    reply = Reply(serving, Endless(pause_s), answer)  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await reply({"type": "http"}, receive, send)
    return messages


@pytest.mark.parametrize("pause_s", [None, 0, 0.001])
def test_a_stream_is_ended_in_words_at_its_time(pause_s: float | None) -> None:
    for _ in range(10):
        messages = asyncio.run(sent(pause_s, stream=True))
        assert b'"content":"a"' in messages[2]["body"]
        assert json.loads(messages[-2]["body"][6:])["error"]["code"] == "timeout"
        assert messages[-1] == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize("pause_s", [0, 0.001])
def test_a_whole_answer_is_refused_at_its_time(pause_s: float) -> None:
    messages = asyncio.run(sent(pause_s, stream=False))
    assert messages[0]["status"] == 503 and json.loads(messages[1]["body"])["error"]["code"] == "timeout"
