"""A small hub on 127.0.0.1 that misbehaves on demand: the part of the API that a fetch uses, with faults to order."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. `after` bytes of the body are sent before the connection breaks or stalls."""

    kind: str
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 500


def drops(after: int) -> Fault:
    """The connection breaks in the middle."""
    return Fault("drop", after)


def stalls(after: int) -> Fault:
    """The server stays connected and says nothing more."""
    return Fault("stall", after)


def truncates(after: int) -> Fault:
    """A shorter file, announced as if it were whole."""
    return Fault("truncate", after)


def answers(status: int, **headers: str) -> Fault:
    return Fault("status", status=status, headers={key.replace("_", "-"): value for key, value in headers.items()})


WRONG_BYTES = Fault("wrong")
IGNORES_RANGE = Fault("ignore range")
WRONG_RANGE = Fault("wrong range")
SENDS_MORE = Fault("more")
NOT_JSON = Fault("not json")
REDIRECT_EXPIRED = Fault("expired")


@dataclass
class Seen:
    """One request for a file's content."""

    path: str
    start: int
    headers: dict[str, str]


class FakeHub(ThreadingHTTPServer):
    """Repositories by name, each {path: content}; `faults[path]` (or "api") are used up one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.in_git: set[str] = set()
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.seen: list[Seen] = []
        self.api_seen: list[str] = []
        self.page_size = 1000
        self.release = threading.Event()
        self.gate: threading.Event | None = None
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def starts(self, path: str) -> list[int]:
        """The offsets at which the content of `path` was asked for."""
        return [seen.start for seen in self.seen if seen.path == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in the middle here: that is what is tested."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._api(match[1], match[2], parse_qs(url.query))
        elif match := re.fullmatch(rf"/datasets/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self._redirect(match[1], match[2])
        elif match := re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", path):
            with self.server.lock:
                self.server.at_once += 1
                self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            try:
                self._file(match[2], self.server.repos[match[1]][match[2]])
            finally:
                with self.server.lock:
                    self.server.at_once -= 1
        else:
            self._error(404, {"X-Error-Code": "EntryNotFound"})

    def do_HEAD(self) -> None:
        match = re.fullmatch(r"/store/([^/]+/[^/]+)/(.+)", unquote(urlsplit(self.path).path))
        assert match is not None
        with self.server.lock:
            faults = self.server.faults[match[2]]
            status = faults.pop(0).status if faults and faults[0].kind == "status" else 200
        self._head(status, {}, len(self.server.repos[match[1]][match[2]]))

    def _fault(self, key: str) -> Fault | None:
        with self.server.lock:
            faults = self.server.faults[key]
            return faults.pop(0) if faults else None

    def _api(self, repo: str, what: str, query: dict[str, list[str]]) -> None:
        self.server.api_seen.append(self.path)
        fault = self._fault("api")
        if fault is not None and fault.kind == "status":
            return self._error(fault.status, fault.headers)
        if fault is not None and fault.kind == "stall":
            self.server.release.wait(30)
            self.close_connection = True
            return None
        if fault is not None and fault.kind == "not json":
            return self._send(200, b"<html>log in</html>", {})
        if repo not in self.server.repos:
            return self._error(401, {"X-Error-Code": "RepoNotFound"})
        if what == "revision":
            return self._send(200, json.dumps({"id": repo, "sha": COMMIT}).encode(), {})
        entries = [self._entry(path, content) for path, content in sorted(self.server.repos[repo].items())]
        first = int(query.get("cursor", ["0"])[0])
        last = first + self.server.page_size
        headers = {}
        if last < len(entries):
            here = urlsplit(self.path).path
            headers["Link"] = f'<{self.server.url}{here}?cursor={last}>; rel="next"'
        return self._send(200, json.dumps(entries[first:last]).encode(), headers)

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
        if path not in self.server.in_git:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def _redirect(self, repo: str, path: str) -> None:
        self._send(302, b"", {"Location": f"{self.server.url}/store/{repo}/{path}"})

    def _file(self, path: str, content: bytes) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.server.seen.append(Seen(path, start, dict(self.headers)))
        if self.server.gate is not None:
            self.server.gate.wait(30)
        fault = self._fault(path) or Fault("")
        if fault.kind == "status":
            return self._error(fault.status, fault.headers)
        if fault.kind == "expired":
            return self._error(403, {})
        if fault.kind == "wrong":
            content = bytes(byte ^ 1 for byte in content)
        if fault.kind == "more":
            content += b"and more"
        headers, status = {"Accept-Ranges": "bytes"}, 200
        body = content
        if asked and "ignore range" not in fault.kind:
            body, status = content[start:], 206
            claimed = 0 if fault.kind == "wrong range" else start
            headers["Content-Range"] = f"bytes {claimed}-{len(content) - 1}/{len(content)}"
        if fault.kind == "truncate":
            body = body[: fault.after]
        if fault.kind.startswith(("drop", "stall")):
            return self._break_off(status, headers, body, fault)
        return self._send(status, body, headers)

    def _break_off(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        self._head(status, headers, len(body))
        self.wfile.write(body[: fault.after])
        self.wfile.flush()
        if fault.kind == "stall":
            self.server.release.wait(30)
        self.close_connection = True

    def _error(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, json.dumps({"error": f"answer {status}"}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, headers, len(body))
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
