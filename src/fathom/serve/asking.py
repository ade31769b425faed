"""A client's request: from the bytes of its body to what the engine is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fathom.data import conversations
from fathom.generate.running import Request
from fathom.serve.checking import Schema, check
from fathom.serve.fields import CHAT_TEMPERATURE, CHAT_TOP_K, COMPLETION_TOKENS
from fathom.serve.prompts import TOOL, call_end, chat_prompt, too_long
from fathom.serve.refusals import Refusal

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

ANY_OBJECT = '{"type":"object"}'
NEVER = -100.0  # a logit's bias that keeps a token away


@dataclass(frozen=True)
class Served:
    """The run that answers, and what it allows."""

    name: str
    tokenizer: Tokenizer
    seq_len: int
    max_tokens: int


@dataclass(frozen=True)
class Ask:
    """What a client wants of the engine, and how it wants to hear of it."""

    requests: tuple[Request, ...]
    """n for each prompt, in order."""
    n: int
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    own_tools: bool = False
    """The client executes the model's calls."""
    echo: bool = False
    prompts: tuple[tuple[int, ...], ...] = ()
    """As the client gave them, without the BOS that was put before."""


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Refusal (400) that says where it is none."""
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8 at byte {error.start + 1:,}", code="invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refusal(400, f"the body is not JSON: {error.msg} ({where})", code="invalid_json") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError:
        raise Refusal(400, "the body holds a number of thousands of digits", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is JSON, and not an object", code="invalid_json")
    return value


def checked(body: bytes, schema: Schema, served: str = "") -> dict[str, Any]:
    """The fields that were given and are not null, each as `schema` has it. `served` is the only model there is."""
    value = parsed(body)
    check(value, schema)
    given = {name: one for name, one in value.items() if one is not None}
    if served and given.get("model", served) != served:
        raise Refusal(
            404,
            f"there is no model {given['model'][:100]!r} here, this server has {served!r}",
            param="model",
            code="model_not_found",
        )
    return given


def chat(given: Mapping[str, Any], served: Served) -> Ask:
    """What /v1/chat/completions asks. Raises Refusal or FathomError where it cannot be."""
    room = _max_tokens(given, served.max_tokens, "max_completion_tokens", "max_tokens")
    room = min(room, served.max_tokens)
    own_tools = _has_tools(given)
    grammar = _grammar(given.get("response_format"))
    if own_tools and grammar:
        raise Refusal(400, "response_format and tools do not go together", param="response_format")
    if "top_logprobs" in given and not given.get("logprobs"):
        raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    tokenizer = served.tokenizer
    ids = chat_prompt(given["messages"], tokenizer, served.seq_len, room, bool(given.get("truncate")))
    options = _options(given, served, CHAT_TEMPERATURE, CHAT_TOP_K) | {"max_tokens": room, "grammar": grammar}
    if given.get("tool_choice") == "none":
        never = (tokenizer.special(conversations.PYTHON_START), NEVER)
        options["logit_bias"] = (*(pair for pair in options["logit_bias"] if pair[0] != never[0]), never)
    elif own_tools:
        options |= {
            "tools": False,
            "stop": frozenset({tokenizer.special(conversations.ASSISTANT_END), tokenizer.bos_id, call_end(tokenizer)}),
        }
    if given.get("logprobs"):
        options["logprobs"] = int(given.get("top_logprobs", 0))
    return Ask(
        _requests([ids], given, options),
        n=int(given.get("n", 1)),
        logprobs=bool(given.get("logprobs")),
        own_tools=own_tools and given.get("tool_choice") != "none",
        **_streaming(given),
    )


def completion(given: Mapping[str, Any], served: Served) -> Ask:
    """What /v1/completions asks."""
    asked = _prompts(given["prompt"], served.tokenizer)
    bos = served.tokenizer.bos_id
    prompts = [ids if ids[:1] == (bos,) else (bos, *ids) for ids in asked]
    room = _max_tokens(given, COMPLETION_TOKENS, "max_tokens")
    room = min(room, served.max_tokens)
    scored = bool(given.get("echo")) and "logprobs" in given
    if room == 0 and not scored:
        raise Refusal(400, "max_tokens is 0, which needs echo and logprobs", param="max_tokens")
    longest = max(map(len, prompts))
    limit = served.seq_len - (1 if room else 0)
    if longest > limit:
        raise too_long(longest, limit, served.seq_len, "prompt")
    options = _options(given, served, 1.0, 0) | {"max_tokens": room, "tools": False, "prompt_logprobs": scored}
    if "logprobs" in given:
        options["logprobs"] = int(given["logprobs"])
    return Ask(
        _requests(prompts, given, options),
        n=int(given.get("n", 1)),
        logprobs="logprobs" in given,
        echo=bool(given.get("echo")),
        prompts=tuple(asked),
        **_streaming(given),
    )


def _streaming(given: Mapping[str, Any]) -> dict[str, Any]:
    options = given.get("stream_options") or {}
    if options and not given.get("stream"):
        raise Refusal(400, "stream_options needs stream: true", param="stream_options")
    return {"stream": bool(given.get("stream")), "include_usage": bool(options.get("include_usage"))}


def _max_tokens(given: Mapping[str, Any], default: int, *names: str) -> int:
    """The least of what was given; the default where nothing was."""
    return min([int(given[name]) for name in names if name in given] or [default])


def _options(given: Mapping[str, Any], served: Served, temperature: float, top_k: int) -> dict[str, Any]:
    stop = given.get("stop", ())
    return {
        "temperature": float(given.get("temperature", temperature)),
        "top_k": int(given.get("top_k", top_k)),
        "top_p": float(given.get("top_p", 1.0)),
        "min_p": float(given.get("min_p", 0.0)),
        "repetition_penalty": float(given.get("repetition_penalty", 1.0)),
        "stop_strings": (stop,) if isinstance(stop, str) else tuple(stop),
        "logit_bias": _bias(given.get("logit_bias", {}), served.tokenizer.vocab_size),
    }


def _bias(given: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
            raise Refusal(
                400, f"logit_bias names {key[:40]!r}, token ids go from 0 to {vocab_size - 1:,}", param="logit_bias"
            )
    return tuple((int(key), float(bias)) for key, bias in given.items())


def _requests(
    prompts: Sequence[Sequence[int]], given: Mapping[str, Any], options: dict[str, Any]
) -> tuple[Request, ...]:
    """Answer i to a prompt is drawn with seed + i."""
    first = int(given["seed"]) if "seed" in given else random.SystemRandom().getrandbits(48)
    seeds = [(first + i) % 2**63 for i in range(int(given.get("n", 1)))]
    return tuple(Request(tuple(ids), seed=seed, **options) for ids in prompts for seed in seeds)


def _prompts(prompt: Any, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Token ids of each prompt. Text never becomes a control token, whatever it says."""
    if isinstance(prompt, str):
        return [tuple(tokenizer.encode(prompt))]
    if isinstance(prompt[0], str):
        return [tuple(tokenizer.encode(text)) for text in prompt]
    several = prompt if isinstance(prompt[0], list) else [prompt]
    lists = [tuple(int(id) for id in ids) for ids in several]
    highest = max(max(ids) for ids in lists)
    if highest >= tokenizer.vocab_size:
        raise Refusal(
            400,
            f"the prompt holds the id {highest}, ids go from 0 to {tokenizer.vocab_size - 1:,}",
            param="prompt",
        )
    return lists


def _has_tools(given: Mapping[str, Any]) -> bool:
    """Whether the client runs the model's calls itself."""
    tools = given.get("tools") or []
    for number, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name != TOOL:
            raise Refusal(
                400,
                f"the tool {name[:60]!r} cannot be offered: this model knows only {TOOL!r}",
                param=f"tools[{number}].function.name",
            )
    return bool(tools)


def _grammar(wanted: Mapping[str, Any] | None) -> str | None:
    """The JSON schema that an answer has to obey."""
    if wanted is None or wanted["type"] == "text":
        return None
    if wanted["type"] == "json_object":
        return ANY_OBJECT
    return json.dumps(wanted["json_schema"]["schema"])
