"""Byte-level BPE, slow and obvious: split by the pattern, count every pair anew for every merge."""

from __future__ import annotations

from collections import Counter

import regex

Pair = tuple[int, int]


def train(texts: list[str], n_merges: int, pattern: str) -> list[bytes]:
    words = Counter(tuple(piece.encode()) for text in texts for piece in regex.findall(pattern, text))
    tokens = [bytes([byte]) for byte in range(256)]
    for _ in range(n_merges):
        pairs: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        new = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        merged: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            merged[_merge(word, best, new)] += count
        words = merged
    return tokens


def encode(text: str, tokens: list[bytes], pattern: str) -> list[int]:
    rank = {token: i for i, token in enumerate(tokens)}
    ids: list[int] = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            joined = [rank.get(a + b, len(rank)) for a, b in zip(parts, parts[1:], strict=False)]
            if not joined or min(joined) == len(rank):
                break
            at = joined.index(min(joined))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids.extend(rank[part] for part in parts)
    return ids


def _merge(word: tuple[int, ...], pair: Pair, new: int) -> tuple[int, ...]:
    out: list[int] = []
    at = 0
    while at < len(word):
        if word[at : at + 2] == pair:
            out.append(new)
            at += 2
        else:
            out.append(word[at])
            at += 1
    return tuple(out)
