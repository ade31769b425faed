"""A server that speaks `fathom serve`'s contract without a model: it says what a test tells it to say."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fathom.serve import pages

RUN = {
    "run": "quickstart-sft",
    "step": 1234,
    "stage": "sft",
    "depth": 4,
    "seq_len": 512,
    "vocab_size": 1024,
    "parameters": 3_200_000,
    "dtype": "fp32",
    "limits": {"max_tokens": 512},
    "can_chat": True,
}
BREAK = ("break", "")

Piece = tuple[str, str] | tuple[str, str, list[Any]]


@dataclass
class Script:
    """One answer: pieces (type, text[, tokens]) as they are streamed, a pause before each, and why it ends."""

    pieces: Sequence[Piece]
    pause_s: float = 0.0
    finish: str = "stop"
    status: int = 200
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


def words(text: str, **more: Any) -> Script:
    """An answer that comes in words, each a token with made-up alternatives."""
    pieces: list[Piece] = []
    for place, word in enumerate(_words(text)):
        p = (0.97, 0.62, 0.2, 0.05)[place % 4]
        pieces.append(("text", word, [_token(word, p)]))
    return Script(pieces, **more)


def _words(text: str) -> list[str]:
    cut = [place for place in range(1, len(text)) if text[place] == " " or text[place - 1] == "\n"]
    return [text[start:end] for start, end in zip([0, *cut], [*cut, len(text)], strict=True)]


def _token(text: str, p: float) -> dict[str, Any]:
    others = [(text, p), (" Lyon", (1 - p) / 2), (" the", (1 - p) / 4)]
    told = [{"token": t, "bytes": list(t.encode()), "logprob": math.log(q)} for t, q in others]
    return {**told[0], "top_logprobs": sorted(told, key=lambda one: -one["logprob"])}


class StandIn:
    """On a thread, until stopped. `scripts` are used up in order, then `otherwise` is said; `bodies` holds requests."""

    def __init__(self, port: int = 0) -> None:
        self.reset()
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._answering = [
            Route("/v1/fathom/run", self._about),
            Route("/favicon.ico", lambda request: Response(status_code=204)),  # a browser may ask for it by itself
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/completions", self._answer, methods=["POST"]),
        ]
        settings = uvicorn.Config(
            Starlette(routes=[*self._answering, *pages.routes()]),
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def reset(self) -> None:
        self.run: dict[str, Any] = dict(RUN)
        self.scripts: list[Script] = []
        self.otherwise = words("Paris is the capital of France.")
        self.bodies: list[dict[str, Any]] = []
        self.key = ""
        self.is_loading = False
        self.n_left = 0  # clients that went away in the middle

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _refusal(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "this server wants its key as a bearer token", "invalid_api_key")
        if self.is_loading:
            return _error(503, "the run is being loaded", "loading", {"Retry-After": "1"})
        return None

    async def _about(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(self.run)

    async def _answer(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        self.bodies.append(json.loads(await request.body()))
        script = self.scripts.pop(0) if self.scripts else self.otherwise
        if script.status != 200:
            return _error(script.status, script.pieces[0][1], script.code, script.headers)
        is_chat = request.url.path.endswith("chat/completions")
        return StreamingResponse(self._stream(script, is_chat), media_type="text/event-stream")

    async def _stream(self, script: Script, is_chat: bool) -> AsyncIterator[str]:
        n_token = 0
        try:
            for piece in script.pieces:
                await asyncio.sleep(script.pause_s)
                if piece == BREAK:
                    return
                if piece[0] == "error":
                    yield _event({"error": {"message": piece[1], "type": "server_error"}})
                    return
                n_token += 1
                yield _event({"choices": [_choice(piece, is_chat)], "usage": None})
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish}]})
            yield _event({"choices": [], "usage": {"completion_tokens": n_token, "prompt_tokens": 7}})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.n_left += 1
            raise


def _choice(piece: Piece, is_chat: bool) -> dict[str, Any]:
    kind, text = piece[:2]
    tokens = piece[2] if len(piece) > 2 else []
    if not is_chat:
        logprobs = {
            "tokens": [one["token"] for one in tokens],
            "token_logprobs": [one["logprob"] for one in tokens],
            "top_logprobs": [{other["token"]: other["logprob"] for other in one["top_logprobs"]} for one in tokens],
        }
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}
    delta: dict[str, Any] = (
        {"content": text} if kind == "text" else {"content": "", "part": {"type": kind, "text": text}}
    )
    return {"index": 0, "delta": delta, "logprobs": {"content": tokens}, "finish_reason": None}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"message": message, "type": "error", "param": None, "code": code or None}}
    return JSONResponse(body, status, headers=headers)
