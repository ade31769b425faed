"""The chat page as routes: the plain files in page/, and the dashboard beside it. Nothing here knows a model."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from fathom.report import dashboard

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SHOWN = "index.html"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def routes() -> list[BaseRoute]:
    """`/` is the page, `/page/…` its files, `/runs/` the dashboard. All of it may be read without a key."""
    found = dict(_files(files("fathom.serve") / "page", ""))

    async def shown(request: Request) -> Response:
        return _response(SHOWN, found[SHOWN])

    async def file(request: Request) -> Response:
        path = request.path_params["path"]
        return _response(path, found[path]) if path in found else PlainTextResponse("there is no such file", 404)

    return [
        Route("/", shown),
        Route("/page/{path:path}", file),
        Mount("/runs", routes=dashboard.routes()),
    ]


def _files(folder: Traversable, before: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{before}{entry.name}/")
        else:
            yield before + entry.name, entry


def _response(name: str, file: Traversable) -> Response:
    kind = KINDS.get(name.rsplit(".", 1)[-1], "text/plain")
    return Response(file.read_bytes(), media_type=kind, headers=HEADERS)
