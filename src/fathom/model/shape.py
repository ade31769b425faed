"""Counts, FLOPs and windows of a network, without building it (pure, no torch).

Formulas: REFERENCE sections 1.3, 1.6 and 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fathom.errors import FathomError

VOCAB_MULTIPLE = 64
SMEAR_CHANNELS = 24
GATE_CHANNELS = 12

# Far above any network: what keeps a slip of the finger from counting layers for hours.
MOST = {
    "n_layer": 1_000,
    "n_head": 10_000,
    "n_kv_head": 10_000,
    "head_dim": 10_000,
    "vocab_size": 100_000_000,
    "seq_len": 100_000_000,
}


@dataclass(frozen=True)
class Shape:
    """Every size of a network. `vocab_size` is what the tokenizer has; the tables are padded to a multiple of 64."""

    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    vocab_size: int
    seq_len: int
    window_pattern: str = "SSSL"

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            size = getattr(self, name)
            if not 1 <= size <= most:
                raise FathomError(f"{name} is {str(size)[:40]}", f"choose a whole number from 1 to {most:,}")
        if self.n_head % self.n_kv_head:
            raise FathomError(
                f"{self.n_head} heads cannot share {self.n_kv_head} key/value heads",
                "choose n_kv_head so that it divides n_head",
            )
        if self.head_dim % 2:
            raise FathomError(f"head_dim is {self.head_dim}", "rotary embedding needs an even head_dim")
        if self.d_model < SMEAR_CHANNELS:
            raise FathomError(f"the model is {self.d_model} wide", f"make it at least {SMEAR_CHANNELS}")
        if not self.window_pattern or set(self.window_pattern.upper()) - {"S", "L"}:
            raise FathomError(
                f"window pattern {self.window_pattern!r} has letters other than S and L",
                "use S for a short window and L for the whole context, as in SSSL",
            )

    @property
    def d_model(self) -> int:
        return self.n_head * self.head_dim

    @property
    def d_ff(self) -> int:
        return 4 * self.d_model

    @property
    def d_kv(self) -> int:
        return self.n_kv_head * self.head_dim

    @property
    def padded_vocab(self) -> int:
        return VOCAB_MULTIPLE * -(-self.vocab_size // VOCAB_MULTIPLE)

    @property
    def short_window(self) -> int:
        """A quarter of the context, rounded up to a multiple of 128."""
        quarter = -(-self.seq_len // 4)
        return 128 * -(-quarter // 128)

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Per layer, how many tokens back a query sees besides itself; the last layer sees the whole context."""
        letters = [self.window_pattern.upper()[layer % len(self.window_pattern)] for layer in range(self.n_layer)]
        letters[-1] = "L"
        return tuple(self.seq_len if letter == "L" else self.short_window for letter in letters)

    def has_value_embedding(self, layer: int) -> bool:
        """Every second layer, counted so that the last one has a table."""
        return layer % 2 == (self.n_layer - 1) % 2

    @property
    def n_value_embeddings(self) -> int:
        return -(-self.n_layer // 2)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters by kind, and their total."""
        square = 2 * self.d_model * self.d_model + 2 * self.d_model * self.d_kv
        feed_forward = 2 * self.d_model * self.d_ff
        kinds = {
            "token_embedding": self.padded_vocab * self.d_model,
            "value_embeddings": self.n_value_embeddings * self.padded_vocab * self.d_kv,
            "head": self.padded_vocab * self.d_model,
            "block_matrices": self.n_layer * (square + feed_forward)
            + self.n_value_embeddings * GATE_CHANNELS * self.n_kv_head,
            "scalars": 2 * self.n_layer + SMEAR_CHANNELS + 2,
        }
        return kinds | {"total": sum(kinds.values())}

    @property
    def scaling_parameters(self) -> int:
        """Block matrices and head: the count that the rules of `scaling` go by."""
        return self.parameters["block_matrices"] + self.parameters["head"]

    @property
    def matmul_parameters(self) -> int:
        return self.scaling_parameters + SMEAR_CHANNELS

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs, forward and backward: 6 for each matrix weight, 12·H·D for each key in the window."""
        keys = sum(min(window, self.seq_len) for window in self.windows)
        return 6 * self.matmul_parameters + 12 * self.d_model * keys

    def cache_bytes_per_token(self, bytes_per_number: int) -> int:
        """Bytes of keys and values that one token leaves in a full cache."""
        return 2 * self.n_layer * self.d_kv * bytes_per_number
