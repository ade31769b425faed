"""Requests that are wrong in many ways: in their fields, their bytes, their head; the same again for a seed."""

from __future__ import annotations

import copy
import json
import random
import socket
from typing import Any

CHAT: dict[str, Any] = {
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "the sun"}],
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 1,
    "seed": 1,
    "stop": ["."],
    "stream": False,
    "logit_bias": {"5": 1},
    "response_format": {"type": "text"},
    "tools": [{"type": "function", "function": {"name": "python"}}],
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "[a-z]{2,5}", "maxLength": 5},
        "b": {"anyOf": [{"type": "integer", "minimum": 3}, {"enum": ["x", None]}]},
        "c": {"type": "array", "items": {"$ref": "#/$defs/d"}, "maxItems": 3},
    },
    "$defs": {"d": {"type": "number"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
COMPLETION: dict[str, Any] = {"prompt": "the sun", "max_tokens": 3, "logprobs": 1, "echo": True, "stop": "."}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/fathom/tokenize": {"text": "the sun"},
    "/tokenize": {"prompt": "the sun"},
    "/detokenize": {"tokens": [1, 2]},
}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, 1e308, -0.0, float("nan"), float("inf"), "",
    " ", "\x00", "\ud800", "<|bos|>", "a" * 5000, "é😀", [], [[]], [None], [1, "a"], {}, {"a": 1}, {"": None},
    "(((((a{9}){9}){9}){9}){9})", "(?<=x)[", {"$ref": "#"}, {"not": {}}, {"minimum": 1e300},
    [[1], ["a"]], {"type": "function"}, {"role": "user"}, [10**9], [-1], "null", "NaN",
]  # fmt: skip
HEADS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999999999999999999\r\n\r\nx",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /v1/models/\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /v1/models/%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: nonsense\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n X: folded\r\n\r\n",
]


def malformed(dice: random.Random) -> bytes:
    """One request, as it goes over the wire."""
    path, body = _some_body(dice)
    kind = dice.random()
    if kind < 0.1:
        return _head(dice)
    if kind < 0.55:
        content = _encoded(odd(dice, body))
    elif kind < 0.75:
        content = _torn(dice, _encoded(body))
    elif kind < 0.85:
        content = bytes(dice.randrange(256) for _ in range(dice.randrange(200)))
    elif kind < 0.9:
        deep = dice.randrange(10, 50_000)
        content = (b"[" if dice.random() < 0.5 else b'{"messages":') * deep
    else:
        return _request(
            dice.choice(["GET", "PUT", "DELETE", "POST", "PATCH", "HEAD", "TRACE", "X"]), _odd_path(dice), b""
        )
    return _request("POST", path, content)


def _some_body(dice: random.Random) -> tuple[str, dict[str, Any]]:
    kind = dice.random()
    if kind < 0.4:
        return "/v1/chat/completions", copy.deepcopy(CHAT)
    if kind < 0.5:
        asked = {"messages": CHAT["messages"], "max_tokens": 3, "response_format": FORMAT}
        return "/v1/chat/completions", copy.deepcopy(asked)
    if kind < 0.85:
        return "/v1/completions", copy.deepcopy(COMPLETION)
    path = dice.choice(list(OTHERS))
    return path, copy.deepcopy(OTHERS[path])


def odd(dice: random.Random, body: dict[str, Any]) -> Any:
    """Values put where they do not belong, fields dropped, fields nobody knows."""
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        places = list(_places(body))
        inside, key = dice.choice(places)
        action = dice.random()
        if action < 0.75:
            inside[key] = copy.deepcopy(dice.choice(ODD))
        elif action < 0.9 and isinstance(inside, dict):
            del inside[key]
        elif isinstance(inside, dict):
            inside[dice.choice(["", "temprature", "x" * 300, "messages", "n", "\x00"])] = copy.deepcopy(
                dice.choice(ODD)
            )
        if not body:
            break
    return dice.choice(ODD) if dice.random() < 0.02 else body


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from _places(one)


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def _torn(dice: random.Random, content: bytes) -> bytes:
    raw = bytearray(content)
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(raw))
        if dice.random() < 0.5:
            raw[at] = dice.randrange(256)
        else:
            del raw[at : at + dice.randrange(1, 20)]
        if not raw:
            break
    return bytes(raw)


def _odd_path(dice: random.Random) -> str:
    known = ["/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/fathom/run", "/openapi.json"]
    odd = ["/..", "/%2e%2e/%2e%2e/etc/passwd", "//", "/v1//models", "/v1/models/..%2f..", "/?" + "a" * 2000, "/%00"]
    return dice.choice(known + odd)


def _request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _head(dice: random.Random) -> bytes:
    head = dice.choice(HEADS)
    return _torn(dice, head) if dice.random() < 0.5 else head


def status_of(port: int, wire: bytes, timeout_s: float = 30) -> int:
    """Of the answer to these bytes; 0 where the connection just ends, or the server waits for more of a torn head."""
    whole = b"\r\nConnection: close\r\n\r\n" in wire
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s if whole else 0.1) as connection:
        seen = b""
        try:
            connection.sendall(wire)
            while b"\r\n" not in seen and (more := connection.recv(65536)):
                seen += more
            while whole and connection.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        except TimeoutError:
            if whole:
                raise
    words = seen.split(b" ", 2)
    return int(words[1]) if len(words) > 2 and words[1].isdigit() else 0
