"""OpenAI's messages to a prompt: data/conversations is the one protocol, this only turns its words into ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fathom.data import conversations
from fathom.data.conversations import render, render_for_completion
from fathom.data.conversations.messages import Message, Part
from fathom.serve.refusals import TOO_LONG, Refusal

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

TOOL = "python"


def chat_prompt(
    messages: Sequence[dict[str, Any]], tokenizer: Tokenizer, seq_len: int, room_for: int, truncate: bool
) -> list[int]:
    """The tokens to which the assistant answers; after a tool's message, those with which it goes on.

    With `truncate`, the oldest turns are left out until `room_for` tokens of an answer fit (at most a quarter of the
    context is kept free for it). Raises Refusal (400) where the rest is too long, FathomError for no conversation.
    """
    plain = plain_messages(messages)
    system = plain[:1] if plain and plain[0]["role"] == "system" else []
    limit = seq_len - (min(room_for, seq_len // 4) if truncate else 1)
    starts = [i for i, message in enumerate(plain) if message["role"] == "user"] if truncate else []
    ids = _rendered(plain, tokenizer)
    for first in starts[1:]:
        if len(ids) <= limit:
            break
        ids = _rendered(system + plain[first:], tokenizer)
    if len(ids) > limit:
        raise too_long(len(ids), limit, seq_len, "messages", truncate)
    return ids


def too_long(count: int, limit: int, seq_len: int, param: str, truncate: bool = False) -> Refusal:
    last = "the last turn alone" if truncate else "the prompt"
    hint = ' or ask for "truncate": true, which leaves out the oldest turns' if param == "messages" else ""
    return Refusal(
        400,
        f"{last} has {count:,} tokens, and the context of {seq_len:,} has room for {limit:,} beside the answer; "
        f"shorten it{'' if truncate else hint}",
        param=param,
        code=TOO_LONG,
    )


def _rendered(plain: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    if plain[-1]["role"] == "assistant":  # its call was answered: it goes on where it stopped
        return render(plain, tokenizer)[0][:-1]
    return render_for_completion(plain, tokenizer)


def plain_messages(messages: Sequence[dict[str, Any]]) -> list[Message]:
    """Roles and contents as conversations have them; a tool's message becomes the output of the call that it answers.

    The last message is the user's, or the assistant's with an answered call at its end.
    """
    plain: list[Message] = []
    waiting: dict[str, Part] = {}  # calls without an answer
    for number, message in enumerate(messages, 1):
        role, place = message["role"], f"messages[{number - 1}]"
        if role == "tool":
            _answer_call(message, plain, waiting, place)
            continue
        if role in ("system", "developer"):
            plain.append({"role": "system", "content": _text(message, place)})
        elif role == "user":
            plain.append({"role": "user", "content": _text(message, place)})
        else:
            _add_assistant(_assistant_parts(message, waiting, place), plain)
    if messages[-1]["role"] not in ("user", "tool"):
        raise Refusal(
            400,
            f"the last message is from {messages[-1]['role']!r}, and there is nothing to answer; end with the user's",
            param="messages",
        )
    return plain


def _text(message: dict[str, Any], place: str) -> str:
    content = message.get("content")
    if content is None:
        raise Refusal(400, f"{place}.content is missing", param=f"{place}.content")
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part["type"] != "text":
            raise Refusal(
                400,
                f"{place}.content[{number}] is of the type {part['type'][:40]!r}, and this model reads text alone",
                param=f"{place}.content[{number}].type",
            )
    return "".join(part["text"] for part in content)


def _assistant_parts(message: dict[str, Any], waiting: dict[str, Part], place: str) -> list[Part]:
    content = message.get("parts") or message.get("content")
    if content is None and not message.get("tool_calls"):
        raise Refusal(400, f"{place} has neither content nor tool_calls", param=f"{place}.content")
    if isinstance(content, str):
        parts = [{"type": "text", "text": content}] if content else []
    else:
        parts = [dict(part) for part in content or []]
    for call in message.get("tool_calls") or []:
        part = {"type": "python", "text": _code(call, place)}
        parts.append(part)
        waiting[call["id"]] = part
    return parts


def _code(call: dict[str, Any], place: str) -> str:
    function = call["function"]
    if function["name"] != TOOL:
        raise Refusal(
            400,
            f"{place} calls {function['name'][:40]!r}, this model knows only {TOOL}",
            param=f"{place}.tool_calls",
        )
    try:
        code = json.loads(function["arguments"])["code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        code = None
    if not isinstance(code, str):
        raise Refusal(
            400,
            f'{place} has a call whose arguments are not {{"code": "…"}} in JSON',
            param=f"{place}.tool_calls",
        )
    return code


def _answer_call(message: dict[str, Any], plain: list[Message], waiting: dict[str, Part], place: str) -> None:
    """Put a tool's words behind the call that they answer."""
    call = waiting.pop(message.get("tool_call_id") or "", None)
    last = plain[-1]["content"] if plain and plain[-1]["role"] == "assistant" else []
    at = next((i for i, part in enumerate(last) if part is call), None)
    if at is None:
        raise Refusal(
            400, f"{place} answers no call of the message before it; check tool_call_id", param=f"{place}.tool_call_id"
        )
    last.insert(at + 1, {"type": "python_output", "text": _text(message, place)})


def _add_assistant(parts: list[Part], plain: list[Message]) -> None:
    """Join what the assistant said after a tool's message to what it said before: it was one turn."""
    last = plain[-1]["content"] if plain and plain[-1]["role"] == "assistant" else []
    if last and last[-1]["type"] == "python_output":
        last.extend(parts)
    else:
        plain.append({"role": "assistant", "content": parts})


def call_end(tokenizer: Tokenizer) -> int:
    """The token that ends a call."""
    return tokenizer.special(conversations.PYTHON_END)
