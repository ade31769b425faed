"""Shuffling without a list: the place of any element can be asked for, and the same key always gives the same order.

A Feistel network over a power of four at least as big as the range, walked until it lands inside. It needs no memory
for a hundred million documents, and unlike a generator's `permutation` it never changes with the version of a library.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 6
_FEWEST_HALF_BITS = 3


def permuted(indices: np.ndarray, n: int, key: str) -> np.ndarray:
    """Where each of `indices` (integers below n, any shape) goes in the permutation of range(n) that `key` names."""
    half = max(_FEWEST_HALF_BITS, ((n - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8")
    values = _network(indices.astype(np.uint64), half, keys)
    outside = values >= n
    while outside.any():
        values[outside] = _network(values[outside], half, keys)
        outside = values >= n
    return values.astype(np.int64)


def _network(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    joined: np.ndarray = left << shift | right
    return joined


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the input changes about half of the output's."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ x >> np.uint64(31)
    return mixed
