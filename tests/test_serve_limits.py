"""What a server bears: clients that leave, crowd, dawdle or come from elsewhere, an engine that fails, and its end."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from oracles.chain_model import ANSWER, TOKENIZER, Chain, saying
from serving_world import NAME, World, served, wait_for

from fathom.errors import FathomError
from fathom.serve.api import Access
from fathom.serve.serving import MAX_UNREAD, Limits, Loaded

HELLO = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


def endless(pause_s: float = 0.002, seq_len: int = 100_000) -> Chain:
    model = Chain({ANSWER: ord("a"), ord("a"): ord("b"), ord("b"): ord("a")}, seq_len)
    model.before_each_pass = lambda: time.sleep(pause_s)
    return model


def request(body: Any, path: str = CHAT, **headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + content


@contextmanager
def asking(world: World, body: Any, until: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which a request was sent and, of its answer, as much read as ends with `until`."""
    with world.connect() as connection:
        connection.sendall(request(body))
        seen = b""
        while until not in seen:
            more = connection.recv(65536)
            assert more, seen
            seen += more
        yield connection


def open_requests(world: World) -> int:
    return world.serving._loaded.engine.n_unfinished  # type: ignore[union-attr]


# ---- leaving


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(stream: bool) -> None:
    passes: list[float] = []
    model = endless(0.02)
    pause = model.before_each_pass
    model.before_each_pass = lambda: (passes.append(time.monotonic()), pause())[1]
    with served(model, TOKENIZER) as world:
        with asking(world, {"messages": HELLO, "stream": stream}, b"data:" if stream else b""):
            wait_for(lambda: len(passes) > 3)
            assert open_requests(world) == 1
        left = time.monotonic()
        wait_for(lambda: open_requests(world) == 0)
        time.sleep(0.1)
        assert sum(one > left for one in passes) <= 2  # the step that ran, and at most one before it was noticed
        assert world.serving.n_open == 0 and world.serving.n_stream == 0


def test_leaving_while_in_line_or_before_the_body_is_whole() -> None:
    with (
        served(endless(), TOKENIZER, max_batch=1) as world,
        asking(world, {"messages": HELLO, "stream": True}, b"data"),
    ):
        with asking(world, {"messages": HELLO, "n": 3}):
            wait_for(lambda: open_requests(world) == 4)
        wait_for(lambda: open_requests(world) == 1)
        with world.connect() as connection:
            connection.sendall(request({"messages": HELLO})[:-5])
        assert world.get("/health")[0] == 200


# ---- crowds


def test_beyond_capacity_a_client_is_told_when_to_come_back() -> None:
    with served(endless(), TOKENIZER, max_batch=2, limits=Limits(queue=1)) as world:
        with asking(world, {"messages": HELLO, "stream": True, "n": 3}, b"data"):
            wait_for(lambda: open_requests(world) == 3)
            began = time.monotonic()
            status, headers, body = world.ask("POST", CHAT, {"messages": HELLO})
            assert status == 429 and int(headers["retry-after"]) >= 1 and time.monotonic() - began < 5
            assert (
                json.loads(body)["error"] | {"code": "over_capacity", "type": "rate_limit_error"}
                == json.loads(body)["error"]
            )
        wait_for(lambda: world.serving.n_open == 0)
        assert world.post(CHAT, {"messages": HELLO, "max_tokens": 2})[0] == 200
        assert world.post(CHAT, {"messages": HELLO, "n": 4})[0] == 400


def test_requests_in_line_are_answered_in_the_end() -> None:
    found: list[int] = []
    with served(endless(0), TOKENIZER, max_batch=2, limits=Limits(queue=20)) as world:

        def ask() -> None:
            found.append(world.post(CHAT, {"messages": HELLO, "max_tokens": 20})[0])

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == [200] * 16


