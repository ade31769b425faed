"""uvicorn's connection and server with what it lacks: clients that never finish asking, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import sys
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fathom.serve.refusals import Refusal

MAX_CONNECTIONS = 512


def connections(patience_s: float) -> type[H11Protocol]:
    """A class of connections that are cut where the head of a request does not come within so many seconds."""

    class Connection(H11Protocol):
        _expiry: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.app_state = {**self.app_state, "abort": transport.abort}
            self._watch()

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except h11.LocalProtocolError:  # garbage after a request whose answer is on its way
                self.transport.abort()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # a client that never took its last answer
            super().timeout_keep_alive_handler()

        def send_400_response(self, msg: str) -> None:
            body = Refusal(400, "this is no HTTP request", code="invalid_http").response()
            headers = [*body.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(body.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _watch(self) -> None:
            """While no head of a request is in, the clock runs; more bytes do not set it back."""
            waits = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
            if waits and self._expiry is None:
                self._expiry = self.loop.call_later(patience_s, self.transport.abort)
            elif not waits:
                self._unwatch()

        def _unwatch(self) -> None:
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None

    return Connection


class Server(uvicorn.Server):
    """Ends when it is told to; the first signal calls `on_signal`, the second ends the process at once."""

    def __init__(self, config: uvicorn.Config, on_signal: Any) -> None:
        super().__init__(config)
        self._on_signal, self._told = on_signal, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:
            print("fathom: stopped.", file=sys.stderr, flush=True)
            os._exit(130)
        self._told = True
        self._on_signal()


def server(app: Any, patience_s: float, on_signal: Any) -> Server:
    config = uvicorn.Config(
        app,
        http=connections(patience_s),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    return Server(config, on_signal)
