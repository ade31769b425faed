"""The one protocol for training, evaluation and serving: messages and tool calls to tokens and mask, and back.

    bos  ( user_start TEXT user_end  assistant_start PARTS assistant_end )*

PARTS are text, `python_start CODE python_end` and `output_start RESULT output_end`. What the assistant itself has
to say is trained (mask 1): its text, its calls with their marks, and that it stops. REFERENCE section 7.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.data.conversations.messages import FORM, Message, Part, canonical, conversation_of, parts_of
from fathom.errors import FathomError

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

BOS = "<|bos|>"
USER_START, USER_END = "<|user_start|>", "<|user_end|>"
ASSISTANT_START, ASSISTANT_END = "<|assistant_start|>", "<|assistant_end|>"
PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
OUTPUT_START, OUTPUT_END = "<|output_start|>", "<|output_end|>"

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
MAX_LINE_BYTES = 2**26
MAX_BROKEN_LINES_NAMED = 5


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens of a whole conversation and, for each, 1 if it is trained, else 0.

    Text never becomes a control token, whatever it says. Raises FathomError for messages that are no conversation.
    """
    ids, mask = [tokenizer.bos_id], [0]

    def add(tokens: list[int], trained: int) -> None:
        ids.extend(tokens)
        mask.extend([trained] * len(tokens))

    for message in canonical(messages):
        if message["role"] == "user":
            add(_user(message["content"], tokenizer), 0)
            continue
        add([tokenizer.special(ASSISTANT_START)], 0)
        for part in parts_of(message["content"]):
            add(*_part(part, tokenizer))
        add([tokenizer.special(ASSISTANT_END)], 1)
    return ids, mask


def render_for_completion(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The prompt to which the assistant answers; an answer at the end of `messages` is left out."""
    plain = canonical(messages)
    if plain and plain[-1]["role"] == "assistant":
        plain.pop()
    if not plain:
        raise FathomError("there is no message to answer", "end the conversation with a message of the user")
    return render(plain, tokenizer)[0] + [tokenizer.special(ASSISTANT_START)]


def render_turn(text: str, tokenizer: Tokenizer) -> list[int]:
    """What follows a conversation so far (or BOS) so that the assistant answers `text`."""
    return [*_user(text, tokenizer), tokenizer.special(ASSISTANT_START)]


def _user(text: str, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special(USER_START), *tokenizer.encode(text), tokenizer.special(USER_END)]


def _part(part: Part, tokenizer: Tokenizer) -> tuple[list[int], int]:
    tokens = tokenizer.encode(part["text"])
    if part["type"] == "python":
        return [tokenizer.special(PYTHON_START), *tokens, tokenizer.special(PYTHON_END)], 1
    if part["type"] == "python_output":
        return render_output(part["text"], tokenizer), 0
    return tokens, 1


def render_output(result: str, tokenizer: Tokenizer) -> list[int]:
    """What a tool's result looks like to the model."""
    return [tokenizer.special(OUTPUT_START), *tokenizer.encode(result), tokenizer.special(OUTPUT_END)]


def parse_reply(ids: Iterable[int], tokenizer: Tokenizer) -> list[Part]:
    """The parts of what the assistant said, up to its end mark; the inverse of `render` for one reply.

    A model writes anything: marks that fit nowhere are skipped, a call without an end lasts to the end.
    """
    kinds = {
        tokenizer.special(PYTHON_START): "python",
        tokenizer.special(OUTPUT_START): "python_output",
        tokenizer.special(PYTHON_END): "text",
        tokenizer.special(OUTPUT_END): "text",
    }
    specials = set(tokenizer.specials.values())
    ends = {tokenizer.special(ASSISTANT_END), tokenizer.bos_id}
    parts: list[Part] = []
    kind, held = "text", list[int]()

    def close() -> None:
        if held or kind != "text":
            parts.append({"type": kind, "text": tokenizer.decode(held)})
        held.clear()

    for token in ids:
        if token in ends:
            break
        if token not in specials:
            held.append(token)
        elif token in kinds and not kind == kinds[token] == "text":
            close()
            kind = kinds[token]
    close()
    return parts


def read_conversations(paths: Iterable[str | Path]) -> Iterator[list[Message]]:
    """Conversations of JSONL files (also .gz, .zst), in order, in plain form; one line in memory at a time.

    Empty lines are skipped. Broken lines are collected and named together, at the latest when their file ends.
    """
    for path in map(Path, paths):
        broken: list[str] = []
        n_conversation = 0
        for number, line in numbered_lines(path):
            try:
                conversation = conversation_of(parsed_line(line))
            except FathomError as error:
                remedy = f" ({error.remedy})" if error.remedy else ""
                broken.append(f"line {number}: {error.problem}{remedy}")
                if len(broken) == MAX_BROKEN_LINES_NAMED:
                    break
                continue
            n_conversation += 1
            yield conversation
        if broken:
            raise FathomError(
                f"{path} has lines that are no conversations: {'; '.join(broken)}", "mend or delete these lines"
            )
        if not n_conversation:
            raise FathomError(f"{path} holds no conversation", FORM)


def parsed_line(line: bytes) -> Any:
    """The JSON value of a line. FathomError says what is wrong with it, not where it stands."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FathomError(f"byte {error.start + 1} is not UTF-8", "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            where = f"{error.msg} at character {error.pos + 1}"
        else:
            where = "too deep" if isinstance(error, RecursionError) else "a number is too long"
        raise FathomError(f"it is not JSON: {where}", "every line is one JSON object") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a JSONL file (also .gz, .zst) that are not empty, with their numbers from 1."""
    import pyarrow as pa

    if path.is_dir():
        raise FathomError(f"{path} is a folder", "name the files in it")
    if not path.name.lower().endswith(FILE_ENDINGS):
        raise FathomError(f"{path} is no file of conversations by its name", f"known are {', '.join(FILE_ENDINGS)}")
    if not path.exists():
        raise FathomError(f"there is no file {path}", "check the path of the conversations")
    try:
        with io.BufferedReader(pa.input_stream(str(path), compression="detect"), 1 << 20) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise FathomError(
                        f"line {number} of {path} is longer than {MAX_LINE_BYTES:,} bytes",
                        "write one conversation a line, not all in one",
                    )
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise FathomError(f"{path} cannot be read ({error.strerror or error})", "check it, or copy it again") from None
