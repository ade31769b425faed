"""Text to ids and back: byte-level BPE, trained by rustbpe, encoded by tiktoken, kept as plain JSON.

Ids are the 256 bytes, then one id a merge, then the special tokens. A special token never comes out of text: whoever
means one takes its id from `special`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fathom.bpe import DOC_CAP, MAX_CHARS, Sample, cut_runs, learn_tokens, without_surrogates
from fathom.errors import FathomError
from fathom.home import names, tokenizer_dir, write_atomic
from fathom.screen import say

if TYPE_CHECKING:
    import tiktoken

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIALS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
FILE = "tokenizer.json"
MOST_TOKENS = 10**8  # which is what a network may have
_FORMAT, _VERSION = "fathom-tokenizer", 1

# Splits every text as PATTERN does, 1.4 times as fast: its possessive quantifiers stand before classes that share no
# character with theirs, so they change nothing, and without them all but the lookahead runs in a finite automaton.
_QUICK_PATTERN = (
    r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n])|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary: `tokens[i]` are the bytes of id i, the names of special tokens stand for the ids after them."""

    tokens: tuple[bytes, ...] = field(repr=False)
    special_names: tuple[str, ...] = SPECIALS
    pattern: str = PATTERN

    @property
    def vocab_size(self) -> int:
        return len(self.tokens) + len(self.special_names)

    @cached_property
    def specials(self) -> dict[str, int]:
        return {name: len(self.tokens) + i for i, name in enumerate(self.special_names)}

    @property
    def bos_id(self) -> int:
        return self.special("<|bos|>")

    def special(self, name: str) -> int:
        """The id of a special token, as in special("<|user_start|>")."""
        if name not in self.specials:
            raise FathomError(f"this tokenizer has no special token {name}", f"it has {', '.join(self.specials)}")
        return self.specials[name]

    @cached_property
    def digest(self) -> str:
        """sha256 of all that decides what a text becomes, 64 hex digits."""
        content = [self.pattern, list(self.special_names), [token.hex() for token in self.tokens]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            self.digest,
            pat_str=_QUICK_PATTERN if self.pattern == PATTERN else self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self.specials,
        )

    def encode_to_array(self, text: str) -> np.ndarray:
        """Ids of ordinary text, (n,) uint32; what looks like a special token is text too. Releases the GIL.

        A surrogate without its other half, which is no text, becomes U+FFFD.
        """
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_to_array(without_surrogates(text))
        except ValueError:
            parts = cut_runs(text)
            if len(parts) == 1:
                raise
            return np.concatenate([self.encode_to_array(part) for part in parts])

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; what looks like a special token is text too."""
        ids: list[int] = self.encode_to_array(text).tolist()
        return ids

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: stretches of UTF-8 as `encode` would, every other byte as the token of that byte."""
        ids: list[int] = []
        for stretch in re.findall(r"[\udc80-\udcff]+|[^\udc80-\udcff]+", data.decode("utf-8", "surrogateescape")):
            if "\udc80" <= stretch[0] <= "\udcff":
                ids.extend(stretch.encode("utf-8", "surrogateescape"))
            else:
                ids.extend(self.encode(stretch))
        return ids

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes behind any ids; a special token gives its name. FathomError for an id that does not exist."""
        known = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        strange = next((i for i in known if not 0 <= i < self.vocab_size), None)
        if strange is not None:
            raise FathomError(f"there is no token {strange}", f"this tokenizer has the ids 0 to {self.vocab_size - 1}")
        return self._encoding.decode_bytes(known)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text behind any ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each id stands for, (vocab_size,) int32: 0 for special tokens."""
        lengths = [len(token) for token in self.tokens] + [0] * len(self.special_names)
        return np.array(lengths, dtype=np.int32)

    def save(self, folder: Path, origin: dict[str, Any] | None = None) -> None:
        """Write `folder`/tokenizer.json. FathomError when another vocabulary is there already.

        `origin` is kept in the file for people to read: what it was trained on.
        """
        path = folder / FILE
        if path.exists():
            if load(folder).digest == self.digest:
                return
            raise FathomError(f"{path} holds another vocabulary", "choose another name or remove that folder")
        write_atomic(path, _to_json(self, origin or {}))


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    max_chars: int = MAX_CHARS,
    doc_cap: int = DOC_CAP,
    expected_chars: int | None = None,
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids, special tokens included (smaller, and said, where the text has too
    few pairs to merge).

    Of each document the first `doc_cap` characters are read, and no more documents once `max_chars` are. Raises
    FathomError when there is no text. `expected_chars` tells the progress bar how much is coming.
    """
    return train_on(Sample(texts, max_chars, doc_cap), vocab_size, expected_chars)


def train_on(sample: Sample, vocab_size: int, expected_chars: int | None = None) -> Tokenizer:
    """`train` on a sample, which afterwards tells how much of it was read."""
    fewest = 256 + len(SPECIALS)
    if vocab_size < fewest:
        raise FathomError(
            f"a vocabulary of {vocab_size} has no room for the 256 bytes and {len(SPECIALS)} special tokens",
            f"ask for at least {fewest}",
        )
    if vocab_size > MOST_TOKENS:
        raise FathomError(f"a vocabulary of {str(vocab_size)[:40]} is too large", f"ask for at most {MOST_TOKENS:,}")
    tokenizer = Tokenizer(tuple(learn_tokens(sample, vocab_size - len(SPECIALS), _QUICK_PATTERN, expected_chars)))
    if tokenizer.vocab_size < vocab_size:
        say(
            f"The text has no more pairs to merge: the vocabulary has {tokenizer.vocab_size:,} tokens "
            f"instead of {vocab_size:,}."
        )
    return tokenizer


def load(name_or_path: str | Path) -> Tokenizer:
    """A tokenizer by name, or from the folder it is in. FathomError says what is wrong with which file."""
    path = _folder_of(name_or_path) / FILE
    if not path.is_file():
        raise _no_such_tokenizer(name_or_path)
    try:
        return _from_json(path.read_text(encoding="utf-8"))
    except _Damaged as problem:
        raise FathomError(f"{path}: {problem}", "train the tokenizer again, or take the file from a copy") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FathomError(
            f"{path} is damaged ({error})", "train the tokenizer again, or take the file from a copy"
        ) from None


def _folder_of(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or len(path.parts) != 1 or path.is_absolute():
        return path.parent if path.name == FILE else path
    if name_or_path not in names("tokenizers") and (path / FILE).is_file():
        return path
    return tokenizer_dir(name_or_path)


def _no_such_tokenizer(name_or_path: str | Path) -> FathomError:
    here = names("tokenizers")
    near = get_close_matches(str(name_or_path), here, n=1)
    if near:
        return FathomError(f"there is no tokenizer {str(name_or_path)!r}", f"did you mean {near[0]!r}?")
    listed = f"those here are {', '.join(here)}" if here else "there are none yet"
    return FathomError(
        f"there is no tokenizer {str(name_or_path)!r}, {listed}", "make one with `fathom tokenizer train`"
    )


class _Damaged(Exception):
    """What is wrong with the contents of a tokenizer file."""


def _to_json(tokenizer: Tokenizer, origin: dict[str, Any]) -> str:
    """One token a line, as [id, text], so that a person can read and compare vocabularies."""
    head = {
        "format": _FORMAT,
        "version": _VERSION,
        "vocab_size": tokenizer.vocab_size,
        "trained_on": origin,
        "pattern": tokenizer.pattern,
        "specials": tokenizer.specials,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
    tokens = [f"[{i}, {json.dumps(_escaped(token), ensure_ascii=False)}]" for i, token in enumerate(tokenizer.tokens)]
    return "{\n" + "\n".join(lines) + '\n"tokens": [\n' + ",\n".join(tokens) + "\n]\n}\n"


def _from_json(text: str) -> Tokenizer:
    content = json.loads(text)
    if content["format"] != _FORMAT:
        raise _Damaged("this is no tokenizer of ours")
    if content["version"] != _VERSION:
        raise _Damaged(f"written in version {content['version']} of the format, and version {_VERSION} is read here")
    tokens = tuple(_unescaped(token) for _, token in content["tokens"])
    specials: dict[str, int] = content["specials"]
    ids = [i for i, _ in content["tokens"]] + list(specials.values())
    if ids != list(range(content["vocab_size"])):
        raise _Damaged("its ids are not 0, 1, 2, … in order, with the special tokens last")
    if tokens[:256] != tuple(bytes([byte]) for byte in range(256)):
        raise _Damaged("its first 256 tokens are not the 256 bytes in order")
    if len(set(tokens)) != len(tokens):
        raise _Damaged("a token stands in it twice")
    if "<|bos|>" not in specials:
        raise _Damaged("it has no special token <|bos|>")
    return Tokenizer(tokens, tuple(specials), str(content["pattern"]))


def _escaped(token: bytes) -> str:
    r"""Printable UTF-8 as it is, everything else as \xhh, and \\ for the backslash itself."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable():
        return text.replace("\\", "\\\\")
    return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in token)


def _unescaped(text: str) -> bytes:
    if "\\" not in text:
        return text.encode()
    if re.fullmatch(r"([^\\]|\\\\|\\x[0-9a-f]{2})*", text) is None:
        raise _Damaged(f"the token {text!r} is not escaped as it should be")
    return re.sub(rb"\\(\\|x..)", lambda m: b"\\" if m[1] == b"\\" else bytes([int(m[1][1:], 16)]), text.encode())
