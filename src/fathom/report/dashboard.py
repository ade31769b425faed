"""`fathom dashboard`: runs in the browser, live. It reads run folders and nothing else, and asks no other host.

The page (static/dashboard.*) asks for the list of runs every two seconds, and for a run whose version changed.
"""

from __future__ import annotations

import ipaddress
import json as json_text
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tyro
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fathom.errors import FathomError
from fathom.home import check_name
from fathom.record import read_config
from fathom.report import live
from fathom.report.charts import static
from fathom.screen import say

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "LICENSE": "text/plain"}
STATIC = (
    "uPlot.LICENSE",
    "uPlot.iife.min.js",
    "uPlot.min.css",
    "chart_numbers.js",
    "charts.js",
    "page.css",
    "dashboard.css",
    "dashboard.js",
    "dashboard_curves.js",
    "dashboard_tabs.js",
    "dashboard_list.js",
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Dashboard:
    """Show runs in the browser: curves of one or several, samples, evaluations, hardware. Ctrl-C ends it."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """The runs shown at first; by default those at work, else the newest with a curve."""
    port: int = 8001
    """Where it listens; 0 takes any free port."""
    host: str = "127.0.0.1"
    """The address it listens on. Another one than this machine's own lets others see your runs."""
    json: bool = False
    """Print one JSON object on standard output when it ends."""

    def run(self) -> dict[str, Any]:
        import uvicorn

        for name in self.runs:
            read_config(name)
        listener = listen(self.host, self.port)
        url = _url(self.host, listener.getsockname()[1])
        say(f"the dashboard is at {url} (Ctrl-C ends it)")
        if not is_loopback(self.host):
            say("anyone who can reach that address can read your runs", style="yellow")
        settings = uvicorn.Config(
            application(self.runs, self.host), log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # which uvicorn passes on after it has closed what was open
        finally:
            listener.close()
        return {"url": url}


def application(first: Sequence[str] = (), host: str = "127.0.0.1") -> ASGIApp:
    """The dashboard by itself, behind the check of the Host header."""
    return HostCheck(Starlette(routes=list(routes(first))), host)


def routes(first: Sequence[str] = ()) -> list[Route]:
    """The page and what it asks for, by relative addresses: mounted anywhere it works, behind a HostCheck.

    first: the runs that are shown at first.
    """
    shelf = live.Shelf()

    async def runs(request: Request) -> Response:
        return _json({"first": list(first), "runs": await run_in_threadpool(shelf.listing)})

    async def run(request: Request) -> Response:
        has = request.query_params.get("has", "")
        return await _of_run(request, lambda found, name: _with_curves(found, name, has))

    async def details(request: Request) -> Response:
        return await _of_run(request, live.details)

    async def _of_run(request: Request, answer: Callable[[live.Reading, str], dict[str, Any]]) -> Response:
        return _json(*await run_in_threadpool(_about, shelf, request.path_params["name"], answer))

    return [
        Route("/", _page),
        Route("/static/{name}", _static),
        Route("/api/runs", runs),
        Route("/api/runs/{name}", run),
        Route("/api/runs/{name}/details", details),
    ]


def _about(
    shelf: live.Shelf, name: str, answer: Callable[[live.Reading, str], dict[str, Any]]
) -> tuple[dict[str, Any], int]:
    """(JSON, HTTP status) about a run that may have gone, or never was."""
    try:
        found = shelf.reading(check_name(name, "run"))
    except FathomError as error:
        return {"problem": str(error)}, 404
    if found is None:
        return {"problem": f"there is no run {name} any more"}, 404
    if found.history is None:
        return {"problem": found.problem, "version": found.version}, 409
    return answer(found, name), 200


def _with_curves(found: live.Reading, name: str, has: str) -> dict[str, Any]:
    assert found.history is not None
    return live.summary(found, name) | {"curves": live.curves(found.history, has)}


async def _page(request: Request) -> Response:
    return _text("dashboard.html")


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    return _text(name) if name in STATIC else PlainTextResponse("there is no such file", 404, HEADERS)


def _text(name: str) -> Response:
    return Response(static(name), media_type=KINDS[name.rsplit(".", 1)[-1]], headers=HEADERS)


def _json(value: dict[str, Any], status: int = 200) -> Response:
    """ASCII alone, since a model may say half a character, which no encoding can hold."""
    text = json_text.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(text, status, HEADERS | {"Cache-Control": "no-store"}, "application/json")


class HostCheck:
    """Refuses requests that were sent to another name than this machine's.

    A page elsewhere can have its own name resolve to 127.0.0.1 and then read what is served there (DNS rebinding).
    For that it needs a name: addresses as such, localhost and the machine's own names are let through.
    """

    def __init__(self, inner: ASGIApp, host: str = "127.0.0.1") -> None:
        own = socket.gethostname().lower()
        self._inner = inner
        self._names = {"localhost", host.lower(), own, f"{own.split('.')[0]}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self.is_ours(scope["headers"]):
            refusal = PlainTextResponse("this server answers to its own address only", 421, HEADERS)
            await refusal(scope, receive, send)
            return
        await self._inner(scope, receive, send)

    def is_ours(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers was sent to this machine by a name of its own."""
        hosts = [value.decode("latin-1") for key, value in headers if key.lower() == b"host"]
        return len(hosts) == 1 and self._is_known(hosts[0].lower())

    def _is_known(self, host: str) -> bool:
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.rstrip(".") in self._names or _address(name) is not None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises FathomError where that cannot be."""
    if not 0 <= port <= 65_535:
        raise FathomError(f"--port is {port}", "ports go from 0 to 65535")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise FathomError(f"--host {host!r} is no address", "leave it out, or give one of this machine") from None
    try:
        return socket.create_server(where[:2], family=family, backlog=128)
    except PermissionError:
        raise FathomError(f"port {port} needs more rights than you have", "choose one above 1023") from None
    except OSError as error:
        why = (error.strerror or "refused").lower()
        raise FathomError(f"port {port} of {host} cannot be had ({why})", "choose another with --port") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach that address."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
