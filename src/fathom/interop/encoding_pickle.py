"""The reference's tokenizer.pkl, without unpickling it: a reader that knows one object, tiktoken's Encoding.

Of pickle's instructions it knows those that build that object's plain arguments; there is none among them that calls
anything, and the one class that may be named is a stand-in that only keeps what it is given.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from fathom.errors import FathomError
from fathom.tokenizer import Tokenizer

MOST_BYTES = 256_000_000
ARGUMENTS = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}

_INSTRUCTIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST, pickle.EMPTY_TUPLE, pickle.NEWOBJ, pickle.BUILD),
    *(pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.SHORT_BINBYTES, pickle.BINBYTES),
)


class _Foreign(Exception):
    """What stands in the pickle and does not belong there."""


class _Known(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise _Foreign(f"the pickle instruction {bytes([code])!r}")


class _Encoding:
    """Stands in for tiktoken's class."""

    arguments: Any = None

    def __setstate__(self, arguments: Any) -> None:
        self.arguments = arguments


class _Reader(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Python's own, because its table of instructions can be cut down; C's would also follow absurd memo numbers."""

    dispatch = _Known({code[0]: pickle._Unpickler.dispatch[code[0]] for code in _INSTRUCTIONS})  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise _Foreign(f"{module}.{name}"[:200])


def read_encoding(path: Path) -> Tokenizer:
    """The vocabulary in a tokenizer.pkl. Raises FathomError for anything else that a pickle can hold, and names it."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FathomError(f"{path} has more than {MOST_BYTES:,} bytes", "no tokenizer is that large")
        found = _Reader(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError:
        raise FathomError(f"there is no {path}", "say with --tokenizer which folder tokenizer.pkl is in") from None
    except OSError as error:
        raise FathomError(f"{path} cannot be read ({error.strerror})", "see to its permissions") from None
    except _Foreign as foreign:
        raise FathomError(f"{path} holds {foreign}, which is no part of a tokenizer", "do not use it") from None
    except FathomError:
        raise
    except Exception as error:  # bytes that are no pickle make it stumble in many ways
        reason = str(error) or type(error).__name__
        raise FathomError(f"{path} is damaged ({reason[:200]})", "take the file from another copy") from None
    return _tokenizer(getattr(found, "arguments", None), path)


def _tokenizer(arguments: Any, path: Path) -> Tokenizer:
    if isinstance(arguments, str):
        raise FathomError(
            f"{path} only names tiktoken's encoding {arguments[:60]!r} and does not hold it",
            "a tokenizer that the reference trained is needed",
        )
    if not isinstance(arguments, dict) or {key: type(value) for key, value in arguments.items()} != ARGUMENTS:
        raise _unfit(path, "it is not what tiktoken writes")
    ranks, specials = arguments["mergeable_ranks"], arguments["special_tokens"]
    tokens, names = _in_order(ranks, bytes, 0), _in_order(specials, str, len(ranks))
    if tokens is None or names is None:
        raise _unfit(path, "its ids are not 0, 1, 2, … with the special tokens last")
    if tokens[:256] != [bytes([byte]) for byte in range(256)]:
        raise _unfit(path, "its first 256 tokens are not the 256 bytes in order")
    if "<|bos|>" not in names:
        raise _unfit(path, "it has no special token <|bos|>")
    tokenizer = Tokenizer(tuple(tokens), tuple(names), arguments["pat_str"])
    try:
        tokenizer.encode("It's 3 o'clock, and all is well.\n")
    except Exception as error:  # the pattern is a stranger's
        raise _unfit(path, f"its pattern does not split text ({str(error)[:100]})") from None
    return tokenizer


def _in_order(ids: dict[Any, Any], kind: type, first: int) -> list[Any] | None:
    """The keys by their ids, where these are `first`, `first` + 1, …; else None."""
    if not all(type(key) is kind and type(i) is int for key, i in ids.items()):
        return None
    if sorted(ids.values()) != list(range(first, first + len(ids))):
        return None
    return sorted(ids, key=ids.__getitem__)


def _unfit(path: Path, why: str) -> FathomError:
    return FathomError(f"{path} is no tokenizer of the reference's: {why}", "take the file from another copy")
