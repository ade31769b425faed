"""What stands before every route: who may ask, from where, and that an error is never more than one sentence."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fathom.screen import say
from fathom.serve.refusals import Refusal, unavailable
from fathom.serve.sending import Gone
from fathom.serve.serving import Serving

KEYED_PATHS = ("/v1/", "/runs/api/", "/metrics", "/tokenize", "/detokenize", "/tokenizer_info")


class Counted:
    """Counts and, if asked to, tells of every request; turns what goes wrong inside into an answer."""

    def __init__(self, inner: ASGIApp, serving: Serving, routes: Iterable[str], log: bool) -> None:
        self._inner, self._serving, self._log = inner, serving, log
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._inner(scope, receive, send)
        began, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._inner(scope, receive, noted)
        except Gone:
            status = status or 499
        except Exception as error:
            if not status:
                await self._refusal_of(error).response()(scope, receive, noted)
        finally:
            path = scope["path"]
            known = next((route for route in self._routes if _is_route(route, path)), "other")
            self._serving.metrics.requests.labels(known, str(status or 499)).inc()
            if self._log:
                clock = datetime.now().strftime("%H:%M:%S")
                shown = path if path.isprintable() else ascii(path)
                say(f"{clock} {status or 499} {scope['method']} {shown[:200]} {time.monotonic() - began:.3f} s")

    def _refusal_of(self, error: Exception) -> Refusal:
        if isinstance(error, Refusal):
            return error
        self._serving.metrics.failures.inc()
        say(f"a request failed within the server ({type(error).__name__}: {str(error)[:200]})", style="yellow")
        return unavailable("the server failed at this request", "internal_error")


def _is_route(route: str, path: str) -> bool:
    head, brace, _ = route.partition("{")
    return path.startswith(head) and len(path) > len(head) if brace else path == route


class Keyed:
    """Wants `Authorization: Bearer KEY` before the API; the pages themselves and /health are for everybody."""

    def __init__(self, inner: ASGIApp, key: str) -> None:
        self._inner, self._key = inner, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._key and scope["path"].startswith(KEYED_PATHS):
            given = Headers(scope=scope).get("authorization", "")
            scheme, _, key = given.partition(" ")
            right = hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), self._key)
            if not (right and scheme.lower() == "bearer"):
                words = "that API key is wrong" if given else "this server wants an API key"
                refusal = Refusal(
                    401,
                    f"{words}; send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                return await refusal.response()(scope, receive, send)
        await self._inner(scope, receive, send)


class SameOrigin:
    """Refuses what a page of another origin sends: a browser lets it ask, though not read the answer."""

    def __init__(self, inner: ASGIApp, allowed: Sequence[str]) -> None:
        self._inner, self._allowed = inner, set(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin, host = headers.get("origin"), headers.get("host", "")
            own = {f"http://{host}", f"https://{host}"}
            if origin and origin not in own and origin not in self._allowed and "*" not in self._allowed:
                raise Refusal(
                    403,
                    f"pages of {origin[:100]} may not ask this server; `--cors {origin[:100]}` lets them",
                    code="origin_not_allowed",
                )
        await self._inner(scope, receive, send)


def of_http(error: HTTPException, path: str, method: str) -> Refusal:
    """Starlette's own refusals in OpenAI's form."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return Refusal(404, f"there is nothing at {path[:200]}; /openapi.json lists what there is", code="not_found")
    if error.status_code == 405:
        message = f"{path[:200]} does not take {method[:20]}, it takes {headers.get('Allow', 'others')}"
        return Refusal(405, message, code="method_not_allowed", headers=headers)
    return Refusal(error.status_code, str(error.detail), headers=headers)
