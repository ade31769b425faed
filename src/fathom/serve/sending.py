"""An answer on its way to a client: whole, or chunk by chunk; and noticing when the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fathom.generate.running import Event
from fathom.serve.answers import Answer
from fathom.serve.refusals import Refusal, as_json, unavailable
from fathom.serve.serving import Serving, Stream

SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


# A client reads no answer before it has sent its body: so many bytes of one that is too large are read and dropped.
MOST_DISCARDED = 64_000_000


class Gone(Exception):
    """The client is not there any more, or does not read."""


async def read_body(request: Request, limit: int, patience_s: float, timeout_s: float) -> bytes:
    """The whole body. Raises Refusal: 413 beyond `limit` bytes, 408 where it does not come in time."""
    declared = request.headers.get("content-length", "")
    body, size = bytearray(), 0
    if declared.isdigit() and len(declared) < 20 and int(declared) > limit + MOST_DISCARDED:
        raise _too_large(limit)
    stream = request.stream()
    try:
        async with asyncio.timeout(timeout_s):
            while (chunk := await _next(stream, patience_s)) is not None:
                size += len(chunk)
                if size > limit + MOST_DISCARDED:
                    raise _too_large(limit)
                if size <= limit:
                    body += chunk
    except TimeoutError:
        message = f"the body did not come in time: {patience_s:g} s went by without any of it, or {timeout_s:g} in all"
        raise Refusal(408, message, code="slow_client", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Gone from None
    if size > limit:
        raise _too_large(limit)
    return bytes(body)


async def _next(stream: AsyncIterator[bytes], patience_s: float) -> bytes | None:
    async with asyncio.timeout(patience_s):
        return await anext(stream, None)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413,
        f"the body is larger than {limit / 1e6:g} MB",
        code="body_too_large",
        headers={"Connection": "close"},
    )


class Reply(Response):
    """Answers a request of the engine: opened already, so what is wrong with it was said already."""

    def __init__(self, serving: Serving, stream: Stream, answer: Answer) -> None:
        super().__init__()
        self._serving, self._stream, self._answer = serving, stream, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(_until_gone(receive))
        work = asyncio.create_task(self._send(_Patient(send, scope, self._serving.limits.patience_s)))
        try:
            await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stream.close()
            for task in (watch, work):
                if not task.done():
                    task.cancel()
            await asyncio.gather(watch, work, return_exceptions=True)
            counts = self._answer.counts
            self._serving.metrics.prompt_tokens.inc(counts.prompt)
            self._serving.metrics.answer_tokens.inc(counts.said)
        if not work.cancelled() and (error := work.exception()):
            raise error

    async def _send(self, send: _Patient) -> None:
        if self._answer.ask.stream:
            await self._send_chunks(send)
        else:
            await self._send_whole(send)

    async def _send_whole(self, send: _Patient) -> None:
        try:
            async for _ in self._chunks():
                pass
            response = as_json(self._answer.whole())
        except Refusal as refusal:
            response = refusal.response()
        headers = response.raw_headers
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(response.body)})

    async def _send_chunks(self, send: _Patient) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        for opening in self._answer.openings():
            await send(_event(opening))
        try:
            async for chunks in self._chunks():
                for chunk in chunks:
                    await send(_event(self._answer.chunk(chunk)))
            if last := self._answer.last_chunk():
                await send(_event(last))
            await send(_line("[DONE]"))
        except Refusal as refusal:
            await send(_event(refusal.body()))
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Raises Refusal where the engine failed, or the time is up.

        The time runs out while events are waited for, never in the middle of sending one.
        """
        limit = self._serving.limits.timeout_s
        end = asyncio.get_running_loop().time() + limit
        try:
            while events := await _until(end, self._stream.next()):
                yield self._answer.take(events)
        except TimeoutError:
            raise unavailable(f"the answer took longer than {limit:g} s, the limit of this server", "timeout") from None


async def _until(end: float, events: Awaitable[list[tuple[int, Event]]]) -> list[tuple[int, Event]]:
    """Raises TimeoutError for events that come later, or were there without waiting and too late."""
    async with asyncio.timeout_at(end):
        found = await events
    if found and asyncio.get_running_loop().time() > end:
        raise TimeoutError
    return found


class _Patient:
    """`send` that gives up on a client that does not read, and cuts the connection."""

    def __init__(self, send: Send, scope: Scope, patience_s: float) -> None:
        self._send, self._abort = send, scope.get("state", {}).get("abort")
        self._patience_s = patience_s

    async def __call__(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._patience_s):  # wait_for of Python 3.11 can swallow being cancelled
                await self._send(message)
        except TimeoutError:
            if self._abort:
                self._abort()
            raise Gone from None


def _event(value: dict[str, Any]) -> Message:
    return _line(json.dumps(value, allow_nan=False, separators=(",", ":")))


def _line(text: str) -> Message:
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}


async def _until_gone(receive: Receive) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
