"""`fathom serve` as a person starts and ends it: what stands on the screen, what is refused, what signals do."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from oracles.tiny_runs import fine_tuning, furnish, pretraining, write_conversations

from fathom.errors import FathomError
from fathom.hardware import Choice
from fathom.serve import command
from fathom.serve.command import Serve
from fathom.serve.terminal import Chat


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with the runs base and base-sft."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(folder))
        furnish()
        pretraining(steps=2, eval_every=0, seq_len=256, batch_tokens=256).run()
        fine_tuning(write_conversations(), steps=2, eval_every=0).run()
        yield folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def ask(port: int, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "fathom", "serve", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                if ask(port, "/health")[0] == 200:
                    break
            except OSError:
                pass
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def test_it_starts_answers_and_ends_in_order(home: Path) -> None:
    with started("--log", "--drain", "20", "--json") as (process, port):
        assert json.loads(ask(port, "/v1/models")[1])["data"][0]["id"] == "base-sft"
        body = {"messages": [{"role": "user", "content": "the sun"}], "temperature": 0, "max_tokens": 240}
        found: list[tuple[int, bytes]] = []
        thread = threading.Thread(target=lambda: found.append(ask(port, "/v1/chat/completions", body)))
        thread.start()
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        thread.join(30)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
    assert found[0][0] in (200, 503)
    assert json.loads(out) == {"run": "base-sft", "url": f"http://127.0.0.1:{port}"}
    for words in ("base-sft at step 2", f"http://127.0.0.1:{port}/", "Ctrl-C ends it", "200 GET /v1/models", "ended"):
        assert words in err
    assert "Traceback" not in err


def test_a_second_signal_ends_it_at_once(home: Path) -> None:
    with started("base", "--drain", "60") as (process, port):
        body = {"prompt": "the sun", "temperature": 1, "max_tokens": 500, "n": 32, "logit_bias": {"291": -100}}
        thread = threading.Thread(target=lambda: _quietly(port, body))
        thread.start()
        while b"fathom_engine_open 32.0" not in ask(port, "/metrics")[1]:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        while process.poll() is None and ask_state(port) == "ok":
            time.sleep(0.001)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        thread.join(10)
    assert time.monotonic() - began < 5
    assert process.returncode in (0, 130)  # 0 where all was answered before the second came
    assert "it was not taught to chat" in err and "Traceback" not in err


def _quietly(port: int, body: Any) -> None:
    with suppress(OSError, http.client.HTTPException):
        ask(port, "/v1/completions", body)


def ask_state(port: int) -> str:
    try:
        return str(json.loads(ask(port, "/health")[1])["status"])
    except (OSError, http.client.HTTPException):
        return "gone"


def test_a_port_that_is_taken_is_said_with_one_that_is_free(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(FathomError, match=rf"port {port} is taken by another program; --port \d+ is free"):
            Serve("base-sft", port=port).run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "nobody"}, "nobody"),
        ({"step": 77}, "77"),
        ({"port": 70_000}, "ports go from 0 to 65535"),
        ({"host": "no.such.host.invalid"}, "is no address"),
        ({"queue": -1}, "--queue is -1"),
        ({"max_batch": 0}, "--max-batch is 0"),
        ({"timeout": 0.0}, "--timeout is 0"),
        ({"drain": -1.0}, "--drain is -1"),
        ({"api_key": "@/no/such/file"}, "cannot be read"),
        ({"api_key": "two words"}, "spaces"),
    ],
)
def test_what_cannot_be_is_said_before_anything_listens(home: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError, match=words):
        Serve(**({"name": "base-sft", "port": 0} | options)).run()


@pytest.mark.parametrize(("asked", "found"), [("auto", "static"), ("on", "compiled"), ("off", "pages")])
def test_what_says_the_answers_is_compiled_where_that_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, found: str
) -> None:
    monkeypatch.setattr("fathom.generate.decode.can_compile", lambda device: Choice("yes", "compiled with g++"))
    monkeypatch.setattr("fathom.generate.engine.usual", lambda model: "static")
    monkeypatch.setattr("fathom.generate.decode.regions", lambda: None)  # nothing is said here, so nothing is compiled
    assert Serve("base-sft", compile=asked)._load("base-sft").engine.decode == found
    assert Chat("base-sft", compile=asked)._open("base-sft")[0].engine.decode == found


def test_a_key_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("s3cret\n")
    assert command._key(f"@{path}") == "s3cret"
    assert command._key("plain") == "plain" and command._key("") == ""
    path.write_text("\n")
    with pytest.raises(FathomError, match="empty"):
        command._key(f"@{path}")


def test_no_run_to_serve(fathom_home: Path) -> None:
    with pytest.raises(FathomError, match="no run that can chat"):
        Serve().run()


def test_a_run_that_cannot_be_loaded_ends_the_server_with_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: Any) -> Any:
        raise FathomError("the checkpoint is torn", "choose another")

    monkeypatch.setattr("fathom.train.checkpoint.load_model", torn)
    with pytest.raises(FathomError, match="torn"):
        Serve("base-sft", port=0).run()


def test_an_open_address_without_a_key_is_warned_of(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def torn(*_: Any) -> Any:
        raise FathomError("the checkpoint is torn", "choose another")

    monkeypatch.setattr("fathom.train.checkpoint.load_model", torn)
    monkeypatch.setattr(command, "_is_loopback", lambda host: False)
    for key, warned in (("", True), ("s3cret", False)):
        with pytest.raises(FathomError):
            Serve("base-sft", port=0, api_key=key).run()
        assert ("anyone who can reach that address" in capsys.readouterr().err) is warned
