"""The smallest tokenizer with the real one's interface: 256 bytes, a few merges, and the nine special tokens last."""

from __future__ import annotations

from collections.abc import Iterable

SPECIALS = [
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
]
PAIRS = [b"th", b"er", b"in", b" a"]


class ByteTokenizer:
    def __init__(self) -> None:
        self._bytes = [bytes([byte]) for byte in range(256)] + PAIRS
        self.specials = {name: len(self._bytes) + i for i, name in enumerate(SPECIALS)}
        self.vocab_size = len(self._bytes) + len(SPECIALS)
        self.bos_id = self.specials["<|bos|>"]

    def special(self, name: str) -> int:
        return self.specials[name]

    def encode(self, text: str) -> list[int]:
        ids, data = list[int](), text.encode()
        while data:
            size = 2 if data[:2] in PAIRS else 1
            ids.append(self._bytes.index(data[:size]))
            data = data[size:]
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes[token] if token < len(self._bytes) else b"" for token in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")
