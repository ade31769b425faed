"""`fathom serve` as a process of its own on a free loopback port, and what one asks of it from outside."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Ended:
    status: int
    lines: list[str]
    """All that it wrote to standard error."""


class ServedRun:
    """A server of a run, started on entering, killed on leaving unless it ended before."""

    def __init__(self, run: str, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fathom", "serve", run, "--port", str(self.port), *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"},
        )

    def __enter__(self) -> ServedRun:
        end = time.monotonic() + 120
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(self._process.communicate()[1])
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return self
            except OSError:
                pass
            if time.monotonic() > end:
                raise RuntimeError("it does not answer")
            time.sleep(0.05)

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 120) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> Any:
        status, content = self.ask("POST", path, body)
        if status != 200:
            raise RuntimeError(f"{status}: {content[:500]!r}")
        return json.loads(content)

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.split(" ")[0] == name)

    def rss_mb(self) -> float:
        """Resident memory of the process."""
        import psutil

        return round(psutil.Process(self._process.pid).memory_info().rss / 1e6, 1)

    def end(self) -> Ended:
        """Tell it to end, and wait."""
        self._process.send_signal(signal.SIGTERM)
        _, err = self._process.communicate(timeout=60)
        return Ended(self._process.returncode, err.splitlines())
