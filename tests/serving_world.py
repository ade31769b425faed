"""A real server on a loopback port, in a thread of this process, and ways to ask it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fathom.generate.engine import Engine
from fathom.serve.api import Access, app
from fathom.serve.connection import server
from fathom.serve.serving import Limits, Loaded, Serving

NAME = "tiny-sft"
LIMITS, ACCESS = Limits(), Access()


@dataclass
class World:
    """A server that runs."""

    serving: Serving
    port: int
    loop: asyncio.AbstractEventLoop
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Any:
        import openai

        given: dict[str, Any] = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 30}
        return openai.OpenAI(**(given | options))

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 30
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers with small letters, body) of one request. A body that is no bytes goes as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, content = self.ask("POST", path, body, headers)
        return status, json.loads(content)

    def get(self, path: str) -> tuple[int, Any]:
        status, _, content = self.ask("GET", path)
        return status, json.loads(content)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.split(" ")[0] == name)


def wait_for(what: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


@contextmanager
def served(
    model: Any,
    tokenizer: Any,
    *,
    limits: Limits = LIMITS,
    max_batch: int = 4,
    access: Access = ACCESS,
    stage: str = "sft",
    load: Callable[[], Loaded] | None = None,
    send_buffer: int = 0,
    **options: Any,
) -> Iterator[World]:
    """A server of this model until the block ends. `send_buffer` bytes of an answer may lie in the system."""

    def ready() -> Loaded:
        engine = Engine(model, tokenizer, max_batch=max_batch, **options)
        info = {"run": NAME, "step": 30, "stage": stage, "dtype": "fp32", "parameters": 1000}
        return Loaded(engine, info)

    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    worlds: list[World] = []
    started = threading.Event()

    async def live() -> None:
        serving = Serving(NAME, load or ready, limits, max_batch)
        http = server(app(serving, access), limits.patience_s, serving.drain)
        worlds.append(World(serving, listener.getsockname()[1], asyncio.get_running_loop()))
        work = asyncio.create_task(http.serve(sockets=[listener]))
        serving.start()
        while not http.started:
            await asyncio.sleep(0.002)
        started.set()
        while serving.state not in ("draining", "failed"):
            serving.changed.clear()
            await serving.changed.wait()
        await serving.wait_until_idle(0.5)
        http.should_exit = True
        await work
        serving.end()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert started.wait(20)
    world = worlds[0]
    try:
        if load is None:
            wait_for(lambda: world.serving.state == "ok")
        yield world
    finally:
        with suppress(RuntimeError):  # it has ended by itself
            world.loop.call_soon_threadsafe(world.serving.drain)
        thread.join(20)
        listener.close()
    assert not thread.is_alive(), "the server did not end"
