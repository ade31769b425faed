"""OpenAI's HTTP interface to a run, and a few routes of fathom's own; `app` puts all of it together.

The engine knows tokens, `asking` and `answers` know OpenAI's words, this module knows addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fathom import __version__
from fathom.errors import FathomError
from fathom.record import CHAT_STAGES
from fathom.report.dashboard import HostCheck, is_loopback
from fathom.serve import asking, fields, pages
from fathom.serve.answers import Answer, Head
from fathom.serve.asking import Ask, Served
from fathom.serve.guards import Counted, Keyed, SameOrigin, of_http
from fathom.serve.metrics import MEDIA_TYPE
from fathom.serve.openapi import description
from fathom.serve.refusals import Refusal, as_json
from fathom.serve.sending import Reply, read_body
from fathom.serve.serving import Loaded, Serving


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    api_key: str = ""
    """Wanted before the API, where there is one."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask."""
    host: str = "127.0.0.1"
    """Where the server listens; on loopback it answers to its own names alone."""
    log: bool = False


def app(serving: Serving, access: Access = Access()) -> Starlette:
    """All that is served. Further routes and mounts may be added to what this returns."""
    api = _Api(serving)
    routes: list[BaseRoute] = [
        Route("/health", api.health, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        Route("/openapi.json", api.openapi, methods=["GET"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{id:path}", api.model, methods=["GET"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/fathom/run", api.run, methods=["GET"]),
        Route("/v1/fathom/tokenize", api.tokenize, methods=["POST"]),
        Route("/tokenizer_info", api.tokenizer_info, methods=["GET"]),
        Route("/tokenize", api.vllm_tokenize, methods=["POST"]),
        Route("/detokenize", api.vllm_detokenize, methods=["POST"]),
        *pages.routes(),
    ]
    known = [getattr(route, "path", "").replace(":path", "") for route in routes]
    middleware = [Middleware(Counted, serving, known, access.log)]
    if is_loopback(access.host):
        middleware.append(Middleware(_OwnHost, access.host))
    if access.cors:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=list(access.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
            )
        )
    middleware += [Middleware(SameOrigin, access.cors), Middleware(Keyed, access.api_key)]
    handlers = {HTTPException: _of_http, Refusal: _told, FathomError: _mendable}
    served = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    served.router.redirect_slashes = False
    return served


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return of_http(error, request.url.path, request.method).response()


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _mendable(request: Request, error: Exception) -> Response:
    return Refusal(400, str(error)).response()


class _OwnHost(HostCheck):
    """The dashboard's check of the Host header, with OpenAI's form of an error."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        super().__init__(app, host)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self.is_ours(scope["headers"]):
            raise Refusal(421, "this server answers to its own address only", code="wrong_host")
        await self._app(scope, receive, send)


class _Api:
    """The handlers of one server."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def health(self, request: Request) -> Response:
        state = self._serving.state
        body = {"status": state, "model": self._serving.name}
        return as_json(body, 200 if state == "ok" else 503, {} if state == "ok" else {"Retry-After": "1"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._serving.metrics.text(), media_type=MEDIA_TYPE)

    async def openapi(self, request: Request) -> Response:
        return as_json(description(__version__))

    async def models(self, request: Request) -> Response:
        return as_json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        id = request.path_params["id"]
        if id != self._serving.name:
            raise Refusal(
                404,
                f"there is no model {id[:100]!r} here, this server has {self._serving.name!r}",
                param="model",
                code="model_not_found",
            )
        return as_json(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self._serving.name, "object": "model", "created": self._serving.created, "owned_by": "fathom"}

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, fields.CHAT, asking.chat, "chat.completion")

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, fields.COMPLETION, asking.completion, "text_completion")

    async def _answer(
        self, request: Request, schema: fields.Schema, meaning: Callable[[Any, Served], Ask], kind: str
    ) -> Response:
        loaded = self._serving.loaded
        body = await self._body(request)
        served = self._served(loaded)

        def understood() -> Ask:
            return meaning(asking.checked(body, schema, served.name), served)

        ask = await run_in_threadpool(understood)
        stream = await self._serving.open(ask.requests)
        head = Head(kind, served.name, f"{served.name}@{loaded.info['step']}")
        return Reply(self._serving, stream, Answer(ask, head, loaded.tokenizer))

    async def _body(self, request: Request) -> bytes:
        limits = self._serving.limits
        return await read_body(request, int(limits.body_mb * 1e6), limits.patience_s, limits.timeout_s)

    def _served(self, loaded: Loaded) -> Served:
        seq_len = loaded.engine.seq_len
        return Served(self._serving.name, loaded.tokenizer, seq_len, self._serving.limits.max_tokens or seq_len)

    async def run(self, request: Request) -> Response:
        loaded = self._serving.loaded
        shape, limits = loaded.engine.model.shape, self._serving.limits
        served = self._served(loaded)
        return as_json(
            {
                "run": served.name,
                "step": loaded.info["step"],
                "stage": loaded.info["stage"],
                "seq_len": served.seq_len,
                "vocab_size": loaded.tokenizer.vocab_size,
                "parameters": loaded.info.get("parameters"),
                "dtype": loaded.info["dtype"],
                "limits": {
                    "max_tokens": served.max_tokens,
                    "max_batch": self._serving.max_batch,
                    "queue": limits.queue,
                    "body_mb": limits.body_mb,
                    "timeout_s": limits.timeout_s,
                },
                "can_chat": loaded.info["stage"] in CHAT_STAGES,
                "n_layer": shape.n_layer,
                "d_model": shape.d_model,
            }
        )

    async def tokenize(self, request: Request) -> Response:
        loaded = self._serving.loaded
        given = asking.checked(await self._body(request), fields.TOKENIZE)
        ids = await run_in_threadpool(loaded.tokenizer.encode, given["text"])
        words = [loaded.tokenizer.decode([id]) for id in ids]
        return as_json({"ids": ids, "pieces": words, "count": len(ids)})

    async def tokenizer_info(self, request: Request) -> Response:
        """As vLLM tells it, for lm-eval: BOS stands where others have an end of text."""
        loaded = self._serving.loaded
        bos = next(name for name, id in loaded.tokenizer.specials.items() if id == loaded.tokenizer.bos_id)
        return as_json(
            {"tokenizer_class": "fathom", "bos_token": bos, "eos_token": bos, "model_max_length": loaded.engine.seq_len}
        )

    async def vllm_tokenize(self, request: Request) -> Response:
        """As vLLM does. A text that is nothing but BOS' name is BOS: so lm-eval asks for its id."""
        loaded = self._serving.loaded
        given = asking.checked(await self._body(request), fields.VLLM_TOKENIZE, self._serving.name)
        tokenizer = loaded.tokenizer
        text, bos = given["prompt"], tokenizer.bos_id
        ids = [bos] if tokenizer.specials.get(text) == bos else await run_in_threadpool(tokenizer.encode, text)
        if given.get("add_special_tokens", True):
            ids = [bos, *ids]
        return as_json({"tokens": ids, "count": len(ids), "max_model_len": loaded.engine.seq_len})

    async def vllm_detokenize(self, request: Request) -> Response:
        loaded = self._serving.loaded
        given = asking.checked(await self._body(request), fields.VLLM_DETOKENIZE, self._serving.name)
        ids = [int(id) for id in given["tokens"]]
        return as_json({"prompt": await run_in_threadpool(loaded.tokenizer.decode, ids)})
