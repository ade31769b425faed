"""The chat page's files, as they lie in page/, and the dashboard beside it. No address reaches any other file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from fathom.report import dashboard

KINDS = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "woff2": "font/woff2",
    "webmanifest": "application/manifest+json",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@cache
def page_files() -> dict[str, bytes]:
    """Relative address -> content of every file of the page."""
    found: dict[str, bytes] = {}

    def walk(folder: Traversable, before: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{before}{entry.name}/")
            elif not entry.name.startswith(".") and not entry.name.endswith((".py", ".pyc")):
                found[before + entry.name] = entry.read_bytes()

    root = files("fathom.serve") / "page"
    if root.is_dir():
        walk(root, "")
    return found


def routes() -> list[BaseRoute]:
    """The page at /, its files beside it, the dashboard at /runs/."""
    return [
        Route("/", page, methods=["GET"]),
        *(Route(f"/{name}", page, methods=["GET"]) for name in page_files()),
        Mount("/runs", routes=dashboard.routes()),
    ]


async def page(request: Request) -> Response:
    """The file of the page that this address names; its index.html at /."""
    name = request.scope["path"].removeprefix("/") or "index.html"
    content = page_files().get(name)
    if content is None:
        raise HTTPException(404)
    kind = KINDS.get(name.rsplit(".", 1)[-1], "text/plain")
    return Response(content, media_type=kind, headers=HEADERS)