def test_a_body_that_is_too_large() -> None:
    with served(saying(ANSWER, list(b"yo")), TOKENIZER, limits=Limits(body_mb=0.01)) as world:
        for size in (20_000, 1_000_000):
            status, answer = world.post(CHAT, b'{"messages": "' + b"x" * size + b'"}')
            assert status == 413 and answer["error"]["code"] == "body_too_large"
        with world.connect() as connection:
            connection.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            for _ in range(3):
                connection.sendall(b"1000\r\n" + b"y" * 4096 + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
            assert b" 413 " in connection.recv(65536)
        assert world.post(CHAT, {"messages": HELLO})[0] == 200


def test_an_answer_that_takes_too_long() -> None:
    with served(endless(), TOKENIZER, limits=Limits(timeout_s=0.3)) as world:
        status, answer = world.post(CHAT, {"messages": HELLO})
        assert status == 503 and answer["error"]["code"] == "timeout"
        body = world.ask("POST", CHAT, {"messages": HELLO, "stream": True})[2]
        assert b'"content":"a"' in body and b'"timeout"' in body
        wait_for(lambda: open_requests(world) == 0)


def test_max_tokens_bounds_every_answer() -> None:
    with served(endless(0), TOKENIZER, limits=Limits(max_tokens=7)) as world:
        for asked in ({}, {"max_tokens": 100}, {"max_completion_tokens": 100}):
            answer = world.post(CHAT, {"messages": HELLO, **asked})[1]
            assert answer["usage"]["completion_tokens"] == 7 and answer["choices"][0]["finish_reason"] == "length"


# ---- dawdling


def test_half_open_connections_are_cut() -> None:
    with served(saying(ANSWER, list(b"yo")), TOKENIZER, limits=Limits(patience_s=0.4)) as world:
        with world.connect() as silent, world.connect() as headless, world.connect() as bodiless:
            headless.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0")
            bodiless.sendall(request({"messages": HELLO})[:-3])
            began = time.monotonic()
            trickle = threading.Thread(target=_trickle, args=(headless,))
            trickle.start()
            for connection in (silent, headless):
                assert _rest(connection) == b""
            assert b" 408 " in _rest(bodiless)
            assert time.monotonic() - began < 5
            trickle.join()
        with world.connect() as twice:
            for _ in range(2):
                twice.sendall(request({"messages": HELLO}))
                seen = b""
                while not seen.endswith(b"}}}"):
                    seen += twice.recv(65536)
                assert b" 200 " in seen
            twice.sendall(b"GET /hea")
            assert _rest(twice) == b""
        wait_for(lambda: world.serving.n_stream == 0)


def _trickle(connection: socket.socket) -> None:
    """A byte now and then does not set the clock back."""
    try:
        for _ in range(10):
            time.sleep(0.1)
            connection.sendall(b"x")
    except OSError:
        pass


def _rest(connection: socket.socket) -> bytes:
    seen = b""
    try:
        while more := connection.recv(65536):
            seen += more
    except ConnectionResetError:
        pass
    return seen


def test_a_client_that_does_not_read_loses_its_place() -> None:
    with served(endless(0), TOKENIZER, limits=Limits(patience_s=0.3), send_buffer=4096) as world:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", world.port))
            connection.sendall(request({"messages": HELLO, "stream": True, "n": 4}))
            wait_for(lambda: open_requests(world) == 4)
            wait_for(lambda: open_requests(world) == 0, 30)
            assert world.serving.n_stream == 0
        assert world.post(CHAT, {"messages": HELLO, "max_tokens": 2})[0] == 200
    assert MAX_UNREAD < 10_000


# ---- garbage


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 200,
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\xff\xff\xff\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    ],
)
def test_what_is_no_http(garbage: bytes, calm: World, capsys: pytest.CaptureFixture[str]) -> None:
    with calm.connect() as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        found = _rest(connection)
        assert re.match(rb"HTTP/1.1 (200|400) ", found) or not found
    assert calm.get("/health")[0] == 200
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def calm() -> Iterator[World]:
    with served(saying(ANSWER, list(b"yo")), TOKENIZER) as world:
        yield world


