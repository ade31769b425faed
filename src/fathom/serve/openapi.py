"""/openapi.json: what is served, as OpenAPI 3.1. Requests are described by the very schemas that check them."""

from __future__ import annotations

from typing import Any

from fathom.generate.pages import PAGE
from fathom.serve import fields

Json = dict[str, Any]

ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STRINGS = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
IDS: Json = {"type": "array", "items": COUNT}
USAGE: Json = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"],
    "properties": {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": {
            "type": "object",
            "required": ["cached_tokens"],
            "properties": {
                "cached_tokens": COUNT
                | {"description": f"of prompt_tokens, those that the cache had already: whole pages of {PAGE}"}
            },
        },
    },
}
MODEL: Json = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": STRINGS, "object": {"const": "model"}, "created": COUNT, "owned_by": STRINGS},
}
MESSAGE: Json = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"], "description": "what the answer says, without calls and results"},
        "parts": {
            "type": "array",
            "description": "fathom's own: text, python (a call of the calculator) and python_output, in order",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"enum": ["text", "python", "python_output"]}, "text": STRINGS},
            },
        },
        "tool_calls": {"type": "array", "items": fields.CALL},
    },
}
TOKEN_LOGPROB: Json = {
    "type": "object",
    "required": ["token", "logprob", "bytes"],
    "properties": {
        "token": STRINGS,
        "logprob": {"type": "number"},
        "bytes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}},
    },
}
CHAT_LOGPROBS: Json = {
    "type": ["object", "null"],
    "properties": {
        "content": {
            "type": "array",
            "items": {
                **TOKEN_LOGPROB,
                "properties": TOKEN_LOGPROB["properties"] | {"top_logprobs": {"type": "array", "items": TOKEN_LOGPROB}},
            },
        }
    },
}
TEXT_LOGPROBS: Json = {
    "type": ["object", "null"],
    "properties": {
        "tokens": {"type": "array", "items": STRINGS},
        "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
        "top_logprobs": {
            "type": "array",
            "items": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        },
        "text_offset": IDS,
    },
}


def _choices(kind: str, said: Json, logprobs: Json, finishes: list[str]) -> Json:
    choice = {
        "type": "object",
        "required": ["index", *said, "finish_reason"],
        "properties": {"index": COUNT, "finish_reason": {"enum": finishes}, "logprobs": logprobs, **said},
    }
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": STRINGS,
            "object": {"const": kind},
            "created": COUNT,
            "model": STRINGS,
            "system_fingerprint": STRINGS,
            "choices": {"type": "array", "items": choice},
            "usage": USAGE,
        },
    }


CHAT_ANSWER = _choices("chat.completion", {"message": MESSAGE}, CHAT_LOGPROBS, ["stop", "length", "tool_calls"])
TEXT_ANSWER = _choices("text_completion", {"text": STRINGS}, TEXT_LOGPROBS, ["stop", "length"])
RUN: Json = {
    "type": "object",
    "required": ["run", "step", "stage", "seq_len", "vocab_size", "parameters", "dtype", "limits", "can_chat"],
    "properties": {
        "run": STRINGS,
        "step": COUNT,
        "stage": STRINGS,
        "seq_len": COUNT,
        "vocab_size": COUNT,
        "parameters": {"type": ["integer", "null"]},
        "dtype": STRINGS,
        "limits": {"type": "object", "additionalProperties": {"type": "number"}},
        "can_chat": {"type": "boolean"},
    },
}
HEALTH: Json = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"enum": ["loading", "ok", "draining", "failed"]}, "model": STRINGS},
}

WORDS = {
    "400": "what is wrong with the request, and where",
    "401": "no key, or a wrong one",
    "403": "asked by a page of another origin",
    "404": "there is nothing of that name",
    "405": "another method is wanted",
    "408": "the client was too slow",
    "413": "the body is too large",
    "421": "asked by another name than the server's own",
    "429": "over capacity; Retry-After says when to try again",
    "503": "not able to answer: loading, about to end, or the engine failed",
}


