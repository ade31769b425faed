"""What a client is told when it cannot have what it asked for, in OpenAI's form of an error."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

BUSY = "over_capacity"
TOO_LONG = "context_length_exceeded"


class Refusal(Exception):
    """An answer that is an error: {"error": {message, type, param, code}} with a status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self._type, "param": self.param, "code": self.code}}

    @property
    def _type(self) -> str:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}
        return kinds.get(self.status, "invalid_request_error")

    def response(self) -> Response:
        return as_json(self.body(), self.status, self.headers)


def unavailable(message: str, code: str, retry_after: int | None = None) -> Refusal:
    """503: nothing is wrong with the request."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Refusal(503, message, code=code, headers=headers)


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """ASCII alone, since a model may say half a character, which no encoding can hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(text, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