# ---- who may ask


def test_a_key() -> None:
    with served(saying(ANSWER, list(b"yo")), TOKENIZER, access=Access(api_key="s3cret")) as world:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret"},
            {"Authorization": "Basic s3cret"},
        ):
            status, answered, body = world.ask("GET", "/v1/models", headers=headers)
            assert status == 401 and answered["www-authenticate"] == "Bearer"
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
            assert world.ask("POST", CHAT, {"messages": HELLO}, headers)[0] == 401
            assert world.ask("GET", "/metrics", headers=headers)[0] == 401
        assert world.ask("GET", "/v1/models", headers={"Authorization": "Bearer s3cret"})[0] == 200
        assert world.client(api_key="s3cret").chat.completions.create(model=NAME, messages=HELLO).choices
        for path in ("/health", "/openapi.json"):
            assert world.ask("GET", path)[0] == 200


def test_pages_of_other_origins_may_not_ask(calm: World) -> None:
    other = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    status, headers, body = calm.ask("POST", CHAT, {"messages": HELLO}, other)
    assert status == 403 and "access-control-allow-origin" not in headers
    assert calm.ask("POST", CHAT, {"messages": HELLO}, {"Origin": "null"})[0] == 403
    assert calm.ask("POST", CHAT, {"messages": HELLO}, {"Origin": calm.url})[0] == 200
    with served(saying(ANSWER, list(b"yo")), TOKENIZER, access=Access(cors=("https://chat.example",))) as world:
        asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = world.ask("OPTIONS", CHAT, headers=asked)
        assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
        status, headers, _ = world.ask("POST", CHAT, {"messages": HELLO}, {"Origin": "https://chat.example"})
        assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
        assert world.ask("POST", CHAT, {"messages": HELLO}, other)[0] == 403


def test_another_name_for_this_machine_is_refused(calm: World) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert calm.ask("GET", "/v1/models", headers={"Host": host})[0] == 421
    for host in ("localhost", f"127.0.0.1:{calm.port}", "[::1]:8000"):
        assert calm.ask("GET", "/v1/models", headers={"Host": host})[0] == 200
    with served(saying(ANSWER, list(b"yo")), TOKENIZER, access=Access(host="0.0.0.0")) as world:
        assert world.ask("GET", "/v1/models", headers={"Host": "box.example"})[0] == 200


# ---- an engine that fails


def test_an_engine_that_fails_ends_what_runs_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    model = endless(0.001)
    fine, passes = model.before_each_pass, iter(range(1000))

    def fail_once() -> None:
        fine()
        if next(passes) == 5:
            raise RuntimeError("CUDA error: an illegal memory access\nand much more")

    model.before_each_pass = fail_once
    with served(model, TOKENIZER) as world:
        status, answer = world.post(CHAT, {"messages": HELLO})
        assert status == 503 and answer["error"]["code"] == "engine_error"
        assert "illegal memory access" in answer["error"]["message"]
        assert world.post(CHAT, {"messages": HELLO, "max_tokens": 3})[0] == 200
        assert world.metric("fathom_engine_failures_total") == 1
        assert world.get("/health")[0] == 200
    err = capsys.readouterr().err
    assert "Traceback" not in err and "and much more" not in err and "illegal memory access" in err


class Panic(BaseException):
    """As a library written in Rust raises it: no Exception."""