def description(version: str) -> Json:
    """The whole description."""
    json_kind, stream_kind = "application/json", "text/event-stream"
    chat = {json_kind: {"schema": _ref("ChatAnswer")}, stream_kind: {"schema": STRINGS}}
    text = {json_kind: {"schema": _ref("TextAnswer")}, stream_kind: {"schema": STRINGS}}
    id_parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    listed = {"type": "object", "required": ["object", "data"], "properties": {"data": _list(_ref("Model"))}}
    pieces = _record({"ids": IDS, "pieces": _list(STRINGS), "count": COUNT})
    tokens = _record({"tokens": IDS, "count": COUNT, "max_model_len": COUNT})
    info = {"type": "object", "required": ["bos_token", "eos_token"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fathom serve",
            "version": version,
            "description": "A run of fathom behind OpenAI's interface.",
        },
        "paths": {
            "/health": {
                "get": _operation(
                    "whether it can answer", {json_kind: {"schema": _ref("Health")}}, [], unready=_ref("Health")
                )
            },
            "/metrics": {
                "get": _operation("counts and times, for Prometheus", {"text/plain": {"schema": STRINGS}}, [401])
            },
            "/v1/models": {"get": _operation("the served run", {json_kind: {"schema": listed}}, [401])},
            "/v1/models/{id}": {
                "get": _operation("the served run", {json_kind: {"schema": _ref("Model")}}, [401, 404])
                | {"parameters": [id_parameter]}
            },
            "/v1/chat/completions": {"post": _asking("answer a conversation", chat, "Chat")},
            "/v1/completions": {"post": _asking("go on from a text", text, "Completion")},
            "/v1/fathom/run": {
                "get": _operation("what is served, and its limits", {json_kind: {"schema": _ref("Run")}}, [401])
            },
            "/v1/fathom/tokenize": {
                "post": _asking("token ids of a text, and their pieces", {json_kind: {"schema": pieces}}, "Tokenize")
            },
            "/tokenizer_info": {
                "get": _operation("the tokenizer, as vLLM tells it", {json_kind: {"schema": info}}, [401])
            },
            "/tokenize": {
                "post": _asking("token ids of a text, as vLLM does", {json_kind: {"schema": tokens}}, "VllmTokenize")
            },
            "/detokenize": {
                "post": _asking(
                    "the text of token ids, as vLLM does",
                    {json_kind: {"schema": _record({"prompt": STRINGS})}},
                    "VllmDetokenize",
                )
            },
        },
        "components": {
            "schemas": {
                "Error": ERROR,
                "Chat": fields.CHAT,
                "Completion": fields.COMPLETION,
                "Tokenize": fields.TOKENIZE,
                "VllmTokenize": fields.VLLM_TOKENIZE,
                "VllmDetokenize": fields.VLLM_DETOKENIZE,
                "ChatAnswer": CHAT_ANSWER,
                "TextAnswer": TEXT_ANSWER,
                "Model": MODEL,
                "Run": RUN,
                "Health": HEALTH,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _record(properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _asking(summary: str, answer: Json, schema: str) -> Json:
    """A POST with a JSON body."""
    content = {"application/json": {"schema": _ref(schema)}}
    operation = _operation(summary, answer, [400, 401, 404, 408, 413, 429])
    return operation | {"requestBody": {"required": True, "content": content}}


def _operation(summary: str, answer: Json, refusals: list[int], unready: Json | None = None) -> Json:
    responses: Json = {"200": {"description": "the answer", "content": answer}}
    for status in sorted({*refusals, 403, 405, 421, 503}):
        form = unready if unready and status == 503 else _ref("Error")
        responses[str(status)] = {"description": WORDS[str(status)], "content": {"application/json": {"schema": form}}}
    return {"summary": summary, "responses": responses}
