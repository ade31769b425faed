"""What may stand in a request, field by field, as JSON Schema: the one list for checking and for /openapi.json."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

MAX_N = 128
MAX_PROMPTS = 256
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_MESSAGES = 10_000
MAX_BIASES = 1024
SEED_BOUND = 2**63

CHAT_TEMPERATURE, CHAT_TOP_K = 0.6, 50  # as `fathom chat`
COMPLETION_TOKENS = 16  # as OpenAI


def optional(schema: Schema, description: str = "") -> Schema:
    """The same, or null, which says as much as leaving the field out."""
    about = {"description": description} if description else {}
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]} | about
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | more | about


STRING: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}


def number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def record(properties: dict[str, Schema], required: list[str] | None = None, closed: bool = True) -> Schema:
    """An object; a closed one has no other fields."""
    rest = {"additionalProperties": False} if closed else {}
    return {"type": "object", "properties": properties, "required": required or []} | rest


def ignored(schema: Schema) -> Schema:
    return optional(schema, "OpenAI's own; accepted, and without effect here")


SAMPLING: dict[str, Schema] = {
    "model": optional(STRING, "the served run's name, the id in /v1/models"),
    "temperature": optional(number(0, 100), "0 always takes the most likely token"),
    "top_p": optional(
        {"type": "number", "exclusiveMinimum": 0, "minimum": 0, "maximum": 1},
        "only the most likely tokens that together have this probability",
    ),
    "top_k": optional(whole(0, 2**31), "only so many of the most likely tokens; 0 for all"),
    "min_p": optional(number(0, 1), "only tokens at least this share as likely as the most likely one"),
    "repetition_penalty": optional(
        {"type": "number", "exclusiveMinimum": 0, "minimum": 0, "maximum": 100}, "above 1 avoids what was said already"
    ),
    "frequency_penalty": optional(number(0, 0), "only 0: use repetition_penalty"),
    "presence_penalty": optional(number(0, 0), "only 0: use repetition_penalty"),
    "logit_bias": optional(
        {"type": "object", "additionalProperties": number(-100, 100), "maxProperties": MAX_BIASES},
        "token id to what is added to its logit",
    ),
    "n": optional(whole(1, MAX_N), "answers to each prompt; answer i is drawn with seed + i"),
    "seed": optional(
        whole(-SEED_BOUND, SEED_BOUND - 1), "the same seed gives the same text; by default another each time"
    ),
    "stop": optional(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
            ]
        },
        "texts that end the answer; they are not part of it",
    ),
    "stream": optional(FLAG, "send the answer as it comes, by server-sent events"),
    "stream_options": optional(
        record({"include_usage": optional(FLAG), "include_obfuscation": ignored(FLAG)}),
        "include_usage: a last chunk with the counts of tokens",
    ),
}

FORMAT: Schema = {
    "anyOf": [
        record({"type": {"type": "string", "enum": ["text", "json_object"]}}, ["type"]),
        record(
            {
                "type": {"type": "string", "enum": ["json_schema"]},
                "json_schema": record(
                    {
                        "name": optional(STRING),
                        "description": optional(STRING),
                        "schema": {"anyOf": [{"type": "object"}, {"type": "boolean"}]},
                        "strict": optional(FLAG),
                    },
                    ["schema"],
                ),
            },
            ["type", "json_schema"],
        ),
    ]
}

IGNORED: dict[str, Schema] = {
    "user": ignored(STRING),
    "metadata": ignored({"type": "object"}),
    "store": ignored(FLAG),
    "service_tier": ignored(STRING),
    "safety_identifier": ignored(STRING),
    "prompt_cache_key": ignored(STRING),
}

PART: Schema = record({"type": STRING, "text": STRING}, ["type", "text"])
CALL: Schema = record(
    {
        "id": {"type": "string"},
        "type": {"type": "string", "enum": ["function"]},
        "function": record({"name": STRING, "arguments": STRING}, ["name", "arguments"]),
    },
    ["id", "function"],
)
MESSAGE: Schema = record(
    {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [STRING, {"type": "array", "items": PART}, {"type": "null"}]},
        "name": ignored(STRING),
        "tool_calls": optional({"type": "array", "items": CALL}, "the assistant's calls of python"),
        "tool_call_id": optional(STRING, "which call a tool's message answers"),
        "parts": optional({"type": "array", "items": PART}, "an answer's parts, as this server gave them"),
        "refusal": ignored(STRING),
        "annotations": ignored({"type": "array"}),
        "audio": ignored({"type": "object", "maxProperties": 0}),
        "function_call": ignored({"type": "object", "maxProperties": 0}),
    },
    ["role"],
)
TOOL: Schema = record(
    {
        "type": {"type": "string", "enum": ["function"]},
        "function": record(
            {
                "name": STRING,
                "description": optional(STRING),
                "parameters": optional({"type": "object"}),
                "strict": optional(FLAG),
            },
            ["name"],
        ),
    },
    ["type", "function"],
)

CHAT: Schema = record(
    SAMPLING
    | {
        "messages": {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MAX_MESSAGES},
        "max_tokens": optional(whole(1, 2**31), "the longest answer; --max-tokens and the context bound it too"),
        "max_completion_tokens": optional(whole(1, 2**31), "the same"),
        "logprobs": optional(FLAG, "log-probabilities of the answer's tokens"),
        "top_logprobs": optional(whole(0, MAX_LOGPROBS), "and of so many of the likeliest beside each"),
        "response_format": optional(FORMAT, "make the answer JSON, or JSON of a schema"),
        "tools": optional(
            {"type": "array", "items": TOOL, "maxItems": 16},
            'a function named "python": its calls are yours to run. Without it the server runs its calculator',
        ),
        "tool_choice": optional(
            {"anyOf": [{"type": "string", "enum": ["auto", "none"]}]}, '"none": the model may not call'
        ),
        "truncate": optional(FLAG, "leave out the oldest turns where the context cannot hold all (fathom's own)"),
        "parallel_tool_calls": ignored(FLAG),
        "modalities": ignored({"type": "array", "items": {"type": "string", "enum": ["text"]}}),
    }
    | IGNORED,
    ["messages"],
)

IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
COMPLETION: Schema = record(
    SAMPLING
    | {
        "prompt": {
            "anyOf": [
                STRING,
                IDS,
                {"type": "array", "items": STRING, "minItems": 1, "maxItems": MAX_PROMPTS},
                {"type": "array", "items": IDS, "minItems": 1, "maxItems": MAX_PROMPTS},
            ],
            "description": "text, token ids, or a list of either; BOS is put before each unless it begins with it",
        },
        "max_tokens": optional(whole(0, 2**31), f"the longest answer, by default {COMPLETION_TOKENS}"),
        "logprobs": optional(whole(0, MAX_LOGPROBS), "log-probabilities of the tokens, and so many of the likeliest"),
        "echo": optional(FLAG, "begin the answer with the prompt; with logprobs, its tokens too"),
        "best_of": optional(whole(1, 1), "only 1"),
    }
    | IGNORED,
    ["prompt"],
)

TOKENIZE: Schema = record({"text": STRING}, ["text"])
VLLM_TOKENIZE: Schema = record(
    {"model": optional(STRING), "prompt": STRING, "add_special_tokens": optional(FLAG, "BOS before the text")},
    ["prompt"],
)
VLLM_DETOKENIZE: Schema = record(
    {"model": optional(STRING), "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}}, ["tokens"]
)