def test_a_library_that_panics_ends_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    with served(saying(ANSWER, list(b"yo")), TOKENIZER) as world:
        engine = world.serving._loaded.engine  # type: ignore[union-attr]
        add = engine.add

        def panic(request: Any) -> int:
            if request.seed == 13:
                raise Panic("index out of bounds")
            return add(request)

        engine.add = panic  # type: ignore[method-assign]
        status, answer = world.post(CHAT, {"messages": HELLO, "seed": 12, "n": 2})
        assert status == 503 and answer["error"]["code"] == "engine_error"
        assert world.post(CHAT, {"messages": HELLO, "seed": 1})[0] == 200
        assert open_requests(world) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_an_engine_that_cannot_start_over_ends_the_server_with_a_sentence() -> None:
    model = endless(0)
    with served(model, TOKENIZER) as world:

        def lost() -> None:
            raise RuntimeError("the GPU is lost")

        model.before_each_pass = lost
        world.serving._loaded.engine.reset = lost  # type: ignore[union-attr, method-assign]
        assert world.post(CHAT, {"messages": HELLO})[0] == 503
        wait_for(lambda: world.serving.state == "failed")
        assert "the GPU is lost" in str(world.serving.problem)


# ---- beginning and end


def test_it_says_that_it_is_not_ready_yet() -> None:
    gate = threading.Event()

    def load() -> Loaded:
        gate.wait(20)
        raise FathomError("the checkpoint is torn", "choose another")

    with served(None, TOKENIZER, load=load) as world:
        status, headers, body = world.ask("GET", "/health")
        assert status == 503 and json.loads(body)["status"] == "loading" and "retry-after" in headers
        status, answer = world.post(CHAT, {"messages": HELLO})
        assert status == 503 and answer["error"]["code"] == "loading"
        assert world.get("/v1/models")[0] == 200
        gate.set()
        wait_for(lambda: world.serving.state == "failed")
        assert world.serving.problem and "torn" in str(world.serving.problem)


def test_it_drains() -> None:
    """What runs is answered to the end, what comes new is not begun, and what takes too long is ended with words."""
    found: dict[str, Any] = {}

    def ask(name: str, max_tokens: int) -> Callable[[], None]:
        def go() -> None:
            found[name] = world.post(CHAT, {"messages": HELLO, "max_tokens": max_tokens})

        return go

    with served(endless(0.01), TOKENIZER) as world:
        threads = [threading.Thread(target=ask(name, n)) for name, n in (("short", 20), ("long", 90_000))]
        for thread in threads:
            thread.start()
        wait_for(lambda: open_requests(world) == 2)
        world.loop.call_soon_threadsafe(world.serving.drain)
        wait_for(lambda: world.serving.state == "draining")
        assert world.get("/health") == (503, {"status": "draining", "model": NAME})
        assert world.post(CHAT, {"messages": HELLO})[1]["error"]["code"] == "draining"
        for thread in threads:
            thread.join(20)
    assert found["short"][0] == 200 and found["short"][1]["usage"]["completion_tokens"] == 20
    assert found["long"][0] == 503 and found["long"][1]["error"]["code"] == "draining"


# ---- the page's files


def test_the_page_comes_with_types_and_a_strict_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"index.html": b"<!doctype html>", "js/main.js": b"1", "css/a.css": b"a{}", "icon.svg": b"<svg/>"}
    monkeypatch.setattr("fathom.serve.pages.page_files", lambda: files)
    with served(saying(ANSWER, list(b"yo")), TOKENIZER, access=Access(api_key="s3cret")) as world:
        for path, kind in (
            ("/", "text/html; charset=utf-8"),
            ("/js/main.js", "text/javascript; charset=utf-8"),
            ("/css/a.css", "text/css; charset=utf-8"),
            ("/icon.svg", "image/svg+xml"),
        ):
            status, headers, body = world.ask("GET", path)
            assert status == 200 and headers["content-type"] == kind and body == files[path[1:] or "index.html"]
            policy = headers["content-security-policy"]
            assert "default-src 'self'" in policy and "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
        for path in ("/js/../index.html", "/js/%2e%2e/%2e%2e/api.py", "/js", "/js/", "/main.js", "/v1/models/"):
            assert world.ask("GET", path)[0] in (401, 404)
        assert world.ask("POST", "/js/main.js", b"x")[0] == 405
